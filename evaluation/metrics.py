"""Metrics that compare answers with their references: the table METRICS, and functions written by the user.

An answer may have several references, all of which are right. To add a metric, write a function and add it to METRICS.
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

MOST_CLASSES, LONGEST_CLASS = 12, 30  # limits of a confusion matrix: number of classes, characters of a class
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # the signs that the VQA accuracy removes
NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(), [0, *range(11)]))


def exact_match(prediction: str, references: list[str]) -> float:
    """Return 1 if the answer equals a reference, ignoring white space at both ends; else 0."""
    return float(prediction.strip() in [reference.strip() for reference in references])


def anls(prediction: str, references: list[str]) -> float:
    """Return 1 - edits / longer length for the best reference, or 0 if it is at most 0.5 (arxiv.org/abs/1907.00490)."""
    from rapidfuzz.distance import Levenshtein  # only a run that measures answers needs it

    prediction = prediction.strip().lower()
    distance = min(Levenshtein.normalized_distance(prediction, text.strip().lower()) for text in references)
    return 1 - distance if distance < 0.5 else 0.0


def classes_of(prediction: str, references: list[str]) -> tuple[str, str]:
    """Return the right class and the answered class, ignoring case and a full stop at the end."""
    answered, *right = (text.strip().casefold().removesuffix(".").rstrip() for text in (prediction, *references))
    return answered if answered in right else right[0], answered


def macro_f1(predictions: list[str], references: list[list[str]]) -> float:
    """Return the mean F1 of the classes in the references, all with equal weight."""
    pairs = [*map(classes_of, predictions, references)]
    right, answered, both = map(Counter, (*zip(*pairs), pairs))
    return sum(2 * both[name, name] / (right[name] + answered[name]) for name in right) / len(right)


def vqa_accuracy(prediction: str, references: list[str]) -> float:
    """Return the mean of min(1, matches / 3), leaving out each reference once (visualqa.org/evaluation.html)."""
    answer, said = normalized(prediction), [*map(normalized, references)]
    if len(said) < 4:  # one reference, or a few spellings of it
        return float(answer in said)
    return sum(min(1, (said.count(answer) - (other == answer)) / 3) for other in said) / len(said)


def normalized(text: str) -> str:
    """Normalize as VQA does: lower case, no punctuation, no articles, numbers as digits, "dont" for "don't"."""
    found = given = " ".join(text.split())
    for sign in PUNCTUATION:
        is_dropped = f"{sign} " in given or f" {sign}" in given or re.search(r"\d,\d", given)
        found = found.replace(sign, "" if is_dropped else " ")
    found = re.sub(r"\.(?!\d)", "", found).lower().replace("n't", "nt")
    words = [str(NUMBERS.get(word, word)) for word in found.split()]
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def error_rate(units: Callable, predictions: list[str], references: list[list[str]]) -> float:
    """Divide the edits of all answers by the length of all references. Of several references, the nearest counts."""
    from rapidfuzz.distance import Levenshtein

    edits = length = 0
    for prediction, texts in zip(map(units, predictions), references):
        counts = [(Levenshtein.distance(prediction, text), len(text)) for text in map(units, texts)]
        nearest = min(counts, key=lambda count: count[0] / max(count[1], 1))
        edits, length = edits + nearest[0], length + nearest[1]
    return edits / max(length, 1)


def mean(measure: Callable[[str, list[str]], float]) -> Callable:
    """Turn a measure of one answer into the mean over all answers."""
    return lambda predictions, references: sum(map(measure, predictions, references)) / len(predictions)


class Metric(NamedTuple):
    measure: Callable[[list[str], list[list[str]]], float]  # (predictions, references of each) -> value
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
    """Return the metric that a logged name ends with: "eval_val_cer" -> "cer". None if it is not in METRICS."""
    return next((kind for kind in ("loss", *METRICS) if f"_{name or 'loss'}".endswith(f"_{kind}")), None)


def load_metric(word: str) -> tuple[str, Callable]:
    """Return the name and the function of a metric, given as a name of METRICS or as `my_metrics.py:score`.

    A function of the user is called with two lists, predictions and references. A reference is a text, or a list of
    texts if the row has several. The function returns a number, or a mapping of names to numbers.

    Raises:
        ValueError: the metric, file or function does not exist, or the file cannot be run.
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
    """Load ALWAYS and the given metrics as name -> function. Raise a ValueError if two metrics have the same name."""
    loaded = [load_metric(word) for word in [*ALWAYS, *(word for word in words or [] if word not in ALWAYS)]]
    if len(found := dict(loaded)) < len(loaded):
        raise ValueError(f"--metric {' '.join(words)}: two metrics have the same name. Rename or remove one.")
    return found


def score(answers: list[dict], functions: Mapping[str, Callable]) -> dict[str, float]:
    """Return the value of each metric. An answer has "prediction" and "reference", and may have several "references".

    Raises:
        ValueError: a function of the user returns something other than numbers.
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
    """Return each right class with its counts: how often each class was answered, then how often something else was.
    Return [] if the references are too many, too long or too rare (on average fewer than two rows) to be classes.
    """
    table = defaultdict(Counter)
    for answer in answers:
        right, answered = classes_of(answer["prediction"], answer.get("references", [answer["reference"]]))
        table[right][answered] += 1
    if not 2 <= len(table) <= min(MOST_CLASSES, len(answers) / 2) or max(map(len, table)) > LONGEST_CLASS:
        return []
    rows = [(right, [table[right][answered] for answered in sorted(table)]) for right in sorted(table)]
    return [(right, [*counts, table[right].total() - sum(counts)]) for right, counts in rows]
