"""Read boxes and points in ms-swift's format. The field `objects` has the values of the marks in the texts, in order.

    {"image": "a.jpg", "question": "Find the <ref-object>.", "answer": "<bbox>",
     "objects": {"ref": ["dog"], "bbox": [[x1, y1, x2, y2]]}}

The canonical messages get a field `objects`, a list with one entry per mark:

    {"part": int, "span": (start, end), "name": str}    <ref-object>; `part` and `span` locate the mark in the text
    {"part": int, "span": (start, end), "at": [x1, y1, x2, y2] or [x, y], "image": int, "where": str, "type": str}
"""

import math
import re
from functools import cache

from reading.images import seen_size
from reading.named_fields import parsed_json
from reading.options import MediaOptions

FIELD_OF_MARK = {"ref-object": "ref", "bbox": "bbox", "point": "point"}  # mark -> field of `objects`
MARK = re.compile(f"<({'|'.join(FIELD_OF_MARK)})>")
OBJECT_KEYS = {*FIELD_OF_MARK.values(), "bbox_type", "image_id"}
IGNORE = "(--columns objects= ignores `objects`)"


def placed(messages: list[dict], value: object, num_images: int) -> bool:
    """Add the row's `objects` to its messages. Return False if the field has another format and was not read."""
    parts = [(message, i, part) for message in messages for i, part in enumerate(message["content"])]
    marks = [(message, i, match) for message, i, part in parts for match in MARK.finditer(part.get("text", ""))]
    objects = parsed_json(value, "objects") if marks else value
    if not isinstance(objects, dict) or objects.keys().isdisjoint(FIELD_OF_MARK.values()):
        if marks:
            raise ValueError(
                f"has {marks[0][2][0]} in its texts, but no `ref`, `bbox` or `point` in `objects` {IGNORE}"
            )
        return False
    if any(MARK.search(message.get("reasoning_content", "")) for message in messages):
        raise ValueError("has an `objects` mark in a thought, where marks are not replaced: write the numbers")
    given = {mark: objects.get(name) or [] for mark, name in FIELD_OF_MARK.items()}
    for mark, values in given.items():
        found = sum(match[1] == mark for *_, match in marks)
        if not isinstance(values, list) or found != len(values):
            raise ValueError(
                f"has {found} <{mark}> in its texts, so `objects.{FIELD_OF_MARK[mark]}` must list {found} values, "
                f"not {values!r:.100} {IGNORE}"
            )
    if (kind := objects.get("bbox_type") or "real") not in ("real", "norm1"):
        raise ValueError(f"objects.bbox_type is {kind!r}, expected 'real' (pixels) or 'norm1' (0 to 1)")
    needed = len(given["bbox"]) + len(given["point"])
    ids = objects.get("image_id") or ([0] * needed if num_images == 1 else [])
    if not isinstance(ids, list) or len(ids) != needed or not all(i in range(num_images) for i in ids):
        raise ValueError(
            f"has {num_images} images, so `objects.image_id` must have one image number below {num_images} for each "
            f"of the {needed} boxes and points, not {ids!r:.100}"
        )
    left, images = {mark: enumerate(values) for mark, values in given.items()}, iter(ids)
    for message, i, match in marks:
        number, value = next(left[match[1]])
        found, where = {"part": i, "span": match.span()}, f"objects.{FIELD_OF_MARK[match[1]]}[{number}]"
        if match[1] != "ref-object":
            at = _numbers(value, where, (4, 2) if match[1] == "bbox" else (2,), kind)
            found |= {"at": at, "image": int(next(images)), "where": where, "type": kind}
        elif isinstance(value, str):
            found["name"] = value
        else:
            raise ValueError(f"{where} must be text, not {type(value).__name__}")
        message.setdefault("objects", []).append(found)
    return True


def _numbers(value: object, where: str, counts: tuple[int, ...], kind: str) -> list[float]:
    is_list = isinstance(value, list) and len(value) in counts
    if not is_list or not all(type(number) in (int, float) and math.isfinite(number) for number in value):
        forms = " or ".join({4: "[x1, y1, x2, y2]", 2: "[x, y]"}[count] for count in counts)
        raise ValueError(f"{where} is {value!r:.100}; it must be {forms}")
    if len(value) == 4 and not (value[0] < value[2] and value[1] < value[3]):
        raise ValueError(
            f"{where} is {value}; x2 must be greater than x1, and y2 greater than y1: write [left, top, right, bottom] "
            "(convert [x, y, width, height] to [x, y, x + width, y + height])"
        )
    if kind == "norm1" and not all(0 <= number <= 1 for number in value):
        raise ValueError(f"{where} is {value}, but with bbox_type 'norm1' all numbers must be between 0 and 1")
    return value


def located(messages: list[dict], options: MediaOptions) -> list[dict]:
    """Return the messages with each `at` converted to fractions of the image's width and height after EXIF rotation.
    Each box or point also gets `size`, the (width, height) to which its image is resized. Only image headers are read.

    Raises:
        ValueError: A box or point is more than one pixel outside its image. One pixel is allowed for rounding.
    """
    if not any("objects" in message for message in messages):
        return messages
    images = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
    size_of = cache(lambda image: seen_size(images[image], options))

    def share(found: dict) -> dict:
        if "at" not in found:
            return found
        size, at = size_of(found["image"]), found["at"]
        pairs = [*zip(at, size * 2)] if found["type"] == "real" else [(number, 1) for number in at]
        if found["type"] == "real" and not all(-1 <= number <= side + 1 for number, side in pairs):
            raise ValueError(f"{found['where']} is {at}, outside of its image of {size[0]} x {size[1]} pixels")
        shares = [min(max(number / side, 0), 1) for number, side in pairs]
        return found | {"at": shares, "size": options.target_size(*size)}

    return [m | {"objects": [*map(share, m["objects"])]} if "objects" in m else m for m in messages]
