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
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return image.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"image {path} does not exist") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
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

    if not os.path.exists(path):
        raise ValueError(f"video {path} does not exist")
    try:
        with av.open(path) as container:
            # A raw stream has no frame count in its header; counting packets decodes nothing.
            stream = container.streams.video[0]
            total = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
            fps = float(stream.average_rate or stream.guessed_rate or 24)
        indices = np.linspace(0, total - 1, num_frames).round().astype(int)
        wanted, frames = set(indices.tolist()), {}
        with av.open(path) as container:
            container.streams.video[0].thread_type = "AUTO"
            for position, frame in enumerate(container.decode(video=0)):
                if position in wanted:
                    frames[position] = frame.to_ndarray(format="rgb24")
                if position >= total - 1:
                    break
    except (av.FFmpegError, IndexError, OSError) as error:
        raise ValueError(f"video {path} cannot be decoded: {error}") from error
    if len(frames) < len(wanted):
        raise ValueError(f"video {path} is truncated: its header promises {total} frames, fewer can be decoded")
    metadata = {"fps": fps, "duration": total / fps, "total_num_frames": total, "frames_indices": indices.tolist()}
    return np.stack([frames[i] for i in indices.tolist()]), metadata


def check_media(kind: str, path: str) -> tuple[int, int]:
    """(height, width) from the file's header, decoding nothing.

    Raises:
        ValueError: what opening would raise, as far as the header tells.
    """
    if not os.path.isfile(path):
        raise ValueError(f"{kind} {path} does not exist")
    if kind == "image":
        try:
            with Image.open(path) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return image.size if turned else image.size[::-1]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"image {path} cannot be decoded: {error}") from error
    import av

    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            return stream.height, stream.width
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"video {path} cannot be decoded: {error}") from error
