"""Measures of answers, against values counted by hand."""

import math

import pytest
from conftest import REPO
from test_docs import code_blocks

from evaluation.metrics import METRICS, confusion, kind_of, load_metric, load_metrics, score

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


def measure(name: str, *pairs: tuple[str, str | list[str]]) -> float:
    """A metric of (prediction, reference) or (prediction, references)."""
    several = [{"references": r} if isinstance(r, list) else {} for _, r in pairs]
    answers = [{"prediction": p, "reference": r} | more for (p, r), more in zip(pairs, several)]
    return score(answers, {name: METRICS[name].measure})[name]


@pytest.mark.parametrize("prediction, reference, exact, similarity", BY_HAND)
def test_metrics_by_hand(prediction, reference, exact, similarity):
    assert measure("exact_match", (prediction, reference)) == exact
    assert measure("anls", (prediction, reference)) == pytest.approx(similarity)
    # Of several references the best counts, wherever it is.
    assert measure("exact_match", (prediction, ["none of it", reference])) == exact
    assert measure("anls", (prediction, ["none of it", reference])) == pytest.approx(similarity)


def test_a_score_is_the_mean_of_answers(tmp_path):
    answers = [{"prediction": p, "reference": r} for p, r, *_ in BY_HAND]
    (tmp_path / "own.py").write_text(
        "def lengths(predictions, references):\n"
        "    return {'longest': max(map(len, predictions)), 'mean': sum(map(len, references)) / len(references)}\n"
    )
    found = score(answers, load_metrics([f"{tmp_path / 'own.py'}:lengths", "cer"]))
    assert found["exact_match"] == pytest.approx(sum(e for *_, e, _ in BY_HAND) / len(BY_HAND))
    assert found["anls"] == pytest.approx(sum(s for *_, s in BY_HAND) / len(BY_HAND))
    assert found["longest"] == 8 and found["mean"] == pytest.approx((3 + 3 + 3 + 6 + 7 + 2 + 3 + 0 + 8) / 9)
    assert found["cer"] == pytest.approx((0 + 0 + 1 + 1 + 3 + 1 + 3 + 0 + 1) / (3 + 3 + 3 + 6 + 7 + 2 + 3 + 0 + 8))


def test_a_function_gets_the_references_of_a_row_as_they_are():
    answers = [{"prediction": "a", "reference": "b"}, {"prediction": "c", "reference": "d", "references": ["d", "e"]}]
    assert score(answers, {"own": lambda p, r: float((p, r) == (["a", "c"], ["b", ["d", "e"]]))}) == {"own": 1}


@pytest.mark.parametrize(
    "name, pairs, value",
    [
        ("accuracy", [("Cat.", "cat"), (" CAT ", "cat"), ("a cat", "cat"), ("dog", ["cat", "Dog"])], 3 / 4),
        # Classes a (precision 2/3, recall 1), b (1, 1/2) and c (0); an answer that is no class costs recall alone.
        ("f1", [("a", "A"), ("a", "a"), ("a", "b"), ("b", "b"), ("x", "c")], (4 / 5 + 2 / 3 + 0) / 3),
        ("f1", [("b", ["a", "b"]), ("c", ["a", "b"])], (1 + 0) / 2),
        # One insertion in 4 letters, one deletion and one substitution in 6: of all, not the mean of 1/4 and 2/6.
        ("cer", [("abcde", "abcd"), ("bcdex", "abcdef")], 3 / 10),
        ("cer", [("abc", ["xyz", "abcd"])], 1 / 4),
        ("cer", [("abc", ["abcdefgh", "x"])], 5 / 8),  # 5 edits are fewer of eight letters than 3 of one
        ("cer", [("far too long", "no")], 11 / 2),
        ("wer", [("the cat  sat on mat\n", "the cat sat on the mat"), ("Yes", "yes")], (1 + 1) / 7),
        ("cer", [("", "")], 0),
    ],
)
def test_rates_by_hand(name, pairs, value):
    assert measure(name, *pairs) == pytest.approx(value)


# Rules of https://visualqa.org/evaluation.html: an answer as it is typed and as it is compared.
NORMALIZED = [
    ("The  Dog.", "dog"),
    ("two", "2"),
    ("None", "0"),
    ("an apple, a pear", "apple pear"),
    ("1,000 people", "1000 people"),
    ("3.5 cm.", "3.5 cm"),
    ("black-and-white", "black and white"),
    ("yes!\nno", "yes no"),
    ("girl's", "girl's"),
    ("2:50 pm", "2:50 pm"),
    ("dont know", "don't know"),
]


