"""Cache one number per row of a data set, such as its token count. The cache files are next to the index of each data
file (reading/row_index.py). Their names contain a hash of everything that the numbers depend on.
"""

import glob
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import DataLoader
from tqdm import tqdm

from reading.row_index import DAYS_KEPT, ChangedFile, name_of, naming_cache

COUNTS_VERSION = 1  # version of the cache files
UNKNOWN = 0  # the value of rows that are not computed yet
BATCH = 64  # rows
ROWS_PER_WORKER = 1000  # with fewer rows, starting another process takes longer than it saves

# A function from positions to the number of each row, at least 1, or to the error that prevents computing it.
Find = Callable[[Sequence[int]], list[int | ValueError]]


def cached_counts(
    dataset, positions: np.ndarray, find: Find, folder_of: Callable, name: str, key: object, what: str
) -> tuple[np.ndarray, dict[int, ValueError]]:
    """Return a number for each of these rows. Missing ones are computed by one process while the others wait.

    Args:
        find: computes the numbers of rows that are not in the cache; many rows are divided among worker processes.
        folder_of: (index of a file) -> folder of the cache file for its rows.
        name: name of this kind of number, part of the cache file's name.
        key: everything that the numbers depend on, except the rows and how they are read.
        what: text before the file name in the progress bar, such as "Counting".

    Returns:
        The numbers (len(positions),) int32, 0 for rows with an error; and position -> error.
    """
    numbers, faults = np.zeros(len(positions), np.int32), {}
    with naming_cache(dataset.media.cache_folder):
        for index, places, members in dataset.by_file(positions):
            if not len(places):
                continue
            own = name_of(COUNTS_VERSION, os.path.basename(index.path), asdict(index.form), key)
            path = os.path.join(folder_of(index), f"{name}-{own}.numbers")
            with FileLock(f"{path}.lock"):
                known = open_numbers(path, len(index))
                missing = known[places] == UNKNOWN
                new_places, new_positions = places[missing], positions[members][missing]
                found = search(find, new_positions, f"{what} {index.name}")
                for number, place, position in zip(found, new_places, new_positions.tolist()):
                    if isinstance(number, ValueError):
                        faults[position] = number
                    else:
                        known[place] = number
                numbers[members] = known[places]
    return numbers, faults


def open_numbers(path: str, length: int) -> np.ndarray:
    """Memory-map a file of int32 (length,), shared by all processes. A missing file is created with zeros."""
    for outdated in set(glob.glob(f"{os.path.dirname(path)}/*.numbers*")) - {path, f"{path}.lock"}:
        if time.time() - os.path.getmtime(outdated) > DAYS_KEPT * 86_400:
            os.remove(outdated)
    if not os.path.isfile(path):
        np.zeros(length, np.int32).tofile(f"{path}.unfinished")  # not sparse, so a full disk fails here
        os.rename(f"{path}.unfinished", path)
    os.utime(path)
    return np.memmap(path, np.int32, "r+", shape=(length,))


def search(find: Find, positions: np.ndarray, what: str) -> Iterator[int | ValueError]:
    """Yield the result of `find` for each position, in order."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    batches = DataLoader(
        positions.tolist(),
        BATCH,
        num_workers=min(cores, len(positions) // ROWS_PER_WORKER),
        collate_fn=partial(found_or_changed, find),
        generator=torch.Generator(),  # otherwise it would advance the run's random state
    )
    with tqdm(total=len(positions), desc=what, unit=" rows", delay=2, mininterval=1) as progress:
        for found in batches:
            if isinstance(found, ChangedFile):
                raise found
            yield from found
            progress.update(len(found))


def found_or_changed(find: Find, positions: list[int]) -> list[int | ValueError] | ChangedFile:
    try:
        return find(positions)
    except ChangedFile as error:  # if a worker raised it, the message would include a traceback
        return error
