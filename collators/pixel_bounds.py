"""Bounds of an image's pixels: if the processor has such options, --min_pixels and --max_pixels set them.

Shrunk to 802,816 pixels before Qwen2.5-VL's processor rounds the sides to multiples of 28, a photo of 4032x3024 is
1,036 tokens. With that bound, the processor makes 972 in one step, as does a server that reads the saved files.
"""

import numpy as np

from collators import COLLATORS
from collators.processor_options import set_processor_options
from reading.options import AUTO_PIXELS
from reading.strict_json import json_object


def settle_resize(reading, family: str) -> None:
    """Decide whether --min_pixels and --max_pixels become bounds of the processor: `keep_processor_config` False."""
    if not (reading.min_pixels or reading.max_pixels):
        return
    has_bounds = COLLATORS.get(family).frames_in_bounds
    if not has_bounds and reading.keep_processor_config is not None:
        raise ValueError(f"--keep_processor_config has no effect: {family}'s processor has no pixel bounds.")
    if has_bounds and not reading.keep_processor_config:
        given = json_object("processor_kwargs", reading.processor_kwargs)
        if both := given.keys() & {"size", "min_pixels", "max_pixels"}:
            raise ValueError(f"--processor_kwargs {min(both)!r} and --max_pixels set the same thing: leave one out.")
        if reading.jpeg_draft or reading.image_resize_algorithm != "bicubic":
            name = "jpeg_draft" if reading.jpeg_draft else "image_resize_algorithm"
            raise ValueError(
                f"--{name} has no effect if the processor resizes images itself, as {family}'s does with --min_pixels "
                "and --max_pixels: leave it out, or add --keep_processor_config True."
            )
        reading.keep_processor_config = False
    elif reading.max_pixels == AUTO_PIXELS:
        raise ValueError(
            "--max_pixels auto sets a bound in the processor, "
            f"{'which --keep_processor_config True forbids' if has_bounds else f'but {family} has none'}: give "
            "a number; the error about samples that do not fit suggests one."
        )


def describe_bounds(collator, reading) -> str:
    """A line on the bounds that the processor got, or nothing."""
    if not collator.image_size:
        return ""
    pixels = " ".join(f"--{name} {n}" for name in ("min_pixels", "max_pixels") if (n := getattr(reading, name)))
    return f"{pixels}: the processor resizes images itself, and is saved with {collator.image_size}."


def set_options(collator, reading, *datasets) -> None:
    """Make a collator's processor again with --processor_kwargs and the bounds of the flags (ReadingArguments).

    `--max_pixels auto` becomes the largest number with which the samples of the data sets fit.
    """
    set_processor_options(collator, json_object("processor_kwargs", reading.processor_kwargs))
    if reading.keep_processor_config is not False:
        return
    images, frames = collator.processor.image_processor, collator.frames_in_bounds
    images.size = size = dict(images.size)
    if reading.min_pixels:
        size["shortest_edge"] = reading.min_pixels * frames
    if reading.max_pixels == AUTO_PIXELS:
        found = [collator.budget.pixels_that_fit(d, np.flatnonzero(d.num_parts("i")))[0] for d in datasets if d]
        reading.max_pixels = min(filter(None, found), default=None)
    if reading.max_pixels:
        size["longest_edge"] = reading.max_pixels * frames
    least, most = size["shortest_edge"] // frames, size["longest_edge"] // frames
    if least > most:
        raise ValueError(
            f"--max_pixels {most} is less than the {least} pixels that every image is enlarged to: add --min_pixels "
            f"{most}, or raise --max_pixels."
        )
    collator.image_size = size
