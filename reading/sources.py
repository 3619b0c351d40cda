"""Find the files of a path in `--data_path`, and read a JSON file row by row.

A path is `PATH[:SPLIT][SLICE][:WEIGHT]`, such as `train.json`, `b.jsonl:0.5`, `shards/*.parquet[:1%]` or
`owner/name:train[100:200]:2`.
"""

import codecs
import contextlib
import glob
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from reading import dataset_info
from reading.mapping import conversion
from reading.references import HUB_PATH, kind_by_name, what_it_is

TABLES = (".csv", ".tsv", ".xlsx")
COLLECTIONS = (".parquet", ".arrow", ".tar")  # on the Hub, JSON files and tables next to these only describe them
ENDINGS = (".json", ".jsonl", *COLLECTIONS, *TABLES)
DESCRIBING = (dataset_info.NAME, "dataset_dict.json")  # files of a folder that contain no rows
WEIGHT_SUFFIX = re.compile(r":(\d+(?:\.\d*)?|\.\d+)\Z")
SLICE = re.compile(r"\[(-?\d+%?)?:(-?\d+%?)?\]\Z")
SPLIT = re.compile(r":([\w.-]+(?:/[\w.-]+)?)\Z")
# The usual names of splits.
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+\Z")
WHITE_SPACE = re.compile(r"[ \t\r\n]*")
CHUNK = 1 << 20  # bytes of a file that are read at a time
NO_DATA = ["*.py", "*.bin", "*.safetensors", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.gguf"]  # not downloaded
MADE_BY_THE_HUB = "refs/convert/parquet"  # the branch with the Hub's Parquet copies


@dataclass(frozen=True)
class Source:
    """One path of `--data_path`."""

    path: str  # as the user wrote it
    files: tuple[str, ...]
    bounds: tuple[str | None, str | None]  # of the slice, such as ("100", "200") or (None, "1%")
    weight: float  # how often each row is seen in an epoch
    from_hub: bool
    columns: tuple[str, ...] = ()  # NAME=FIELD pairs for this path
    keys: dict[str, object] = field(default_factory=dict)  # fields of reading.rows.RowForm
    folder: str | None = None  # the base of relative media paths, if not each file's folder

    def select(self, num_rows: int) -> range:
        """Return the numbers of the rows in the slice."""
        start, stop = (
            default if bound is None else place_of(bound, num_rows)
            for bound, default in zip(self.bounds, (0, num_rows))
        )
        if not 0 <= start <= num_rows or not 0 <= stop <= num_rows:
            raise ValueError(f"{self.path}: the slice goes beyond the {num_rows:,} rows of the data.")
        if num_rows and start >= stop:
            raise ValueError(f"{self.path}: the slice is empty, since the data has {num_rows:,} rows.")
        return range(start, stop)


def names_of(paths: Sequence[str]) -> list[str]:
    """Return short names of paths, such as "val" of data/val.json. If two are equal, add folders or use full paths."""
    bare = [path.removeprefix("hf://").replace(f"{dataset_info.NAME}:", "") for path in paths]
    bare = [re.sub(r"[:\[*?].*", "", path).rstrip("/") for path in bare]
    stems = [re.sub(rf"({'|'.join(map(re.escape, ENDINGS))})\Z", "", os.path.basename(path)) for path in bare]
    folders = [os.path.basename(os.path.dirname(path)) for path in bare]
    for names in (stems, [f"{folder}_{stem}" for folder, stem in zip(folders, stems)]):
        if len({*names, "", "blind"}) == len(paths) + 2:  # metrics of the blind guess use the name "blind"
            return names
    return list(paths)


def place_of(bound: str, num_rows: int) -> int:
    """Convert a bound of a slice, such as "100", "-50" or "10%", to the number of a row."""
    is_percent, number = bound.endswith("%"), int(bound.rstrip("%"))
    if is_percent:  # more than 100 is out of range, even for few rows
        number = round(num_rows * number / 100) if abs(number) <= 100 else num_rows + abs(number)
    return num_rows + number if bound.startswith("-") else number


def find_source(path: str) -> Source:
    """Return the `Source` that a path of `--data_path` names."""
    try:
        return named_source(path)
    except OSError as error:
        raise ValueError(f"{error.filename or path} cannot be read: {error.strerror}.") from error


def named_source(path: str) -> Source:
    place, weight, bounds, split = path, 1.0, (None, None), None
    if not os.path.exists(place) and (match := WEIGHT_SUFFIX.search(place)):
        place, weight = place[: match.start()], float(match[1])
    if not os.path.exists(place) and (match := SLICE.search(place)):
        place, bounds = place[: match.start()], match.groups()
    if not os.path.exists(place) and (match := SPLIT.search(place)):
        place, split = place[: match.start()], match[1]
    if weight <= 0:
        raise ValueError(f"{path}: the weight must be a number above 0.")
    if os.path.basename(place) == dataset_info.NAME and os.path.isfile(place):
        named, about = dataset_info.read_entry(place, split)
        about |= {"bounds": bounds} if any(bounds) else {}
        return replace(find_source(named), path=path, weight=weight, **about)
    if split and (os.path.isfile(place) or glob.has_magic(place)):
        raise ValueError(f"{path}: only folders and Hub ids have splits; remove :{split}.")
    on_hub = HUB_PATH.match(place)
    is_id = not os.path.exists(place) and bool(HUB_ID.match(place)) and not has_ending(place, *ENDINGS)
    from_hub, root = bool(on_hub) or is_id, place
    if from_hub:
        name, revision, inside = on_hub.groups() if on_hub else (place, None, "")
        root = os.path.join(download(name, revision and unquote(revision), inside), inside)
    files = files_of(root, split, everywhere=from_hub and not inside)
    splits = [name for name in SPLITS if any(in_split(os.path.relpath(file, root), name) for file in files)]
    if not files:
        splits, folder = splits_in(root), os.path.join(root, split or "")
        if (split or not splits) and is_picture_folder(folder):
            return Source(path, (os.path.abspath(folder),), bounds, weight, from_hub)
    kinds = {name[:3] for name in splits}  # `training` and `train` are the same split
    if not split and (len(kinds) > 1 or splits and not files):
        is_glob = glob.has_magic(place) and not os.path.isdir(place)
        fix = "narrow the pattern to one split" if is_glob else f"name one of them, such as {place}:{splits[0]}"
        raise ValueError(
            f"{path} has the splits {', '.join(splits)}: {fix} (to use several, pass each as a separate path)."
        )
    for file in files:
        mode = 0
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            mode = os.stat(file).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(
                f"{file} does not exist or is not a file. Pass a file ({', '.join(ENDINGS)}), a folder, a glob or "
                "a data set id of the Hub; [:SPLIT][SLICE][:WEIGHT] may follow (docs/dataset.md)."
            )
        what = None if has_ending(file, ".xlsx") else what_it_is(file)  # .xlsx files are zip archives
        if what and (what != "empty" or not has_ending(file, ".jsonl")):  # an empty JSONL file is valid
            raise ValueError(f"{file} is {what}.")
        if not has_ending(file, *ENDINGS):
            raise ValueError(
                f"{file} has none of the extensions {', '.join(ENDINGS)}. Save a spreadsheet as CSV UTF-8 "
                "(docs/start.md). Convert RefCOCO's refs(...).p with example_data/convert.py refcoco."
            )
    if not files:
        of_split = f" of the split {split!r}" if split else ""
        deeper = [name for name in files_of(os.path.join(root, "**"), None, False) if has_ending(name, *ENDINGS)]
        hint = f", but there is {deeper[0]}: pass '{place}/**/*{os.path.splitext(deeper[0])[1]}'" if deeper else ""
        raise ValueError(
            f"{path}: no {', '.join(ENDINGS)} file or image{of_split} is in {place or '.'}{hint} (docs/start.md)."
        )
    return Source(path, tuple(files), bounds, weight, from_hub)


def splits_in(folder: str) -> list[str]:
    """Return the subfolders that are splits. A single `train` with images, next to other folders, is a class."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, "dataset_dict.json")) as file:
            return json.load(file)["splits"]  # from DatasetDict.save_to_disk
        folders = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
        found = [name for name in SPLITS if name in folders]
        is_class = len(found) == 1 < len(folders) and any(map(kind_by_name, os.listdir(os.path.join(folder, *found))))
        return [] if is_class else found
    return []


def is_picture_folder(folder: str) -> bool:
    """Whether a folder contains images or videos, but no data file."""
    found = [name for _, _, names in os.walk(folder, onerror=refuse) for name in names]
    return any(map(kind_by_name, found)) and not any(has_ending(name, *ENDINGS) for name in found)


def refuse(error: OSError):
    """Raise the errors of `os.walk`, which would otherwise skip a folder that exists but cannot be read."""
    if not isinstance(error, FileNotFoundError):
        raise error


def has_ending(path: str, *endings: str) -> bool:
    return path.lower().endswith(endings)


def usual_names(path: str) -> str | None:
    """Return the kind of a file whose fields `mapping.usual_name` knows, else None."""
    is_metadata = os.path.basename(path).lower().startswith("metadata.")
    return "tar" if has_ending(path, ".tar") else "metadata" if is_metadata else None


def files_of(place: str, split: str | None, everywhere: bool) -> list[str]:
    """Return the sorted data files of a folder, or the files that match a glob, or the path itself."""
    if not (os.path.isdir(place) or everywhere):
        is_glob = glob.has_magic(place) and not os.path.isfile(place)
        return sorted(glob.glob(place, recursive=True)) if is_glob else [place]
    parts = ["**"] if everywhere else ["", "data", *([split, os.path.join("data", split)] if split else [])]
    patterns = [os.path.join(glob.escape(place), part, "*") for part in parts]
    found = sorted({file for pattern in patterns for file in glob.glob(pattern, recursive=everywhere)})
    found = [file for file in found if has_ending(file, *ENDINGS) and os.path.basename(file) not in DESCRIBING]
    found = [shard for file in found if os.path.basename(file) == "state.json" for shard in shards_of(file)] or found
    for ending in COLLECTIONS if everywhere else ():
        found = [file for file in found if has_ending(file, ending)] or found
    found = [file for file in found if not has_ending(file, *TABLES)] or found  # tables only describe other data files
    return [file for file in found if not split or in_split(os.path.relpath(file, place), split)]


def shards_of(state: str) -> list[str]:
    """Return the Arrow files in the order of a `state.json` of `Dataset.save_to_disk`; [] for other files."""
    about = {}
    with contextlib.suppress(ValueError, OSError), open(state, encoding="utf-8") as file:
        about = json.load(file)
    if not isinstance(about, dict) or "_data_files" not in about:
        return []
    if about.get("_indices_data_files"):
        raise ValueError(
            f"{state}: an old release of `datasets` stored the row order separately; load the data "
            "set and save it again."
        )
    names = [os.path.basename(shard["filename"]) for shard in about["_data_files"]]
    return [os.path.join(os.path.dirname(state), name) for name in names]


def in_split(file: str, split: str) -> bool:
    """Whether a file belongs to a split (or to "configuration/split"), judged by its name and folders."""
    *folders, name = file.split(os.sep)
    of_name = r"(?<![^\W\d_])%s(?![^\W\d_])"  # without letters before or after, as on the Hub: a_train2017.json
    return all(part in folders or re.search(of_name % re.escape(part), name) for part in split.split("/"))


def download(name: str, revision: str | None = None, inside: str = "") -> str:
    """Download `inside`, else the Parquet files, else all data, else the Hub's Parquet copies. Return the folder."""
    from huggingface_hub import HfApi, snapshot_download  # only a data set on the Hub needs it

    def snapshot(*patterns: str, **kwargs) -> str:
        kwargs = {"revision": revision, "allow_patterns": patterns or None} | kwargs
        return snapshot_download(name, repo_type="dataset", ignore_patterns=NO_DATA, **kwargs)

    try:
        if inside:
            folder = os.path.dirname(inside) if has_ending(inside, *ENDINGS) else inside
            return snapshot(inside if has_ending(inside, *COLLECTIONS) else os.path.join(folder, "*"))
        files = HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
        if any(has_ending(file, ".parquet") for file in files):
            return snapshot("*.parquet")
        if any(has_ending(file, *ENDINGS) and not has_ending(file, *TABLES) for file in files):
            return snapshot()
        return snapshot("*.parquet", revision=MADE_BY_THE_HUB)
    except Exception as error:  # errors of huggingface_hub or of its HTTP library
        for known in () if inside else (revision, MADE_BY_THE_HUB):  # use what an earlier run downloaded
            with contextlib.suppress(Exception):
                folder = snapshot("*.parquet", revision=known, local_files_only=True)
                if any(has_ending(name, *ENDINGS) for _, _, names in os.walk(folder) for name in names):
                    return folder
        raise ValueError(
            f"{name} is neither a local file or folder nor a reachable data set of the Hub: {error}"
        ) from error


# ---- rows ----


def scan(path: str) -> Iterator[tuple[int, int, object]]:
    """Yield (offset, number of bytes, value) of each row of a JSON or JSONL file.

    For an invalid line of a JSONL file, the value is a ValueError.
    """
    try:
        yield from (scan_lines if has_ending(path, ".jsonl") else scan_list)(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from error


def scan_lines(path: str) -> Iterator[tuple[int, int, object]]:
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if number == 1 and text.startswith(b"["):
                raise ValueError(
                    f"{path} begins with a list, but a .jsonl file has one object per line: rename it to .json."
                )
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
                what = f"an object with {', '.join([*value][:5])}" if isinstance(value, dict) else type(value).__name__
                other = f"{what}: {conversion(value) or 'write the rows as a list, or one per line in a .jsonl file'}"
            window.expect("")
        except UnicodeDecodeError:  # an error of the whole file, since the line is unknown
            raise
        except (ValueError, RecursionError) as error:
            line = window.line + window.text.count("\n", window.at, getattr(error, "pos", window.at))
            hint = " (rename a JSONL file to .jsonl)" if getattr(error, "msg", None) == "Extra data" else ""
            raise ValueError(f"{path}, line {line}: {fault_of(error)}{hint}.") from error
    if other:
        raise ValueError(f"{path} must contain a JSON list of samples, not {other}.")


class JsonWindow:
    """A position in a JSON file, and a window of text from there on, so the whole file is never loaded."""

    def __init__(self, file):
        self.file, self.decode = file, codecs.getincrementaldecoder("utf-8")().decode
        self.text, self.at, self.is_last = "", 0, False  # window, position in it, whether it reaches the file's end
        self.line, self.offset = 1, 3 if file.read(3) == codecs.BOM_UTF8 else 0  # line and byte of the position
        file.seek(self.offset)

    def read_on(self) -> None:
        data = self.file.read(max(CHUNK, len(self.text) - self.at))  # doubles each time, for rows of any size
        self.text, self.at, self.is_last = self.text[self.at :] + self.decode(data, not data), 0, not data

    def advance(self, to: int) -> None:
        passed = self.text[self.at : to]
        self.line, self.offset, self.at = self.line + passed.count("\n"), self.offset + len(passed.encode()), to

    def peek(self) -> str:
        """Return the next character that is not white space; "" at the end of the file."""
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
        """Return the value at the position, and move the position past the value."""
        while True:
            try:
                self.peek()
                value, end = PARSER.raw_decode(self.text, self.at)
                if self.is_last or end < len(self.text):  # otherwise a number may continue after the window
                    self.advance(end)
                    return value
            except json.JSONDecodeError as error:
                # A value that the window cuts off fails near the window's end, so read on. Other faults are earlier.
                if self.is_last or not (error.msg.startswith("Unterminated") or error.pos > len(self.text) - 16):
                    raise
            self.read_on()


def unique(pairs: list[tuple[str, object]]) -> dict:
    """Build a JSON object. A key that appears twice is an error, since one of its values would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice in one object")
    return found


PARSER = json.JSONDecoder(object_pairs_hook=unique)


def fault_of(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "not valid JSON: it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text: {error}"
    # The errors for a key that appears twice and for a number with thousands of digits have no `msg`.
    return f"not valid JSON: {getattr(error, 'msg', None) or error}"
