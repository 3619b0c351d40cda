"""The overlap of moments, against the tenths of seconds that are in both, whatever form they are written in."""

import json
import random

import pytest

from evaluation import metrics
from evaluation.boxes import moments_of

FORMS = [
    lambda a, b: f"{a} - {b}",
    lambda a, b: f"From {a} to {b}.",
    lambda a, b: f"{a}s\u2013{b}s",
    lambda a, b: f"It starts at {a} seconds and ends at {b} seconds.",
    lambda a, b: f"<{a} seconds> to <{b} seconds>",
    lambda a, b: f"[{a}, {b}]",
    lambda a, b: f"start={a} end={b}",
    lambda a, b: json.dumps({"start": a, "end": b}),
    lambda a, b: json.dumps([{"start_time": clock(a), "end_time": clock(b), "label": "a door opens"}], indent=1),
    lambda a, b: f"{clock(a)} to {clock(b)}",
    lambda a, b: f"The event happens in {clock(a)} - {clock(b)}.",
]


def clock(seconds: float) -> str:
    """As 01:02:03.5 or 02:03.5."""
    minutes, rest = divmod(round(seconds * 10), 600)
    head = f"{minutes // 60:02d}:{minutes % 60:02d}" if minutes >= 60 else f"{minutes:02d}"
    return f"{head}:{rest // 10:02d}.{rest % 10}"


def tenths(one: tuple[float, float]) -> set[int]:
    return {*range(round(one[0] * 10), round(one[1] * 10))}


def test_the_overlap_is_that_of_the_tenths_of_seconds():
    functions, draw = metrics.load_metrics(["tiou"]), random.Random(0)
    for i in range(200):
        pairs = [sorted(draw.sample(range(300 if i % 2 else 90_000), 2)) for _ in range(2)]
        answered, right = ((a / 10, b / 10) for a, b in pairs)
        told = [draw.choice(FORMS)(*one) for one in (answered, right)]
        found = metrics.score([{"prediction": told[0], "reference": told[1]}], functions)["tiou"]
        one, other = tenths(answered), tenths(right)
        assert found == pytest.approx(len(one & other) / len(one | other)), told


def test_what_is_no_moment_and_what_are_several():
    tiou = metrics.load_metrics(["tiou"])
    for answer, reference, expected in (
        ("nothing", "0 - 10", 0),
        ("at 5 seconds", "0 - 10", 0),
        ("10 - 0", "0 - 10", 0),
        ("0 - 10, 50 - 60", "0 - 10", 0.5),
        ("0 - 10", "20 - 30 and 0 - 10", 0.5),
    ):
        assert metrics.score([{"prediction": answer, "reference": reference}], tiou)["tiou"] == expected, answer
    mixed = [{"prediction": "0 - 2", "reference": "0 - 1"}, {"prediction": "A door", "reference": "At 3 o'clock"}]
    assert metrics.score(mixed, tiou)["tiou"] == 0.5 and "tiou" not in metrics.score(mixed[1:], tiou)
    assert (
        not moments_of("12.5 20") and not moments_of("version 1.2.3") and not moments_of("in 2024: a door, 3 windows")
    )
