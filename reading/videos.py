"""Videos: from a reference in a row to frames and the metadata that video processors read."""

import contextlib
import dataclasses
import io
from bisect import bisect_right

import av
import numpy as np
from PIL import Image

from reading import images
from reading.files import local_file
from reading.options import MediaOptions, scaled_size
from reading.references import describe, what_it_is

# FFmpeg's names of what clips come in, and of sound, so that a sound file is named as one. The others stay closed:
# still images, and playlists, which would have it open further files and addresses.
CONTAINERS = (
    "mov,matroska,webm,avi,flv,asf,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,vvc,ogg,nut,mxf,dv,rm,mjpeg,gif,apng,"
    "wav,mp3,aac,flac"
)
MP4, MKV, FLV = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv"
# Containers that store when each frame is shown and where keyframes are. For others, as avi, FFmpeg guesses.
TIMED = (MP4, MKV, FLV)
# What FFmpeg calls the duration of these is the time of their end, wherever they start.
END_IN_HEADER = (MKV, FLV)
# FFmpeg shortens the duration of these to what is there, but tells how many frames there should be.
COUNTED = ("avi", "gif")
# How files end that promise no length.
TRAILERS = {"gif": b";", "apng": b"IEND\xaeB`\x82"}
# Until 19, PyAV refuses titles and the like that are not UTF-8, unless it is told to replace what it cannot read.
READ_ANY_TITLE = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# Of a list of images the times are unknown; transformers (5.23) takes this rate where a video has none.
UNKNOWN_FPS = 24.0


def open_video(reference, options: MediaOptions) -> tuple[np.ndarray, dict]:
    """Decode the frames that `num_frames` or `fps` choose; with `num_frames` a short clip repeats frames.

    Frames are chosen by time: where the rate varies, frame i is what a player shows at i / fps, `fps` being the mean
    rate. Of a list of images `num_frames` are taken, whatever `fps`, and their metadata says 24 frames a second.

    Returns:
        frames (n, height, width, 3) uint8 RGB as a person sees them: turned as the phone was held, in square pixels,
        transparency on white; and the metadata: fps (frames per second of the file), duration (seconds),
        total_num_frames, frames_indices (which frames these are: the time of each, times fps).

    Raises:
        ValueError: missing, empty, broken, truncated, too long or too large file; the message names it and says how
            much of a truncated one can be read.
    """
    if isinstance(reference, (list, tuple)):
        return _open_images(reference, options)
    source = local_file("video", reference, options)
    with _named(reference, source):
        with _opened(source, options) as (container, stream):
            scan, size = _scan(container, stream, source, options), _shown_size(stream, stream)
        indices = _choose(scan.total, scan.fps, options)
        _scaled_size(*size, len(indices), options)
        shown = [scan.shown(i) for i in indices]
        frames = _decode(source, sorted(set(shown)), scan, options)
        if len({frame.shape for frame in frames.values()}) > 1:
            raise ValueError("the size of its frames changes on the way")
        return np.stack([frames[i] for i in shown]), _metadata(scan.total, scan.fps, indices)


def read_header(reference, options: MediaOptions) -> tuple[int, int, int]:
    """(frames, height, width) as `open_video` gives them; see `media.read_header`."""
    if isinstance(reference, (list, tuple)):
        indices, _, (width, height) = _choose_images(reference, options)
        return len(indices), height, width
    source = local_file("video", reference, options)
    with _named(reference, source), _opened(source, options) as (container, stream):
        frame, number = _first_frame(container, stream), options.num_frames
        if options.fps:
            number = len(_choose(*_promised(container, stream, source, options), options))
        height, width, _ = _pixels(frame, stream, number, options).shape
        return number, height, width


def _choose(total: int, fps: float, options: MediaOptions) -> list[int]:
    """The numbers of the frames to take."""
    if not options.fps:
        return np.linspace(0, total - 1, options.num_frames).round().astype(int).tolist()
    step = max(1.0, fps / options.fps)  # a frame is never taken twice
    # The frame shown at 0, 1 / options.fps, 2 / options.fps, ... seconds.
    indices = np.floor(np.arange(0, total, step) + 1e-6).astype(int)
    if options.max_frames and len(indices) > options.max_frames:
        indices = np.linspace(0, total - 1, options.max_frames).round().astype(int)
    return np.minimum(indices, total - 1).tolist()


