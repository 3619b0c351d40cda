"""From `--data_path` to rows: which files a path names, and any row of a file without holding the others.

A path is `PATH[:SPLIT][SLICE][:WEIGHT]`, such as `train.json`, `b.jsonl:0.5`, `shards/*.parquet[:1%]` or
`owner/name:train[100:200]:2`.
"""

import codecs
import contextlib
import csv
import glob
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from reading import dataset_info
from reading.mapping import conversion, proposal
from reading.references import what_it_is
from reading.rows import MEDIA_COLUMNS, PAIRS, RowForm

TABLES = (".csv", ".tsv")
ENDINGS = (".json", ".jsonl", ".parquet", *TABLES)
WEIGHT = re.compile(r":(\d+(?:\.\d*)?|\.\d+)\Z")
SLICE = re.compile(r"\[(-?\d+%?)?:(-?\d+%?)?\]\Z")
SPLIT = re.compile(r":([\w.-]+(?:/[\w.-]+)?)\Z")
SPLITS = (
    "train",
    "training",
    "validation",
    "valid",
    "val",
    "dev",
    "test",
    "testing",
    "eval",
    "evaluation",
)  # as they are usually called
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+\Z")
WHITE_SPACE = re.compile(r"[ \t\r\n]*")
CHUNK = 1 << 20  # characters of a JSON list that are read at a time
NO_DATA = ["*.py", "*.bin", "*.safetensors", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.gguf"]  # is not fetched
MADE_BY_THE_HUB = "refs/convert/parquet"  # the branch of its Parquet copies
ARROW_ROWS = 64  # rows of a batch in the Arrow copy of a file: what one access maps
SEPARATORS = (",", ";", "\t")  # of tables; Excel writes semicolons where the comma is the decimal point


@dataclass(frozen=True)
class Source:
    """One path of `--data_path`."""

    path: str  # as it was written
    files: tuple[str, ...]
    bounds: tuple[str | None, str | None]  # of the slice, such as ("100", "200") or (None, "1%")
    weight: float  # how often each row is seen in an epoch
    from_hub: bool
    columns: tuple[str, ...] = ()  # NAME=FIELD that hold for it
    keys: dict[str, object] = field(default_factory=dict)  # of reading.rows.RowForm that do
    folder: str | None = None  # where relative paths of media start, if not in each file's own

    def select(self, num_rows: int) -> range:
        """The rows of the slice.

        Raises:
            ValueError: it is empty, or goes beyond the rows that there are.
        """
        start, stop = (
            default if bound is None else place_of(bound, num_rows)
            for bound, default in zip(self.bounds, (0, num_rows))
        )
        if not 0 <= start <= num_rows or not 0 <= stop <= num_rows:
            raise ValueError(f"{self.path}: its slice goes beyond the {num_rows:,} rows that there are.")
        if num_rows and start >= stop:
            raise ValueError(f"{self.path}: its slice is empty, for there are {num_rows:,} rows.")
        return range(start, stop)


def names_of(paths: Sequence[str]) -> list[str]:
    """Short names of paths, such as "val" of data/val.json[:10%]: with their folders, or whole, where two are alike."""
    bare = [re.sub(r"[:\[*?].*", "", path).rstrip("/") for path in paths]
    stems = [re.sub(rf"({'|'.join(map(re.escape, ENDINGS))})\Z", "", os.path.basename(path)) for path in bare]
    folders = [os.path.basename(os.path.dirname(path)) for path in bare]
    for names in (stems, [f"{folder}_{stem}" for folder, stem in zip(folders, stems)]):
        if len({*names, "", "blind"}) == len(paths) + 2:  # "blind" is what the blind guess is logged under
            return names
    return list(paths)


def place_of(bound: str, num_rows: int) -> int:
    """A bound of a slice, such as "100", "-50" or "10%", as a number of rows from the first."""
    is_percent, number = bound.endswith("%"), int(bound.rstrip("%"))
    if is_percent:  # beyond 100 stays beyond, however few rows there are
        number = round(num_rows * number / 100) if abs(number) <= 100 else num_rows + abs(number)
    return num_rows + number if bound.startswith("-") else number


def find_source(path: str) -> Source:
    """What a path of `--data_path` names.

    Raises:
        ValueError: nothing is there, or the path has no meaning; the message names it and the cure.
    """
    place, weight, bounds, split = path, 1.0, (None, None), None
    if not os.path.exists(place) and (match := WEIGHT.search(place)):
        place, weight = place[: match.start()], float(match[1])
    if not os.path.exists(place) and (match := SLICE.search(place)):
        place, bounds = place[: match.start()], match.groups()
    if not os.path.exists(place) and (match := SPLIT.search(place)):
        place, split = place[: match.start()], match[1]
    if weight <= 0:
        raise ValueError(f"{path}: the weight must be a number above 0.")
    if os.path.basename(place) == dataset_info.NAME and os.path.isfile(place):
        entry = dataset_info.read_entry(place, split)
        found = find_source(f"{entry.path}:{entry.split}" if entry.split else entry.path)
        about = {"columns": entry.columns, "keys": entry.keys, "folder": os.path.dirname(os.path.abspath(place))}
        return replace(found, path=path, bounds=bounds if any(bounds) else entry.bounds, weight=weight, **about)
    if split and (os.path.isfile(place) or glob.has_magic(place)):
        raise ValueError(f"{path}: only folders and Hub ids have splits such as {split!r}; leave it out.")
    from_hub = not os.path.exists(place) and bool(HUB_ID.match(place)) and not place.lower().endswith(ENDINGS)
    root = download(place) if from_hub else place
    files = files_of(root, split, everywhere=from_hub)
    splits = [name for name in SPLITS if any(in_split(os.path.relpath(file, root), name) for file in files)]
    if not files:
        splits = [name for name in SPLITS if os.path.isdir(os.path.join(root, name))]
    kinds = {name[:3] for name in splits}  # `training` is `train`
    if not split and (len(kinds) > 1 or splits and not files):
        is_glob = glob.has_magic(place) and not os.path.isdir(place)
        fix = "narrow the pattern to one" if is_glob else f"name one of them, such as {place}:{splits[0]}"
        raise ValueError(
            f"{path} has the splits {', '.join(splits)}: {fix} (to use several, give each as its own path)."
        )
    for file in files:
        if not os.path.isfile(file):
            raise ValueError(
                f"{file} does not exist or is not a file. A path is a file ({', '.join(ENDINGS)}), a folder, a glob or "
                "a data set id of the Hub, with [:SPLIT][SLICE][:WEIGHT] behind it (docs/dataset.md)."
            )
        if not file.lower().endswith(ENDINGS):
            raise ValueError(
                f"{file} has none of the endings {', '.join(ENDINGS)}, by which its form is known. Save a spreadsheet "
                "as CSV UTF-8 (docs/start.md); example_data/convert/refcoco.py makes rows of RefCOCO's refs(...).p."
            )
        what = what_it_is(file)
        if what and (what != "empty" or not file.lower().endswith(".jsonl")):  # an empty JSONL file holds no row
            raise ValueError(f"{file} is {what}.")
    if not files:
        of_split = f" of a split {split!r}" if split else ""
        raise ValueError(f"{path}: there is no {', '.join(ENDINGS)} file{of_split} in {place or '.'} (docs/start.md).")
    return Source(path, tuple(files), bounds, weight, from_hub)


def files_of(place: str, split: str | None, everywhere: bool) -> list[str]:
    """The data files of a folder, those that match a glob, or the one of that name; sorted."""
    if not (os.path.isdir(place) or everywhere):
        is_glob = glob.has_magic(place) and not os.path.isfile(place)
        return sorted(glob.glob(place, recursive=True)) if is_glob else [place]
    parts = ["**"] if everywhere else ["", "data", *([split, os.path.join("data", split)] if split else [])]
    patterns = [os.path.join(glob.escape(place), part, "*") for part in parts]
    found = sorted({file for pattern in patterns for file in glob.glob(pattern, recursive=everywhere)})
    found = [file for file in found if file.lower().endswith(ENDINGS)]
    if everywhere and any(map(is_parquet, found)):
        found = [file for file in found if is_parquet(file)]  # others describe the data set
    found = [file for file in found if not is_table(file)] or found  # beside others, a table describes them
    return [file for file in found if not split or in_split(os.path.relpath(file, place), split)]


def in_split(file: str, split: str) -> bool:
    """Whether a file belongs to a split (or to "configuration/split"), by its name or a folder that it lies in."""
    *folders, name = file.split(os.sep)
    of_name = r"(?<![^\W\d_])%s(?![^\W\d_])"  # between others than letters, as the Hub has it: a_train2017.json
    return all(part in folders or re.search(of_name % re.escape(part), name) for part in split.split("/"))


def download(name: str) -> str:
    """The folder of a data set of the Hub: its Parquet files, its own or those the Hub made; else all of its files.

    Raises:
        ValueError: there is none, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download  # only a data set on the Hub needs it

    def snapshot(**kwargs) -> str:
        return snapshot_download(name, repo_type="dataset", ignore_patterns=NO_DATA, **kwargs)

    try:
        files = HfApi().list_repo_files(name, repo_type="dataset")
        if any(is_parquet(file) for file in files):
            return snapshot(allow_patterns=["*.parquet"])
        if any(file.lower().endswith(ENDINGS) and not is_table(file) for file in files):
            return snapshot()
        return snapshot(allow_patterns=["*.parquet"], revision=MADE_BY_THE_HUB)
    except Exception as error:  # the client's own, or of whatever transports it
        for revision in (None, MADE_BY_THE_HUB):  # what an earlier run fetched
            with contextlib.suppress(Exception):
                folder = snapshot(allow_patterns=["*.parquet"], revision=revision, local_files_only=True)
                if any(name.lower().endswith(ENDINGS) for _, _, names in os.walk(folder) for name in names):
                    return folder
        raise ValueError(
            f"{name} is neither a file or folder here nor a data set of the Hub that can be reached: {error}"
        ) from error


# ---- rows ----


def scan(path: str) -> Iterator[tuple[int, int, object]]:
    """Go once over the rows of a JSON or JSONL file: (offset, number) of the bytes of each, and what they hold.

    In the place of what a line of JSONL holds that is not valid, there is a ValueError.

    Raises:
        ValueError: no JSON list, or broken JSON with its line.
    """
    try:
        yield from (scan_lines if path.lower().endswith(".jsonl") else scan_list)(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from error


def scan_lines(path: str) -> Iterator[tuple[int, int, object]]:
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if text.strip():
                try:
                    row = PARSER.decode(text.decode())
                except (ValueError, RecursionError) as error:
                    row = ValueError(f"is line {number}, which is {fault_of(error)}")
                yield offset + len(line) - len(text), len(text), row
            offset += len(line)


def scan_list(path: str) -> Iterator[tuple[int, int, object]]:
    with open(path, "rb") as file:
        window, other = JsonWindow(file), None
        try:
            if window.peek() == "[":
                window.advance(window.at + 1)
                more = window.peek() != "]"
                while more:
                    start, row = window.offset, window.parse()
                    yield start, window.offset - start, row
                    more = window.peek() == ","
                    if more:
                        window.advance(window.at + 1)
                window.expect("]")
            else:
                value = window.parse()
                other = f"{type(value).__name__}; {conversion(value) or 'or name it .jsonl'}"
            window.expect("")
        except UnicodeDecodeError:  # of the file as a whole, whose window knows no place of it
            raise
        except (ValueError, RecursionError) as error:
            line = window.line_of(getattr(error, "pos", window.at))
            hint = " (name a JSONL file .jsonl)" if getattr(error, "msg", None) == "Extra data" else ""
            raise ValueError(f"{path}, line {line}: {fault_of(error)}{hint}.") from error
    if other:
        raise ValueError(f"{path} must hold a JSON list of samples, not {other}.")


class JsonWindow:
    """A place in a file of JSON, and the text from there on, of which no more than a window is held."""

    def __init__(self, file):
        self.file, self.decode = file, codecs.getincrementaldecoder("utf-8")().decode
        self.text, self.at, self.is_last = "", 0, False  # the window, the place in it, whether the file ends with it
        self.line, self.offset = 1, 3 if file.read(3) == codecs.BOM_UTF8 else 0  # of the place
        file.seek(self.offset)

    def read_on(self) -> None:
        data = self.file.read(max(CHUNK, len(self.text) - self.at))  # twice as much each time, for rows of any size
        self.text, self.at, self.is_last = self.text[self.at :] + self.decode(data, not data), 0, not data

    def advance(self, to: int) -> None:
        passed = self.text[self.at : to]
        self.line, self.offset, self.at = self.line + passed.count("\n"), self.offset + len(passed.encode()), to

    def line_of(self, position: int) -> int:
        return self.line + self.text.count("\n", self.at, position)

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            self.advance(WHITE_SPACE.match(self.text, self.at).end())
            if self.at < len(self.text) or self.is_last:
                return self.text[self.at : self.at + 1]
            self.read_on()

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise json.JSONDecodeError(f"Expecting {character!r}" if character else "Extra data", self.text, self.at)
        self.advance(self.at + 1)

    def parse(self) -> object:
        """The value at the place, which moves behind it."""
        while True:
            try:
                self.peek()
                value, end = PARSER.raw_decode(self.text, self.at)
                if self.is_last or end < len(self.text):  # else a number may go on
                    self.advance(end)
                    return value
            except json.JSONDecodeError as error:
                # One that the window cuts off is read on; any other fault lies before the end of the window.
                if self.is_last or not (error.msg.startswith("Unterminated") or error.pos > len(self.text) - 16):
                    raise
            self.read_on()


def unique(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object, of which no key is lost because it stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found


PARSER = json.JSONDecoder(object_pairs_hook=unique)


def fault_of(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "not valid JSON: it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text: {error}"
    # A key that stands twice and a number of thousands of digits are errors without `msg`.
    return f"not valid JSON: {getattr(error, 'msg', None) or error}"


def read_json(path: str, offset: int, length: int) -> object:
    """One row of a JSON or JSONL file, by what `scan` said of it."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        return json.loads(file.read(length))


def is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")


def is_table(path: str) -> bool:
    return path.lower().endswith(TABLES)


def is_copied(path: str) -> bool:
    """Whether single rows of a file are read from an Arrow copy of it."""
    return is_parquet(path) or is_table(path)


def copy_rows(path: str, form: RowForm, target: str) -> None:
    """Write a Parquet file or a table as an Arrow file, from which any row can be read by itself.

    Args:
        form: columns that it ignores are left out.

    Raises:
        ValueError: the file is broken.
    """
    (copy_parquet if is_parquet(path) else copy_table)(path, form, target)


def copy_parquet(path: str, form: RowForm, target: str) -> None:
    import pyarrow as pa  # only copies need it
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file, pa.OSFile(target, "wb") as sink:
            wanted = [*form.mapping.names(file.schema_arrow.names)]
            classes = class_names(file.schema_arrow.metadata)
            plain = pa.schema([plain_field(file.schema_arrow.field(name)) for name in wanted])
            types = {
                field.name: pa.list_(pa.string()) if pa.types.is_list(field.type) else pa.string()
                for field in plain
                if field.name in classes
            }
            named = [pa.field(field.name, types.get(field.name, field.type)) for field in plain]
            with pa.ipc.new_file(sink, pa.schema(named)) as writer:
                for batch in file.iter_batches(ARROW_ROWS, columns=wanted):
                    batch = batch.select(wanted).cast(plain)
                    for name in classes.keys() & {*wanted}:
                        names = [named_class(classes[name], value) for value in batch[name].to_pylist()]
                        batch = batch.set_column(wanted.index(name), name, pa.array(names, types[name]))
                    for start in range(0, len(batch), ARROW_ROWS):
                        writer.write_batch(batch.slice(start, ARROW_ROWS))
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = "".join(c if c.isprintable() else " " for c in str(error))[:300]
        raise ValueError(f"{path} is not a readable Parquet file: {reason}") from error


def class_names(metadata: dict[bytes, bytes] | None) -> dict[str, dict[int, str]]:
    """Column -> number -> name of its classes, where a data set's library wrote them into the file."""
    about = json.loads((metadata or {}).get(b"huggingface", "{}")).get("info", {}).get("features", {})
    about = {name: kind[0] if isinstance(kind, list) else kind for name, kind in about.items()}
    about = {name: kind.get("feature", kind) for name, kind in about.items()}  # of a list of classes
    return {name: dict(enumerate(kind["names"])) for name, kind in about.items() if kind.get("names")}


def named_class(names: dict[int, str], value: object) -> object:
    return [named_class(names, inner) for inner in value] if isinstance(value, list) else names.get(value)


def plain_field(field):
    """An Arrow field of a type that can be written and read: times, of which Python has no nanoseconds, as numbers."""
    import pyarrow as pa

    if pa.types.is_dictionary(field.type):  # one of its own in every row group could not be written
        return field.with_type(field.type.value_type)
    if pa.types.is_temporal(field.type):
        return field.with_type(pa.int32() if field.type.bit_width == 32 else pa.int64())
    return field


def copy_table(path: str, form: RowForm, target: str) -> None:
    """Of CSV and TSV. Every cell is text, an empty one is null, and one of media is a list of references."""
    import pyarrow as pa

    with open_table(path, form) as (names, rows), pa.OSFile(target, "wb") as sink:
        read_as = form.mapping.names(names)
        wanted = {name: place for place, name in enumerate(names) if name in read_as}
        media = [name for name in wanted if read_as[name] in MEDIA_COLUMNS]
        schema = pa.schema([(name, pa.list_(pa.string()) if name in media else pa.string()) for name in wanted])
        with pa.ipc.new_file(sink, schema) as writer:
            while batch := list(itertools.islice(rows, ARROW_ROWS)):
                found = [{name: row[place] or None for name, place in wanted.items()} for row in batch]
                for row in found:
                    row |= {name: [cell.strip() for cell in row[name].split("|")] for name in media if row[name]}
                writer.write_batch(pa.RecordBatch.from_pylist(found, schema))


@contextlib.contextmanager
def open_table(path: str, form: RowForm) -> Iterator[tuple[list[str], Iterator[list[str]]]]:
    """The names of a table's columns, in small letters, and the cells of its rows, without those that are empty.

    Raises:
        ValueError: no UTF-8, broken CSV with its line, or not the columns that are needed.
    """
    try:
        file = open(path, encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    with file:
        try:
            first = file.readline()
            headers = {separator: next(csv.reader([first], delimiter=separator), []) for separator in SEPARATORS}
            separator = max(headers, key=lambda separator: len(headers[separator]))
            names = [name.strip().lower() or f"column {i}" for i, name in enumerate(headers[separator], 1)]
            read_as = {*form.mapping.names(names).values(), *(PAIRS if form.prompt is not None else [])}
            if not any({*pair} <= read_as for pair in PAIRS.items()):
                cells = next(csv.reader(file, delimiter=separator), [])
                raise ValueError(
                    f"{path} has the columns {', '.join(names) or '(none)'}, but it needs `question` and `answer`, and "
                    "`image` or `video` for media: name them so in its first line, or "
                    f"{proposal(dict(zip(names, cells)), {*form.folders.values()})}"
                )
            if twice := [name for name in names if names.count(name) > 1 and name]:
                raise ValueError(f"{path} names the column {twice[0]} twice in its first line; rename one.")
            yield names, rows_of_table(path, csv.reader(file, delimiter=separator, strict=True), len(names))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}. Save it as CSV UTF-8.") from error


def rows_of_table(path: str, reader, width: int) -> Iterator[list[str]]:
    line = 2
    try:
        for cells in reader:
            if any(cells):
                if len(cells) != width:
                    raise csv.Error(f"{len(cells)} cells, but the first line names {width} columns")
                yield cells
            line = 2 + reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line}: {error}. A cell that holds a separator, a quote or a line break must stand in "
            'quotes ("), and each quote in it twice.'
        ) from error


def open_arrow(path: str):
    """An Arrow file, mapped into memory."""
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(path))


def scan_arrow(batches) -> Iterator[tuple[int, int, object]]:
    """As `scan`, with the batch and the place in it of each row of an Arrow file."""
    for number in range(batches.num_record_batches):
        for place, row in enumerate(rows_of(batches.get_batch(number))):
            yield number, place, row


def rows_of(batch) -> list:
    """The rows of an Arrow batch; in the place of one that Python has no values for, a ValueError."""
    try:
        return batch.to_pylist()
    except ValueError as error:  # such as other bytes than UTF-8
        if len(batch) == 1:
            return [ValueError(f"cannot be read: {error}")]
        return [row for place in range(len(batch)) for row in rows_of(batch.slice(place, 1))]


def read_arrow(batches, number: int, place: int) -> object:
    return batches.get_batch(number).slice(place, 1).to_pylist()[0]
