"""Open the videos to which rows refer. Return frames, and the metadata that video processors need."""

import contextlib
import dataclasses
import io
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping

import av
import numpy as np
from PIL import Image

from reading import clips, images
from reading.files import local_file
from reading.options import MediaOptions, scaled_size
from reading.references import describe, what_it_is

# FFmpeg's names of video formats, and of sound formats so that the error for a sound file is clear. Other formats are
# refused, such as still images, and playlists, which would make FFmpeg open further files and addresses.
CONTAINERS = (
    "mov,matroska,webm,avi,flv,asf,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,vvc,ogg,nut,mxf,dv,rm,mjpeg,gif,apng,"
    "wav,mp3,aac,flac"
)
MP4, MKV, FLV = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv"
# Containers that store when each frame is shown and where keyframes are. For others, such as avi, FFmpeg guesses.
TIMED = (MP4, MKV, FLV)
# For these, FFmpeg's duration is the time of the end, even if the video does not start at 0.
END_IN_HEADER = (MKV, FLV)
# If these are truncated, FFmpeg reports a shorter duration, but the original number of frames.
FORMATS_WITH_COUNT = ("avi", "gif")
# The last bytes of complete files, for formats whose header has no length.
TRAILERS = {"gif": b";", "apng": b"IEND\xaeB`\x82"}
# Before version 19, PyAV refuses metadata that is not UTF-8, such as titles, unless told to replace the bad bytes.
READ_ANY_TITLE = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
PER_SECOND = 1000.0  # the resolution of the `times` of a list of images


def open_video(reference, options: MediaOptions, clip: Mapping = {}) -> tuple[np.ndarray, dict]:
    """Decode the frames that `num_frames` or `fps` choose. With `num_frames`, frames of a short clip are repeated.

    Frames are chosen by time: if the rate varies, frame i is the one that a player shows at i / fps, where `fps` is the
    mean rate. From a list of images, `num_frames` are chosen.

    Args:
        clip: of the content part (reading/clips.py). If it selects a range of a long video, only that range is read.

    Returns:
        frames (n, height, width, 3) uint8 RGB, rotated as a player would, in square pixels, with transparency on
        white; and the metadata: fps (frames per second of the file, None for images without times), duration
        (seconds) and total_num_frames, both of the clip if there is one; frames_indices (the number of each frame in
        the whole video, which is its time x fps).

    Raises:
        ValueError: The file is missing, empty, broken, truncated, too long or too large. The message names the file,
            and how much of a truncated file can be read.
    """
    options = clips.applied(options, clip)
    if isinstance(reference, (list, tuple)):
        return _open_images(reference, options, clip)
    source = local_file("video", reference, options)
    with _named(reference, source):
        moment = _taken(source, options, clip, _scan_moment) if is_moment(clip) else None
        return moment or _taken(source, options, clip, _scan)


def _taken(source, options: MediaOptions, clip: Mapping, scan_of: Callable) -> tuple[np.ndarray, dict] | None:
    """Return what `open_video` returns, or None if a clip cannot be found without scanning the whole video."""
    with _open_container(source, options) as (container, stream):
        scan, size = scan_of(container, stream, source, options, clip), _shown_size(stream, stream)
    if scan is None:
        return None
    indices = _choose(scan.total, scan.fps, options, clip)
    _scaled_size(*size, len(indices), options)
    shown = [scan.shown(i) for i in indices]
    frames = _decode(source, sorted(set(shown)), scan, options)
    if len({frame.shape for frame in frames.values()}) > 1:
        raise ValueError("its frame size changes midway")
    first, end = _range(scan.total, scan.fps, clip)
    return (np.stack([frames[i] for i in shown]), _metadata(end - first, scan.fps, indices)) if frames else None


def read_header(reference, options: MediaOptions, clip: Mapping = {}) -> tuple[int, int, int]:
    """Return the (frames, height, width) that `open_video` would give. See `media.read_header`."""
    options = clips.applied(options, clip)
    if isinstance(reference, (list, tuple)):
        indices, _, (width, height) = _choose_images(reference, options)
        return len(indices), height, width
    source = local_file("video", reference, options)
    with _named(reference, source), _open_container(source, options) as (container, stream):
        frame, number = _first_frame(container, stream), options.num_frames
        if options.fps or is_moment(clip):
            number = len(_choose(*_promised(container, stream, source, options, clip), options, clip))
        height, width, _ = _pixels(frame, stream, number, options).shape
        return number, height, width


