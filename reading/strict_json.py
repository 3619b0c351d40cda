"""JSON as the standard has it: Python's `json.dumps` also writes NaN and Infinity, which other programs refuse."""

import json
from contextlib import suppress
from pathlib import Path


def strict_json(value, default=None, **options) -> str:
    """As `json.dumps`, but with null for what is not finite."""
    return json.dumps(json.loads(json.dumps(value, default=default), parse_constant=lambda _: None), **options)


def loaded(value: object) -> object:
    """A value, or what a text says as JSON: the cells of tables are texts. Another text stays."""
    with suppress(ValueError, RecursionError):
        return json.loads(value) if isinstance(value, str) else value
    return value


def json_object(flag: str, text: str | None) -> dict:
    """What a flag holds; nothing where it is not given."""
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"--{flag} {text} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f'--{flag} {text} must be a JSON object, such as {{"NAME": true}}.')
    return value


def is_no_json(value: object) -> bool:
    """Whether the text that a flag holds is neither a JSON object nor the path of a JSON file."""
    try:
        isinstance(value, str) and json.loads(value if value[:1] == "{" else Path(value).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return False


def make_strict(path: str) -> None:
    """Rewrite a JSON file of a library's in the same way."""
    with open(path, encoding="utf-8") as file:
        value = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        file.write(strict_json(value, indent=2) + "\n")
