"""Open images with images.py and videos with videos.py, the only module that imports a video decoder."""

from collections.abc import Mapping

from reading import images
from reading.options import MediaOptions


def open_part(part: dict, options: MediaOptions) -> dict:
    """Return a content part with its image or video opened (see reading/dataset.py). A text part stays unchanged."""
    if part["type"] == "image":
        return {**part, "image": images.open_image(part["image"], options)}
    if part["type"] == "video":
        from reading import videos  # not needed by a run without videos

        frames, metadata = videos.open_video(part["video"], options, part.get("clip", {}))
        return {**part, "video": frames, "metadata": metadata}
    return part


def read_header(kind: str, reference, options: MediaOptions, clip: Mapping = {}) -> tuple[int, ...]:
    """Return the (height, width) of an image or the (frames, height, width) of a video, as if it were opened.

    No pixels of an image are decoded, and one frame of a video, since only a frame contains the rotation. With `fps`,
    the number of frames comes from the video's header. `clip` is the one of the content part (reading/clips.py).
    """
    if kind == "image":
        return images.read_header(reference, options)
    from reading import videos  # not needed by a run without videos

    return videos.read_header(reference, options, clip)
