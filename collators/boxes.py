"""Write boxes and points in the format of a family's checkpoints, and parse them (docs/boxes.md lists the sources).

For a dog in the left half of an image, `<ref-object><bbox>` in a row becomes this text in Qwen2-VL and in PaliGemma:

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
    """A format of boxes and points: their numbers, the text around them, and the names of objects."""

    steps: int | None  # coordinates range from 0 to this; None if they are pixels of the image after Qwen's resize
    box: str = "[{}, {}, {}, {}]"
    point: str = "[{}, {}]"
    decimals: int | None = None
    y_first: bool = False
    name: str = "{}"
    # A box ({at}) with its name ({name}, or {json} in quotes) and {key} (bbox_2d, point_2d). "": the name comes first.
    named: str = ""
    between: str = ""  # separates the boxes and points of one object
    around: str = "{}"  # text around the boxes and points of one object, if `named` is ""
    # Used if a text contains only named objects: the text around the list, and the separator of its entries.
    listed: str = "{}"
    between_objects: str = ""

    @cached_property
    def pattern(self) -> re.Pattern:
        """A pattern that matches a box or a point. Its groups are the numbers."""
        forms = [re.split(r"\{[^}]*\}", form) for form in (self.box, self.point)]
        return re.compile("|".join(NUMBER.join(re.escape(piece.strip()) for piece in pieces) for pieces in forms))

    def numbers(self, text: str) -> list[list[float]]:
        """Parse the boxes and points of a text. In the result, x comes before y."""
        found = ([float(number) for number in match.groups() if number] for match in self.pattern.finditer(text))
        return [swapped(numbers, self.y_first) for numbers in found]


JSON = {
    "named": '{{"{key}": {at}, "label": {json}}}',
    "between": ", ",
    "listed": "```json\n[\n\t{}\n]\n```",
    "between_objects": ",\n\t",
}
BOX_FORMATS = {  # the choices of --box_format
    "pixels": BoxFormat(None, **JSON),
    "thousand": BoxFormat(1000, **JSON),
    "relative": BoxFormat(1, decimals=3, **JSON),
}


class Boxes:
    """Converts boxes of canonical messages to text and back. `format` is None if the family's format is unknown."""

    def __init__(self, processor, format: BoxFormat | None):
        self.processor, self.format = processor, format

    @property
    def in_pixels(self) -> bool:
        return self.format is not None and self.format.steps is None

    def sides(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Return the image's width, height, width and height in the format's units, given (width, height) in pixels."""
        if not self.in_pixels:
            return (self.format.steps,) * 4
        # These imports take a second.
        from transformers import Qwen2VLImageProcessor
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        images = self.processor.image_processor
        if isinstance(images, Qwen2VLImageProcessor) and images.do_resize:
            edges = images.size["shortest_edge"], images.size["longest_edge"]
            size = smart_resize(*size[::-1], images.patch_size * images.merge_size, *edges)[::-1]
        return size * 2

    # ---- from text ----

    def told(self, text: str, messages: list[dict], tellers: list[dict]) -> list[dict]:
        """Parse each box and point of a text into {"image": index, "at": fractions of the image's sides}.

        The n-th one gets the image of the n-th box or point in `tellers`, or the first image if there is no n-th.
        """
        sizes = [part["image"].size for message in messages for part in message["content"] if part["type"] == "image"]
        objects = [found for message in tellers for found in message.get("objects", ()) if "at" in found]
        found = self.format.numbers(text) if self.format and sizes else []
        images = chain((one["image"] for one in objects), repeat(0))
        pairs = [(image, zip(numbers, self.sides(sizes[image]))) for numbers, image in zip(found, images)]
        return [{"image": image, "at": [number / side for number, side in pair]} for image, pair in pairs]

    # ---- to text ----

    def written(self, messages: list[dict]) -> list[dict]:
        """Replace the marks that `reading.boxes.located` found in messages with their boxes and points as text.

        Raises:
            ValueError: the family's box format is unknown.
        """
        if any("objects" in message for message in messages) and self.format is None:
            raise ValueError(
                "has boxes or points (`objects`), but this model's box format is unknown: add --box_format with one of "
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
        """Write a name, then its boxes and points; or, with `named`, one entry with the name per box or point."""
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
    """Swap x and y in each pair of numbers if `y_first`."""
    return [numbers[i ^ 1] for i in range(len(numbers))] if y_first else numbers


def grouped(objects: list[dict]) -> list[list[dict]]:
    """Group objects that follow each other without a gap. A name starts a new group."""
    groups = []
    for found in objects:
        if groups and "at" in found and found["span"][0] == groups[-1][-1]["span"][1]:
            groups[-1].append(found)
        else:
            groups.append([found])
    return groups
