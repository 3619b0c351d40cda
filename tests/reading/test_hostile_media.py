"""Media made to break whoever opens them: each opens rightly or is a ValueError that names it.

All are opened in a child process, which has to answer in time and within a bound of memory.
"""

import multiprocessing
import os
import pickle
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import check_each
from PIL import Image
from test_media import png, tiff
from test_videos import numbers, write_clip

from reading import images, media, videos
from reading.options import MediaOptions
from reading.references import describe

START_SECONDS, SECONDS = 600, 60  # a busy machine is no fault
MEGABYTES = 200  # beyond what the process had before


def memory(name: str) -> float:
    """In MB, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def opened(kind: str, reference, options: MediaOptions) -> np.ndarray:
    if kind == "image":
        return np.asarray(images.open_image(reference, options))
    return videos.open_video(reference, options)[0]


def header_and_pixels(*request) -> list:
    """(header, pixels), or the texts of their ValueErrors."""
    answers = []
    for function in (media.read_header, opened):
        try:
            answers.append(function(*request))
        except ValueError as error:
            answers.append(str(error))
    return answers


def serve(pipe) -> None:
    """The child: answers with header and pixels, and the peak of memory."""
    pipe.send("ready")
    while True:
        request = pipe.recv()
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again: man 5 proc
        before = memory("VmRSS")
        pipe.send((header_and_pixels(*request), memory("VmHWM") - before))


class Child:
    """A process that serves. One that died or hung fails the test that asked it; the next test gets another."""

    process = None

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        assert self.pipe.poll(START_SECONDS) and self.pipe.recv() == "ready"

    def ask(self, *request) -> tuple[list, float]:
        try:
            if self.process is None:
                self.start()
            self.pipe.send(request)
            assert self.pipe.poll(SECONDS), "it hangs"
            return self.pipe.recv()  # EOFError: it was killed
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def check_messages(kind: str, reference, answers: list) -> None:
    for answer in answers:
        if isinstance(answer, str):
            assert answer.startswith((f"{kind} {describe(reference)} ", "URL ")) and answer.isprintable()
            assert len(answer) < len(describe(reference)) + 300


@pytest.fixture(scope="module")
def child():
    """`child(kind, reference)`: (header, pixels) or the texts of their errors."""
    process = Child()

    def ask(kind: str, reference, megabytes: int = MEGABYTES, **flags):
        answers, peak = process.ask(kind, reference, MediaOptions(num_frames=3, **flags))
        assert peak < megabytes
        check_messages(kind, reference, answers)
        return answers

    yield ask
    process.kill()


def ask_here(kind: str, reference) -> list:
    """As `child`, in this process: for what cannot hang."""
    answers = header_and_pixels(kind, reference, MediaOptions(num_frames=3))
    check_messages(kind, reference, answers)
    return answers


# ---- files of each format: empty, garbage, cut, lying ----

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
IMAGES = ["png", "jpg", "gif", "webp", "bmp", "tiff", "ppm", "ico", "avif", "jp2"]
VIDEOS = {
    "mp4": {},
    "mov": {},
    "mkv": {},
    "avi": {},
    "flv": {},
    "h264": {},
    "webm": {"codec": "libvpx", "b": "200k"},
    "gif": {"codec": "gif", "pix_fmt": "rgb8"},
}
ENDLESS = ("h264",)  # promise no length, so that a part is as good as the whole
FAULTS = {
    "empty": lambda content: b"",
    "garbage": lambda content: np.random.default_rng(1).bytes(5000),
    "garbage behind a good start": lambda content: content[:40] + np.random.default_rng(1).bytes(5000),
    "zeros behind a good start": lambda content: content[:40] + bytes(5000),
    "cut in the header": lambda content: content[:20],
    "cut at a third": lambda content: content[: len(content) // 3],
    "cut near the end": lambda content: content[: len(content) * 19 // 20],
    "doubled": lambda content: content + content,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("whole"), {}

    def get(kind: str, ending: str) -> bytes:
        if (kind, ending) not in made:
            path = folder / f"{kind}.{ending}"
            if kind == "image":
                lossless = {"lossless": True} if ending == "webp" else {}
                Image.fromarray(PIXELS).save(path, **lossless)
            else:
                write_clip(path, 24, **VIDEOS[ending])
            made[kind, ending] = path.read_bytes()
        return made[kind, ending]

    return get


def check_damaged(ask, whole: bytes, path: Path, kind: str, fault: str) -> None:
    path.write_bytes(whole)
    _, expected = ask(kind, str(path))
    assert not isinstance(expected, str)
    path.write_bytes(FAULTS[fault](whole))
    _, result = ask(kind, str(path))
    ending = path.suffix[1:]
    if isinstance(result, str):
        assert "cannot be decoded: " in result
    elif kind == "image":
        assert np.array_equal(result, expected) and fault in ("doubled", "cut near the end")
    elif ending not in ENDLESS:
        assert numbers(result)[0] == 0 and numbers(result)[-1] == 23
        assert fault == "doubled" or (ending, fault) == ("mkv", "cut near the end")  # only its index is lost


@pytest.mark.slow
@pytest.mark.parametrize("kind, ending", [*(("image", e) for e in IMAGES), *(("video", e) for e in VIDEOS)])
def test_a_damaged_file_of_each_format(whole, child, tmp_path, kind, ending):
    check = partial(check_damaged, child, whole(kind, ending), tmp_path / f"a.{ending}", kind)
    check_each([(fault,) for fault in FAULTS], check)


@pytest.mark.parametrize("kind, ending", [("image", "png"), ("image", "jpg"), ("video", "mp4")])
def test_a_damaged_file_of_the_most_common_formats(whole, tmp_path, kind, ending):
    check = partial(check_damaged, ask_here, whole(kind, ending), tmp_path / f"a.{ending}", kind)
    check_each([(fault,) for fault in FAULTS], check)


def patched(content: bytes, at: int, form: str, *values) -> bytes:
    new = struct.pack(form, *values)
    return content[:at] + new + content[at + len(new) :]


def lying_png(content: bytes) -> bytes:
    content = patched(content, 16, ">II", 60000, 60000)
    return patched(content, 29, ">I", zlib.crc32(content[12:29]))


def lying_tiff(content: bytes) -> bytes:
    return tiff(60000, 60000, 8, 1, bytes(100))


BOMBS = {
    "png": lying_png,
    "jpg": lambda content: patched(content, content.index(b"\xff\xc0") + 5, ">HH", 65500, 65500),
    "gif": lambda content: patched(content, 6, "<HH", 65535, 65535),
    "bmp": lambda content: patched(content, 18, "<ii", 60000, 60000),
    "tiff": lying_tiff,
    "ppm": lambda content: b"P6 60000 60000 255\n" + bytes(100),
    "ico": lambda content: content[:22] + lying_png(content[22:]),
    "webp": lambda content: b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xff\x3f\0" * 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", BOMBS)
def test_a_header_that_claims_huge_sizes_takes_no_memory(whole, child, tmp_path, ending):
    (tmp_path / f"a.{ending}").write_bytes(BOMBS[ending](whole("image", ending)))
    _, result = child("image", str(tmp_path / f"a.{ending}"))
    assert "cannot be decoded" in result
    if ending not in ("webp", "ico"):  # these fail on other grounds first
        assert "--image_pixel_limit" in result


@pytest.mark.slow
def test_the_limit_of_pixels_can_be_moved(child):
    content = lying_png(png(1, 1, 8, 0, b"\0\0"))
    assert "--image_pixel_limit" in child("image", content)[0]
    assert child("image", content, image_pixel_limit=60000**2, megabytes=5000)[0] == (60000, 60000)
    assert "--image_pixel_limit" in child("image", png(2, 2, 8, 0, bytes(6)), image_pixel_limit=2)[1]


# ---- files that are special ----


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(name: bytes, data: bytes) -> bytes:
    whole = png(1, 1, 8, 0, b"\0\x5a")
    return whole[:33] + chunk(name, data) + whole[33:]


def million_frames() -> bytes:
    frame = b"\x21\xf9\x04\0\x0a\0\0\0\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\xff\0\0\0\0\xff" + frame * 1_000_000 + b"\x3b"


def cyclic_tiff() -> bytes:
    content = tiff(1, 1, 8, 1, b"\x5a")
    end = 8 + 2 + 12 * struct.unpack("<H", content[8:10])[0]
    return patched(content, end, "<I", 8)  # the next directory is the first one


def tiff_with_endless_tag() -> bytes:
    content = tiff(1, 1, 8, 1, b"\x5a")
    return patched(content, 10 + 4, "<I", 0xFFFFFFF0)  # so many widths


def pickled(path: Path) -> bytes:
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(path),)

    return pickle.dumps(Trap())


OPENS, REFUSED = True, False
GOOD = png(1, 1, 8, 0, b"\0\x5a")
SPECIAL = {
    # name: (content, whether it opens)
    "png.jpg": (GOOD, OPENS),
    "png without an end.png": (GOOD[:-12], OPENS),
    "million.gif": (million_frames, OPENS),
    "cyclic.tiff": (cyclic_tiff, OPENS),
    "endless tag.tiff": (tiff_with_endless_tag, REFUSED),
    "text bomb.png": (lambda: with_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000))), REFUSED),
    "profile bomb.png": (lambda: with_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(50_000_000))), None),
    "pixel bomb.png": (lambda: png(1, 1, 8, 0, b"\0\x5a" + bytes(100_000_000)), OPENS),
    "no pixel.png": (lambda: png(0, 0, 8, 0, b""), REFUSED),
    "wrong sum.png": (patched(GOOD, 29, ">I", 0), REFUSED),
    "half.png": (lambda: png(1, 2, 8, 0, b"\0\x5a"), None),  # Pillow (13) fills the second row
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', REFUSED),
    "page.png": (b"<!doctype html><title>404</title>", REFUSED),
    "answer.png": (b'{"error": "rate limit"}', REFUSED),
    "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\n", REFUSED),
    "paper.pdf": (b"%PDF-1.7\n%%EOF", REFUSED),
    "archive.zip": (b"PK\x03\x04" + bytes(100), REFUSED),
    "list.m3u8": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n", REFUSED),
    "list.ffconcat": (b"ffconcat version 1.0\nfile /etc/passwd\n", REFUSED),
    "stream.sdp": (b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n", REFUSED),
    "manifest.mpd": (b'<?xml version="1.0"?><MPD><BaseURL>http://127.0.0.1:9/</BaseURL></MPD>', REFUSED),
    "path.png": (b"/etc/passwd", REFUSED),
    "line\nbreak.png": (GOOD, OPENS),
    "line\nbreak and fault.png": (b"", REFUSED),
    "\u202egnp.exe": (b"", REFUSED),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("name", SPECIAL)
def test_a_special_file(child, tmp_path, kind, name):
    content, opens = SPECIAL[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content())
    read, result = child(kind, str(tmp_path / name))
    if kind == "video":
        opens = False if name != "million.gif" else None  # an animation is a video
    if opens is not None:
        assert isinstance(result, str) != opens
    if (kind, name) == ("image", "program.eps"):  # not for want of Ghostscript
        assert "it is in none of the formats" in result
    if not isinstance(result, str):
        assert read == result.shape[: len(read)]


@pytest.mark.slow
def test_nothing_is_unpickled(child, tmp_path):
    for name in ("a.png", "a.npy", "a.pt", "a.mp4"):
        (tmp_path / name).write_bytes(pickled(tmp_path / "trap"))
        for kind in ("image", "video"):
            assert "cannot be decoded" in child(kind, str(tmp_path / name))[1]
    assert not (tmp_path / "trap").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "video"])
def test_what_is_no_file(child, tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("loop", tmp_path / "loop")
    os.symlink("nothing", tmp_path / "nowhere")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    (tmp_path / "a.png").write_bytes(GOOD)
    for reference, message in {
        str(tmp_path): "is a folder",
        str(tmp_path / "pipe"): "is a pipe or device",
        str(tmp_path / "zero.png"): "is a pipe or device",
        "/dev/zero": "is a pipe or device",
        "/dev/stdin": "is a pipe or device",
        str(tmp_path / "loop"): "cannot be read: Too many levels of symbolic links",
        str(tmp_path / "nowhere"): "does not exist",
        str(tmp_path / "a.png" / "b.png"): "does not exist",
        str(tmp_path / ("x" * 300)): "cannot be read: File name too long",
        "/a\0b": "cannot be read: embedded null byte",
        "/\ud800": "cannot be read",
        "": "does not exist",
        "file:///etc/passwd": "does not exist",
        "data:image/png;base64," + "A" * 100_000: "cannot be read: File name too long",
    }.items():
        if reference == "/dev/stdin" and os.path.isfile("/dev/stdin"):
            continue
        for answer in child(kind, reference):
            assert message in answer


# ---- videos that lie ----


def replaced(content: bytes, box: bytes, offset: int, form: str, *values) -> bytes:
    """With values written `offset` bytes behind the name of an MP4 box."""
    return patched(content, content.index(box) + len(box) + offset, form, *values)


# Offsets: ISO 14496-12.
LIES = {
    "hours": (lambda c: replaced(c, b"mvhd", 16, ">I", 2_000_000_000), None),
    "hours of pictures": (
        lambda c: replaced(replaced(c, b"mdhd", 16, ">I", 2**31), b"stts", 12, ">I", 2**27),
        "lasts|trunc",
    ),
    "a billion frames": (
        lambda c: replaced(replaced(c, b"stsz", 4, ">II", 1, 2**30), b"stts", 8, ">I", 2**30),
        "cannot be decoded",
    ),
    "a billion tables": (lambda c: replaced(c, b"stsz", 8, ">I", 2**30), "cannot be decoded"),
    "chunks beyond the end": (lambda c: replaced(c, b"stco", 8, ">I", 2**31), "cannot be decoded"),
    "a box of negative size": (lambda c: patched(c, c.index(b"trak") - 4, ">I", 0xFFFFFFF0), None),
    "a box in itself": (lambda c: patched(c, c.index(b"mdia") - 4, ">I", 8), None),
    "no time": (lambda c: replaced(c, b"mdhd", 12, ">I", 0), None),
    "huge on the outside": (lambda c: replaced(c, b"tkhd", 76, ">II", 65535 << 16, 65535 << 16), None),
    "huge": (lambda c: replaced(c, b"avc1", 24, ">HH", 65535, 65535), None),
    "another codec": (lambda c: c.replace(b"avc1", b"hvc1").replace(b"avcC", b"hvcC"), "cannot be decoded"),
    "no codec": (lambda c: c.replace(b"avc1", b"zzzz"), "cannot be decoded"),
    "encrypted": (lambda c: c.replace(b"avc1", b"encv"), None),
}


@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES)
def test_an_mp4_that_lies(whole, child, tmp_path, lie):
    change, message = LIES[lie]
    changed = change(whole("video", "mp4"))
    assert changed != whole("video", "mp4")
    (tmp_path / "a.mp4").write_bytes(changed)
    _, result = child("video", str(tmp_path / "a.mp4"))
    if message:
        assert isinstance(result, str)
    if not isinstance(result, str):
        assert numbers(result) == [0, 12, 23]


@pytest.mark.slow
def test_a_mkv_that_claims_hours(whole, child, tmp_path):
    content = whole("video", "mkv")
    at = content.index(b"\x44\x89\x88") + 3  # Duration, a double, in ms
    (tmp_path / "a.mkv").write_bytes(patched(content, at, ">d", 1e12))
    assert (
        "it lasts 1,000,000,000 seconds, more than --video_seconds_limit" in child("video", str(tmp_path / "a.mkv"))[1]
    )
    (tmp_path / "a.mkv").write_bytes(patched(content, at, ">d", 7200e3))
    assert "it is truncated: only the first 3.00 of 7200.00 seconds" in child("video", str(tmp_path / "a.mkv"))[1]


@pytest.mark.slow
@pytest.mark.parametrize("size", [16383, 12000])
def test_a_webm_of_huge_frames(whole, child, tmp_path, size):
    """Both headers lie; 12000x12000 is within the limit, so a frame of it may be taken, but not more."""
    content = whole("video", "webm")
    start = content.index(b"\x9d\x01\x2a")  # RFC 6386, 9.1: of a keyframe, before its sizes
    content = patched(content, start + 3, "<HH", size, size)
    at = content.index(b"\xb0\x82") if b"\xb0\x82" in content else content.index(b"\xb0\x81")  # PixelWidth
    assert content[at + 1] & 0x80
    (tmp_path / "a.webm").write_bytes(content)
    _, result = child("video", str(tmp_path / "a.webm"), 1500)
    assert isinstance(result, str)


@pytest.mark.slow
def test_frames_that_grow_on_the_way_take_no_memory(child, tmp_path):
    content = Path(write_clip(tmp_path / "a.webm", 24, "libvpx", b="200k")).read_bytes()
    second = content.index(b"\x9d\x01\x2a", content.index(b"\x9d\x01\x2a") + 1)  # as above
    (tmp_path / "a.webm").write_bytes(patched(content, second + 3, "<HH", 16383, 16383))
    assert isinstance(child("video", str(tmp_path / "a.webm"))[1], str)


@pytest.mark.slow
def test_a_gif_of_huge_frames_as_a_video(child, tmp_path):
    (tmp_path / "a.gif").write_bytes(patched(million_frames()[:249] + b";", 6, "<HH", 20000, 20000))
    assert isinstance(child("video", str(tmp_path / "a.gif"))[1], str)
