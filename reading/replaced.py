"""Whether media are the files that they were when their rows were indexed.

The index keeps the size in bytes of each local file. A start compares a thousand rows, always the same, since a million
would take minutes on a network drive; if one file in a hundred was replaced, it misses that in one case of 20,000. A
checkpoint keeps what the same rows had, for the run that goes on from it.
"""

import shutil
from collections.abc import Iterator

import numpy as np

from reading.references import describe
from reading.row_index import ChangedFile, media_bytes
from reading.rows import content_parts

DRAWN = 1000  # rows


def drawn_rows(dataset) -> list[int]:
    with_media = np.flatnonzero(dataset.num_parts("iv"))
    return np.sort(np.random.default_rng(0).permutation(with_media)[:DRAWN]).tolist()


def drawn_files(dataset) -> list[tuple[str, int]]:
    """(name, bytes) of the media files of the drawn rows, when they were indexed."""
    return [(name, size) for position in drawn_rows(dataset) for name, _, size in files_of(dataset, position)]


def files_of(dataset, position: int) -> Iterator[tuple[str, object, int]]:
    """The name, the reference and the bytes in the index of each local medium of a row."""
    index, place = dataset.locate(position)
    sizes = index.bytes_of_media(place)
    if any(size >= 0 for size in sizes):  # else its media are in the row itself, which is large
        media = [part for part in content_parts(index.row(place)) if part["type"] != "text"]
        for part, size in zip(media, sizes):
            if size >= 0:
                reference = part[part["type"]]
                yield f"{index.source(place)}: {part['type']} {describe(reference)}", reference, size


def check_drawn(dataset) -> None:
    """Compare the media of the drawn rows with the index.

    Raises:
        ChangedFile: one has another size. The index, which is wrong, is deleted.
    """
    for position in drawn_rows(dataset):
        try:
            check_row(dataset, position)
        except ChangedFile as error:
            index, _ = dataset.locate(position)
            shutil.rmtree(index.folder, ignore_errors=True)  # another process may do so too
            raise ChangedFile(f"{error} If that is meant, start again: the rows are then indexed anew.") from error


def check_row(dataset, position: int) -> None:
    """Raise a ChangedFile where a medium of a row has another size than when it was indexed, or is gone."""
    for name, reference, size in files_of(dataset, position):
        try:
            size_now = media_bytes(reference)
        except ChangedFile as error:
            raise ChangedFile(f"{name} was there when it was indexed: {error}") from error
        if size_now != size:
            raise ChangedFile(f"{name} has {size_now:,} bytes, and had {size:,} when it was indexed.")
