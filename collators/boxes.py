"""Boxes and points as a family's checkpoints write them, and back (docs/boxes.md has the source of each form).

`<ref-object><bbox>` of a row is, for a dog in the left half of a picture, in Qwen2-VL and in PaliGemma,

    <|object_ref_start|>dog<|object_ref_end|><|box_start|>(0,0),(500,1000)<|box_end|>
    <loc0000><loc0000><loc1023><loc0512> dog
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby, pairwise, repeat
from operator import itemgetter

NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"


@dataclass(frozen=True)
class BoxFormat:
    """How boxes and points are written: their numbers, the text around them, and the names of their objects."""

    steps: int | None  # numbers go from 0 to this over each side; None: pixels, of the picture after Qwen's resize
    box: str = "[{}, {}, {}, {}]"
    point: str = "[{}, {}]"
    decimals: int | None = None
    y_first: bool = False
    name: str = "{}"
    # Of an object: {name}, or {json} in quotes, {at}, and {key} "bbox_2d" or "point_2d". "": its name, then its boxes.
    named: str = ""
    between: str = ""  # the boxes and points of one object
    around: str = "{}"  # around these, where there is no `named`
    # A text that is nothing but objects with their names: around it, and between these.
    listed: str = "{}"
    between_objects: str = ""

    @cached_property
    def pattern(self) -> re.Pattern:
        """Matches a box or a point; its numbers are the groups."""
        forms = [re.split(r"\{[^}]*\}", form) for form in (self.box, self.point)]
        return re.compile("|".join(NUMBER.join(re.escape(piece.strip()) for piece in pieces) for pieces in forms))

    def numbers(self, text: str) -> list[list[float]]:
        """The boxes and points of a text, x first."""
        found = ([float(number) for number in match.groups() if number] for match in self.pattern.finditer(text))
        return [swapped(numbers, self.y_first) for numbers in found]


JSON = {
    "named": '{{"{key}": {at}, "label": {json}}}',
    "between": ", ",
    "listed": "```json\n[\n\t{}\n]\n```",
    "between_objects": ",\n\t",
}
BOX_FORMATS = {  # of --box_format
    "pixels": BoxFormat(None, **JSON),
    "thousand": BoxFormat(1000, **JSON),
    "relative": BoxFormat(1, decimals=3, **JSON),
}


class Boxes:
    """Writes the boxes of canonical messages into their texts, and reads them back; `format` is None if unknown."""

    def __init__(self, processor, format: BoxFormat | None):
        self.processor, self.format = processor, format

    @property
    def in_pixels(self) -> bool:
        return self.format is not None and self.format.steps is None

    def sides(self, size: tuple[int, int]) -> tuple[int, ...]:
        """What x, y, x and y are divided by, for a picture that was opened at this (width, height)."""
        if not self.in_pixels:
            return (self.format.steps,) * 4
        # Takes a second to import.
        from transformers import Qwen2VLImageProcessor
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        images = self.processor.image_processor
        if isinstance(images, Qwen2VLImageProcessor) and images.do_resize:
            edges = images.size["shortest_edge"], images.size["longest_edge"]
            size = smart_resize(*size[::-1], images.patch_size * images.merge_size, *edges)[::-1]
        return size * 2

    # ---- from text ----

    def told(self, text: str, messages: list[dict], tellers: list[dict]) -> list[dict]:
        """The boxes and points of a text about opened messages, each {"image": int, "at": fractions of its sides}.

        In order, they get the images of the `objects` of some of the messages; any further ones get the first image.
        """
        sizes = [part["image"].size for message in messages for part in message["content"] if part["type"] == "image"]
        objects = [found for message in tellers for found in message.get("objects", ()) if "at" in found]
        found = self.format.numbers(text) if self.format and sizes else []
        images = chain((one["image"] for one in objects), repeat(0))
        pairs = [(image, zip(numbers, self.sides(sizes[image]))) for numbers, image in zip(found, images)]
        return [{"image": image, "at": [number / side for number, side in pair]} for image, pair in pairs]

    # ---- to text ----

    def written(self, messages: list[dict]) -> list[dict]:
        """Messages as `reading.boxes.located` returns them -> the same, with the marks in their texts replaced.

        Raises:
            ValueError: the family's form of boxes is not known.
        """
        if any("objects" in message for message in messages) and self.format is None:
            raise ValueError(
                "has boxes or points (`objects`), but the format of this model is unknown: add --box_format "
                f"{', '.join(BOX_FORMATS)} (docs/boxes.md)"
            )
        return [self._written(message) if "objects" in message else message for message in messages]

    def _written(self, message: dict) -> dict:
        content = [*message["content"]]
        for i, objects in groupby(message["objects"], key=itemgetter("part")):
            content[i] = {"type": "text", "text": self._text(content[i]["text"], [*objects])}
        return {name: value for name, value in message.items() if name != "objects"} | {"content": content}

    def _text(self, text: str, objects: list[dict]) -> str:
        form, groups = self.format, grouped(objects)
        spans = [(0, 0), *((group[0]["span"][0], group[-1]["span"][1]) for group in groups), (len(text),) * 2]
        said, apart = [*map(self._group, groups)], [text[end:start] for (_, end), (start, _) in pairwise(spans)]
        is_list = form.named and all("name" in group[0] and group[1:] for group in groups)
        if is_list and re.fullmatch(r"[\s,;]*", "".join(apart)):
            return form.listed.format(form.between_objects.join(chain(*said)))
        return apart[0] + "".join(map("".join, zip(map(form.between.join, said), apart[1:])))

    def _group(self, group: list[dict]) -> list[str]:
        """A name, boxes and points, or each of these with the name of their object."""
        form, name = self.format, group[0].get("name")
        boxes = [self._numbers(found) for found in group if "at" in found]
        if name is None or not boxes or not form.named:
            before = "" if name is None else form.name.format(name)
            return [before + (form.around.format(form.between.join(boxes)) if boxes else "")]
        quoted, keys = json.dumps(name, ensure_ascii=False, allow_nan=False), {2: "point_2d", 4: "bbox_2d"}
        named = zip(boxes, (keys[len(found["at"])] for found in group[1:]))
        return [form.named.format(name=name, json=quoted, at=at, key=key) for at, key in named]

    def _numbers(self, found: dict) -> str:
        form, pairs = self.format, zip(found["at"], self.sides(found["size"]))
        numbers = [min(round(share * side, form.decimals), side - self.in_pixels) for share, side in pairs]
        return (form.box if len(numbers) == 4 else form.point).format(*swapped(numbers, form.y_first))


def swapped(numbers: list, y_first: bool) -> list:
    """x, y, ... -> y, x, ... and back."""
    return [numbers[i ^ 1] for i in range(len(numbers))] if y_first else numbers


def grouped(objects: list[dict]) -> list[list[dict]]:
    """Groups of a name and the boxes and points that follow it without a gap, or of boxes and points alone."""
    groups = []
    for found in objects:
        if groups and "at" in found and found["span"][0] == groups[-1][-1]["span"][1]:
            groups[-1].append(found)
        else:
            groups.append([found])
    return groups
