"""Videos, against frames that carry their number as bars, in clips that the test encoded itself."""

import struct
import subprocess
import sys
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import REPO
from PIL import Image

from reading import media, videos
from reading.options import MediaOptions

BARS = 8  # bits of the number, of 8 pixels each


def picture(number: int) -> np.ndarray:
    """(48, 64, 3) uint8: the bits of the number as grey bars in the upper half, faint noise in the lower."""
    frame = np.random.default_rng(number).integers(0, 30, (48, 64, 3)).astype(np.uint8)
    for bit in range(BARS):
        frame[:24, 8 * bit : 8 * bit + 8] = 220 if number >> bit & 1 else 40
    return frame


def numbers(frames: np.ndarray) -> list[int]:
    """What `picture` wrote; frames of any size."""
    height, width = frames.shape[1:3]
    middle = frames[:, height // 4, [width * (2 * bit + 1) // (2 * BARS) for bit in range(BARS)], 1]
    return ((middle > 130) @ (1 << np.arange(BARS))).tolist()


def write_clip(
    path,
    frames=48,
    codec="libx264",
    gop=12,
    pix_fmt="yuv420p",
    muxer=None,
    times=None,
    sound=0,
    pixels=picture,
    width=64,
    height=48,
    **options,
) -> str:
    """A clip of 8 frames a second. `times`: when each is shown, in 1/8 s; `sound`: seconds of it."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=8, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, pix_fmt, gop
        stream.thread_count = 1  # libvpx takes no more for so small frames
        audio = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(pixels(i), format="rgba" if pixels(i).shape[2] == 4 else "rgb24")
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000 * sound), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 8000, 0
            container.mux(audio.encode(silence))
            container.mux(audio.encode())
    return str(path)


def indices_of(count: int, total: int = 48) -> list[int]:
    return [round(i * (total - 1) / max(count - 1, 1)) for i in range(count)]


H264 = {"bf": "2"}
OPEN_GOP = {"bf": "3", "x264-params": "open-gop=1:b-pyramid=normal"}
HEVC = {"codec": "libx265", "x265-params": "open-gop=1:log-level=none"}
CLIPS = {
    "a.mp4": H264,
    "a.mkv": H264,
    "a.avi": H264,  # no times of show
    "a.ts": H264,  # no index of keyframes
    "a.flv": H264,
    "a.h264": H264,  # no times at all
    "whole.mp4": {"gop": 1000, **H264},
    "intra.mp4": {"gop": 1},
    "open.mp4": OPEN_GOP,
    "open.ts": OPEN_GOP,
    "refresh.mp4": {"x264-params": "intra-refresh=1"},
    "hevc.mkv": HEVC,
    "mpeg2.mpg": {"codec": "mpeg2video", "bf": "2", "b": "4M"},
    "mpeg4.avi": {"codec": "mpeg4", "bf": "2", "b": "4M"},
    "vp8.webm": {"codec": "libvpx", "b": "400k"},
    "vp9.webm": {"codec": "libvpx-vp9", "b": "400k", "cpu-used": "8"},
    "alpha.webm": {"codec": "libvpx-vp9", "pix_fmt": "yuva420p", "b": "400k", "cpu-used": "8"},
    "ten.mp4": {"pix_fmt": "yuv420p10le", **H264},
    "full.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "h263.flv": {"codec": "flv", "b": "400k"},
    "av1.mp4": {"codec": "libsvtav1"},
    "prores.mov": {"codec": "prores", "pix_fmt": "yuv422p10le"},
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}
NO_TIME = "a.h264"  # FFmpeg says 25 a second


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("clips"), {}

    def get(name: str) -> str:
        if name not in made:
            made[name] = write_clip(folder / name, **CLIPS[name])
        return made[name]

    return get


@pytest.mark.parametrize("name", CLIPS)
def test_the_frames_are_those_that_were_written(clips, name):
    for count in (1, 2, 5, 9, 24, 48):
        frames, metadata = videos.open_video(clips(name), MediaOptions(num_frames=count))
        assert frames.shape == (count, 48, 64, 3) and frames.dtype == np.uint8
        assert metadata["frames_indices"] == numbers(frames) == indices_of(count)
    fps = 25 if name == NO_TIME else 8
    assert metadata["total_num_frames"] == 48 and metadata["fps"] == pytest.approx(fps, rel=0.002)
    assert metadata["duration"] == pytest.approx(48 / fps, rel=0.002)
    assert media.read_header("video", clips(name), MediaOptions(num_frames=5)) == (5, 48, 64)


def test_a_jump_skips_what_is_not_wanted(clips, tmp_path):
    """All but the first and last group are unreadable, and nobody notices."""
    content = bytearray(open(clips("a.mp4"), "rb").read())
    with av.open(clips("a.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for packet in packets[12:36]:
            content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    (tmp_path / "a.mp4").write_bytes(content)
    with av.open(str(tmp_path / "a.mp4")) as container, pytest.raises(av.FFmpegError):
        list(container.decode(video=0))
    frames, _ = videos.open_video(str(tmp_path / "a.mp4"), MediaOptions(num_frames=2))
    assert numbers(frames) == [0, 47]
    with pytest.raises(
        ValueError, match="a.mp4 cannot be decoded: .* only the first 1[012] of 48 frames can be decoded"
    ):
        videos.open_video(str(tmp_path / "a.mp4"), MediaOptions(num_frames=4))


def damaged(path: str) -> bytes:
    """A clip with 16 bytes within every third picture overwritten."""
    content, random = bytearray(open(path, "rb").read()), np.random.default_rng(0)
    with av.open(path) as container:
        pictures = [bytes(packet) for packet in container.demux(video=0) if packet.size > 60]
    for picture in pictures[::3]:
        middle = content.find(picture[len(picture) // 2 :][:20])
        if middle >= 0:  # not across packets of MPEG-TS
            content[middle : middle + 16] = random.bytes(16)
    assert content != open(path, "rb").read()
    return bytes(content)


# Nearly any bytes are a picture of these; of HEVC as long as its slices end where they should.
UNNOTICED = ("vp8.webm", "vp9.webm", "alpha.webm", "a.gif", "hevc.mkv")


@pytest.mark.parametrize("name", [name for name in CLIPS if name not in UNNOTICED])
def test_damage_is_an_error_and_not_painted_over(clips, tmp_path, name):
    (tmp_path / name).write_bytes(damaged(clips(name)))
    for flags in ({"num_frames": 48}, {"fps": 8.0}):
        with pytest.raises(ValueError, match=f"{name} cannot be decoded: it is truncated or damaged: only the first"):
            videos.open_video(str(tmp_path / name), MediaOptions(**flags))


@pytest.mark.parametrize("name", ["a.mp4", "hevc.mp4", "av1.mp4", "full.mov"])
def test_stretches_of_a_file_that_were_overwritten_are_an_error(clips, tmp_path, name):
    content = open(clips(name) if name in CLIPS else write_clip(tmp_path / name, **HEVC), "rb").read()
    start = content.index(b"mdat") + 4
    end = start - 8 + int.from_bytes(content[start - 8 : start - 4])
    for seed in range(4):
        broken, random = bytearray(content), np.random.default_rng(seed)
        for at in random.integers(start, end - 200, 4):
            broken[at : at + 200] = random.bytes(200)
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(ValueError, match=f"{name} cannot be decoded: "):
            videos.open_video(str(tmp_path / name), MediaOptions(num_frames=48))


@pytest.mark.parametrize(
    "flags, number", [({"fps": 8.0}, 48), ({"num_frames": 24}, 24), ({"fps": 8.0, "max_frames": 24}, 24)]
)
def test_all_frames_together_have_a_limit(clips, monkeypatch, flags, number):
    flags = flags | {"video_max_pixels": 1000}
    pixels = number * 27 * 36  # as they are scaled
    frames, _ = videos.open_video(clips("a.mp4"), MediaOptions(**flags, video_pixel_limit=pixels))
    assert frames.size == 3 * pixels
    monkeypatch.setattr(videos, "_decode", lambda *_: pytest.fail("it was decoded"))
    for opened in (videos.open_video, videos.read_header):
        with pytest.raises(ValueError, match=f"a.mp4 .* {number} frames of 36x27 pixels .* --video_pixel_limit") as e:
            opened(clips("a.mp4"), MediaOptions(**flags, video_pixel_limit=pixels - 1))
        assert "--max_frames" in str(e.value) and "--video_max_pixels" in str(e.value)


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({"fps": 2.0}, range(0, 48, 4)),
        ({"fps": 8.0}, range(48)),
        ({"fps": 100.0}, range(48)),
        ({"fps": 3.0}, [0, 2, 5, 8, 10, 13, 16, 18, 21, 24, 26, 29, 32, 34, 37, 40, 42, 45]),
        ({"fps": 0.01}, [0]),
        ({"fps": 2.0, "max_frames": 12}, range(0, 48, 4)),
        ({"fps": 2.0, "max_frames": 3}, [0, 24, 47]),
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_frames_per_second(clips, name, flags, expected):
    frames, metadata = videos.open_video(clips(name), MediaOptions(**flags))
    assert numbers(frames) == metadata["frames_indices"] == list(expected)
    assert metadata["fps"] == 8
    assert media.read_header("video", clips(name), MediaOptions(**flags)) == (len(expected), 48, 64)


@pytest.mark.parametrize("name", CLIPS)
def test_the_header_tells_how_many_frames_there_will_be(clips, name):
    options = MediaOptions(fps=2.0)
    frames, _ = videos.open_video(clips(name), options)
    assert media.read_header("video", clips(name), options) == frames.shape[:3]


@pytest.mark.parametrize("length, wanted, expected", [(3, 5, [0, 0, 1, 2, 2]), (1, 2, [0, 0]), (3, 1, [0])])
def test_a_short_clip_repeats_frames(tmp_path, length, wanted, expected):
    frames, metadata = videos.open_video(write_clip(tmp_path / "a.mp4", length), MediaOptions(num_frames=wanted))
    assert metadata["frames_indices"] == expected and numbers(frames) == expected


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("flags", [{"num_frames": 4}, {"num_frames": 9}, {"fps": 1.0}, {"fps": 2.0, "max_frames": 5}])
def test_with_a_variable_rate_frames_are_those_that_a_player_shows(tmp_path, name, flags):
    """16 frames in 2 s, then 16 in 8 s."""
    times = [*range(16), *range(16, 80, 4)]
    path = write_clip(tmp_path / name, 32, times=times, **H264)
    frames, metadata = videos.open_video(path, MediaOptions(**flags))
    assert metadata["total_num_frames"] == 32 and metadata["fps"] == pytest.approx(31 / (76 / 8), rel=0.002)
    told = [index / metadata["fps"] for index in metadata["frames_indices"]]  # as processors write it
    # The last frame that is shown by then; a stamp in milliseconds may lie just behind.
    assert numbers(frames) == [max(i for i, time in enumerate(times) if time / 8 < seconds + 0.08) for seconds in told]
    assert media.read_header("video", path, MediaOptions(**flags))[0] == len(frames)


@pytest.mark.parametrize(
    "name, muxer",
    [("a.mp4", {}), ("a.mp4", {"movflags": "+faststart"}), ("a.mkv", {}), ("a.avi", {}), ("a.flv", {})],
)
@pytest.mark.parametrize("kept", [0.5, 0.8, 0.9, 0.95])
def test_a_truncated_video_is_never_a_shorter_clip(tmp_path, name, muxer, kept):
    path = tmp_path / name
    write_clip(path, 32, muxer=muxer, **H264)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ValueError, match=f"video .*{name} cannot be decoded: ") as error:
        videos.open_video(str(path), MediaOptions(num_frames=4))
    assert "it is truncated: " in str(error.value)
    if name == "a.mkv":
        assert "it is truncated: only the first " in str(error.value)
    if muxer:
        readable = int(str(error.value).split("it is truncated: only the first ")[1].split(" of 32 frames")[0])
        assert 32 * kept - 10 < readable < 32


def test_a_packet_that_is_never_shown_is_no_frame(clips, tmp_path):
    """As encoders of VP8 write for reference only; here the sixth, by its bit show_frame."""
    with av.open(clips("vp8.webm")) as whole, av.open(str(tmp_path / "a.webm"), "w") as hiding:
        stream = hiding.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(packet for packet in whole.demux(video=0) if packet.size):
            data = bytes(packet)
            copy = av.Packet(bytes([data[0] & ~0x10]) + data[1:] if number == 5 else data)
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            hiding.mux(copy)
    frames, metadata = videos.open_video(str(tmp_path / "a.webm"), MediaOptions(num_frames=47))
    assert metadata["total_num_frames"] == 47 and 5 not in numbers(frames)
    assert numbers(frames)[::46] == [0, 47] and len(set(numbers(frames))) > 44  # in the gap, 4 goes on


@pytest.mark.parametrize("inside", [0, 5, 40])
@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])  # in others a frame is within what their headers round
def test_a_missing_last_frame_or_a_part_of_it_is_noticed(tmp_path, name, inside):
    path = tmp_path / name
    write_clip(path, 32, muxer={"movflags": "+faststart"} if name == "a.mp4" else {}, **H264)
    with av.open(str(path)) as container:
        last = [packet for packet in container.demux(video=0) if packet.size][-1]
    path.write_bytes(path.read_bytes()[: last.pos + inside])
    with pytest.raises(ValueError, match=f"{name} cannot be decoded: it is truncated"):
        videos.open_video(str(path), MediaOptions(num_frames=4))


@pytest.mark.parametrize("frames", [2, 4])
def test_a_clip_cut_without_encoding_it_again_opens(tmp_path, frames):
    """As `ffmpeg -ss 0.5 -c copy` leaves it: the first 4 frames are in the file, but not in the clip."""
    write_clip(tmp_path / "whole.mp4", 16, gop=5)
    with av.open(str(tmp_path / "whole.mp4")) as whole, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.pts -= int(0.5 / packet.time_base)
                packet.dts -= int(0.5 / packet.time_base)
                packet.stream = stream
                cut.mux(packet)
    opened, metadata = videos.open_video(str(tmp_path / "cut.mp4"), MediaOptions(num_frames=frames))
    assert metadata["total_num_frames"] == 12
    assert numbers(opened) == [4 + i for i in indices_of(frames, 12)]
    assert media.read_header("video", str(tmp_path / "cut.mp4"), MediaOptions(fps=8.0)) == (12, 48, 64)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_sound_may_be_longer_than_the_pictures(tmp_path, name):
    frames, metadata = videos.open_video(write_clip(tmp_path / name, 16, sound=5), MediaOptions(num_frames=2))
    assert numbers(frames) == [0, 15] and metadata["duration"] == 2


@pytest.mark.parametrize(
    "matrix, as_seen",
    [
        ((0, 1, -1, 0), lambda stored: np.rot90(stored, -1)),  # a phone held upright
        ((-1, 0, 0, -1), lambda stored: np.rot90(stored, 2)),
        ((0, -1, 1, 0), lambda stored: np.rot90(stored, 1)),
        ((-1, 0, 0, 1), lambda stored: stored[:, ::-1]),  # a front camera
    ],
    ids=["clockwise", "upside down", "counterclockwise", "mirrored"],
)
def test_a_clip_is_turned_as_the_phone_was_held(tmp_path, matrix, as_seen):
    path = tmp_path / "a.mp4"
    plain, _ = videos.open_video(write_clip(path, 16), MediaOptions(num_frames=3))
    content = bytearray(path.read_bytes())
    a, b, c, d = (65536 * value for value in matrix)
    start = content.index(b"tkhd") + 44  # ISO 14496-12, 8.3.2: 9 numbers, row by row
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    frames, _ = videos.open_video(str(path), MediaOptions(num_frames=3))
    assert np.array_equal(frames, [as_seen(frame) for frame in plain])
    assert media.read_header("video", str(path), MediaOptions(num_frames=3)) == frames.shape[:3]
    small, _ = videos.open_video(str(path), MediaOptions(num_frames=3, video_max_pixels=64 * 48 // 4))
    assert small.shape[1:3] == (frames.shape[1] // 2, frames.shape[2] // 2)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("ratio, width", [("4/3", 85), ("1/2", 32), ("1/1", 64), ("0/1", 64)])  # the last: unknown
def test_pixels_that_are_not_square_are_stretched(tmp_path, name, ratio, width):
    path = write_clip(tmp_path / name, 8, **{"x264-params": f"sar={ratio}"})
    frames, _ = videos.open_video(path, MediaOptions(num_frames=8))
    assert frames.shape == (8, 48, width, 3) and numbers(frames) == list(range(8))
    assert media.read_header("video", path, MediaOptions(num_frames=8)) == (8, 48, width)


def test_transparent_frames_lie_on_white(tmp_path):
    half = np.zeros((48, 64, 4), np.uint8)
    half[:, 32:] = (200, 0, 0, 255)
    path = write_clip(tmp_path / "a.mov", 2, "qtrle", pix_fmt="argb", pixels=lambda i: half)
    frames, _ = videos.open_video(path, MediaOptions(num_frames=1))
    assert frames[0, 20, 10].tolist() == [255] * 3 and frames[0, 20, 50].tolist() == [200, 0, 0]


@pytest.mark.parametrize("name", ["full.mov", "ten.mp4"])
def test_levels_are_those_that_were_written(clips, name):
    """Of 8 bits in the full range and 10 in the narrow one: bars of 40 and 220."""
    frames, _ = videos.open_video(clips(name), MediaOptions(num_frames=1))
    assert abs(int(frames[0, 10, 4].mean()) - 40) <= 3
    frames, _ = videos.open_video(clips(name), MediaOptions(num_frames=2))
    assert abs(int(frames[1, 10, 4].mean()) - 220) <= 3


def test_frames_are_scaled_while_decoding(clips):
    options = MediaOptions(num_frames=5, video_max_pixels=1000)
    frames, _ = videos.open_video(clips("a.mp4"), options)
    assert frames.shape == (5, 27, 36, 3) and numbers(frames) == [0, 12, 24, 35, 47]
    assert media.read_header("video", clips("a.mp4"), options) == (5, 27, 36)


def test_bytes_are_a_video_too(clips):
    content = open(clips("a.mp4"), "rb").read()
    frames, _ = videos.open_video(content, MediaOptions(num_frames=5))
    assert numbers(frames) == [0, 12, 24, 35, 47]
    assert media.read_header("video", content, MediaOptions(num_frames=5)) == (5, 48, 64)
    with pytest.raises(ValueError, match="video of 100 bytes cannot be decoded"):
        videos.open_video(content[:100], MediaOptions())


def test_a_file_without_pictures_is_named(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    for opened in (videos.open_video, videos.read_header):
        with pytest.raises(ValueError, match="a.wav cannot be decoded: it contains no video stream"):
            opened(str(tmp_path / "a.wav"), MediaOptions())


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
def test_a_still_image_is_no_video(tmp_path, ending):
    Image.new("RGB", (64, 48)).save(tmp_path / f"a.{ending}")
    for opened in (videos.open_video, videos.read_header):
        with pytest.raises(ValueError, match=f"a.{ending} .* put still images into image parts"):
            opened(str(tmp_path / f"a.{ending}"), MediaOptions())


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"video_seconds_limit": 5}, "it lasts 6 seconds, more than --video_seconds_limit"),
        ({"image_pixel_limit": 64 * 48 - 1}, "its frames have 64x48 pixels, more than --image_pixel_limit"),
    ],
)
def test_limits_can_be_lowered(clips, flags, message):
    with pytest.raises(ValueError, match=message):
        videos.open_video(clips("a.mkv"), MediaOptions(**flags))


def test_frames_that_grow_on_the_way_are_refused(clips, tmp_path):
    large = write_clip(tmp_path / "large.webm", 12, "libvpx", b="400k", width=128, height=96)
    with av.open(clips("vp8.webm")) as first, av.open(large) as second, av.open(str(tmp_path / "a.webm"), "w") as both:
        stream, number = both.add_stream_from_template(first.streams.video[0]), 0
        for part in (first, second):
            for packet in part.demux(video=0):
                if packet.size:
                    packet.pts = packet.dts = number * 125
                    packet.stream, number = stream, number + 1
                    both.mux(packet)
    options = MediaOptions(num_frames=2)
    with pytest.raises(ValueError, match="its frame size changes midway"):
        videos.open_video(str(tmp_path / "a.webm"), options)
    with pytest.raises(ValueError, match="only the first 48 of 60 frames can be decoded"):  # none of them in memory
        videos.open_video(str(tmp_path / "a.webm"), MediaOptions(num_frames=2, image_pixel_limit=100 * 100))


# ---- lists of images ----


@pytest.fixture
def images(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for i, path in enumerate(paths):
        Image.fromarray(picture(i)).save(path)
    return paths


def test_a_list_of_images_is_a_video(images):
    options = MediaOptions(num_frames=3, image_size="10", fps=1.0)  # both mean other media
    frames, metadata = videos.open_video(images, options)
    assert np.array_equal(frames, [picture(i) for i in (0, 2, 5)])
    assert metadata == {"fps": None, "duration": None, "total_num_frames": 6, "frames_indices": [0, 2, 5]}
    assert media.read_header("video", images, options) == (3, 48, 64)


def test_frames_may_be_bytes_or_opened_and_are_scaled(images):
    mixed = [images[0], open(images[1], "rb").read(), Image.open(images[2])]
    options = MediaOptions(num_frames=3, video_max_pixels=1000)
    frames, _ = videos.open_video(mixed, options)
    assert numbers(frames) == [0, 1, 2] and frames.shape == (3, 27, 36, 3)
    assert media.read_header("video", mixed, options) == (3, 27, 36)


@pytest.mark.parametrize(
    "last, message",
    [
        (Image.new("RGB", (8, 8)), "must have the same size, but image of 8x8 pixels has 8x8 pixels and the first "),
        ("/none.png", "image /none.png does not exist"),
        ("https://x.org/a.png", "pass --allow_urls True"),
        (None, "is not an image or a video"),
    ],
)
def test_a_list_with_a_wrong_image_is_named(images, last, message):
    for opened in (videos.open_video, videos.read_header):
        with pytest.raises(ValueError, match=message):
            opened([*images, last], MediaOptions(num_frames=3))


def test_an_image_that_is_not_taken_need_not_be_there(images):
    images[1] = "/none.png"
    assert videos.read_header(images, MediaOptions(num_frames=3)) == (3, 48, 64)
    assert len(videos.open_video(images, MediaOptions(num_frames=3))[0]) == 3


def test_images_together_have_the_limit_too(images):
    for opened in (videos.open_video, videos.read_header):
        opened(images, MediaOptions(num_frames=3, video_pixel_limit=3 * 48 * 64))
        with pytest.raises(ValueError, match="video of 6 images .* 3 frames of 64x48 pixels .* --video_pixel_limit"):
            opened(images, MediaOptions(num_frames=3, video_pixel_limit=3 * 48 * 64 - 1))


def test_an_empty_list_is_no_video():
    for opened in (videos.open_video, videos.read_header):
        with pytest.raises(ValueError, match="empty list"):
            opened([], MediaOptions())


@pytest.mark.slow
def test_a_process_forked_after_decoding_ends(tmp_path):
    """As a data loader's worker is, after answers to videos: the collector in it must not wait for threads."""
    write_clip(tmp_path / "clip.mp4")
    code = (
        "import gc, os, sys, time\n"
        "gc.disable()\n"  # so that the frames are garbage at the fork
        "from reading import videos\n"
        "from reading.options import MediaOptions\n"
        "for _ in range(20):\n"
        "    videos.open_video(sys.argv[1], MediaOptions(video_max_pixels=1000))\n"
        "if not (child := os.fork()):\n"
        "    gc.collect()\n"
        "    os._exit(0)\n"
        "end = time.monotonic() + 20\n"
        "while time.monotonic() < end and not os.waitpid(child, os.WNOHANG)[0]:\n"
        "    time.sleep(0.05)\n"
        "hangs = time.monotonic() >= end\n"
        "if hangs:\n"
        "    os.kill(child, 9)\n"
        "sys.exit(hangs)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "clip.mp4")]
    assert subprocess.run(command, cwd=REPO, timeout=120).returncode == 0
