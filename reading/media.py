"""Images: from a reference in a row to pixels; and what images and videos have in common.

A reference is an absolute path, an http(s) URL, the bytes of an encoded file, or a PIL image; of a video also a list of
image references, its frames. Videos are decoded in videos.py, URLs fetched in fetch.py.
"""

import contextlib
import io
import os
import stat
import struct
import unicodedata
import zlib
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

# Where indexes of data files and fetched media lie.
CACHE_FOLDER = os.environ.get("FINELMM_CACHE", "~/.cache/finelmm")
FILTERS = {name: Image.Resampling[name.upper()] for name in "bilinear bicubic lanczos nearest box hamming".split()}
# The rest of Pillow's formats are not what people train on, TGA is known only by the ending of a name, and EPS is a
# program that Pillow hands to Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


@dataclass(frozen=True)
class MediaOptions:
    """How media are opened: the flags of the same names.

    Raises:
        ValueError: a value that cannot work, or one that would have no effect; the message names the flag.
    """

    image_size: str | None = None  # "512" (square) or "640x480" (width x height): exactly that, whatever the ratio
    image_resize_algorithm: str = "bicubic"
    min_pixels: int | None = None  # width * height within [min_pixels, max_pixels], the ratio of the sides kept
    max_pixels: int | None = None
    jpeg_draft: bool = False  # decode a JPEG at 1/2, 1/4 or 1/8 of its size, where that is still no smaller than asked
    num_frames: int = 8  # of a video, evenly spaced from the first to the last
    fps: float | None = None  # instead of num_frames: so many a second of video, at most max_frames
    max_frames: int | None = None
    video_max_pixels: int | None = None  # of a frame, the ratio of the sides kept
    video_backend: str = "pyav"  # or decord
    allow_urls: bool = False
    allowed_networks: tuple[str, ...] = ()  # that URLs may point to beside public addresses, as "10.1.0.0/16"
    cache_folder: str = CACHE_FOLDER  # fetched files are kept in its folder media
    image_pixel_limit: int = 179_000_000  # a larger image or frame is refused as a decompression bomb
    media_megabytes_limit: int = 2_000  # of a fetched file
    video_seconds_limit: int = 4 * 3600
    video_pixel_limit: int = 2_000_000_000  # of all frames taken from a video together, as they are scaled

    def __post_init__(self):
        for name in ("min_pixels", "max_pixels", "num_frames", "fps", "max_frames", "video_max_pixels"):
            value = getattr(self, name)
            if value is not None and not value > 0:  # also NaN
                raise ValueError(f"--{name} is {value}; it must be more than 0.")
        for name in ("image_pixel_limit", "media_megabytes_limit", "video_seconds_limit", "video_pixel_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be 1 or more.")
        if self.image_resize_algorithm not in FILTERS:
            raise ValueError(
                f"--image_resize_algorithm is {self.image_resize_algorithm!r}, expected {', '.join(FILTERS)}."
            )
        if self.video_backend not in ("pyav", "decord"):
            raise ValueError(f"--video_backend is {self.video_backend!r}, expected pyav or decord.")
        if self.image_size is not None and (self.min_pixels or self.max_pixels):
            raise ValueError("--min_pixels and --max_pixels have no effect beside --image_size; give one or the other.")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"--min_pixels {self.min_pixels} is more than --max_pixels {self.max_pixels}.")
        if self.jpeg_draft and not (self.image_size or self.max_pixels):
            raise ValueError(
                "--jpeg_draft has no effect without a size to decode for: add --image_size or --max_pixels."
            )
        if self.max_frames and not self.fps:
            raise ValueError("--max_frames has no effect without --fps; give --num_frames or --fps.")
        self.target_size(1, 1)

    @classmethod
    def of(cls, flags) -> "MediaOptions":
        """The options that flags of the same names have (arguments.ReadingArguments)."""
        values = {field.name: getattr(flags, field.name) for field in fields(cls) if hasattr(flags, field.name)}
        return cls(**values, cache_folder=flags.data_cache or CACHE_FOLDER)

    def target_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that an image of (width, height) is resized to.

        Raises:
            ValueError: --image_size is not of the form 512 or 640x480.
        """
        if self.image_size is None:
            return scaled_size(width, height, self.min_pixels, self.max_pixels)
        sides = str(self.image_size).lower().split("x")
        if len(sides) > 2 or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
            raise ValueError(f"--image_size is {self.image_size!r}, expected 512 (square) or 640x480 (width x height).")
        return int(sides[0]), int(sides[-1])


def scaled_size(width: int, height: int, min_pixels: int | None, max_pixels: int | None) -> tuple[int, int]:
    """The size with width * height within the bounds and the ratio of the sides kept, up to whole pixels."""
    if min_pixels and width * height < min_pixels:
        scale = (min_pixels / (width * height)) ** 0.5
        width, height = int(np.ceil(width * scale)), int(np.ceil(height * scale))
    if max_pixels and width * height > max_pixels:
        scale = (max_pixels / (width * height)) ** 0.5
        width, height = max(1, int(width * scale)), max(1, int(height * scale))
        width, height = min(width, max_pixels), min(height, max_pixels)  # where the other side is a single pixel
    return width, height


def open_image(reference, options: MediaOptions) -> Image.Image:
    """The image as a person sees it: RGB, turned by its EXIF orientation, transparency on white; then resized as asked.

    Of an animation it is the first frame.

    Raises:
        ValueError: missing, empty, broken, truncated or too large file; the message names it.
    """
    with _header(reference, options) as image:
        size = None
        if options.jpeg_draft and image.format in ("JPEG", "MPO"):
            size = options.target_size(*_seen_size(image))
            image.draft(None, size[::-1] if _is_turned(image) else size)
        image = _as_seen(image)
        size = size or options.target_size(*image.size)
        return image if size == image.size else image.resize(size, FILTERS[options.image_resize_algorithm])


def read_header(kind: str, reference, options: MediaOptions) -> tuple[int, ...]:
    """(height, width) of an image or (frames, height, width) of a video, as opening gives them.

    It decodes no pixel of an image, and one frame of a video, which alone tells how a phone was held. With `fps` the
    number of frames is what the video's header promises.

    Raises:
        ValueError: what opening would raise, as far as the header tells.
    """
    if kind == "video":
        from reading import videos  # not needed by a run without videos

        return videos.read_header(reference, options)
    with _header(reference, options) as image:
        _is_deep(image)
        return options.target_size(*_seen_size(image))[::-1]


def describe(reference) -> str:
    """How a message names a medium: one printable line, and no credentials, query or content."""
    if isinstance(reference, (bytes, bytearray, memoryview)):
        return f"of {len(reference):,} bytes"
    if isinstance(reference, Image.Image):
        return f"of {reference.width}x{reference.height} pixels"
    if isinstance(reference, (list, tuple)):
        return f"of {len(reference)} images"
    if not isinstance(reference, str):
        return f"of type {type(reference).__name__}"
    if is_url(reference):
        scheme, rest = reference.split("://", 1)
        address, question, _ = rest.partition("?")
        authority, slash, path = address.partition("/")
        reference = f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}{question and '?...'}"
    if not reference.isprintable():
        reference = repr(reference)
    return reference if len(reference) <= 300 else f"{reference[:200]}...{reference[-60:]}"


def is_url(reference) -> bool:
    return isinstance(reference, str) and reference[:8].lower().startswith(("http://", "https://"))


def local_file(kind: str, reference, options: MediaOptions) -> str | io.BytesIO:
    """Where the encoded bytes of a medium are: the path of a regular file, or bytes in memory.

    Raises:
        ValueError: no such file, a folder, a pipe or device (which might never end), a URL that may not be fetched, or
            what is no reference at all.
    """
    name = f"{kind} {describe(reference)}"
    if isinstance(reference, (bytes, bytearray, memoryview)):
        return io.BytesIO(reference)
    if not isinstance(reference, str):
        raise ValueError(f"{name} is no medium; expected a path, a URL or the bytes of a file")
    if is_url(reference):
        from reading import fetch  # not needed by a run without URLs

        if not options.allow_urls:
            raise ValueError(f"{name} is a URL; give --allow_urls True to have it fetched")
        return fetch.fetch(reference, options)
    try:
        mode = os.stat(reference).st_mode
    except (OSError, ValueError) as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        fault = "does not exist" if missing else f"cannot be read: {getattr(error, 'strerror', None) or error}"
        if missing and (similar := similar_path(reference)):
            fault += f", but {similar} does, of which case, accents or slashes are written otherwise"
        raise ValueError(f"{name} {fault}; mend the path or --{kind}_folder") from None
    if not stat.S_ISREG(mode):
        fault = "is a folder" if stat.S_ISDIR(mode) else "is a pipe or device, not a file"
        raise ValueError(f"{name} {fault}; mend the path or --{kind}_folder")
    return reference


def similar_path(path: str) -> str | None:
    """The path that is there, if one differs from a missing absolute path as `folded` says."""
    found = os.sep
    for name in path.replace("\\", "/").strip("/").split("/"):
        if not os.path.lexists(os.path.join(found, name)):
            name = names_in(found).get(folded(name))
        if name is None:
            return None
        found = os.path.join(found, name)
    return found if os.path.exists(found) else None  # not a link to nothing


@lru_cache(maxsize=64)  # of many missing files, most lie in few folders
def names_in(folder: str) -> dict[str, str]:
    try:
        return {folded(name): name for name in os.listdir(folder)}
    except OSError:
        return {}


def folded(name: str) -> str:
    """A name in small letters, with accents composed: a Mac writes them as characters of their own."""
    return unicodedata.normalize("NFC", name).casefold()


def on_white(image: Image.Image) -> Image.Image:
    """An image with transparency as RGB, on white."""
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")


@contextlib.contextmanager
def _header(reference, options: MediaOptions):
    """An image with only its header read. What fails in the body of the `with` is a ValueError that names the image."""
    in_memory = isinstance(reference, Image.Image)
    source = reference if in_memory else local_file("image", reference, options)
    Image.MAX_IMAGE_PIXELS = options.image_pixel_limit // 2  # Pillow (13) refuses what has twice as many
    try:
        with reference.copy() if in_memory else Image.open(source, formats=FORMATS) as image:
            yield image
    except UnidentifiedImageError as error:
        raise _undecodable(reference, f"it is of none of the formats {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise _undecodable(reference, f"{error} If you trust it, raise --image_pixel_limit") from error
    except Exception as error:  # on broken bytes the decoders raise nearly any type
        raise _undecodable(reference, error) from error


def _undecodable(reference, reason) -> ValueError:
    return ValueError(f"image {describe(reference)} cannot be decoded: {reason}")


def _is_deep(image: Image.Image) -> bool:
    """Whether it is grey of 16 bits.

    Raises:
        ValueError: 32 bits, whose range is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return True
    if image.mode in ("I", "F"):
        raise ValueError("its 32-bit pixels have no known range; save it with 8 or 16 bits")
    return False