def is_moment(clip: Mapping) -> bool:
    return "start" in clip or "end" in clip


def _choose(total: int, fps: float, options: MediaOptions, clip: Mapping = {}) -> list[int]:
    """Return the numbers of the frames to use."""
    first, end = _range(total, fps, clip)
    number = options.num_frames
    if options.fps:
        step = max(1.0, fps / options.fps)  # a frame is never taken twice
        # The frames shown 0, 1 / options.fps, 2 / options.fps, ... seconds after the first.
        indices = np.floor(first + np.arange(0, end - first, step) + 1e-6)
        number = options.max_frames or len(indices)
    if not options.fps or len(indices) > number:
        indices = np.linspace(first, end - 1, number).round()
    return np.minimum(indices, end - 1).astype(int).tolist()


def _range(total: int, fps: float, clip: Mapping) -> tuple[int, int]:
    """Return (first, end): a clip contains the frames that start in it, from `first` to the one before `end`.

    Raises:
        ValueError: The clip is not inside the video. A small excess is allowed, since lengths are rounded.
    """
    start, end, length = clip.get("start", 0), clip.get("end", total / fps), total / fps
    if start >= length or end > length + 0.1:
        raise ValueError(f"the row selects {start:g} to {end:g} seconds, but the video lasts {length:.2f} seconds")
    last = max(1, min(math.ceil(end * fps - 1e-6), total))
    return min(math.ceil(start * fps - 1e-6), last - 1), last  # if none starts in it, the frame shown then


def _scaled_size(width: int, height: int, number: int, options: MediaOptions) -> tuple[int, int]:
    """Return the (width, height) of each scaled frame. Raise a ValueError if all frames together are too large."""
    width, height = scaled_size(width, height, None, options.video_max_pixels)
    if number * width * height > options.video_pixel_limit:
        raise ValueError(
            f"{number:,} frames of {width}x{height} pixels exceed --video_pixel_limit; lower "
            f"{'--max_frames' if options.fps else '--num_frames (--max_frames with --fps)'} or --video_max_pixels"
        )
    return width, height


def _metadata(total: int, fps: float | None, indices: list[int]) -> dict:
    return {"fps": fps, "duration": fps and total / fps, "total_num_frames": total, "frames_indices": indices}


# ---- a list of images ----


def _open_images(references, options: MediaOptions, clip: Mapping) -> tuple[np.ndarray, dict]:
    indices, single, size = _choose_images(references, options)
    frames = {}
    for i in sorted(set(indices)):
        image = images.open_image(references[i], single)
        frames[i] = np.asarray(image if size == image.size else image.resize(size))
    number, fps, told = len(references), clip.get("fps"), indices
    if times := clip.get("times"):
        seconds = (times[-1] - times[0]) * number / (number - 1) if number > 1 else 1.0  # the last: mean duration
        number, fps, told = round(seconds * PER_SECOND), PER_SECOND, [round(times[i] * PER_SECOND) for i in indices]
    return np.stack([frames[i] for i in indices]), _metadata(number, fps, told)


def _choose_images(references, options: MediaOptions) -> tuple[list[int], MediaOptions, tuple[int, int]]:
    """Return the numbers of the images to use, the options for opening them, and the (width, height) of frames."""
    if not references:
        raise ValueError("a video is an empty list of images")
    # Size flags for images do not apply to frames.
    single = dataclasses.replace(options, image_size=None, min_pixels=None, max_pixels=None, jpeg_draft=False)
    indices = np.linspace(0, len(references) - 1, options.num_frames).round().astype(int).tolist()
    sizes = {i: images.read_header(references[i], single)[::-1] for i in sorted(set(indices))}
    first = sizes[indices[0]]
    for i, (width, height) in sizes.items():
        if (width, height) != first:
            raise ValueError(
                f"the images of a video must have the same size, but image {describe(references[i])} has "
                f"{width}x{height} pixels and the first image has {first[0]}x{first[1]}"
            )
    with _named(references):
        return indices, single, _scaled_size(*first, len(indices), options)


# ---- the container ----


