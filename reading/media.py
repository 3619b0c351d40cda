"""Media of either kind: an image is opened by images.py, a video by videos.py, which alone imports a decoder."""

from collections.abc import Mapping

from reading import images
from reading.options import MediaOptions


def open_part(part: dict, options: MediaOptions) -> dict:
    """A part of a message with its medium opened, as reading/dataset.py says; of text the part itself."""
    if part["type"] == "image":
        return {**part, "image": images.open_image(part["image"], options)}
    if part["type"] == "video":
        from reading import videos  # not needed by a run without videos

        frames, metadata = videos.open_video(part["video"], options, part.get("clip", {}))
        return {**part, "video": frames, "metadata": metadata}
    return part


def read_header(kind: str, reference, options: MediaOptions, clip: Mapping = {}) -> tuple[int, ...]:
    """(height, width) of an image or (frames, height, width) of a video, as opening gives them.

    It decodes no pixel of an image, and one frame of a video, which alone tells how a phone was held. With `fps` the
    number of frames is what the video's header promises. `clip`: of the part (reading/clips.py).
    """
    if kind == "image":
        return images.read_header(reference, options)
    from reading import videos  # not needed by a run without videos

    return videos.read_header(reference, options, clip)