def _scaled_size(width: int, height: int, number: int, options: MediaOptions) -> tuple[int, int]:
    """(width, height) of each frame once scaled.

    Raises:
        ValueError: so many frames of that size are too large together.
    """
    width, height = scaled_size(width, height, None, options.video_max_pixels)
    if number * width * height > options.video_pixel_limit:
        raise ValueError(
            f"{number:,} frames of {width}x{height} pixels are more than --video_pixel_limit; lower "
            f"{'--max_frames' if options.fps else '--num_frames (--max_frames with --fps)'} or --video_max_pixels"
        )
    return width, height


def _metadata(total: int, fps: float, indices: list[int]) -> dict:
    return {"fps": fps, "duration": total / fps, "total_num_frames": total, "frames_indices": indices}


# ---- a list of images ----


def _open_images(references, options: MediaOptions) -> tuple[np.ndarray, dict]:
    indices, single, size = _choose_images(references, options)
    frames = {}
    for i in sorted(set(indices)):
        image = images.open_image(references[i], single)
        frames[i] = np.asarray(image if size == image.size else image.resize(size))
    return np.stack([frames[i] for i in indices]), _metadata(len(references), UNKNOWN_FPS, indices)


def _choose_images(references, options: MediaOptions) -> tuple[list[int], MediaOptions, tuple[int, int]]:
    """The numbers of the images to take, the options to open each with, and the (width, height) of the frames."""
    if not references:
        raise ValueError("a video is an empty list of images")
    # Flags of size that mean images do not mean frames.
    single = dataclasses.replace(options, image_size=None, min_pixels=None, max_pixels=None, jpeg_draft=False)
    indices = np.linspace(0, len(references) - 1, options.num_frames).round().astype(int).tolist()
    sizes = {i: images.read_header(references[i], single)[::-1] for i in sorted(set(indices))}
    first = sizes[indices[0]]
    for i, (width, height) in sizes.items():
        if (width, height) != first:
            raise ValueError(
                f"the images of a video must have one size, but image {describe(references[i])} has "
                f"{width}x{height} pixels and the first {first[0]}x{first[1]}"
            )
    with _named(references):
        return indices, single, _scaled_size(*first, len(indices), options)


# ---- the container ----


@dataclasses.dataclass
class _Scan:
    total: int  # frames
    fps: float
    times: list[int] | None  # when each frame is shown, in order, in the stream's unit; None where it does not tell
    keys: list[int]  # those of the keyframes, in order; none where it cannot be told where they are

    def shown(self, index: int) -> int:
        """The number of the frame that a player shows at `index` / `fps`; by its stamps, which are rounded."""
        if self.times is None:
            return index
        step = (self.times[-1] - self.times[0]) / max(self.total - 1, 1)
        return bisect_right(self.times, self.times[0] + (index + 0.25) * step) - 1


@contextlib.contextmanager
def _named(reference, source=None):
    """What goes wrong in the body of the `with` is a ValueError that names the video."""
    try:
        yield
    except (av.FFmpegError, OSError, MemoryError, ValueError) as error:
        # The text of an error of PyAV repeats path and number.
        reason = getattr(error, "strerror", None) or error
        if source and "truncated" not in str(reason) and _is_cut_mp4(source):
            reason = f"it is truncated: {reason}"
        raise ValueError(f"video {describe(reference)} cannot be decoded: {reason}") from error


@contextlib.contextmanager
def _opened(source, options: MediaOptions):
    """The container and its first video stream."""
    if not isinstance(source, str):
        source.seek(0)
    only = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        container = av.open(source, options=only, **READ_ANY_TITLE)
    except av.FFmpegError as error:
        what = what_it_is(source)
        if not what and not isinstance(error, av.error.ArgumentError):
            raise
        what = what or "no video file of a known format; a still image belongs in an image part"
        raise ValueError(f"it is {what}") from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise ValueError("it holds no video stream")
        stream = streams[0]
        if stream.codec_context is None:
            raise ValueError("its pictures are of an unknown codec")
        if stream.width * stream.height > options.image_pixel_limit:
            raise ValueError(f"its frames have {stream.width}x{stream.height} pixels, more than --image_pixel_limit")
        stream.codec_context.options = {
            "max_pixels": str(options.image_pixel_limit),  # if they grow on the way
            # Damage is an error, and not painted over. What nearly any bytes decode to stays unnoticed: most of VP8,
            # VP9, WMV, GIF and QuickTime RLE, and now and then a few bytes within a slice of H.264 or HEVC.
            "err_detect": "explode",
        }
        stream.thread_type = "AUTO"
        yield container, stream


