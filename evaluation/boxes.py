"""Measures of boxes and points in answers, whatever form they are written in.

They are taken from the texts as they are: neither the scale of the sides nor the order of x and y changes an overlap.
"""

from functools import partial

from collators.boxes import BoxFormat

# [x1, y1, x2, y2]; (x1,y1),(x2,y2); <loc0001> four times.
FORMS = (BoxFormat(1), BoxFormat(1, "({},{}),({},{})", "({},{})"), BoxFormat(1, "<loc{}>" * 4, "<loc{}>" * 2))
Box = list[float]


def overlap(one: Box, other: Box) -> float:
    """The intersection of two boxes over their union."""
    if len(one) != 4 or len(other) != 4:
        return 0.0
    width, height = (max(min(one[i + 2], other[i + 2]) - max(one[i], other[i]), 0) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height) if width * height else 0.0


def mean_overlap(answered: list[Box], right: list[Box]) -> float:
    """The overlap of each right box with the nearest, in the mean; boxes beyond their number count as none."""
    best = [max((overlap(box, other) for other in answered), default=0.0) for box in right]
    return sum(best) / max(len(answered), len(right))


def holds_point(answered: list[Box], right: list[Box]) -> float:
    """Whether the first point of the answer, or the middle of its first box, is in a right box."""
    if not answered:
        return 0.0
    x, y = (sum(answered[0][i::2]) / len(answered[0][i::2]) for i in (0, 1))
    return float(any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in right))


def of_boxes(measure, predictions: list[str], references: list[list[str]]) -> float | dict:
    """The mean of a measure over the answers whose first reference has a box; nothing where none has."""
    told = lambda text: next(filter(None, (form.numbers(text) for form in FORMS)), [])  # noqa: E731
    right = [[box for box in told(texts[0]) if len(box) == 4] for texts in references]
    values = [measure(told(answer), boxes) for answer, boxes in zip(predictions, right) if boxes]
    return sum(values) / len(values) if values else {}


OF_BOXES = {
    "iou": partial(of_boxes, mean_overlap),
    "box_accuracy": partial(of_boxes, lambda answered, right: float(mean_overlap(answered, right) >= 0.5)),
    "point_in_box": partial(of_boxes, holds_point),
}
