"""Copy Parquet and Arrow files, tables and image folders to Arrow files, from which single rows can be read."""

import contextlib
import csv
import itertools
import json
import os
from collections.abc import Iterator
from functools import cache

from reading import picture_folders
from reading.mapping import proposal
from reading.rows import MEDIA_COLUMNS, MEDIA_KINDS, PAIRS, RowForm
from reading.sources import has_ending

ARROW_ROWS = 64  # rows per batch; to read one row, its whole batch is mapped into memory
SEPARATORS = (",", ";", "\t")  # of CSV files; Excel writes semicolons in locales with a decimal comma


def is_copied(path: str) -> bool:
    """Whether the rows of a file are read from its Arrow copy."""
    return os.path.isdir(path) or not has_ending(path, ".json", ".jsonl", ".tar")


def copy_rows(path: str, form: RowForm, target: str) -> None:
    """Write the Arrow copy of a file or a folder, without the columns that --columns ignores."""
    if not has_ending(path, ".parquet", ".arrow"):
        return copy_texts(path, form, target)
    import pyarrow as pa  # imported only when a copy is made

    try:
        with open_columns(path) as (held, batches_of), pa.OSFile(target, "wb") as sink:
            wanted = [*form.mapping.names(held.names)]
            plain = pa.schema([plain_field(held.field(name)) for name in wanted], held.metadata)
            with pa.ipc.new_file(sink, plain) as writer:
                for batch in batches_of(wanted):
                    columns = [as_plain(batch[field.name], field.type) for field in plain]
                    batch = pa.record_batch(columns, schema=plain)
                    for start in range(0, len(batch), ARROW_ROWS):
                        writer.write_batch(batch.slice(start, ARROW_ROWS))
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = "".join(c if c.isprintable() else " " for c in str(error))[:300]
        kind = "Parquet" if has_ending(path, ".parquet") else "Arrow"
        raise ValueError(f"{path} is not a readable {kind} file: {reason}") from error


@contextlib.contextmanager
def open_columns(path: str) -> Iterator[tuple]:
    """Yield a Parquet or Arrow file's schema, and a function from column names to the file's batches."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if has_ending(path, ".parquet"):
        with pq.ParquetFile(path) as file:
            yield file.schema_arrow, lambda names: file.iter_batches(ARROW_ROWS, columns=names)
        return
    with pa.OSFile(path) as source:
        is_stream = source.read(6) != b"ARROW1"  # `datasets` writes the stream format, others the file format
        source.seek(0)
        opened = pa.ipc.open_stream(source) if is_stream else pa.ipc.open_file(source)
        batches = opened if is_stream else map(opened.get_batch, range(opened.num_record_batches))
        yield opened.schema, lambda _: batches


def plain_field(field):
    """Return the field with a type that we support. Times become text, because Python's times lack nanoseconds."""
    import pyarrow as pa

    if pa.types.is_dictionary(field.type):  # row groups may have different dictionaries, an Arrow file only one
        return field.with_type(field.type.value_type)
    return field.with_type(pa.string()) if pa.types.is_temporal(field.type) else field


def as_plain(column, kind):
    """Cast an Arrow column to the type of `plain_field`. Times are written as 2026-01-05 07:00:00, in UTC."""
    from pyarrow import compute, timestamp, types

    if column.type == kind:  # a cast is not needed, and PyArrow 26 fails on some objects with nulls
        return column
    if types.is_timestamp(column.type):  # a cast to text with a zone needs a zone database, which may be missing
        column = column.cast(timestamp(column.type.unit))
    texts = column.cast(kind)
    return compute.replace_substring_regex(texts, r"\.0+$", "") if types.is_temporal(column.type) else texts


def copy_texts(path: str, form: RowForm, target: str) -> None:
    """Write the Arrow copy of a table or an image folder, whose columns have no types. Empty cells become null."""
    import pyarrow as pa

    if os.path.isdir(path):
        columns, rows = dict.fromkeys((*MEDIA_KINDS, "answer"), False), picture_folders.rows_in(path, form.prompt)
    else:
        columns, rows = rows_of_table(path, form)
    schema = pa.schema([(name, pa.list_(pa.string()) if is_list else pa.string()) for name, is_list in columns.items()])
    with pa.OSFile(target, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while batch := list(itertools.islice(rows, ARROW_ROWS)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))


def rows_of_table(path: str, form: RowForm) -> tuple[dict[str, bool], Iterator[dict]]:
    """Return a table's lower-case column names (-> whether cells list media), and an iterator over its rows."""
    cells_of = (cells_of_sheet if has_ending(path, ".xlsx") else cells_of_csv)(path)
    names = [name.strip().lower() or f"column {i}" for i, name in enumerate(next(cells_of), 1)]
    read_as = form.mapping.names(names)
    given = {*read_as.values(), *(PAIRS if form.prompt is not None else [])}
    if given.isdisjoint(form.turn_fields) and not any({*pair} <= given for pair in PAIRS.items()):
        raise ValueError(
            f"{path} has the columns {', '.join(names) or '(none)'}, but it needs `question` and `answer`, and "
            "`image` or `video` for media: rename the columns in the first line, or "
            f"{proposal(dict(zip(names, next(cells_of, []))), form)}"
        )
    if twice := [name for name in names if names.count(name) > 1 and name]:
        raise ValueError(f"{path} has two columns named {twice[0]} in its first line; rename one.")
    wanted = {name: place for place, name in enumerate(names) if name in read_as}
    columns = {name: read_as[name] in MEDIA_COLUMNS for name in wanted}

    def row_of(cells: list[str]) -> dict:
        row = {name: cells[place] or None for name, place in wanted.items()}
        media = [name for name, is_list in columns.items() if is_list and row[name]]
        return row | {name: [cell.strip() for cell in row[name].split("|")] for name in media}

    return columns, map(row_of, cells_of)


