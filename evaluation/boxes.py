"""Metrics for boxes, points and moments (time intervals) in answers, in the notations below.

Numbers are used as written, because neither the scale of the coordinates nor the order of x and y changes an overlap.
"""

import re
from functools import partial

from collators.boxes import BoxFormat

# Notations of a box: [x1, y1, x2, y2]; (x1,y1),(x2,y2); four tokens like <loc0001>.
BOX_FORMS = (BoxFormat(1), BoxFormat(1, "({},{}),({},{})", "({},{})"), BoxFormat(1, "<loc{}>" * 4, "<loc{}>" * 2))
# A moment: `12.5 - 20`, `from 00:12 to 00:20`, `{"start": 12.5, "end": 20}`. The two times are separated by a sign or a
# word (`-`, `to`), by a name of the second time (`end`), or by both.
TIME = r"(?<![\d.:])((?:(?:\d+:)?\d{1,2}:)?\d+(?:\.\d+)?)"
AROUND = r"(?:\s|[\"'<>\[\]()]|(?:s|secs?|seconds?)\b)*"
END = rf"(?:and\s+)?(?:it\s+)?end\w*(?:\s+(?:at|is))?{AROUND}[:=]?{AROUND}"
MOMENT = re.compile(rf"{TIME}{AROUND}(?:(?:[-,~\u2013\u2014]|\b(?:to|till|until|and)\b){AROUND}(?:{END})?|{END}){TIME}")
Box = list[float]


def iou(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes, or 0 if either of them is not a box."""
    if len(one) != 4 or len(other) != 4:
        return 0.0
    width, height = (max(min(one[i + 2], other[i + 2]) - max(one[i], other[i]), 0) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height) if width * height else 0.0


def mean_overlap(answered: list[Box], right: list[Box]) -> float:
    """Average the IoU of each reference box and its best match in the answer. Surplus boxes of the answer score 0."""
    best = [max((iou(box, other) for other in answered), default=0.0) for box in right]
    return sum(best) / max(len(answered), len(right))


def holds_point(answered: list[Box], right: list[Box]) -> float:
    """Return 1 if the first point of the answer, or the centre of its first box, is in a reference box; else 0."""
    if not answered:
        return 0.0
    x, y = (sum(answered[0][i::2]) / len(answered[0][i::2]) for i in (0, 1))
    return float(any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in right))


def boxes_of(text: str) -> list[Box]:
    return next(filter(None, (form.numbers(text) for form in BOX_FORMS)), [])


def moments_of(text: str) -> list[Box]:
    """Return the moments in a text as boxes of equal height, so that `iou` measures their overlap in time."""
    clocks = [[clock.split(":")[::-1] for clock in moment] for moment in MOMENT.findall(text)]
    ends = [[sum(float(part) * 60**place for place, part in enumerate(clock)) for clock in two] for two in clocks]
    return [[start, 0.0, end, 1.0] for start, end in ends]


def of_boxes(measure, predictions: list[str], references: list[list[str]], told=boxes_of) -> float | dict:
    """Return the mean of a measure over the answers whose first reference has a box, or {} if there are none."""
    right = [[box for box in told(texts[0]) if len(box) == 4] for texts in references]
    values = [measure(told(answer), boxes) for answer, boxes in zip(predictions, right) if boxes]
    return sum(values) / len(values) if values else {}


OF_BOXES = {
    "iou": partial(of_boxes, mean_overlap),
    "box_accuracy": partial(of_boxes, lambda answered, right: float(mean_overlap(answered, right) >= 0.5)),
    "point_in_box": partial(of_boxes, holds_point),
    "tiou": partial(of_boxes, mean_overlap, told=moments_of),
}
