"""Read and write standard JSON. Python's `json.dumps` also writes NaN and Infinity, which other programs refuse."""

import json
from contextlib import suppress
from pathlib import Path


def strict_json(value, default=None, **options) -> str:
    """Do the same as `json.dumps`, but write null for NaN and Infinity."""
    return json.dumps(json.loads(json.dumps(value, default=default), parse_constant=lambda _: None), **options)


def loaded(value: object) -> object:
    """Return a value, parsed if it is text with valid JSON, since the cells of tables are text."""
    with suppress(ValueError, RecursionError):
        return json.loads(value) if isinstance(value, str) else value
    return value


def json_object(flag: str, text: str | None) -> dict:
    """Return the JSON object in the value of a flag; {} if the flag is not given."""
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"--{flag} {text} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f'--{flag} {text} must be a JSON object, such as {{"NAME": true}}.')
    return value


def is_no_json(value: object) -> bool:
    """Whether the text of a flag is neither a JSON object nor the path of a JSON file."""
    try:
        isinstance(value, str) and json.loads(value if value[:1] == "{" else Path(value).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return False


def make_strict(path: str) -> None:
    """Rewrite a JSON file that a library wrote, with null for NaN and Infinity."""
    with open(path, encoding="utf-8") as file:
        value = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        file.write(strict_json(value, indent=2) + "\n")