def cells_of_csv(path: str) -> Iterator[list[str]]:
    """Yield the cells of the first line, and then of each further line that is not empty."""
    line = 2
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            headers = {separator: next(csv.reader([first], delimiter=separator), []) for separator in SEPARATORS}
            separator = max(headers, key=lambda separator: len(headers[separator]))
            yield headers[separator]
            width, reader = len(headers[separator]), csv.reader(file, delimiter=separator, strict=True)
            for cells in reader:
                if any(cells):
                    if len(cells) != width:
                        raise csv.Error(f"it has {len(cells)} cells, but the first line has {width} columns")
                    yield cells
                line = 2 + reader.line_num
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}. Save it as CSV UTF-8.") from error
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line}: {error}. Put a cell that contains a separator, a quote or a line break "
            'in quotes ("), and double each quote in the cell.'
        ) from error


def cells_of_sheet(path: str) -> Iterator[list[str]]:
    """Yield the cells of each row that is not empty. The Excel file must have exactly one sheet with rows."""
    try:
        import openpyxl  # an optional package

        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except ImportError as error:
        raise ValueError(f"{path} needs openpyxl: pip install openpyxl, or save the file as CSV UTF-8.") from error
    except Exception as error:  # openpyxl raises many types of errors on broken files
        raise ValueError(f"{path} is not a readable Excel file: {error}") from error
    with contextlib.closing(book):
        sheets = [rows_of_sheet(path, sheet) for sheet in book.worksheets]
        filled = [(header, rows) for rows in sheets if (header := next(rows, None))]
        if len(filled) != 1:
            raise ValueError(f"{path} has {len(filled)} sheets with rows, expected exactly one.")
        yield from itertools.chain(filled[0][:1], filled[0][1])


def rows_of_sheet(path: str, sheet) -> Iterator[list[str]]:
    """Yield each row as text cells, also numbers, dates and booleans. Pad each row to the length of the first."""
    sheet.reset_dimensions()  # some programs store wrong dimensions in the file
    width = None
    for values in sheet.iter_rows(values_only=True):
        whole = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
        cells = ["" if value is None else str(value) for value in whole]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            width = width or len(cells)
            if len(cells) > width:
                raise ValueError(f"{path}: the cell {cells[-1][:50]!r} is in a column without a name; name the column.")
            yield cells + [""] * (width - len(cells))


def open_arrow(path: str):
    """Open an Arrow file, mapped into memory."""
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(path))


def to_rows(batch) -> list:
    """Return the rows of an Arrow batch. A row that Python cannot represent is replaced by a ValueError."""
    classes = with_classes((batch.schema.metadata or {}).get(b"huggingface", b"{}"))
    try:
        rows = [{name: present(value) for name, value in row.items()} for row in batch.to_pylist()]
        return [row | {name: with_names(row[name], classes[name]) for name in classes.keys() & row} for row in rows]
    except ValueError as error:  # for example, text that is not UTF-8
        if len(batch) == 1:
            return [ValueError(f"cannot be read: {error}")]
        return [row for place in range(len(batch)) for row in to_rows(batch.slice(place, 1))]


def present(value: object) -> object:
    """Remove null fields. Arrow gives all objects the same fields, such as the arguments of every tool call."""
    if isinstance(value, dict):
        return {name: present(inner) for name, inner in value.items() if inner is not None}
    return [*map(present, value)] if isinstance(value, list) else value


@cache
def with_classes(about: bytes) -> dict[str, object]:
    """Map each column with class numbers to its feature, which Hugging Face's `datasets` stored in the file."""
    features = json.loads(about).get("info", {}).get("features", {})
    return {name: feature for name, feature in features.items() if "'ClassLabel'" in repr(feature)}


def with_names(value: object, feature) -> object:
    """Replace class numbers by class names, also inside lists and objects."""
    if isinstance(feature, list):  # how old releases of `datasets` stored a list
        feature = {"_type": "List", "feature": feature[0]}
    kind = feature.get("_type")
    if kind == "ClassLabel" and not isinstance(value, list):
        return dict(enumerate(feature["names"])).get(value)
    if isinstance(kind, str):
        feature = feature.get("feature", feature)  # for a list, the feature of its items
    if isinstance(value, list):
        return [with_names(inner, feature) for inner in value]
    if isinstance(value, dict):
        return {name: with_names(inner, feature.get(name, {})) for name, inner in value.items()}
    return value
