"""Open the images to which rows refer."""

import contextlib
import io
import os
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from reading.files import local_file
from reading.options import FILTERS, MediaOptions
from reading.references import describe, what_it_is

# Pillow's other formats are rare in training data. TGA can only be recognised by its file name, and Pillow passes EPS
# files, which are programs, to Ghostscript.
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


def open_image(reference, options: MediaOptions) -> Image.Image:
    """Return an image in RGB, rotated by its EXIF orientation, on a white background, and resized by `options`.

    For an animation, return the first frame.
    """
    with _header(reference, options) as image:
        size = None
        if options.jpeg_draft and image.format in ("JPEG", "MPO"):
            size = options.target_size(*_seen_size(image))
            image.draft(None, size[::-1] if _is_turned(image) else size)
        image = _as_seen(image)
        size = size or options.target_size(*image.size)
        return image if size == image.size else image.resize(size, FILTERS[options.image_resize_algorithm])


def read_header(reference, options: MediaOptions) -> tuple[int, int]:
    """Return the (height, width) that `open_image` would give, without decoding pixels. See `media.read_header`."""
    with _header(reference, options) as image:
        _is_deep(image)
        return options.target_size(*_seen_size(image))[::-1]


def seen_size(reference, options: MediaOptions) -> tuple[int, int]:
    """Return the (width, height) after EXIF rotation and before resizing, without decoding pixels."""
    with _header(reference, options) as image:
        return _seen_size(image)


def on_white(image: Image.Image) -> Image.Image:
    """Return an image with transparency as RGB on a white background."""
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")


@contextlib.contextmanager
def _header(reference, options: MediaOptions):
    """Yield an image with only its header read. Errors in the `with` block become a ValueError that names the image."""
    in_memory = isinstance(reference, Image.Image)
    source = reference if in_memory else local_file("image", reference, options)
    Image.MAX_IMAGE_PIXELS = options.image_pixel_limit // 2  # Pillow (13) refuses more than twice this number
    try:
        with reference.copy() if in_memory else _open_header(source) as image:
            yield image
    except Exception as error:  # decoders raise many types of errors on broken bytes
        reason = error
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is {what_it_is(source) or 'in none of the formats ' + ', '.join(IMAGE_FORMATS)}"
        elif isinstance(error, Image.DecompressionBombError):
            reason = f"{error} If you trust the image, raise --image_pixel_limit"
        raise ValueError(f"image {describe(reference)} cannot be decoded: {reason}") from error


def _open_header(source: str | io.BytesIO) -> Image.Image:
    try:
        return Image.open(source, formats=IMAGE_FORMATS)
    except UnidentifiedImageError:
        with contextlib.suppress(ImportError):
            from pillow_heif import register_heif_opener  # an optional package

            register_heif_opener()
            return Image.open(source, formats=["HEIF"])
        raise


def _is_deep(image: Image.Image) -> bool:
    """Whether the image has 16-bit grey pixels."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return True
    if image.mode in ("I", "F"):
        raise ValueError("the range of its 32-bit pixels is unknown; save the image with 8 or 16 bits")
    return False


def _seen_size(image: Image.Image) -> tuple[int, int]:
    """Return the (width, height) after EXIF rotation, from the header alone."""
    width, height = image.size
    if image.format == "TIFF":  # Pillow (11 and later) has rotated the size, but not the pixels
        width, height = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
    return (height, width) if _is_turned(image) else (width, height)


def _is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation swaps width and height."""
    # This calls the base class, since PngImageFile.getexif decodes the whole image to reach chunks after the pixels.
    exif = Image.Image.getexif(_without_pixels(image) if image.format == "PNG" else image)
    return exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)


def _without_pixels(image: Image.Image) -> Image.Image:
    """Return an opened PNG without its pixel chunks (PNG specification, 5.3). EXIF may be after these chunks."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    image.fp.seek(0)
    kept, behind = [image.fp.read(8)], False
    while len(start := image.fp.read(8)) == 8:
        length, name = struct.unpack(">I4s", start)
        if name == b"IEND" or (behind and name == b"fcTL"):  # where the second frame of an animation starts
            break
        if name == b"IDAT":
            behind = True
            image.fp.seek(length, os.SEEK_CUR)
        else:
            kept.append(chunk(name, image.fp.read(length)))
        image.fp.seek(4, os.SEEK_CUR)  # skip the checksum
    return Image.open(io.BytesIO(b"".join(kept) + chunk(b"IDAT", b"")), formats=["PNG"])


def _as_seen(image: Image.Image) -> Image.Image:
    """Return the image as RGB, rotated by its EXIF orientation. The rotation is done in place."""
    tiff = image.tag_v2 if image.format == "TIFF" else {}
    deep = _is_deep(image)
    ImageOps.exif_transpose(image, in_place=True)
    if deep:  # `convert` would clip at 255, so the image would be white
        bits = tiff.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
        if tiff.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is 0; Pillow (13) inverts only 8 bits
            image = ImageOps.invert(image)
    return on_white(image) if image.has_transparency_data else image.convert("RGB")