def test_the_accuracy_of_vqa_by_hand():
    """Each of ten people is left out in turn; three of the other nine make an answer right."""
    for typed, compared in NORMALIZED:
        assert measure("vqa", (typed, [compared] * 4 + ["other"] * 6)) == 1, typed
        assert measure("vqa", (f"not {typed}", [compared] * 4 + ["other"] * 6)) == 0, typed
    said = ["no"] * 7
    assert measure("vqa", ("yes", ["yes", "maybe", "so", *said])) == pytest.approx((9 * (1 / 3) + 0) / 10)
    assert measure("vqa", ("yes", ["yes", "Yes.", "so", *said])) == pytest.approx((8 * (2 / 3) + 2 * (1 / 3)) / 10)
    assert measure("vqa", ("yes", ["yes", "Yes.", "the yes", *said])) == pytest.approx((7 * 1 + 3 * (2 / 3)) / 10)
    assert measure("vqa", ("girls", ["girl's"] * 10)) == 0
    # Of fewer people than three and one more, one is enough.
    assert measure("vqa", ("The Yes.", "yes"), ("no", "yes"), ("b", ["a", "B", "c"])) == pytest.approx(2 / 3)


def test_the_confusion_of_closed_answers():
    pairs = [("cat", "Cat"), ("dog", "cat"), ("Cat.", "cat"), ("dog", "dog"), ("a horse", "dog")]
    answers = [{"prediction": p, "reference": r} for p, r in pairs]
    assert confusion(answers) == [("cat", [2, 1, 0]), ("dog", [0, 1, 1])]
    assert confusion(answers[:3]) == []  # one class
    assert confusion(answers[2:4]) == []  # none twice
    long = [answer | {"reference": answer["reference"] * 20} for answer in answers]
    assert confusion(long) == []
    assert confusion([{"prediction": "", "reference": str(i % 12)} for i in range(24)])[0] == ("0", [0] * 12 + [2])
    assert confusion([{"prediction": "", "reference": str(i % 13)} for i in range(26)]) == []


def test_the_direction_of_a_metric_is_known_by_its_name():
    assert [kind_of(name) for name in ("eval_cer", "scans_cer", "wer", "eval_a_loss", None, "a_f1")] == [
        *("cer", "cer", "wer", "loss", "loss", "f1")
    ]
    assert [kind_of(name) for name in ("taste", "soccer", "answer")] == [None] * 3
    assert {name for name, metric in METRICS.items() if not metric.higher_is_better} == {"cer", "wer"}


@pytest.mark.parametrize(
    "code, path, message",
    [
        ("", "own.py", "or FILE.py:FUNCTION of an existing file"),
        ("", "none.py:score", "of an existing file"),
        (
            "",
            "bleu",
            "--metric bleu: use one of exact_match, anls, accuracy, f1, vqa, cer, wer, iou, box_accuracy",
        ),
        ("", "own.py:score", "has no function score"),
        ("score = 1", "own.py:score", "has no function score"),
        ("import nothing_of_this_name", "own.py:score", "cannot be run: ModuleNotFoundError"),
        ("def anls(p, r): return 1", "own.py:anls", "anls is built in"),
    ],
)
def test_a_wrong_metric_is_refused(tmp_path, monkeypatch, code, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(ValueError, match=message):
        load_metric(path)


@pytest.mark.parametrize("value", [math.nan, "good", None])
def test_a_metric_that_gives_no_number_is_named(value):
    with pytest.raises(ValueError, match="own returned .* a metric must be a number"):
        score([{"prediction": "a", "reference": "a"}], {"own": lambda predictions, references: value})


def test_the_functions_of_the_page(tmp_path):
    """On existing libraries; values that follow from their definitions."""
    ((_, code),) = [block for block in code_blocks(REPO / "docs/evaluation.md", "python")]
    (tmp_path / "my_metrics.py").write_text(code)
    own = dict(load_metric(f"{tmp_path / 'my_metrics.py'}:{name}") for name in ("rouge_l", "cider", "box"))
    assert own["rouge_l"](["a b c", "x"], ["a c", "y"]) == pytest.approx((2 * 1 * (2 / 3) / (1 + 2 / 3)) / 2)
    captions = ["a red dog runs", "two cats on a mat", "a bus"]
    assert own["cider"](captions, captions) > 5 > own["cider"](captions[::-1], captions)
    boxes = own["box"](["0, 0, 2, 2", "nothing", "[0 0 1 1]"], ["1, 1, 3, 3", "0 0 1 1", "0, 0, 1, 1"])
    assert boxes == pytest.approx({"iou": (1 / 7 + 0 + 1) / 3, "iou_above_half": 1 / 3})
    answers = [{"prediction": "0, 0, 2, 2", "reference": "0, 0, 2, 2"}]
    assert score(answers, own)["iou"] == 1
