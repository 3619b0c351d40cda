"""Measures of answers against their references: the table METRICS, and a user's own functions.

A reference is a text, or several of which any is right. Another metric is a function and a row of the table.
"""

import math
import os
import re
import runpy
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import NamedTuple

from evaluation.boxes import OF_BOXES

MOST_CLASSES, LONGEST_CLASS = 12, 30  # of a confusion matrix
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # as VQA's accuracy has it
NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(), [0, *range(11)]))


def exact_match(prediction: str, references: list[str]) -> float:
    """Whether an answer equals a reference, ignoring white space at both ends."""
    return float(prediction.strip() in [reference.strip() for reference in references])


def anls(prediction: str, references: list[str]) -> float:
    """1 - edits / length of the longer text, best reference (https://arxiv.org/abs/1907.00490); 0 if under 0.5."""
    from rapidfuzz.distance import Levenshtein  # only a run that measures answers needs it

    prediction = prediction.strip().lower()
    distance = min(Levenshtein.normalized_distance(prediction, text.strip().lower()) for text in references)
    return 1 - distance if distance < 0.5 else 0.0


def classes_of(prediction: str, references: list[str]) -> tuple[str, str]:
    """The right class and the answered one, ignoring case and a full stop at the end."""
    answered, *right = (text.strip().casefold().removesuffix(".").rstrip() for text in (prediction, *references))
    return answered if answered in right else right[0], answered


def macro_f1(predictions: list[str], references: list[list[str]]) -> float:
    """The mean of the F1 of each class in the references, with equal weights."""
    pairs = [*map(classes_of, predictions, references)]
    right, answered, both = map(Counter, (*zip(*pairs), pairs))
    return sum(2 * both[name, name] / (right[name] + answered[name]) for name in right) / len(right)


def vqa_accuracy(prediction: str, references: list[str]) -> float:
    """VQA's (https://visualqa.org/evaluation.html): right if three people agree, averaged over leaving out each one."""
    answer, said = normalized(prediction), [*map(normalized, references)]
    if len(said) < 4:  # one reference, or a few spellings of it
        return float(answer in said)
    return sum(min(1, (said.count(answer) - (other == answer)) / 3) for other in said) / len(said)


def normalized(text: str) -> str:
    """An answer as VQA compares it: no capitals, punctuation and articles, numbers as digits; "dont" is "don't"."""
    found = given = " ".join(text.split())
    for sign in PUNCTUATION:
        is_dropped = f"{sign} " in given or f" {sign}" in given or re.search(r"\d,\d", given)
        found = found.replace(sign, "" if is_dropped else " ")
    found = re.sub(r"\.(?!\d)", "", found).lower().replace("n't", "nt")
    words = [str(NUMBERS.get(word, word)) for word in found.split()]
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def error_rate(units: Callable, predictions: list[str], references: list[list[str]]) -> float:
    """The edits of all answers divided by the length of all references; of several references, the nearest one."""
    from rapidfuzz.distance import Levenshtein

    edits = length = 0
    for prediction, texts in zip(map(units, predictions), references):
        counts = [(Levenshtein.distance(prediction, text), len(text)) for text in map(units, texts)]
        nearest = min(counts, key=lambda count: count[0] / max(count[1], 1))
        edits, length = edits + nearest[0], length + nearest[1]
    return edits / max(length, 1)


def mean(measure: Callable[[str, list[str]], float]) -> Callable:
    """Of one answer -> of all."""
    return lambda predictions, references: sum(map(measure, predictions, references)) / len(predictions)


class Metric(NamedTuple):
    measure: Callable[[list[str], list[list[str]]], float]  # of all predictions, and of each its references
    higher_is_better: bool = True


METRICS = {
    "exact_match": Metric(mean(exact_match)),
    "anls": Metric(mean(anls)),
    "accuracy": Metric(mean(lambda *answer: len({*classes_of(*answer)}) == 1)),
    "f1": Metric(macro_f1),
    "vqa": Metric(mean(vqa_accuracy)),
    "cer": Metric(partial(error_rate, str.strip), higher_is_better=False),
    "wer": Metric(partial(error_rate, str.split), higher_is_better=False),
    **{name: Metric(measure) for name, measure in OF_BOXES.items()},
}
ALWAYS = ("exact_match", "anls")


def kind_of(name: str | None) -> str | None:
    """The metric of a name that may begin with a file's: "eval_val_cer" -> "cer"; None, if it is none of METRICS."""
    return next((kind for kind in ("loss", *METRICS) if f"_{name or 'loss'}".endswith(f"_{kind}")), None)


def load_metric(word: str) -> tuple[str, Callable]:
    """A name of METRICS, or `my_metrics.py:score` -> the name and the function.

    One of the user's gets (predictions, references), two lists of texts, where a reference is a list of texts if there
    are several, and returns a number, or a mapping of names to numbers.

    Raises:
        ValueError: no such metric, file or function, or the file cannot be run.
    """
    if word in METRICS:
        return word, METRICS[word].measure
    file, _, name = word.rpartition(":")
    if not name.isidentifier() or not os.path.isfile(file):
        raise ValueError(f"--metric {word}: use one of {', '.join(METRICS)}, or FILE.py:FUNCTION of an existing file.")
    try:
        function = runpy.run_path(file).get(name)
    except Exception as error:
        raise ValueError(f"--metric {word}: {file} cannot be run: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ValueError(f"--metric {word}: {file} has no function {name}.")
    if name in METRICS:
        raise ValueError(f"--metric {word}: {name} is built in; give the function another name.")
    return name, function


def load_metrics(words: list[str] | None) -> dict[str, Callable]:
    """Name -> function of several (`load_metric`) and of those always measured; a ValueError where two share a name."""
    loaded = [load_metric(word) for word in [*ALWAYS, *(word for word in words or [] if word not in ALWAYS)]]
    if len(found := dict(loaded)) < len(loaded):
        raise ValueError(f"--metric {' '.join(words)}: two metrics have the same name; rename or drop one.")
    return found


def score(answers: list[dict], functions: Mapping[str, Callable]) -> dict[str, float]:
    """Answers, each with "prediction" and "reference", or several "references" -> the value of each metric.

    Raises:
        ValueError: a function of the user's returns something else than numbers.
    """
    predictions, values = [answer["prediction"] for answer in answers], {}
    references = [answer.get("references", [answer["reference"]]) for answer in answers]
    for name, function in functions.items():
        given = references if name in METRICS else [texts if texts[1:] else texts[0] for texts in references]
        found = function(list(predictions), given)
        found = found if isinstance(found, Mapping) else {name: found}
        for key, value in found.items():
            if not isinstance(value, Real) or math.isnan(value):
                raise ValueError(f"--metric: {name} returned {value!r} for {key}; a metric must be a number.")
            values[str(key)] = float(value)
    return values


def confusion(answers: list[dict]) -> list[tuple[str, list[int]]]:
    """Each class, and how often it was answered with each of them in this order, and with anything else. Empty if the
    references are not classes: too many, too long, or fewer than two of each on average.
    """
    table = defaultdict(Counter)
    for answer in answers:
        right, answered = classes_of(answer["prediction"], answer.get("references", [answer["reference"]]))
        table[right][answered] += 1
    if not 2 <= len(table) <= min(MOST_CLASSES, len(answers) / 2) or max(map(len, table)) > LONGEST_CLASS:
        return []
    rows = [(right, [table[right][answered] for answered in sorted(table)]) for right in sorted(table)]
    return [(right, [*counts, table[right].total() - sum(counts)]) for right, counts in rows]