@dataclasses.dataclass
class _Scan:
    total: int  # frames
    fps: float
    times: list[int] | None  # when each frame is shown, sorted, in the stream's time base; None if unknown
    keys: list[int]  # the times of keyframes, sorted; empty if unknown
    start: int = 0  # when the first frame of the video is shown
    step: float = 0.0  # 1 / fps
    is_moment: bool = False  # whether `times` and `keys` cover only a clip

    def shown(self, index: int) -> int:
        """Return the index in `times` of the frame that a player shows at `index` / `fps`, allowing for rounding."""
        if self.times is None:
            return index
        return bisect_right(self.times, self.start + (index + 0.25) * self.step) - 1


@contextlib.contextmanager
def _named(reference, source=None):
    """Turn errors in the `with` block into a ValueError that names the video."""
    try:
        yield
    except (av.FFmpegError, OSError, MemoryError, ValueError) as error:
        # The text of a PyAV error repeats the path and the error number.
        reason = getattr(error, "strerror", None) or error
        if source and "truncated" not in str(reason) and _is_cut_mp4(source):
            reason = f"it is truncated: {reason}"
        raise ValueError(f"video {describe(reference)} cannot be decoded: {reason}") from error


@contextlib.contextmanager
def _open_container(source, options: MediaOptions):
    """Yield the container and its first video stream."""
    if not isinstance(source, str):
        source.seek(0)
    only = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        container = av.open(source, options=only, **READ_ANY_TITLE)
    except av.FFmpegError as error:
        what = what_it_is(source)
        if not what and not isinstance(error, av.error.ArgumentError):
            raise
        what = what or "not a video file of a known format; put still images into image parts"
        raise ValueError(f"it is {what}") from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise ValueError("it contains no video stream")
        stream = streams[0]
        if stream.codec_context is None:
            raise ValueError("its codec is unknown")
        if stream.width * stream.height > options.image_pixel_limit:
            raise ValueError(f"its frames have {stream.width}x{stream.height} pixels, more than --image_pixel_limit")
        stream.codec_context.options = {
            "max_pixels": str(options.image_pixel_limit),  # checked again, in case later frames are larger
            # Report damage instead of concealing it. Damage stays unnoticed if nearly any bytes can be decoded, as in
            # most of VP8, VP9, WMV, GIF and QuickTime RLE, and sometimes in a few bytes of a slice of H.264 or HEVC.
            "err_detect": "explode",
        }
        stream.thread_type = "AUTO"
        yield container, stream


def _promised_end(container) -> float:
    """Return the end of the last frame in seconds, from the header; 0 if the header does not have it."""
    start = 0 if container.format.name in END_IN_HEADER else container.start_time or 0
    return (start + (container.duration or 0)) / 1e6


def _header_rate(stream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 24)


def _check_length(seconds: float, options: MediaOptions) -> None:
    if seconds > options.video_seconds_limit:
        raise ValueError(f"it lasts {seconds:,.0f} seconds, more than --video_seconds_limit")


def _header_total(container, stream, clip: Mapping) -> int:
    """Return the number of frames in the header, or 0 if it is missing (raw streams) or too small for the clip."""
    total, fps, name = 0, _header_rate(stream), container.format.name
    if name in END_IN_HEADER:  # in other formats, the end is an estimate
        total = round((_promised_end(container) - (container.start_time or 0) / 1e6) * fps)
    elif name in TIMED and is_moment(clip) and stream.duration:  # reading a long video's index would take long
        total = round(stream.duration * stream.time_base * fps)
    elif len(stream.index_entries) == stream.frames:
        gaps = np.diff([entry.timestamp for entry in stream.index_entries])
        if not len(gaps) or gaps.max() < 1.5 * gaps.min():  # otherwise the rate varies, and the header is wrong
            total = sum(not entry.is_discard for entry in stream.index_entries)
    return total if clip.get("end", clip.get("start", 0)) <= total / fps else 0


def _promised(container, stream, source, options: MediaOptions, clip: Mapping) -> tuple[int, float]:
    """Return the number of frames and the frame rate, from the header or, without a number there, by counting."""
    fps, total = _header_rate(stream), _header_total(container, stream, clip)
    if total < 1:
        with _open_container(source, options) as (container, stream):
            scan = _scan(container, stream, source, options)
            return scan.total, scan.fps
    first, end = _range(total, fps, clip)
    _check_length((end - first) / fps, options)
    return total, fps