def _seen_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) as a person sees it, by the header alone."""
    width, height = image.size
    if image.format == "TIFF":  # Pillow (11 and later) has turned the size, but not the pixels
        width, height = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
    return (height, width) if _is_turned(image) else (width, height)


def _is_turned(image: Image.Image) -> bool:
    """Whether it lies on its side, by its EXIF orientation."""
    # Of the base class: PngImageFile's own decodes the whole image to look behind the pixels.
    exif = Image.Image.getexif(_without_pixels(image) if image.format == "PNG" else image)
    return exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)


def _without_pixels(image: Image.Image) -> Image.Image:
    """An opened PNG with its chunks (PNG specification, 5.3) but those of pixels: EXIF may stand behind them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    image.fp.seek(0)
    kept, behind = [image.fp.read(8)], False
    while len(start := image.fp.read(8)) == 8:
        length, name = struct.unpack(">I4s", start)
        if name == b"IEND" or (behind and name == b"fcTL"):  # the second frame of an animation
            break
        if name == b"IDAT":
            behind = True
            image.fp.seek(length, os.SEEK_CUR)
        else:
            kept.append(chunk(name, image.fp.read(length)))
        image.fp.seek(4, os.SEEK_CUR)  # its checksum
    return Image.open(io.BytesIO(b"".join(kept) + chunk(b"IDAT", b"")), formats=["PNG"])


def _as_seen(image: Image.Image) -> Image.Image:
    """The image turned (in place) and as RGB."""
    tiff = image.tag_v2 if image.format == "TIFF" else {}
    deep = _is_deep(image)
    ImageOps.exif_transpose(image, in_place=True)
    if deep:  # `convert` would clip at 255 and leave it white
        bits = tiff.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
        if tiff.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is 0; Pillow (13) turns only 8 bits
            image = ImageOps.invert(image)
    return on_white(image) if image.has_transparency_data else image.convert("RGB")
