"""One number per row of a data set, such as its tokens: counted once, by several processes, and kept. They are in the
cache folder next to the index of a file (reading/row_index.py), named by a hash of all that they depend on.
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

COUNTS_VERSION = 1  # of what is kept
UNKNOWN = 0  # the number of a row that nobody asked for yet
BATCH = 64  # rows
ROWS_PER_WORKER = 1000  # below which another process takes longer to start than it saves

# (positions) -> the number of each row, more than 0, or why there is none
Find = Callable[[Sequence[int]], list[int | ValueError]]


def cached_counts(
    dataset, positions: np.ndarray, find: Find, folder_of: Callable, name: str, key: object, what: str
) -> tuple[np.ndarray, dict[int, ValueError]]:
    """A number for each of these rows: from the cache, or counted by one process while the others wait.

    Args:
        find: counts rows that are not in the cache, in several processes if there are many.
        folder_of: (index of a file) -> where such numbers of its rows are kept.
        name: of this kind of numbers.
        key: stands for all that they depend on, besides the rows and how they are read.
        what: is done, for the progress bar.

    Returns:
        The numbers (len(positions),) int32, 0 where there is none; position -> why.
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
    """A file of int32 in memory (length,), shared by all processes; made of zeros where there is none."""
    for outdated in set(glob.glob(f"{os.path.dirname(path)}/*.numbers*")) - {path, f"{path}.lock"}:
        if time.time() - os.path.getmtime(outdated) > DAYS_KEPT * 86_400:
            os.remove(outdated)
    if not os.path.isfile(path):
        np.zeros(length, np.int32).tofile(f"{path}.unfinished")  # not a hole, which a full disk could not fill
        os.rename(f"{path}.unfinished", path)
    os.utime(path)
    return np.memmap(path, np.int32, "r+", shape=(length,))


def search(find: Find, positions: np.ndarray, what: str) -> Iterator[int | ValueError]:
    """What is found of each of `positions`, in order."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    batches = DataLoader(
        positions.tolist(),
        BATCH,
        num_workers=min(cores, len(positions) // ROWS_PER_WORKER),
        collate_fn=partial(found_or_changed, find),
        generator=torch.Generator(),  # else it would draw from the run's
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
    except ChangedFile as error:  # raised in a worker, it would come with its traceback in its text
        return error
