"""Check whether media files have changed since their rows were indexed.

The index stores the size in bytes and the modification time of each local file. Each start of a run compares the same
1000 random rows, since a million rows would take minutes on a network drive. If 1% of the files were replaced, this
check misses it in one case of 20,000. A checkpoint stores the file states of these rows for resuming.
"""

import shutil
from collections.abc import Iterator

import numpy as np

from reading.references import describe
from reading.row_index import ChangedFile, media_state
from reading.rows import media_in

DRAWN = 1000  # how many rows are compared


def drawn_rows(dataset) -> list[int]:
    with_media = np.flatnonzero(dataset.num_parts("iv"))
    return np.sort(np.random.default_rng(0).permutation(with_media)[:DRAWN]).tolist()


def drawn_files(dataset) -> list[tuple[str, int, int]]:
    """Return (name, bytes, modification time) from the index, for each media file of the rows that are compared."""
    return [(name, *state) for position in drawn_rows(dataset) for name, _, state in media_files(dataset, position)]


def media_files(dataset, position: int) -> Iterator[tuple[str, object, tuple[int, int]]]:
    """Yield the name, the reference and the indexed state of each local media file of a row."""
    index, place = dataset.locate(position)
    states = index.file_states(place)
    if any(time >= 0 for _, time in states):  # otherwise do not read the row, which may contain large media
        for (kind, reference, _), state in zip(media_in(index.row(place)["messages"]), states):
            if state[1] >= 0:
                yield f"{index.source(place)}: {kind} {describe(reference)}", reference, state


def check_drawn(dataset) -> list[str]:
    """Compare the media files of the 1000 rows with the index. Return a warning if modification times differ.

    Raises:
        ChangedFile: A file has a new size. The outdated index has been deleted.
    """
    rewritten = []
    for position in drawn_rows(dataset):
        try:
            rewritten += check_row(dataset, position)
        except ChangedFile as error:
            index, _ = dataset.locate(position)
            shutil.rmtree(index.folder, ignore_errors=True)  # another process may delete it too
            raise ChangedFile(f"{error} If that was intended, start again: the rows will be indexed again.") from error
    return [f"WARNING: {dataset.name}: {written_again(rewritten)} since they were indexed."] if rewritten else []


def check_row(dataset, position: int) -> list[str]:
    """Return the names of a row's files with a new time and the same size. Raise a ChangedFile for a new size."""
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
