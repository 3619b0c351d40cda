"""Read the first row of a file, and propose --columns for it. Menus in which users map columns need both."""

import os
import shlex

from reading.copies import cells_of_csv, cells_of_sheet, is_copied, open_columns
from reading.mapping import proposal
from reading.rows import MEDIA_KINDS, PAIRS, RowForm
from reading.sources import find_source, has_ending, scan


def first_row(path: str) -> dict:
    """Return the first row of a --data_path, or {} for an image folder or a tar file."""
    file, found = find_source(path).files[0], {}
    if not is_copied(file) and not has_ending(file, ".tar"):
        found = next((row for *_, row in scan(file)), {})
    elif has_ending(file, ".parquet", ".arrow"):
        with open_columns(file) as (schema, batches_of):
            found = next(iter(batches_of(schema.names))).slice(0, 1).to_pylist()[0]
    elif has_ending(file, ".csv", ".tsv", ".xlsx"):
        cells = (cells_of_sheet if has_ending(file, ".xlsx") else cells_of_csv)(file)
        found = dict(zip([name.strip().lower() for name in next(cells, [])], next(cells, [])))
    return found if isinstance(found, dict) else {}


def columns_for(row: dict) -> list[str]:
    """Return the --columns to propose for a row that cannot be read without them; [] if none are needed."""
    if not row or {"messages", "conversations"} & {*row} or any({*pair} <= {*row} for pair in PAIRS.items()):
        return []
    words = shlex.split(proposal(row, RowForm(dict.fromkeys(MEDIA_KINDS, os.getcwd()))))
    found = words[words.index("--columns") + 1 :] if "--columns" in words else []
    return [word for word in found if "=" in word]
