"""Time and memory of opening videos and images, as ratios to the plain way.

    python benchmarks/decode.py

Encodes clips of a minute, 640x360, 30 frames a second, with B-frames and a keyframe every 250 or 30 frames, in a
temporary folder. The first table: 8 and 32 frames by `videos.open_video` with either backend, against a full decode
(all frames as RGB) and against one pass that decodes all frames and converts the wanted ones. Peak memory is that of a
process of its own, beyond what it had before. The second: 1080p JPEG files by `images.open_image`, against Pillow
alone, on one core, with how far drafts are off, in levels of 255, on a smooth and on a grainy picture. Between them: a
moment in the middle of a film of --film_seconds, against the same moment cut out beforehand. All ways take turns; shown
are medians of the times, and of the ratios within a turn.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from reading import images, videos  # noqa: E402
from reading.options import MediaOptions  # noqa: E402

RATE, WIDTH, HEIGHT = 30, 640, 360
MOMENT = 10  # seconds


def write_clip(path: str, gop: int, seconds: int) -> None:
    """A bright patch moves over a drifting texture with grain."""
    random = np.random.default_rng(0)
    texture = random.integers(0, 200, (HEIGHT // 8, WIDTH // 8 + 250, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    grain = random.integers(0, 12, (HEIGHT + 32, WIDTH + 32, 3), dtype=np.uint8)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "bf": "3"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", gop
        for i in range(seconds * RATE):
            y, x = random.integers(0, 32, 2)
            frame = texture[:, i : i + WIDTH] + grain[y : y + HEIGHT, x : x + WIDTH]
            frame[100:160, i % (WIDTH - 60) : i % (WIDTH - 60) + 60] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def full_decode(path: str, count: int) -> np.ndarray:
    with av.open(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)])


def one_pass(path: str, count: int) -> np.ndarray:
    with av.open(path) as container:
        wanted = set(np.linspace(0, container.streams.video[0].frames - 1, count).round().astype(int).tolist())
        container.streams.video[0].thread_type = "AUTO"
        decoded = enumerate(container.decode(video=0))
        return np.stack([frame.to_ndarray(format="rgb24") for i, frame in decoded if i in wanted])


def pyav(path: str, count: int) -> np.ndarray:
    return videos.open_video(path, MediaOptions(num_frames=count))[0]


def memory(name: str) -> int:
    """In kB, of this process; /proc is of Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def measure(way, path: str, count: int, pipe) -> None:
    """In a process of its own: sends seconds, peak memory in MB and a checksum of the frames."""
    before, start = memory("VmRSS"), time.perf_counter()
    frames = way(path, count)
    pipe.send((time.perf_counter() - start, (memory("VmHWM") - before) / 1024, float(frames.mean())))


def run(way, path: str, count: int) -> tuple[float, float, float]:
    theirs, ours = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(way, path, count, ours))
    process.start()
    ours.close()  # so that the end of the child is seen
    result = theirs.recv()
    process.join()
    return result


def compare_videos(folder: str, clip_seconds: int, rounds: int) -> None:
    print(
        f"{'keyframe every':>14} {'frames':>6} {'way':<12} {'seconds':>7} {'of full':>7} {'of one pass':>11} {'MB':>6}"
    )
    for gop in (250, 30):
        path = f"{folder}/{gop}.mp4"
        write_clip(path, gop, clip_seconds)
        for count in (8, 32):
            ways = (full_decode, one_pass, pyav)
            turns = [{way: run(way, path, count) for way in ways} for _ in range(rounds)]
            for way in ways:
                results = [turn[way] for turn in turns]
                full = statistics.median(turn[way][0] / turn[full_decode][0] for turn in turns)
                single = statistics.median(turn[way][0] / turn[one_pass][0] for turn in turns)
                seconds, peak = (statistics.median(result[i] for result in results) for i in (0, 1))
                assert all(abs(turn[way][2] - turn[full_decode][2]) < 0.5 for turn in turns), "other frames"
                print(
                    f"{gop:>14} {count:>6} {way.__name__:<12} {seconds:>7.2f} {full:>7.2f} {single:>11.2f} {peak:>6.0f}"
                )


