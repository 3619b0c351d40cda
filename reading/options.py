"""The flags for opening media, and the image sizes that follow from them."""

import os
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image

# The folder for indexes of data files and for fetched media.
CACHE_FOLDER = os.environ.get("FINELMM_CACHE", "~/.cache/finelmm")
# The value of --max_pixels for choosing a size at which the samples fit into --model_max_length.
AUTO_PIXELS = "auto"
# The environment variable with which webui.py restricts its runs to files in its --root.
ROOT = "FINELMM_ROOT"
FILTERS = {name: Image.Resampling[name.upper()] for name in "bilinear bicubic lanczos nearest box hamming".split()}


# Flags that affect only one kind of media.
MEDIA_FLAGS = {
    "image": {"image_size", "image_resize_algorithm", "min_pixels", "max_pixels", "jpeg_draft", "image_folder"},
    "video": {"num_frames", "fps", "max_frames", "video_max_pixels", "video_folder"},
}


def int_or_auto(text: str) -> int | str:
    return text if text == AUTO_PIXELS else int(text)


@dataclass(frozen=True)
class MediaOptions:
    """Options for opening media. Each is set by the flag of the same name."""

    image_size: str | None = None  # "512" (square) or "640x480" (width x height): exact, may change the aspect ratio
    image_resize_algorithm: str = "bicubic"
    min_pixels: int | None = None  # scale to a width * height within [min_pixels, max_pixels], keeping the aspect ratio
    max_pixels: int | None = None
    jpeg_draft: bool = False  # decode a JPEG at 1/2, 1/4 or 1/8 of its size, unless that is smaller than the target
    num_frames: int = 8  # frames per video, evenly spaced from the first to the last
    fps: float | None = None  # if given, use this many frames per second, up to max_frames, instead of num_frames
    max_frames: int | None = None
    video_max_pixels: int | None = None  # limit per frame; frames are scaled to it, keeping the aspect ratio
    allow_urls: bool = False
    allowed_networks: tuple[str, ...] = ()  # private networks that URLs may use, such as "10.1.0.0/16"
    cache_folder: str = CACHE_FOLDER  # fetched files are in its subfolder `media`
    image_pixel_limit: int = 179_000_000  # a larger image or frame is refused as a decompression bomb
    media_megabytes_limit: int = 2_000  # limit for a fetched file
    video_seconds_limit: int = 4 * 3600
    video_pixel_limit: int = 2_000_000_000  # limit for all frames of a video together, after scaling

    def __post_init__(self):
        if self.image_resize_algorithm not in FILTERS:
            raise ValueError(
                f"--image_resize_algorithm is {self.image_resize_algorithm!r}, expected {', '.join(FILTERS)}."
            )
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"--min_pixels {self.min_pixels} is more than --max_pixels {self.max_pixels}.")
        width, height = self.target_size(1, 1)
        if width * height > self.image_pixel_limit:
            name = "min_pixels" if self.image_size is None else "image_size"
            raise ValueError(
                f"--{name} {getattr(self, name)} makes images of {width * height:,} pixels, more than "
                f"--image_pixel_limit {self.image_pixel_limit:,}: lower --{name}."
            )

    @classmethod
    def of(cls, flags) -> "MediaOptions":
        """Return the options that are set by flags of the same names (arguments.ReadingArguments)."""
        values = {field.name: getattr(flags, field.name) for field in fields(cls) if hasattr(flags, field.name)}
        if flags.keep_processor_config is False or flags.max_pixels == AUTO_PIXELS:  # the processor applies both
            values |= {"min_pixels": None, "max_pixels": None}
        return cls(**values, cache_folder=flags.data_cache or CACHE_FOLDER)

    def target_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) to which an image of this size is resized."""
        if self.image_size is None:
            return scaled_size(width, height, self.min_pixels, self.max_pixels)
        sides = str(self.image_size).lower().split("x")
        if len(sides) > 2 or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
            raise ValueError(f"--image_size is {self.image_size!r}; write it as 512 or 640x480 (width x height).")
        return int(sides[0]), int(sides[-1])


def scaled_size(width: int, height: int, min_pixels: int | None, max_pixels: int | None) -> tuple[int, int]:
    """Scale a size so that width * height is within the bounds. The aspect ratio is kept, up to whole pixels."""
    if min_pixels and width * height < min_pixels:
        scale = (min_pixels / (width * height)) ** 0.5
        width, height = int(np.ceil(width * scale)), int(np.ceil(height * scale))
    if max_pixels and width * height > max_pixels:
        scale = (max_pixels / (width * height)) ** 0.5
        width, height = max(1, int(width * scale)), max(1, int(height * scale))
        width, height = min(width, max_pixels), min(height, max_pixels)  # for sizes such as 1 x 9000
    return width, height
