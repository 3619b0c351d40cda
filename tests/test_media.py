"""Images and videos, against pixels that the test wrote itself."""

import wave

import av
import numpy as np
import pytest
from PIL import ExifTags, Image

import media

RED, WHITE = (255, 0, 0), (255, 255, 255)


def write_clip(path, frames: int = 16, codec: str = "libx264", options: dict | None = None) -> str:
    """Frames of 64x64 at 8 per second, the i-th of brightness 12 * i."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        noise = np.random.default_rng(0).integers(0, 12, (64, 64, 3))  # so that the file has some bytes to lose
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray((noise + 12 * i).clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def brightness(frames) -> list[int]:
    """The number that `write_clip` gave each frame."""
    return [round((float(frame.mean()) - 5.5) / 12) for frame in frames]


# ---- images ----


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
    image = media.open_image(str(tmp_path / "a.png"))
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 2), expected)


def test_a_palette_image_keeps_its_colours_and_its_transparency(tmp_path):
    image = Image.new("P", (4, 2), 1)
    image.putpalette([9, 9, 9, 255, 0, 0])
    image.putpixel((3, 0), 0)
    image.save(tmp_path / "a.png", transparency=0)
    opened = media.open_image(str(tmp_path / "a.png"))
    assert opened.getpixel((0, 0)) == RED and opened.getpixel((3, 0)) == WHITE


@pytest.mark.parametrize("ending", ["png", "jpg"])
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
    image = media.open_image(path)
    assert image.size == size
    assert (
        image.getpixel(corner)[0] > 200 and sum(image.getpixel((size[0] - 1 - corner[0], size[1] - 1 - corner[1]))) < 60
    )
    assert media.check_media("image", path) == size[::-1]


def test_checking_an_image_decodes_no_pixel(tmp_path):
    Image.new("RGB", (64, 32), "red").save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:50])  # the header is whole
    assert media.check_media("image", str(tmp_path / "a.png")) == (32, 64)


BROKEN = {"garbage": b"\x01garbage" * 40, "empty": b"", "text": b"<html>404</html>"}


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("kind, name", [("image", "a.png"), ("image", "a.jpg"), ("video", "a.mp4"), ("video", "a.mkv")])
def test_a_broken_file_is_a_value_error_that_names_it(tmp_path, kind, name, content):
    path = str(tmp_path / name)
    (tmp_path / name).write_bytes(BROKEN[content])
    for opened in (lambda: media.check_media(kind, path), lambda: open_medium(kind, path)):
        with pytest.raises(ValueError, match=f"{kind} .*{name} cannot be decoded: ."):
            opened()


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_missing_file_is_a_value_error_that_names_it(tmp_path, kind):
    path = str(tmp_path / "none.x")
    for opened in (lambda: media.check_media(kind, path), lambda: open_medium(kind, path)):
        with pytest.raises(ValueError, match=f"{kind} .*none.x does not exist"):
            opened()


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp"])
def test_a_truncated_image_is_a_value_error(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot be decoded"):
        media.open_image(str(path))


def test_pixels_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="32-bit"):
        media.open_image(str(tmp_path / "a.tiff"))


def open_medium(kind: str, path: str):
    return media.open_image(path) if kind == "image" else media.open_video(path, 4)


# ---- videos ----


@pytest.mark.parametrize("name, fps", [("a.mp4", 8), ("a.mkv", 8), ("a.avi", 8), ("a.ts", 8), ("a.h264", 25)])
def test_frames_are_spaced_evenly_from_the_first_to_the_last(tmp_path, name, fps):
    frames, metadata = media.open_video(write_clip(tmp_path / name), 4)
    assert frames.shape == (4, 64, 64, 3) and frames.dtype == np.uint8
    assert brightness(frames) == [0, 5, 10, 15]
    # A raw stream knows no time; FFmpeg says 25.
    assert metadata == {"fps": fps, "duration": 16 / fps, "total_num_frames": 16, "frames_indices": [0, 5, 10, 15]}
    assert media.check_media("video", str(tmp_path / name)) == (64, 64)


@pytest.mark.parametrize("length, wanted, expected", [(3, 5, [0, 0, 1, 2, 2]), (1, 2, [0, 0]), (3, 1, [0])])
def test_a_short_clip_repeats_frames(tmp_path, length, wanted, expected):
    frames, metadata = media.open_video(write_clip(tmp_path / "a.mp4", length), wanted)
    assert metadata["frames_indices"] == expected and brightness(frames) == expected


@pytest.mark.parametrize("kept", [0.5, 0.9])
@pytest.mark.parametrize(
    "name, options",
    [("a.mp4", {}), ("a.mp4", {"movflags": "+faststart"}), ("a.mkv", {}), ("a.avi", {}), ("a.flv", {})],
)
def test_a_truncated_video_is_never_a_shorter_clip(tmp_path, name, options, kept):
    path = tmp_path / name
    write_clip(path, 32, options=options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ValueError, match=f"video .*{name} cannot be decoded"):
        media.open_video(str(path), 4)


def test_a_clip_cut_without_encoding_it_again_opens(tmp_path):
    """As `ffmpeg -ss 0.5 -c copy` leaves it: the first 4 frames are in the file, but not in the clip."""
    write_clip(tmp_path / "whole.mp4")
    with av.open(str(tmp_path / "whole.mp4")) as whole, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.pts -= int(0.5 / packet.time_base)
                packet.dts -= int(0.5 / packet.time_base)
                packet.stream = stream
                cut.mux(packet)
    frames, metadata = media.open_video(str(tmp_path / "cut.mp4"), 2)
    assert metadata["total_num_frames"] == 12 and brightness(frames) == [4, 15]


def test_a_file_without_pictures_is_named(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    for opened in (lambda path: media.check_media("video", path), lambda path: media.open_video(path, 2)):
        with pytest.raises(ValueError, match="a.wav cannot be decoded: it holds no video stream"):
            opened(str(tmp_path / "a.wav"))
