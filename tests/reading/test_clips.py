"""What rows say of their videos: moments against the frames that a decoder gives, and the fields of a row."""

import csv
import re
from bisect import bisect_right

import av
import numpy as np
import pytest
from conftest import check_each, turns
from PIL import Image
from test_videos import CLIPS, H264, numbers, picture, write_clip

from reading import media, videos
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions
from reading.rows import RowForm
from reading.split import linked

HI = turns("<video>\nWhat?", "Grey")
MOMENTS = [
    {"start": 2, "end": 5},
    {"start": 3.3, "end": 4.9},
    {"end": 1},
    {"start": 10.5},
    {"start": 4.01, "end": 4.05},
]


def shown(path: str) -> list[tuple[float, int]]:
    """When each frame of a file is shown, by its own stamps, and its number."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        frames = [
            (float(frame.pts * stream.time_base), frame.to_ndarray(format="rgb24"))
            for frame in container.decode(stream)
        ]
    return [
        (time - frames[0][0], number) for (time, _), number in zip(frames, numbers(np.stack([f for _, f in frames])))
    ]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.flv", "open.mp4", "a.ts", "vp9.webm", "av1.mp4"])
def test_a_moment_is_the_frames_that_are_shown_in_it(tmp_path, monkeypatch, name):
    path, scans = write_clip(tmp_path / name, 96, **CLIPS[name]), []
    scan = videos._scan
    monkeypatch.setattr(videos, "_scan", lambda *args: scans.append(name) or scan(*args))
    stamps = shown(path)

    def check(moment, flags):
        options = MediaOptions(**flags)
        inside = [
            number for time, number in stamps if moment.get("start", 0) <= time + 1e-3 < moment.get("end", 99) + 1e-3
        ]
        inside = inside or [[number for time, number in stamps if time <= moment["start"]][-1]]
        frames, metadata = videos.open_video(path, options, moment)
        count = len(inside) if "fps" in flags else flags["num_frames"]
        taken = inside[:: round(8 / flags["fps"])] if "fps" in flags else None
        assert numbers(frames) == (taken or [inside[round(i)] for i in np.linspace(0, len(inside) - 1, count)])
        told = [index / metadata["fps"] for index in metadata["frames_indices"]]
        assert told == pytest.approx([dict(map(reversed, stamps))[number] for number in numbers(frames)], abs=2e-3)
        assert metadata["total_num_frames"] == len(inside) and metadata["duration"] == pytest.approx(len(inside) / 8)
        assert media.read_header("video", path, options, moment) == (len(frames), 48, 64)

    check_each([(moment, flags) for moment in MOMENTS for flags in ({"num_frames": 5}, {"fps": 4.0})], check)
    # Of a container that tells times, never the whole film; but where an open group is jumped into.
    assert (len(scans) > 5) == (name == "a.ts") and len(scans) < 5 or name in ("a.ts", "open.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_moment_of_a_variable_rate_is_chosen_and_told_by_time(tmp_path, name):
    """16 frames in 2 s, then 16 in 8 s."""
    path = write_clip(tmp_path / name, 32, times=[*range(16), *range(16, 80, 4)], **H264)
    stamps = shown(path)
    for moment in ({"start": 1, "end": 4}, {"start": 3.5, "end": 9.25}):
        frames, metadata = videos.open_video(path, MediaOptions(fps=2.0), moment)
        told = [index / metadata["fps"] for index in metadata["frames_indices"]]
        assert told == pytest.approx([moment["start"] + i / 2 for i in range(len(told))], abs=0.5)
        assert 0 <= len(told) - 2 * (moment["end"] - moment["start"]) <= 1 and told[-1] < moment["end"]
        times = [time for time, _ in stamps]
        assert numbers(frames) == [stamps[bisect_right(times, time + 0.08) - 1][1] for time in told]


def test_of_a_long_film_only_the_moment_is_read(tmp_path, monkeypatch):
    """All that is before and after it is unreadable, and nobody notices; in the moment, it is an error."""
    path = write_clip(tmp_path / "a.mp4", 240, **H264)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in [*packets[:84], *packets[132:]]:
        content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    (tmp_path / "a.mp4").write_bytes(content)
    options = MediaOptions(num_frames=3, video_seconds_limit=8)
    assert numbers(videos.open_video(path, options, {"start": 12, "end": 15})[0]) == [96, 108, 119]
    with pytest.raises(ValueError, match="can be decoded"):
        videos.open_video(path, MediaOptions(num_frames=3), {"start": 8, "end": 15})
    with pytest.raises(ValueError, match="lasts 9 seconds, more than --video_seconds_limit"):
        videos.open_video(path, options, {"start": 12, "end": 21})


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_moment_that_was_cut_off_is_no_shorter_moment(tmp_path, name):
    path = write_clip(tmp_path / name, 96, muxer={"movflags": "+faststart"} if name == "a.mp4" else None, **H264)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    assert numbers(videos.open_video(path, MediaOptions(num_frames=2), {"start": 1, "end": 2})[0]) == [8, 15]
    with pytest.raises(ValueError, match="it is truncated"):
        videos.open_video(path, MediaOptions(num_frames=2), {"start": 5, "end": 11})


def images_of(folder, count: int = 12) -> list[str]:
    for i in range(count):
        Image.fromarray(picture(i)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(count)]


def test_a_list_of_images_has_the_times_that_its_row_gives(tmp_path):
    paths, times = images_of(tmp_path), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0)

    def check(clip, taken, told, seconds):
        options = MediaOptions(num_frames=4, fps=1.0)
        frames, metadata = videos.open_video(paths, options, clip)
        assert numbers(frames) == taken and media.read_header("video", paths, options, clip) == frames.shape[:3]
        assert [i / metadata["fps"] for i in metadata["frames_indices"]] == pytest.approx(told)
        assert metadata["duration"] == pytest.approx(seconds, abs=1e-3)
        assert metadata["total_num_frames"] == pytest.approx(seconds * metadata["fps"], abs=1)

    check_each(
        [
            ({"fps": 2.0}, [0, 4, 7, 11], [0, 2, 3.5, 5.5], 6),
            ({"fps": 2.0, "num_frames": 2}, [0, 11], [0, 5.5], 6),
            ({"times": times}, [0, 4, 7, 11], [0, 4, 20, 60], 60 + 60 / 11),
            ({"times": times, "max_pixels": 1000, "num_frames": 1}, [0], [0], 60 + 60 / 11),
        ],
        check,
    )


def test_the_fields_of_rows_and_parts(tmp_path):
    form = RowForm({"image": "/", "video": "/"})
    part = lambda **keys: {"type": "video", "video": "a.mp4", **keys}  # noqa: E731
    one, two = (
        {"video": "a.mp4", "conversations": HI},
        {"videos": ["a.mp4", "b.mp4"], "conversations": turns("<video><video>", "x")},
    )
    chat = lambda *parts: {"messages": [{"role": "user", "content": [*parts]}, {"role": "assistant", "content": "x"}]}  # noqa: E731
    frames = {"video": [["1.png", "2.png"]], "conversations": HI}

    def check(row, expected):
        messages = form.messages(form.named(row))
        clips = [part.get("clip", {}) for m in messages for part in m["content"] if part["type"] == "video"]
        assert clips == expected

    check_each(
        [
            (one | {"start": 3, "end": 8.5, "fps": 2}, [{"start": 3.0, "end": 8.5, "fps": 2.0}]),
            (
                one | {"clip": [3, 8], "num_frames": 4, "max_pixels": 900},
                [{"start": 3, "end": 8, "num_frames": 4, "max_pixels": 900}],
            ),
            (one | {"video_start": "1.5", "clip": None}, [{"start": 1.5}]),  # of a table
            (one | {"clip": "[3, 8]"}, [{"start": 3, "end": 8}]),
            (two | {"fps": 2}, [{"fps": 2}, {"fps": 2}]),
            (two | {"clip": [1, 2]}, [{"start": 1, "end": 2}] * 2),
            (
                two | {"clip": [[1, 2], [3, 4]], "fps": [1, None]},
                [{"start": 1, "end": 2, "fps": 1}, {"start": 3, "end": 4}],
            ),
            (
                chat(part(video_start=1), part()) | {"start": 4, "end": 5},
                [{"start": 1, "end": 5}, {"start": 4, "end": 5}],
            ),
            (chat(part(), {"type": "image", "image": "c.png"}) | {"end": 5}, [{"end": 5}]),
            (chat({"type": "video", "end": 2}) | {"videos": ["a.mp4"]}, [{"end": 2}]),
            (chat({"type": "video_url", "video_url": {"url": "a.mp4"}, "fps": 1}), [{"fps": 1}]),
            (frames | {"fps": 2, "num_frames": 2}, [{"fps": 2, "num_frames": 2}]),
            (frames | {"times": [0, 1.5]}, [{"times": (0.0, 1.5)}]),
            (one, [{}]),
        ],
        check,
    )


def test_a_wrong_value_is_named_with_its_field(write_rows):
    one, frames = {"video": "clip.mp4", "conversations": HI}, {"video": [["red.png", "red.png"]], "conversations": HI}
    part = {"type": "video", "path": "clip.mp4", "fps": -2}
    wrong = [
        (one | {"start": 3, "end": 2}, "a clip from 3 to 2 seconds; its end must be later"),
        (one | {"end": 0}, "a clip from 0 to 0 seconds; its end must be later"),
        (one | {"clip": [1, 1]}, "a clip from 1 to 1 seconds"),
        (one | {"start": -1}, "start is -1.*seconds, 0 or more"),
        (one | {"end": float("nan")}, "end is nan"),
        (one | {"end": "soon"}, "end is 'soon'; it must be a number of seconds, 0 or more"),
        (one | {"start": True}, "start is True"),
        (one | {"fps": 0}, "fps is 0; it must be a number above 0"),
        (one | {"fps": float("inf")}, "fps is inf"),
        (one | {"num_frames": 2.5}, "num_frames is 2.5; it must be a whole number, 1 or more"),
        (one | {"max_pixels": 0}, "max_pixels is 0"),
        (one | {"clip": [1, 2, 3]}, r"clip is \[1, 2, 3\]; it must be \[start, end\]"),
        (one | {"clip": 3}, "clip is 3"),
        (one | {"start": 1, "clip": [1, 2]}, "clip sets a start or end that another field also sets"),
        (one | {"start": [0, 1]}, "start has 2 values, but there are 1 videos"),
        (one | {"fps": 1, "num_frames": 4}, "has both `fps` and `num_frames`"),
        (one | {"times": [0, 1]}, "`times` that do not fit the video; give a list of images"),
        (frames | {"times": [0]}, "give a list of images, with ascending times"),
        (frames | {"times": [1, 1]}, "with ascending times"),
        (frames | {"times": 3}, "times is 3; it must be a list of seconds"),
        (frames | {"times": [0, 1], "fps": 1}, "has both `fps` and `times`"),
        (frames | {"start": 0, "end": 1}, "`start` or `end` for a video that is a list of images; list only"),
        (
            {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "x"}]},
            r"messages\[0\].content\[0\].fps is -2",
        ),
        # What only the file tells.
        (one | {"end": 2.2}, "clip.mp4 .*selects 0 to 2.2 seconds, but the video lasts 2.00 seconds"),
        (one | {"start": 2}, "selects 2 to 2 seconds"),
        (one | {"clip": [1, 3600]}, "selects 1 to 3600 seconds"),
    ]
    errors = MultimodalDataset(write_rows([row for row, _ in wrong]), check=False).errors
    for i, (_, message) in enumerate(wrong):
        assert re.search(f"sample {i}: .*{message}", errors.get(i, "")), (i, errors.get(i))


def test_two_moments_of_a_film_are_two_clips_of_one_video(write_rows, media_folder):
    write_clip(media_folder / "film.mp4", 96, **H264)
    row = lambda **clip: {"video": "film.mp4", "conversations": HI} | clip  # noqa: E731
    moments = [row(clip=[0, 2], fps=4), row(clip=[2, 8], fps=4), row(fps=1), row(clip=[0, 2], max_pixels=768)]
    dataset = MultimodalDataset(write_rows(moments), media=MediaOptions(num_frames=5))
    sizes = [dataset.locate(i)[0].sizes(i)[0].tolist() for i in range(4)]
    assert sizes == [[8, 48, 64], [24, 48, 64], [12, 48, 64], [5, 24, 32]]
    assert [list(dataset[i]["messages"][0]["content"][0]["video"].shape[:3]) for i in range(4)] == sizes
    assert len({*dataset.of_rows("hashes").tolist()}) == 4 and len({*linked(dataset).tolist()}) == 1
    assert any("4 rows choose clips or frames of their videos (docs/moments.md)." in note for note in dataset.notes())
    other = MultimodalDataset(write_rows([row(clip=[0, 3], fps=4), *moments[1:]]))
    in_parts = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "video", "path": "film.mp4", "end": end}]},
                {"role": "assistant", "content": "x"},
            ]
        }
        for end in (2, 3)
    ]
    digests = [MultimodalDataset(write_rows([part])).digest for part in in_parts]
    assert len({dataset.digest, other.digest, *digests}) == 4


def test_a_table_has_moments_too(media_folder, tmp_path):
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["video", "question", "answer", "start", "end"], ["clip.mp4", "?", "x", "0.5", "1"]]
        )
    dataset = MultimodalDataset(str(tmp_path / "a.csv"), video_folder=str(media_folder), media=MediaOptions(fps=8.0))
    assert dataset[0]["messages"][0]["content"][0]["metadata"]["frames_indices"] == [4, 5, 6, 7]