def moment(path: str, start: float) -> np.ndarray:
    clip = {"start": start, "end": start + MOMENT} if start else {}
    return videos.open_video(path, MediaOptions(fps=2.0), clip)[0]


def compare_moment(folder: str, film_seconds: int, rounds: int) -> None:
    """A film is a minute of its own, again and again: what is around a moment does not matter."""
    piece, film, cut = (f"{folder}/{name}.mp4" for name in ("piece", "film", "cut"))
    start = film_seconds // 2 // MOMENT * MOMENT
    write_clip(piece, MOMENT * RATE, MOMENT)  # a keyframe at the start of each
    for path, copies in ((film, film_seconds // MOMENT), (cut, 1)):
        write_copies(piece, path, copies)
    turns = [{path: run(moment, path, at) for path, at in ((film, start), (cut, 0))} for _ in range(rounds)]
    assert all(abs(turn[film][2] - turn[cut][2]) < 0.5 for turn in turns), "other frames"
    for path, name in ((film, f"of {film_seconds} s"), (cut, "cut out")):
        seconds, peak = (statistics.median(turn[path][i] for turn in turns) for i in (0, 1))
        print(f"a moment of {MOMENT} s, {name:<12} {seconds:>7.2f} s {peak:>6.0f} MB")


def write_copies(piece: str, path: str, copies: int) -> None:
    """The packets of a clip, one copy after another, decoding nothing."""
    with av.open(piece) as source, av.open(path, "w") as target:
        stream = source.streams.video[0]
        out, length = target.add_stream_from_template(stream), stream.duration
        for i in range(copies):
            source.seek(0)
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.pts, packet.dts, packet.stream = packet.pts + i * length, packet.dts + i * length, out
                    target.mux(packet)


def compare_images(folder: str, grain: int) -> None:
    """Args: grain: levels of noise on the picture."""
    noise = np.random.default_rng(0).integers(0, grain, (1080, 1920, 3), dtype=np.uint8)
    hills = np.add.outer(np.sin(np.arange(1080) / 90), np.cos(np.arange(1920) / 120)) * 50 + 110
    path = f"{folder}/a.jpg"
    Image.fromarray((hills[..., None] + noise).astype(np.uint8)).save(path, quality=90)

    def pillow() -> None:
        with Image.open(path) as image:
            image.convert("RGB")

    ways = {
        "Pillow alone": pillow,
        "open_image": lambda: images.open_image(path, MediaOptions()),
        "to 512x512": lambda: images.open_image(path, MediaOptions(image_size="512")),
        "drafted": lambda: images.open_image(path, MediaOptions(image_size="512", jpeg_draft=True)),
    }
    turns = []
    for _ in range(5):
        turn = {}
        for name, way in ways.items():
            start = time.process_time()
            for _ in range(10):
                way()
            turn[name] = (time.process_time() - start) / 10
        turns.append(turn)
    whole, draft = (np.asarray(ways[name](), float) for name in ("to 512x512", "drafted"))
    off = np.abs(whole - draft)
    print(f"\n1080p JPEG, {grain} levels of noise; drafts are {off.mean():.2f} levels off, at most {off.max():.0f}")
    print(f"{'':<14} {'a second and core':>17} {'of Pillow':>9}")
    for name in ways:
        seconds = statistics.median(turn[name] for turn in turns)
        ratio = statistics.median(turn[name] / turn["Pillow alone"] for turn in turns)
        print(f"{name:<14} {1 / seconds:>17.0f} {ratio:>9.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="of a clip")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--film_seconds", type=int, default=3600, help="of the film around a moment")
    own = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare_videos(folder, own.seconds, own.rounds)
        compare_moment(folder, own.film_seconds, own.rounds)
        for grain in (12, 120):
            compare_images(folder, grain)