def _promised_end(container) -> float:
    """When the last frame ends, in seconds, by the header; 0 where it has none."""
    start = 0 if container.format.name in END_IN_HEADER else container.start_time or 0
    return (start + (container.duration or 0)) / 1e6


def _header_rate(stream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 24)


def _check_length(seconds: float, options: MediaOptions) -> None:
    if seconds > options.video_seconds_limit:
        raise ValueError(f"it lasts {seconds:,.0f} seconds, more than --video_seconds_limit")


def _promised(container, stream, source, options: MediaOptions) -> tuple[int, float]:
    """Frames and frames per second by the header; counted where it has none, as in raw streams."""
    fps, total = _header_rate(stream), 0
    if container.format.name in END_IN_HEADER:  # others estimate
        total = round((_promised_end(container) - (container.start_time or 0) / 1e6) * fps)
    elif len(stream.index_entries) == stream.frames:
        gaps = np.diff([entry.timestamp for entry in stream.index_entries])
        if not len(gaps) or gaps.max() < 1.5 * gaps.min():  # otherwise the rate varies, and the header guesses
            total = sum(not entry.is_discard for entry in stream.index_entries)
    if total < 1:
        with _opened(source, options) as (container, stream):
            scan = _scan(container, stream, source, options)
            return scan.total, scan.fps
    _check_length(total / fps, options)
    return total, fps


def _scan(container, stream, source, options: MediaOptions) -> _Scan:
    """Go over the packets of an opened video, decoding nothing.

    Headers cannot be trusted with the number of frames: raw streams, mkv, webm and flv have none, and in a clip that
    was cut without encoding it again it includes frames outside of the cut (packets marked "discard").

    Raises:
        ValueError: the packets end before what the header promises. Raw streams and MPEG-TS promise nothing.
    """
    fps, start = _header_rate(stream), (container.start_time or 0) / 1e6
    _check_length(_promised_end(container) - start, options)
    times, keys, packets, end, cut_short = [], [], 0, 0.0, False
    for packet in container.demux():  # sound too: it may be longer than the pictures
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            _check_length(end - start, options)
        if packet.stream is not stream:
            continue
        packets += packet.dts is not None or packet.size > 0  # avi has empty ones: the frame before goes on
        if not packet.size:
            continue
        cut_short = packet.is_corrupt
        if packet.is_keyframe:
            keys.append(packet.pts)
        if not packet.is_discard and not _is_hidden(packet):
            times.append(packet.pts)
    total = len(times)
    if not total:
        raise ValueError("it holds no frame")
    _check_length(total / fps, options)
    _check_whole(container, stream, source, fps, packets, end, cut_short)
    if None in times + keys or len(set(times)) < total or not keys:
        return _Scan(total, fps, None, [])
    times, keys = sorted(times), sorted(keys)
    if total > 1:
        measured = (total - 1) / float((times[-1] - times[0]) * stream.time_base)
        # Stamps are rounded, which shows in short clips; headers too, and they guess where the rate varies.
        fps = fps if abs(1 / measured - 1 / fps) * (total - 1) < 0.5 / fps else measured
    return _Scan(total, fps, times, keys if container.format.name in TIMED else [])


