"""Measures of answers against their references: exact match, ANLS, and a user's own functions."""

import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from numbers import Real


def exact_match(predictions: list[str], references: list[str]) -> float:
    """The share of predictions that equal their reference, white space at both ends aside."""
    return sum(p.strip() == r.strip() for p, r in zip(predictions, references)) / len(references)


def anls(predictions: list[str], references: list[str]) -> float:
    """Average normalized Levenshtein similarity (https://arxiv.org/abs/1907.00490), without regard to case.

    One minus the edits divided by the length of the longer text; 0 where half of it or more differs.
    """
    from rapidfuzz.distance import Levenshtein  # only a run that measures answers needs it

    def similarity(prediction: str, reference: str) -> float:
        distance = Levenshtein.normalized_distance(prediction.strip().lower(), reference.strip().lower())
        return 1 - distance if distance < 0.5 else 0.0

    return sum(map(similarity, predictions, references)) / len(references)


METRICS = {"exact_match": exact_match, "anls": anls}


def load_metric(path: str) -> tuple[str, Callable]:
    """`my_metrics.py:score` -> the function and its name.

    The function gets (predictions, references), two lists of texts, and returns a number, or a mapping of names to
    numbers.

    Raises:
        ValueError: no such file or function, or the file cannot be run.
    """
    file, _, name = path.rpartition(":")
    if not name.isidentifier() or not os.path.isfile(file):
        raise ValueError(f"--metric {path}: write FILE.py:FUNCTION, such as my_metrics.py:score, of an existing file.")
    spec = importlib.util.spec_from_file_location(os.path.splitext(os.path.basename(file))[0], file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"--metric {path}: {file} cannot be run: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"--metric {path}: {file} has no function {name}.")
    if name in METRICS:
        raise ValueError(f"--metric {path}: {name} is measured anyway; give the function another name.")
    return name, function


def load_metrics(paths: list[str] | None) -> dict[str, Callable]:
    """Name -> function, as `load_metric`, of several.

    Raises:
        ValueError: two have the same name.
    """
    loaded = [load_metric(path) for path in paths or []]
    if len(found := dict(loaded)) < len(loaded):
        raise ValueError(f"--metric {' '.join(paths)}: two functions have the same name; rename one.")
    return found


def score(answers: list[dict], own: Mapping[str, Callable] | None = None) -> dict[str, float]:
    """Answers, each with "prediction" and "reference" -> the value of each metric.

    Raises:
        ValueError: a function of the user's returns something else than numbers.
    """
    predictions, references = ([answer[key] for answer in answers] for key in ("prediction", "reference"))
    values = {}
    for name, function in (METRICS | dict(own or {})).items():
        found = function(list(predictions), list(references))
        found = found if isinstance(found, Mapping) else {name: found}
        for key, value in found.items():
            if not isinstance(value, Real) or math.isnan(value):
                raise ValueError(f"--metric: {name} gave {value!r} for {key}; a metric must be a number.")
            values[str(key)] = float(value)
    return values
