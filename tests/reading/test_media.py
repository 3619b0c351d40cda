"""Images, against pixels that the test wrote itself."""

import gzip
import io
import lzma
import struct
import sys
import zipfile
import zlib

import av
import numpy as np
import pytest
from PIL import ExifTags, Image

from reading import images, media, videos
from reading.options import MediaOptions, scaled_size
from reading.references import describe
from reading.sources import find_source

RED, WHITE = (255, 0, 0), (255, 255, 255)
PLAIN = MediaOptions()
OPEN = {"image": images.open_image, "video": videos.open_video}


def save_png(path, mode, colour):
    Image.new(mode, (4, 2), colour).save(path)


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("RGB", RED, RED),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (0, 0, 0, 0), WHITE),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("L", 90, (90, 90, 90)),
        ("LA", (90, 0), WHITE),
        ("1", 1, WHITE),
        ("I;16", 0x5A00, (90, 90, 90)),
    ],
)
def test_every_pixel_format_becomes_what_a_person_sees(tmp_path, mode, colour, expected):
    save_png(tmp_path / "a.png", mode, colour)
    image = images.open_image(str(tmp_path / "a.png"), PLAIN)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 2), expected)


def test_a_palette_image_keeps_its_colours_and_its_transparency(tmp_path):
    image = Image.new("P", (4, 2), 1)
    image.putpalette([9, 9, 9, 255, 0, 0])
    image.putpixel((3, 0), 0)
    image.save(tmp_path / "a.png", transparency=0)
    opened = images.open_image(str(tmp_path / "a.png"), PLAIN)
    assert opened.getpixel((0, 0)) == RED and opened.getpixel((3, 0)) == WHITE


def test_a_palette_with_alpha_lies_on_white():
    image = Image.new("PA", (4, 2), (1, 255))
    image.putpalette([9, 9, 9, 255, 0, 0])
    image.putpixel((3, 0), (1, 0))
    opened = images.open_image(image, PLAIN)
    assert opened.getpixel((0, 0)) == RED and opened.getpixel((3, 0)) == WHITE


