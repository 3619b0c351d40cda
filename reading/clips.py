"""Read the settings of a row for its videos: start and end, number and size of frames, times of a list of images.

    {"video": "film.mp4", "start": 60, "end": 70, "fps": 2, ...}                       for every video of the row
    {"videos": ["a.mp4", "b.mp4"], "clip": [[0, 5], [10, 12.5]], ...}                  one value per video
    {"type": "video", "video": "film.mp4", "video_start": 60, "max_pixels": 50176}     content part, overrides the row

The field `clip` of the content part stores the settings as start, end, fps, num_frames, max_pixels and times.
"""

import dataclasses
import math

from reading.options import MediaOptions
from reading.strict_json import loaded

VALUES = dict.fromkeys(("start", "end"), "a number of seconds, 0 or more") | {"fps": "a number above 0"}
VALUES |= dict.fromkeys(("num_frames", "max_pixels"), "a whole number, 1 or more")
NAMES = (*VALUES, "video_start", "video_end", "clip", "times")  # names of a row's fields
LISTS = {"clip": "[start, end] in seconds", "times": "a list of seconds"}


def of_fields(fields: dict, where: str = "") -> dict:
    """Return the `clip` that these fields describe."""
    found = {}
    for name in [name for name in NAMES if fields.get(name) is not None]:
        value, key = loaded(fields[name]), name.removeprefix("video_")
        if key not in LISTS:
            values = {key: _checked(key, value, f"{where}{name}")}
        elif isinstance(value, list) and (key == "times" or len(value) == 2):
            seconds = [_checked("start", one, f"{where}{name}[{i}]") for i, one in enumerate(value)]
            values = {"times": tuple(seconds)} if key == "times" else dict(zip(("start", "end"), seconds))
        else:
            raise ValueError(f"{where}{name} is {value!r:.100}; it must be {LISTS[key]}")
        if not found.keys().isdisjoint(values):
            raise ValueError(f"{where}{name} sets a start or end that another field also sets; keep one of the fields")
        found |= values
    return found


def _checked(key: str, value: object, where: str) -> float | int:
    is_whole, is_number = "whole" in VALUES[key], type(value) in (int, float) and math.isfinite(value) and value >= 0
    if not is_number or value == 0 and "seconds" not in VALUES[key] or is_whole and value % 1:
        raise ValueError(f"{where} is {value!r:.100}; it must be {VALUES[key]}")
    return int(value) if is_whole else float(value)


def place(row: dict, videos: list[dict]) -> None:
    """Set the `clip` of each video from the fields of the row. Lists of values follow the order of the videos."""
    fields = {name: loaded(row[name]) for name in NAMES if name in row}
    # Fields with one value per video. A flat list in `clip` or `times` is a single value for all videos.
    several = {
        name: value
        for name, value in fields.items()
        if isinstance(value, list) and (name not in LISTS or any(isinstance(one, list) for one in value))
    }
    for name, values in several.items():
        if len(values) != len(videos):
            raise ValueError(f"{name} has {len(values)} values, but there are {len(videos)} videos; give one per video")
    for i, part in enumerate(videos):
        of_row = of_fields(fields | {name: values[i] for name, values in several.items()})
        if clip := of_row | part.get("clip", {}):
            part["clip"] = clip
            _check_together(clip, part["video"])


def _check_together(clip: dict, video: object) -> None:
    is_list, times = isinstance(video, list), clip.get("times")
    if clip.get("start", 0) >= clip.get("end", math.inf):
        raise ValueError(f"has a clip from {clip.get('start', 0):g} to {clip['end']:g} seconds; its end must be later")
    if {"fps", other := "times" if is_list else "num_frames"} <= clip.keys():
        raise ValueError(f"has both `fps` and `{other}` for one video; keep one")
    if is_list and {"start", "end"} & clip.keys():
        raise ValueError("has `start` or `end` for a video that is a list of images; list only images in that range")
    if times and (not is_list or len(times) != len(video) or any(b <= a for a, b in zip(times, times[1:]))):
        raise ValueError("has `times` that do not fit the video; give a list of images, with ascending times")


def is_untimed(part: dict) -> bool:
    """Whether a video is a list of images with neither `fps` nor `times`."""
    return isinstance(part.get("video"), list) and part.get("clip", {}).keys().isdisjoint(("fps", "times"))


def applied(options: MediaOptions, clip: dict) -> MediaOptions:
    """Return the options, overridden by this clip. For a list of images, `fps` only sets the times of the images."""
    values = {"video_max_pixels": clip["max_pixels"]} if "max_pixels" in clip else {}
    if "num_frames" in clip:
        values |= {"num_frames": clip["num_frames"], "fps": None, "max_frames": None}
    elif "fps" in clip:
        values["fps"] = clip["fps"]
    return dataclasses.replace(options, **values) if values else options
