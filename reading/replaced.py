"""Check whether media files have changed since their rows were indexed.

The index stores the size in bytes and the modification time of each local file. Each start compares the same thousand
rows, since a million would take minutes on a network drive. If one file in a hundred was replaced, the check misses
that in one case of 20,000. A checkpoint stores the state of the same rows, for a run that resumes from it.
"""

import shutil
from collections.abc import Iterator

import numpy as np

from reading.references import describe
from reading.row_index import ChangedFile, media_state
from reading.rows import media_in

DRAWN = 1000  # rows


def drawn_rows(dataset) -> list[int]:
    with_media = np.flatnonzero(dataset.num_parts("iv"))
    return np.sort(np.random.default_rng(0).permutation(with_media)[:DRAWN]).tolist()


def drawn_files(dataset) -> list[tuple[str, int, int]]:
    """Return (name, bytes, modification time) of each media file of the drawn rows, as it was indexed."""
    return [(name, *state) for position in drawn_rows(dataset) for name, _, state in media_files(dataset, position)]


def media_files(dataset, position: int) -> Iterator[tuple[str, object, tuple[int, int]]]:
    """Yield the name, the reference and the indexed state of each local media file of a row."""
    index, place = dataset.locate(position)
    states = index.file_states(place)
    if any(time >= 0 for _, time in states):  # otherwise the media are in the row, which is large
        for (kind, reference, _), state in zip(media_in(index.row(place)["messages"]), states):
            if state[1] >= 0:
                yield f"{index.source(place)}: {kind} {describe(reference)}", reference, state


def check_drawn(dataset) -> list[str]:
    """Compare the media files of the drawn rows with the index. Return a warning if modification times differ.

    Raises:
        ChangedFile: A file has another size. The index, which is outdated, is deleted.
    """
    rewritten = []
    for position in drawn_rows(dataset):
        try:
            rewritten += check_row(dataset, position)
        except ChangedFile as error:
            index, _ = dataset.locate(position)
            shutil.rmtree(index.folder, ignore_errors=True)  # another process may do so too
            raise ChangedFile(f"{error} If that was intended, start again: the rows will be indexed again.") from error
    return [f"WARNING: {dataset.name}: {written_again(rewritten)} since they were indexed."] if rewritten else []


def check_row(dataset, position: int) -> list[str]:
    """Return names of a row's files that were rewritten with the same size. Another size raises a ChangedFile."""
    rewritten = []
    for name, reference, (size, time) in media_files(dataset, position):
        try:
            size_now, time_now = media_state(reference)
        except ChangedFile as error:
            raise ChangedFile(f"{name} existed when it was indexed: {error}") from error
        if size_now != size:
            raise ChangedFile(f"{name} has {size_now:,} bytes, but had {size:,} when it was indexed.")
        rewritten += [name] if time_now != time else []
    return rewritten


def written_again(names: list[str]) -> str:
    number = f"{len(names):,} of the compared media files"
    return f"{number} {'were' if names[1:] else 'was'} rewritten with the same size (such as {names[0]})"
