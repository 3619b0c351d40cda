"""How many tokens each sample has, before any is opened: its text is tokenized once, its media are counted by size.

What is found of the rows of a file is kept beside its index (reading/row_index.py), under a name that stands for all
that it depends on: the collator's `fingerprint`, and how the rows are read.
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
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from reading.row_index import DAYS_KEPT, ChangedFile, name_of, naming_cache

VERSION = 1  # of what is kept
UNKNOWN = 0  # the number of a row that nobody asked for yet
BATCH = 64  # rows
ROWS_PER_WORKER = 1000  # below which another process takes longer to start than it saves

# (positions) -> the number of each row, more than 0, or why there is none
Find = Callable[[Sequence[int]], list[int | ValueError]]


def token_lengths(dataset, collator) -> np.ndarray:
    """Tokens of each sample as the collator encodes it, before it is cut to the budget; opens no media.

    Exact, but of videos whose processor writes their times (and of those that it cannot count, the most that there is)
    an upper bound.

    Returns:
        (rows,) int32.

    Raises:
        ValueError: a sample that the model or the template refuses; `fit` names and handles all of them.
    """
    media, beside, refused = media_tokens(dataset, collator)
    text, unfit = text_tokens(dataset, collator, np.arange(len(dataset)))
    if faults := refused | unfit:
        raise next(iter(faults.values()))
    return np.minimum(text + media + beside, np.iinfo(np.int32).max).astype(np.int32)


def media_tokens(dataset, collator) -> tuple[np.ndarray, np.ndarray, dict[int, ValueError]]:
    """Tokens of each sample's media, and of text that the processor writes into its videos, from sizes alone.

    Returns:
        Both (rows,) float, where inf is not known; and position -> why the model refuses the sample.
    """
    tokens, beside, faults = np.zeros(len(dataset)), np.zeros(len(dataset)), {}
    counted = {}  # media alike, in conversations of any layout
    for layout, sizes, positions in dataset.groups():
        row, known = {"messages": layout.messages}, layout.media_sizes(sizes)
        alike = (*layout.media, sizes.tobytes())
        try:
            with collator._naming(dataset.source(positions[0])):
                collator.check_layout(row["messages"])
                if alike not in counted:
                    of_media = collator.count_media_tokens(row, known)
                    counted[alike] = of_media, collator.count_frame_text_tokens(row, known)
            tokens[positions], beside[positions] = counted[alike]
        except ValueError as error:
            reason = str(error).removeprefix(dataset.source(positions[0]))
            faults |= {position: ValueError(f"{dataset.source(position)}{reason}") for position in positions.tolist()}
    return tokens, beside, faults


def text_tokens(dataset, collator, positions: np.ndarray) -> tuple[np.ndarray, dict[int, ValueError]]:
    """Tokens of these samples without their media (len(positions),); position -> why one cannot be rendered."""
    find = partial(_count_texts, dataset, collator)
    # Beside the folder of the index, since flags of how media are read do not matter.
    return remembered(
        dataset, positions, find, lambda index: os.path.dirname(index.folder), "texts", collator.fingerprint, "Counting"
    )


def _count_texts(dataset, collator, positions: Sequence[int]) -> list[int | ValueError]:
    rows = [dataset.rows[position] for position in positions]
    try:
        return collator.count_text_tokens(rows)
    except ValueError as error:
        return [error] if len(rows) == 1 else [_count_texts(dataset, collator, [p])[0] for p in positions]


def remembered(
    dataset, positions: np.ndarray, find: Find, folder_of: Callable, name: str, key: object, what: str
) -> tuple[np.ndarray, dict[int, ValueError]]:
    """A number of each of these rows: as it was found before, else found by one process while others wait.

    Args:
        find: finds the numbers of rows that are not known, in several processes if they are many.
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
            own = name_of(VERSION, os.path.basename(index.path), asdict(index.form), key)
            path = os.path.join(folder_of(index), f"{name}-{own}.numbers")
            with FileLock(f"{path}.lock"):
                known = open_numbers(path, len(index))
                missing = known[places] == UNKNOWN
                new_places, new_positions = places[missing], positions[members][missing]
                for batch, found in search(find, new_positions, f"{what} {index.name}"):
                    for place, position, number in zip(new_places[batch], new_positions[batch].tolist(), found):
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


def search(find: Find, positions: np.ndarray, what: str) -> Iterator[tuple[slice, list[int | ValueError]]]:
    """Yields slices of `positions`, one behind the other, and what was found of each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    batches = DataLoader(
        Found(find, positions),
        batch_size=None,
        num_workers=min(cores, len(positions) // ROWS_PER_WORKER),
        collate_fn=tuple,
        generator=torch.Generator(),  # else it would draw from the run's
    )
    with tqdm(total=len(positions), desc=what, unit=" rows", delay=2, mininterval=1) as progress:
        for number, found in batches:
            if isinstance(found, ChangedFile):
                raise found
            yield slice(number * BATCH, number * BATCH + len(found)), found
            progress.update(len(found))


class Found(Dataset):
    """Item i is what is found of batch i; a data loader's workers find it."""

    def __init__(self, find: Find, positions: np.ndarray):
        self.find, self.positions = find, positions

    def __len__(self) -> int:
        return -(-len(self.positions) // BATCH)

    def __getitem__(self, number: int) -> tuple[int, list[int | ValueError] | ChangedFile]:
        try:
            return number, self.find(self.positions[number * BATCH : (number + 1) * BATCH].tolist())
        except ChangedFile as error:  # raised in a worker, it would come with its traceback in its text
            return number, error
