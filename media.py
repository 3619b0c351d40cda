"""Images and videos: from a reference in a row to pixels."""

import os

import numpy as np
from PIL import ExifTags, Image, ImageOps


def open_image(path: str) -> Image.Image:
    """The image as a person sees it: RGB, turned by its EXIF orientation, transparency on white.

    Raises:
        ValueError: missing, empty or broken file; the message names it.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode in ("I", "F"):
                raise ValueError("its 32-bit pixels have no known range; save it with 8 or 16 bits")
            if image.mode.startswith("I;16"):  # `convert` would clip at 255 and leave it white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return image.convert("RGB")
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(_missing("image", path)) from None
    except Exception as error:  # on broken bytes the decoders raise nearly any type
        raise ValueError(f"image {path} cannot be decoded: {error}") from error


def open_video(path: str, num_frames: int) -> tuple[np.ndarray, dict]:
    """Decode `num_frames` frames, evenly spaced from the first to the last (a short clip repeats frames).

    Returns:
        frames (num_frames, height, width, 3) uint8 RGB, and the metadata that video processors read:
        fps (frames per second of the file), duration (seconds), total_num_frames, frames_indices.

    Raises:
        ValueError: missing, empty, broken or truncated file; the message names it.
    """
    import av  # not needed by a run without videos

    if not os.path.isfile(path):
        raise ValueError(_missing("video", path))
    try:
        with av.open(path) as container:
            total, fps = _count_frames(container)
        indices = np.linspace(0, total - 1, num_frames).round().astype(int)
        wanted, frames = set(indices.tolist()), {}
        with av.open(path) as container:
            container.streams.video[0].thread_type = "AUTO"
            for position, frame in enumerate(container.decode(video=0)):
                if position in wanted:
                    frames[position] = frame.to_ndarray(format="rgb24")
                if position >= total - 1:
                    break
        if len(frames) < len(wanted):
            raise ValueError(f"it is truncated or damaged: of {total} frames fewer can be decoded")
    except (av.FFmpegError, IndexError, OSError, ValueError) as error:
        raise ValueError(f"video {path} cannot be decoded: {_reason(error)}") from error
    metadata = {"fps": fps, "duration": total / fps, "total_num_frames": total, "frames_indices": indices.tolist()}
    return np.stack([frames[i] for i in indices.tolist()]), metadata


def _count_frames(container) -> tuple[int, float]:
    """Frames of an opened video, and its frames per second. Counts packets, which decodes nothing.

    Headers cannot be trusted with the number: raw streams, mkv, webm and flv have none, and in a clip that was cut
    without encoding it again it includes frames outside of the cut (packets marked "discard").

    Raises:
        ValueError: the packets end before the duration that the header promises.
    """
    video = container.streams.video[0]
    fps = float(video.average_rate or video.guessed_rate or 24)
    total, packets, end = 0, 0, 0.0
    for packet in container.demux():  # sound too: it may be longer than the pictures
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream is video and packet.size:
            packets += 1
            total += not packet.is_discard
    if not total:
        raise ValueError("it holds no frame")
    missing = (container.duration or 0) / 1e6 + (container.start_time or 0) / 1e6 - end  # seconds
    # Where the header has no count, the last frame may come without its duration, and times are rounded.
    if end and missing > (0.25 / fps if packets < video.frames else max(1.5 / fps, 0.1)):
        raise ValueError(f"it is truncated: the last {missing:.2f} seconds that its header promises are missing")
    return total, fps


def _missing(kind: str, path: str) -> str:
    fault = "is a folder" if os.path.isdir(path) else "does not exist"
    return f"{kind} {path} {fault}; mend the path or --{kind}_folder"


def _reason(error: Exception) -> str:
    """An error of PyAV without the path and number that its text repeats."""
    if isinstance(error, IndexError):
        return "it holds no video stream"
    return getattr(error, "strerror", None) or str(error)


def check_media(kind: str, path: str) -> tuple[int, int]:
    """(height, width) from the file's header, decoding nothing.

    Raises:
        ValueError: what opening would raise, as far as the header tells.
    """
    if not os.path.isfile(path):
        raise ValueError(_missing(kind, path))
    if kind == "image":
        try:
            with Image.open(path) as image:
                # Of the base class: PngImageFile's own decodes the whole image to look behind the pixels.
                turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
                return image.size if turned else image.size[::-1]
        except Exception as error:  # on broken bytes the decoders raise nearly any type
            raise ValueError(f"image {path} cannot be decoded: {error}") from error
    import av

    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            return stream.height, stream.width
    except (av.FFmpegError, IndexError, OSError) as error:
        raise ValueError(f"video {path} cannot be decoded: {_reason(error)}") from error
