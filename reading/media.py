"""Open images with images.py and videos with videos.py, the only module that imports a video decoder."""

from collections.abc import Mapping

from reading import images
from reading.options import MediaOptions


def open_part(part: dict, options: MediaOptions) -> dict:
    """Return a content part with its image or video opened (see reading/dataset.py). A text part stays unchanged."""
    if part["type"] == "image":
        return {**part, "image": images.open_image(part["image"], options)}
    if part["type"] == "video":
        from reading import videos  # imported only if there are videos

        frames, metadata = videos.open_video(part["video"], options, part.get("clip", {}))
        return {**part, "video": frames, "metadata": metadata}
    return part


def read_header(kind: str, reference, options: MediaOptions, clip: Mapping = {}) -> tuple[int, ...]:
    """Return the (height, width) of an image or the (frames, height, width) of a video after opening.

    Pixels of images are not decoded. Of a video, one frame is decoded, since only a frame contains the rotation. With
    `fps`, the header gives the number of frames. `clip` is a field of the content part (reading/clips.py).
    """
    if kind == "image":
        return images.read_header(reference, options)
    from reading import videos  # imported only if there are videos

    return videos.read_header(reference, options, clip)
