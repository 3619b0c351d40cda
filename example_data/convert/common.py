"""What the scripts of this folder share."""

import argparse
import inspect
import json
from collections.abc import Callable, Iterable
from pathlib import Path


def read_json(path: str) -> dict | list:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def corners(box: list[float]) -> list[float]:
    """x, y, width and height -> the corners of the box, as `objects` of a row has it."""
    x, y, width, height = box
    return [x, y, x + width, y + height]


def write_rows(rows: Callable[..., Iterable[dict]]) -> None:
    """The command line of a script: the arguments of its `rows`, and the JSONL file to write."""
    about = inspect.getmodule(rows).__doc__
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in (*inspect.signature(rows).parameters, "output"):
        parser.add_argument(name)
    *given, output = vars(parser.parse_args()).values()
    try:
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows(*given)]
    except (KeyError, OSError, TypeError, ValueError) as error:  # such as of two files in the wrong order
        raise SystemExit(f"{' '.join(given)}: {type(error).__name__}: {error}. Give the files of --help.") from error
    if not lines:
        raise SystemExit(f"{given[0]} gives no row; nothing was written.")
    Path(output).write_text("".join(lines), encoding="utf-8")
    print(f"wrote {output}: {len(lines):,} rows")
