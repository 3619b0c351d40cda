"""Pixel bounds of images: --min_pixels and --max_pixels set the processor's own options, if it has them.

If we shrink a photo of 4032x3024 to 802,816 pixels and Qwen2.5-VL's processor then rounds the sides to multiples of 28,
the photo is 1,036 tokens. If the processor does both in one step, it is 972, as on a server with the saved files.
"""

import numpy as np

from collators import COLLATORS
from collators.processor_options import set_processor_options
from reading.options import AUTO_PIXELS
from reading.strict_json import json_object


def settle_resize(reading, family: str) -> None:
    """Set `keep_processor_config` to False if --min_pixels and --max_pixels become bounds of the processor."""
    if not (reading.min_pixels or reading.max_pixels):
        return
    has_bounds = COLLATORS.get(family).frames_in_bounds
    if not has_bounds and reading.keep_processor_config is not None:
        raise ValueError(f"--keep_processor_config has no effect: {family}'s processor has no pixel bounds.")
    if has_bounds and not reading.keep_processor_config:
        given = json_object("processor_kwargs", reading.processor_kwargs)
        if both := given.keys() & {"size", "min_pixels", "max_pixels"}:
            raise ValueError(f"--processor_kwargs {min(both)!r} and --max_pixels set the same thing: remove one.")
        if reading.jpeg_draft or reading.image_resize_algorithm != "bicubic":
            name = "jpeg_draft" if reading.jpeg_draft else "image_resize_algorithm"
            raise ValueError(
                f"--{name} has no effect if the processor resizes images itself, as {family}'s does with --min_pixels "
                f"and --max_pixels: remove --{name}, or add --keep_processor_config True."
            )
        reading.keep_processor_config = False
    elif reading.max_pixels == AUTO_PIXELS:
        raise ValueError(
            "--max_pixels auto sets a bound in the processor, "
            f"{'which --keep_processor_config True forbids' if has_bounds else f'but {family} has no bounds'}. Pass "
            "a number; if samples do not fit, the error suggests one."
        )


def describe_bounds(collator, reading) -> str:
    """Return a line about the bounds that the flags set in the processor, or ""."""
    if not collator.image_size:
        return ""
    pixels = " ".join(f"--{name} {n}" for name in ("min_pixels", "max_pixels") if (n := getattr(reading, name)))
    return f"{pixels}: the processor itself resizes images. It is saved with {collator.image_size}."


def set_options(collator, reading, *datasets) -> None:
    """Rebuild a collator's processor with --processor_kwargs and with the pixel bounds of the flags.

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
            f"--max_pixels {most} is less than {least}, the processor's minimum number of pixels: add --min_pixels "
            f"{most}, or raise --max_pixels."
        )
    collator.image_size = size
