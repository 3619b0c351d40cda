"""JSON as the standard has it: Python's `json.dumps` also writes NaN and Infinity, which other programs refuse."""

import json


def strict_json(value, default=None, **options) -> str:
    """As `json.dumps`, but with null for what is not finite."""
    return json.dumps(json.loads(json.dumps(value, default=default), parse_constant=lambda _: None), **options)


def make_strict(path: str) -> None:
    """Rewrite a JSON file of a library's in the same way."""
    with open(path, encoding="utf-8") as file:
        value = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        file.write(strict_json(value, indent=2) + "\n")