def _scan_moment(container, stream, source, options: MediaOptions, clip: Mapping) -> _Scan | None:
    """Scan only the packets of a clip, from the keyframe before it. Return None if the clip cannot be found."""
    total, fps = _header_total(container, stream, clip), _header_rate(stream)
    if not total or container.format.name not in TIMED or stream.start_time is None:
        return None
    step, (first, end) = float(1 / (fps * stream.time_base)), _range(total, fps, clip)
    _check_length((end - first) / fps, options)
    begin, stop = (stream.start_time + index * step for index in (first, end))
    container.seek(int(begin), stream=stream)
    times, keys, last = [], [], begin
    for packet in container.demux(stream):
        if packet.pts is None or last >= stop and packet.dts is not None and packet.dts >= stop:
            break  # all further packets are shown later
        keys += [packet.pts] if packet.is_keyframe else []
        times += [] if packet.is_discard or _is_hidden(packet) else [packet.pts]
        last = max(last, packet.pts + (packet.duration or 0))
    found = times and keys and keys[0] <= begin + step / 4 and stop - last < max(1.5 * step, 0.1 / stream.time_base)
    return _Scan(total, fps, sorted(times), sorted(keys), stream.start_time, step, True) if found else None


def _scan(container, stream, source, options: MediaOptions, clip: Mapping = {}) -> _Scan:
    """Scan the packets of an opened video without decoding them.

    The number of frames in headers is not reliable. Raw streams, mkv, webm and flv have none. If a video was cut
    without encoding it again, the number includes frames outside the cut (packets marked "discard").

    Raises:
        ValueError: The packets stop before the end time in the header, which raw streams and MPEG-TS do not have.
    """
    fps, start = _header_rate(stream), (container.start_time or 0) / 1e6
    _check_length(_promised_end(container) - start, options)
    times, keys, packets, end, cut_short = [], [], 0, 0.0, False
    for packet in container.demux():  # also packets of sound, which may be longer than the video
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            _check_length(end - start, options)
        if packet.stream is not stream:
            continue
        packets += packet.dts is not None or packet.size > 0  # empty packets in avi repeat a frame
        if not packet.size:
            continue
        cut_short = packet.is_corrupt
        if packet.is_keyframe:
            keys.append(packet.pts)
        if not packet.is_discard and not _is_hidden(packet):
            times.append(packet.pts)
    total = len(times)
    if not total:
        raise ValueError("it contains no frames")
    _check_length(total / fps, options)
    _check_whole(container, stream, source, fps, packets, end, cut_short)
    if None in times + keys or len(set(times)) < total or not keys:
        return _Scan(total, fps, None, [])
    times, keys = sorted(times), sorted(keys)
    if total > 1:
        measured = (total - 1) / float((times[-1] - times[0]) * stream.time_base)
        # Rounded time stamps distort the measured rate of short clips. The header's rate is rounded too, or a guess.
        fps = fps if abs(1 / measured - 1 / fps) * (total - 1) < 0.5 / fps else measured
    step = (times[-1] - times[0]) / max(total - 1, 1)
    return _Scan(total, fps, times, keys if container.format.name in TIMED else [], times[0], step)


def _check_whole(container, stream, source, fps: float, packets: int, end: float, cut_short: bool) -> None:
    """Check that the packets reach the end that the header promises.

    Args:
        packets: the number of video packets.
        end: the end of the last packet of any stream, in seconds.
        cut_short: whether the last packet is incomplete.
    """
    start, promised = (container.start_time or 0) / 1e6, _promised_end(container)
    # If the header has no count, the last frame may lack its duration. Times are rounded too.
    cut_short |= end > 0 and promised - end > (0.25 / fps if packets < stream.frames else max(1.5 / fps, 0.1))
    cut_short |= container.format.name in FORMATS_WITH_COUNT and packets < stream.frames
    if trailer := TRAILERS.get(container.format.name):
        with _open_bytes(source) as file:
            file.seek(-16, io.SEEK_END)  # files with a frame are longer
            cut_short |= not file.read().rstrip(b"\0").endswith(trailer)
    if cut_short:
        readable = f"the first {max(end - start, 0):.2f} of {promised - start:.2f} seconds"
        if packets <= stream.frames:
            readable = f"the first {packets} of {stream.frames} frames"
        raise ValueError(f"it is truncated: only {readable} can be read")