def _check_whole(container, stream, source, fps: float, packets: int, end: float, cut_short: bool) -> None:
    """Hold what was read against what the header promises.

    Args:
        packets: of pictures.
        end: of the last packet of any stream, in seconds.
        cut_short: whether the last packet is incomplete.
    """
    start, promised = (container.start_time or 0) / 1e6, _promised_end(container)
    # Where the header has no count, the last frame may come without its duration, and times are rounded.
    cut_short |= end > 0 and promised - end > (0.25 / fps if packets < stream.frames else max(1.5 / fps, 0.1))
    cut_short |= container.format.name in COUNTED and packets < stream.frames
    if trailer := TRAILERS.get(container.format.name):
        cut_short |= not _tail(source).rstrip(b"\0").endswith(trailer)
    if cut_short:
        readable = f"of {promised - start:.2f} seconds the first {max(end - start, 0):.2f}"
        if packets <= stream.frames:
            readable = f"of {stream.frames} frames the first {packets}"
        raise ValueError(f"it is truncated: {readable} can be read")


def _is_cut_mp4(source) -> bool:
    """Whether the file ends within a box of MP4 or MOV: the list of frames is usually the last."""
    with _read(source) as file:
        size, place = file.seek(0, io.SEEK_END), 0
        while place + 8 < size:
            file.seek(place)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            if place == 0 and kind not in (b"ftyp", b"moov", b"mdat", b"wide"):
                return False
            length = int.from_bytes(file.read(8), "big") if length == 1 else length  # 64 bits; 0 is all the rest
            place += max(length or size, 8)
        return place > size


def _read(source):
    return open(source, "rb") if isinstance(source, str) else contextlib.nullcontext(source)


def _tail(source) -> bytes:
    """The last bytes of a file."""
    with _read(source) as file:
        file.seek(0, io.SEEK_END)
        file.seek(max(0, file.tell() - 16))
        return file.read()


def _is_hidden(packet) -> bool:
    """Whether it holds a picture that is only referred to: VP8 has packets of such (RFC 6386, 9.1: show_frame)."""
    return packet.stream.codec_context.name in ("vp8", "libvpx") and not bytes(packet)[0] & 0x10


# ---- decoding ----


def _decode(source, wanted: list[int], scan: _Scan, options: MediaOptions) -> dict[int, np.ndarray]:
    """The wanted frames by number; `wanted` is in ascending order."""
    frames = _decode_by_time(source, wanted, scan, options) if scan.keys else None
    return frames or _decode_by_number(source, wanted, scan.total, options)


def _decode_by_time(source, wanted: list[int], scan: _Scan, options: MediaOptions) -> dict[int, np.ndarray] | None:
    """The wanted frames; jumps to the keyframe before one only if that skips work. None if a jump goes astray."""
    frames, shown, known = {}, scan.keys[0], set(scan.keys)
    with _opened(source, options) as (container, stream):
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
    """Frames from where a jump ended, or none if that is no known keyframe."""
    for number, packet in enumerate(container.demux(stream)):
        if number == 0 and packet.pts not in known:
            return
        yield from packet.decode()


def _decode_by_number(source, wanted: list[int], total: int, options: MediaOptions) -> dict[int, np.ndarray]:
    """The wanted frames, decoding from the first: what knows no times, or jumps wrongly."""
    remaining, frames, number = set(wanted), {}, 0
    with _opened(source, options) as (container, stream):
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    break
                if number in remaining:
                    frames[number] = _pixels(frame, stream, len(wanted), options)
                number += 1
                if number > wanted[-1]:
                    return frames
        except av.FFmpegError:  # told below, with how far it got
            pass
    raise ValueError(f"it is truncated or damaged: of {total} frames the first {number} can be decoded")


def _first_frame(container, stream):
    try:
        frame = next(container.decode(stream), None)
    except av.FFmpegError as error:
        raise ValueError("it is truncated or damaged: not even its first frame can be decoded") from error
    if frame is None:
        raise ValueError("it holds no frame")
    return frame


def _shown_size(frame, stream) -> tuple[int, int]:
    """(width, height) of a frame in square pixels."""
    return round(frame.width * (stream.sample_aspect_ratio or 1)), frame.height


def _pixels(frame, stream, number: int, options: MediaOptions) -> np.ndarray:
    """(height, width, 3) uint8 of a decoded frame of the stream, one of `number`, scaled and turned."""
    width, height = _scaled_size(*_shown_size(frame, stream), number, options)
    # By default a frame keeps threads for scaling, which a data loader's worker, forked later, would wait for in vain.
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
