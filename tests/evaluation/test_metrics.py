"""Measures of answers, against values counted by hand."""

import math

import pytest
from conftest import REPO
from test_docs import code_blocks

from evaluation.metrics import anls, exact_match, load_metric, score

# (prediction, reference, exact match, ANLS): one minus edits over the length of the longer, 0 from one half on.
BY_HAND = [
    ("Red", "Red", 1, 1),
    (" Red\n", "Red", 1, 1),
    ("red", "Red", 0, 1),
    ("kitten", "sitten", 0, 1 - 1 / 6),
    ("kitten", "sitting", 0, 1 - 3 / 7),
    ("ab", "ac", 0, 0),  # one half
    ("", "Red", 0, 0),
    ("", "", 1, 1),
    ("Straße 5", "Straße 6", 0, 1 - 1 / 8),
]


@pytest.mark.parametrize("prediction, reference, exact, similarity", BY_HAND)
def test_metrics_by_hand(prediction, reference, exact, similarity):
    assert exact_match([prediction], [reference]) == exact
    assert anls([prediction], [reference]) == pytest.approx(similarity)


def test_a_score_is_the_mean_of_answers(tmp_path):
    answers = [{"prediction": p, "reference": r} for p, r, *_ in BY_HAND]
    (tmp_path / "own.py").write_text(
        "def lengths(predictions, references):\n"
        "    return {'longest': max(map(len, predictions)), 'mean': sum(map(len, references)) / len(references)}\n"
    )
    name, function = load_metric(f"{tmp_path / 'own.py'}:lengths")
    found = score(answers, {name: function})
    assert found["exact_match"] == pytest.approx(sum(e for *_, e, _ in BY_HAND) / len(BY_HAND))
    assert found["anls"] == pytest.approx(sum(s for *_, s in BY_HAND) / len(BY_HAND))
    assert found["longest"] == 8 and found["mean"] == pytest.approx((3 + 3 + 3 + 6 + 7 + 2 + 3 + 0 + 8) / 9)


@pytest.mark.parametrize(
    "code, path, message",
    [
        ("", "own.py", "write FILE.py:FUNCTION"),
        ("", "none.py:score", "of an existing file"),
        ("", "own.py:score", "has no function score"),
        ("score = 1", "own.py:score", "has no function score"),
        ("import nothing_of_this_name", "own.py:score", "cannot be run: ModuleNotFoundError"),
        ("def anls(p, r): return 1", "own.py:anls", "is measured anyway"),
    ],
)
def test_a_wrong_metric_is_refused(tmp_path, monkeypatch, code, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(ValueError, match=message):
        load_metric(path)


@pytest.mark.parametrize("value", [math.nan, "good", None])
def test_a_metric_that_gives_no_number_is_named(value):
    with pytest.raises(ValueError, match="own gave .* a metric must be a number"):
        score([{"prediction": "a", "reference": "a"}], {"own": lambda predictions, references: value})


def test_the_functions_of_the_page(tmp_path):
    """On existing libraries; values that follow from their definitions."""
    ((_, code),) = [block for block in code_blocks(REPO / "docs/training.md", "python")]
    (tmp_path / "my_metrics.py").write_text(code)
    own = dict(load_metric(f"{tmp_path / 'my_metrics.py'}:{name}") for name in ("rouge_l", "cider", "box"))
    assert own["rouge_l"](["a b c", "x"], ["a c", "y"]) == pytest.approx((2 * 1 * (2 / 3) / (1 + 2 / 3)) / 2)
    captions = ["a red dog runs", "two cats on a mat", "a bus"]
    assert own["cider"](captions, captions) > 5 > own["cider"](captions[::-1], captions)
    boxes = own["box"](["0, 0, 2, 2", "nothing", "[0 0 1 1]"], ["1, 1, 3, 3", "0 0 1 1", "0, 0, 1, 1"])
    assert boxes == pytest.approx({"iou": (1 / 7 + 0 + 1) / 3, "iou_above_half": 1 / 3})
    answers = [{"prediction": "0, 0, 2, 2", "reference": "0, 0, 2, 2"}]
    assert score(answers, own)["iou"] == 1