def png(width: int, height: int, depth: int, kind: int, rows: bytes) -> bytes:
    """A PNG by the letter of its specification, each of the rows with its filter byte."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(width: int, height: int, bits: int, photometric: int, data: bytes, channels: int = 1) -> bytes:
    """An uncompressed little-endian TIFF by the letter of its specification."""
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: photometric,
        273: 0,
        277: channels,
        278: height,
        279: len(data),
    }
    behind = 8 + 2 + 12 * len(tags) + 4
    tags[273] = behind + 2 * channels
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items() if tag != 258)
    several = struct.pack("<HHII", 258, 3, channels, bits if channels == 1 else behind)
    entries = entries[:24] + several + entries[24:]
    return (
        struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + struct.pack("<H", bits) * channels + data
    )


@pytest.mark.parametrize(
    "content, expected",
    [
        (png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0x5AFF, 0x0100, 0xFF00)), (90, 1, 255)),
        (png(1, 1, 16, 4, b"\0" + struct.pack(">2H", 0x5A00, 0xFFFF)), (90, 90, 90)),
        (png(1, 1, 16, 6, b"\0" + struct.pack(">4H", 0x5A00, 0, 0, 0)), WHITE),
        (png(8, 1, 1, 0, b"\0\xff"), WHITE),
        (b"P5 1 1 65535\n" + struct.pack(">H", 0x5A00), (90, 90, 90)),
        (b"P4 8 1\n\x00", WHITE),  # 1 is black
        (tiff(1, 1, 16, 1, struct.pack("<H", 0x5A00)), (90, 90, 90)),
        (tiff(1, 1, 16, 0, struct.pack("<H", 0x5A00)), (165, 165, 165)),  # 0 is white
        (tiff(2, 1, 12, 1, bytes([0x5A, 0x05, 0xA0])), (90, 90, 90)),
        (tiff(1, 1, 8, 5, bytes([0, 255, 255, 0]), 4), RED),  # cyan, magenta, yellow, black
    ],
    ids="rgb16 la16 rgba16 bit pgm16 pbm tiff16 tiff16-inverted tiff12 cmyk".split(),
)
def test_a_file_by_the_letter_of_its_specification(content, expected):
    image = images.open_image(content, PLAIN)
    assert image.mode == "RGB" and image.getpixel((0, 0)) == expected
    assert media.read_header("image", content, PLAIN) == image.size[::-1]


def test_a_cmyk_jpeg_with_inverted_ink_as_adobe_writes_it(tmp_path):
    file = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 200, 200, 0)).save(file, "JPEG", quality=100)
    assert b"Adobe" in file.getvalue()
    with av.open(file, format="jpeg_pipe") as truth:  # FFmpeg's decoder, which follows the marker
        truth = next(truth.decode(video=0)).to_ndarray(format="rgb24")[8, 8]
    colour = images.open_image(file.getvalue(), PLAIN).getpixel((8, 8))
    assert np.abs(truth.astype(int) - colour).max() < 6 and colour[0] > 240 and colour[1] < 70


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, ending):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], lossless=True)
    assert images.open_image(str(tmp_path / f"a.{ending}"), PLAIN).getpixel((4, 4)) == RED


@pytest.mark.parametrize("ending", ["png", "jpg", "tiff", "webp"])
@pytest.mark.parametrize(
    "orientation, size, corner", [(1, (32, 16), (0, 0)), (3, (32, 16), (31, 15)), (6, (16, 32), (15, 0))]
)
def test_exif_turns_the_image_and_its_size(tmp_path, ending, orientation, size, corner):
    stored = Image.new("RGB", (32, 16), "black")
    stored.paste(RED, (0, 0, 16, 8))  # the stored top left
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = str(tmp_path / f"a.{ending}")
    stored.save(path, exif=exif)
    image = images.open_image(path, PLAIN)
    assert image.size == size
    assert (
        image.getpixel(corner)[0] > 200 and sum(image.getpixel((size[0] - 1 - corner[0], size[1] - 1 - corner[1]))) < 60
    )
    assert media.read_header("image", path, PLAIN) == size[::-1]
    with Image.open(path) as given:
        before = given.size  # of TIFF, Pillow turns it
        assert images.open_image(given, PLAIN).tobytes() == image.tobytes()
        assert media.read_header("image", given, PLAIN) == size[::-1] and given.size == before


@pytest.mark.parametrize("orientation, size", [(1, (32, 16)), (6, (16, 32))])
@pytest.mark.parametrize("animated", [False, True])
def test_exif_behind_the_pixels_of_a_png_turns_it_too(orientation, size, animated):
    """PNG specification, 5.6: eXIf may stand anywhere between IHDR and IEND."""
    file = io.BytesIO()
    image = Image.new("RGB", (32, 16))
    image.save(file, "PNG", save_all=animated, append_images=[Image.new("RGB", (32, 16), RED)] * animated)
    exif = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, ExifTags.Base.Orientation, 3, 1, orientation, 0, 0)
    late = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    content = file.getvalue()
    end = content.rindex(b"fcTL" if animated else b"IEND") - 4  # of an animation, behind the first frame
    content = content[:end] + late + content[end:]
    assert content.index(b"eXIf") > content.index(b"IDAT")
    assert images.open_image(content, PLAIN).size == size
    assert media.read_header("image", content, PLAIN) == size[::-1]


def test_checking_an_image_decodes_no_pixel(tmp_path):
    Image.new("RGB", (64, 32), "red").save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:50])  # the header is whole
    assert media.read_header("image", str(tmp_path / "a.png"), PLAIN) == (32, 64)


BROKEN = {"garbage": b"\x01garbage" * 40, "empty": b"", "text": b"<html>404</html>"}


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("kind, name", [("image", "a.png"), ("image", "a.jpg"), ("video", "a.mp4"), ("video", "a.mkv")])
def test_a_broken_file_is_a_value_error_that_names_it(tmp_path, kind, name, content):
    path = str(tmp_path / name)
    (tmp_path / name).write_bytes(BROKEN[content])
    for opened in (lambda: media.read_header(kind, path, PLAIN), lambda: OPEN[kind](path, PLAIN)):
        with pytest.raises(ValueError, match=f"{kind} .*{name} cannot be decoded: ."):
            opened()


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_missing_file_is_a_value_error_that_names_it(tmp_path, kind):
    path = str(tmp_path / "none.x")
    for opened in (lambda: media.read_header(kind, path, PLAIN), lambda: OPEN[kind](path, PLAIN)):
        with pytest.raises(ValueError, match=f"{kind} .*none.x does not exist"):
            opened()


def test_a_format_without_a_magic_number_is_none(tmp_path):
    Image.new("RGB", (4, 2)).save(tmp_path / "a.tga")
    with pytest.raises(ValueError, match="it is in none of the formats"):
        images.open_image(str(tmp_path / "a.tga"), PLAIN)


def test_what_is_taken_for_a_medium_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", b"")
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"  # ISO/IEC 23008-12
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n"
    for content, named in [
        (b"", "empty"),
        (b"<!DOCTYPE html>\n<html>", "an HTML page, .*download"),
        (b"\n <HTML lang='en'>", "an HTML page"),
        (pointer, "a Git LFS pointer: run `git lfs pull`"),
        (archive.getvalue(), "a compressed archive: unpack it"),
        (gzip.compress(b"x"), "a compressed archive"),
        (lzma.compress(b"x"), "a compressed archive"),
        (b"%PDF-1.7", "a PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "XML, perhaps an SVG"),
        (heic, "a HEIC image: pip install pillow-heif, or convert it"),
    ]:
        (tmp_path / "a.x").write_bytes(content)
        for kind in ("image", "video") if content != heic else ("image",):
            for reference in (str(tmp_path / "a.x"), content):
                with pytest.raises(ValueError, match=f"{kind} .* cannot be decoded: it is {named}"):
                    OPEN[kind](reference, PLAIN)
        if content != heic:
            (tmp_path / "a.json").write_bytes(content)
            with pytest.raises(ValueError, match=f"a.json is {named}"):
                find_source(str(tmp_path / "a.json"))
    (tmp_path / "a.jsonl").touch()
    assert find_source(str(tmp_path / "a.jsonl")).files


def test_a_heic_photo_is_read_as_it_was_held(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    seen = Image.new("RGB", (64, 48), "red")
    seen.paste("blue", (0, 0, 64, 24))  # above
    turned = pillow_heif.from_pillow(seen.transpose(Image.Transpose.ROTATE_90))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned.save(tmp_path / "a.heic", quality=95, exif=exif.tobytes(), save_nclx_profile=False)
    data = (tmp_path / "a.heic").read_bytes()
    assert b"irot" in data  # by which it is turned; EXIF, which says so too, is not to turn it again
    for reference in (str(tmp_path / "a.heic"), data):
        assert images.read_header(reference, PLAIN) == (48, 64)
        found = np.asarray(images.open_image(reference, PLAIN)).astype(int)
        assert found.shape == (48, 64, 3) and np.abs(found - np.asarray(seen)).mean() < 12
    with pytest.raises(ValueError, match="cannot be decoded"):
        images.open_image(data[: len(data) // 2], PLAIN)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp"])
def test_a_truncated_image_is_a_value_error(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot be decoded"):
        images.open_image(str(path), PLAIN)


def test_pixels_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tiff")
    Image.new("I", (4, 4)).save(tmp_path / "b.tiff")
    for name in ("a.tiff", "b.tiff"):
        for opened in (images.open_image, lambda *of: media.read_header("image", *of)):
            with pytest.raises(ValueError, match="32-bit"):
                opened(str(tmp_path / name), PLAIN)


# ---- what a reference may be ----


def test_an_image_may_be_a_path_bytes_or_opened(tmp_path):
    image = Image.new("RGB", (6, 4), "red")
    image.save(tmp_path / "a.png")
    for reference in (str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), image):
        opened = images.open_image(reference, PLAIN)
        assert opened.size == (6, 4) and opened.getpixel((0, 0)) == RED
        assert media.read_header("image", reference, PLAIN) == (4, 6)
    assert image.load()  # still open


@pytest.mark.parametrize(
    "reference, name",
    [
        (b"x" * 1234, "of 1,234 bytes"),
        (Image.new("L", (3, 2)), "of 3x2 pixels"),
        (["a", "b"], "of 2 images"),
        (None, "of type NoneType"),
        ("/a/b.png", "/a/b.png"),
        ("/a\nb.png", r"'/a\nb.png'"),
        ("https://me:secret@host.org:8/a.png?token=secret", "https://host.org:8/a.png?..."),
        ("http://[bad", "http://[bad"),
    ],
)
def test_a_message_names_a_medium_in_one_line_without_secrets(reference, name):
    assert describe(reference) == name


def test_a_long_name_is_shortened():
    assert len(describe("data:image/png;base64," + "A" * 10**6)) < 300


@pytest.mark.parametrize("kind", ["image", "video"])
def test_urls_need_consent(kind):
    for opened in (OPEN[kind], lambda *of: media.read_header(kind, *of)):
        with pytest.raises(ValueError, match=f"{kind} https://x.org/a is a URL; pass --allow_urls True"):
            opened("https://x.org/a", PLAIN)


@pytest.mark.parametrize("reference", [None, 3, {"path": "a"}])
def test_what_is_no_reference_is_named(reference):
    with pytest.raises(ValueError, match="is not an image or a video; expected a path"):
        images.open_image(reference, PLAIN)


# ---- sizes ----


@pytest.mark.parametrize(
    "flags, size",
    [
        ({}, (64, 48)),
        ({"image_size": "32"}, (32, 32)),
        ({"image_size": "40x20"}, (40, 20)),
        ({"max_pixels": 64 * 48}, (64, 48)),
        ({"max_pixels": 64 * 48 // 4}, (32, 24)),
        ({"min_pixels": 64 * 48 * 4}, (128, 96)),
        ({"min_pixels": 10, "max_pixels": 10**6}, (64, 48)),
    ],
)
def test_an_image_is_resized_as_asked_and_its_header_tells(flags, size):
    image, options = Image.new("RGB", (64, 48), "red"), MediaOptions(**flags)
    opened = images.open_image(image, options)
    assert opened.size == size and opened.getpixel((5, 5)) == RED
    assert media.read_header("image", image, options) == size[::-1]


def test_a_size_applies_to_the_image_as_it_is_turned(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg", exif=exif)
    options = MediaOptions(max_pixels=64 * 48 // 4)
    assert images.open_image(str(tmp_path / "a.jpg"), options).size == (24, 32)
    assert media.read_header("image", str(tmp_path / "a.jpg"), options) == (32, 24)


def test_every_size_lies_within_the_bounds_and_keeps_the_ratio():
    random = np.random.default_rng(0)
    for _ in range(3000):
        width, height = (int(2 ** random.uniform(0, 13)) for _ in range(2))
        low = int(2 ** random.uniform(0, 20))
        high = low * 2 + 1
        new = scaled_size(width, height, low, high)
        assert 1 <= new[0] * new[1] <= high
        assert new[0] * new[1] >= low or min(new) < 3
        if min(new) > 30 and min(width, height) > 30:
            assert abs(new[0] / new[1] / (width / height) - 1) < 0.07


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"])
def test_each_algorithm_is_the_one_of_its_name(name):
    """A dark and a bright half, doubled: nearest and box keep two values, the others grade, and two overshoot."""
    image = Image.fromarray(np.repeat([0, 0, 0, 0, 200, 200, 200, 200], 3).reshape(1, 8, 3).astype(np.uint8))
    row = np.asarray(images.open_image(image, MediaOptions(image_size="16x1", image_resize_algorithm=name)))[0, :, 0]
    assert (set(row.tolist()) == {0, 200}) == (name in ("nearest", "box"))
    assert (row.max() > 200) == (name in ("bicubic", "lanczos"))


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"image_size": "big"}, "--image_size is 'big'; write it as 512"),
        ({"image_size": "0x4"}, "--image_size"),
        ({"image_size": "1x2x3"}, "--image_size"),
        ({"image_size": "-5"}, "--image_size"),
        ({"image_size": ""}, "--image_size"),
        ({"image_size": "\u00b2"}, "--image_size"),
        ({"image_resize_algorithm": "best"}, "--image_resize_algorithm is 'best', expected bilinear"),
        ({"min_pixels": 9, "max_pixels": 4}, "--min_pixels 9 is more than --max_pixels 4"),
    ],
)
def test_a_flag_that_cannot_work_is_named(flags, message):
    with pytest.raises(ValueError, match=message):
        MediaOptions(**flags)