def _is_cut_mp4(source) -> bool:
    """Whether an MP4 or MOV file ends within a box. The list of frames is usually the last box."""
    with _open_bytes(source) as file:
        size, place = file.seek(0, io.SEEK_END), 0
        while place + 8 < size:
            file.seek(place)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            if place == 0 and kind not in (b"ftyp", b"moov", b"mdat", b"wide"):
                return False
            length = int.from_bytes(file.read(8), "big") if length == 1 else length  # 1: 64 bits follow; 0: to the end
            place += max(length or size, 8)
        return place > size


def _open_bytes(source):
    return open(source, "rb") if isinstance(source, str) else contextlib.nullcontext(source)


def _is_hidden(packet) -> bool:
    """Whether a packet contains a frame that is never shown, as VP8 allows (RFC 6386, 9.1: show_frame)."""
    return packet.stream.codec_context.name in ("vp8", "libvpx") and not bytes(packet)[0] & 0x10


# ---- decoding ----


def _decode(source, wanted: list[int], scan: _Scan, options: MediaOptions) -> dict[int, np.ndarray]:
    """Return the frames with the indices `wanted` (ascending), or {} if the seek to a clip misses its keyframe."""
    frames = _decode_by_time(source, wanted, scan, options) if scan.keys else None
    return frames or ({} if scan.is_moment else _decode_by_number(source, wanted, scan.total, options))


def _decode_by_time(source, wanted: list[int], scan: _Scan, options: MediaOptions) -> dict[int, np.ndarray] | None:
    """Return the wanted frames, or None if a seek fails. Seek to a keyframe only if that saves decoding."""
    frames, shown, known = {}, -math.inf if scan.is_moment else scan.keys[0], set(scan.keys)
    with _open_container(source, options) as (container, stream):
        try:
            decoded = container.decode(stream)
            for index in wanted:
                time = scan.times[index]
                key = scan.keys[max(0, bisect_right(scan.keys, time) - 1)]
                if key > shown:
                    container.seek(key, stream=stream)
                    decoded = _decode_from_keyframe(container, stream, known)
                for frame in decoded:
                    shown = time if frame.pts is None else frame.pts
                    if shown >= time:
                        break
                else:
                    return None
                if frame.pts != time or frame.is_corrupt:
                    return None
                frames[index] = _pixels(frame, stream, len(wanted), options)
        except av.FFmpegError:
            return None
    return frames


def _decode_from_keyframe(container, stream, known: set[int]):
    """Yield the frames after a seek. Yield none if the seek did not end at a known keyframe."""
    for number, packet in enumerate(container.demux(stream)):
        if number == 0 and packet.pts not in known:
            return
        yield from packet.decode()


def _decode_by_number(source, wanted: list[int], total: int, options: MediaOptions) -> dict[int, np.ndarray]:
    """Return the wanted frames by decoding from the first frame, for files without times or if a seek failed."""
    remaining, frames, number = set(wanted), {}, 0
    with _open_container(source, options) as (container, stream):
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    break
                if number in remaining:
                    frames[number] = _pixels(frame, stream, len(wanted), options)
                number += 1
                if number > wanted[-1]:
                    return frames
        except av.FFmpegError:  # raised below, with the number of decoded frames
            pass
    raise ValueError(f"it is truncated or damaged: only the first {number} of {total} frames can be decoded")


def _first_frame(container, stream):
    try:
        frame = next(container.decode(stream), None)
    except av.FFmpegError as error:
        raise ValueError("it is truncated or damaged: not even its first frame can be decoded") from error
    if frame is None:
        raise ValueError("it contains no frames")
    return frame


def _shown_size(frame, stream) -> tuple[int, int]:
    """Return the (width, height) of a frame in square pixels."""
    return round(frame.width * (stream.sample_aspect_ratio or 1)), frame.height


def _pixels(frame, stream, number: int, options: MediaOptions) -> np.ndarray:
    """Return the pixels (height, width, 3) uint8 of a decoded frame, scaled as one of `number` frames, and rotated."""
    width, height = _scaled_size(*_shown_size(frame, stream), number, options)
    # By default, a frame keeps threads for scaling. A forked data loader worker would wait for them forever.
    form = {"width": width, "height": height, "threads": 1}
    if any(component.is_alpha for component in frame.format.components):
        rgba = frame.to_ndarray(format="rgba", **form)
        pixels = np.asarray(images.on_white(Image.fromarray(rgba)))
    else:
        pixels = frame.to_ndarray(format="rgb24", **form)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # libavutil/display.h: stored (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
