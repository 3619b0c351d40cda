"""What is written as JSON is read by programs that know nothing but JSON."""

import json
import math
from pathlib import Path

from reading.strict_json import make_strict, strict_json


def refuse(word: str):
    raise AssertionError(f"{word} is no JSON")


def test_what_is_not_finite_becomes_null(tmp_path):
    value = {"a": [1.5, math.nan, {"b": -math.inf}], "text": "NaN", "path": Path("x")}
    expected = {"a": [1.5, None, {"b": None}], "text": "NaN", "path": "x"}
    assert json.loads(strict_json(value, default=str, indent=1), parse_constant=refuse) == expected
    (tmp_path / "a.json").write_text('[Infinity, "é", 2]')
    make_strict(str(tmp_path / "a.json"))
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse) == [None, "é", 2]
