"""Samplers: the order of rows in an epoch, and the rows that are packed together. Both depend on seed and epoch only.

To add another order, subclass `EpochSampler` and add a row to `SAMPLERS`.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

LOOK_AHEAD = 4096  # number of rows that are packed at a time


class EpochSampler(Sampler):
    """Yields the rows of an epoch in random order. `set_epoch` chooses the epoch.

    Args:
        dataset: a MultimodalDataset.
        group: samples per step of all processes together.
        lengths: tokens of each row (rows,), for a sampler that needs them.
    """

    needs_lengths = False  # whether `order` uses the lengths; if not, they are not computed

    def __init__(self, dataset, seed: int, group: int = 1, lengths: np.ndarray | None = None):
        self.dataset, self.seed, self.group, self.lengths = dataset, seed, group, lengths
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.dataset.epoch_size

    def __iter__(self) -> Iterator[int]:
        rows = self.rows_of(self.epoch)
        for start in range(0, len(rows), 1024):  # all rows at once as Python numbers would take four times the memory
            yield from rows[start : start + 1024].tolist()

    def rows_of(self, epoch: int) -> np.ndarray:
        """Return the rows of an epoch in the order of training."""
        return self.order(self.dataset.epoch_rows(self.seed, epoch), epoch)

    def generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + epoch)

    def order(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """Put the rows of an epoch (rows,) into the order of training."""
        return rows[torch.randperm(len(rows), generator=self.generator(epoch)).numpy()]


class UnshuffledSampler(EpochSampler):
    """Yields the rows in the order of the data."""

    def order(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        return rows


class LengthSampler(EpochSampler):
    """Yields the rows in random order, but with similar lengths within each step."""

    needs_lengths = True

    def order(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        lengths = self.lengths[rows].tolist()
        return rows[get_length_grouped_indices(lengths, self.group, generator=self.generator(epoch))]


# --train_sampling_strategy -> the sampler; the first is the default.
SAMPLERS = {"random": EpochSampler, "sequential": UnshuffledSampler, "group_by_length": LengthSampler}


class PackSampler(EpochSampler):
    """Yields packs: tuples of rows with at most `budget` tokens in total. Each row of an epoch is in exactly one pack.

    Every epoch has the same number of packs, a multiple of `batch` if there are enough rows, so that all processes take
    the same number of steps and no row is repeated. The epoch with most packs sets this number.

    Args:
        lengths: tokens of each row (rows,).
        budget: maximum number of tokens in a pack.
        batch: number of packs in a batch of all processes together.
        epochs: how many epochs the run has.
    """

    def __init__(self, dataset, seed: int, lengths: np.ndarray, budget: int, batch: int, epochs: int):
        super().__init__(dataset, seed, lengths=lengths)
        self.budget, self.num_packs = budget, 0
        most = max(len(self.packs_of(epoch)) for epoch in range(epochs))
        self.num_packs = min(-(-most // batch) * batch, dataset.epoch_size)

    def __len__(self) -> int:
        return self.num_packs

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        packs = self.packs_of(self.epoch)
        for i in np.random.default_rng([self.seed % 2**32, self.epoch]).permutation(len(packs)).tolist():
            yield tuple(packs[i])

    def packs_of(self, epoch: int) -> list[list[int]]:
        """Return the packs of an epoch. The packs with most rows are halved until there are `num_packs`."""
        packs = pack(self.rows_of(epoch), self.lengths, self.budget)
        while len(packs) < self.num_packs:
            largest = max(packs, key=len)
            packs.append(largest[len(largest) // 2 :])
            del largest[len(largest) // 2 :]
        return packs


def pack(rows: np.ndarray, lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Group rows into packs of at most `budget` tokens by best fit. A row that is longer is packed alone.

    Args:
        rows: row numbers (rows,). Of every `LOOK_AHEAD` rows, the longest are packed first.
        lengths: tokens of each row.
    """
    packs, rooms = [], []  # rooms: (tokens that still fit, which pack), ascending
    for start in range(0, len(rows), LOOK_AHEAD):
        ahead = rows[start : start + LOOK_AHEAD]
        ahead = ahead[np.argsort(-lengths[ahead], kind="stable")]
        for row, length in zip(ahead.tolist(), lengths[ahead].tolist()):
            place = bisect_left(rooms, (length,))
            if place < len(rooms):
                room, number = rooms.pop(place)
            else:
                room, number = budget, len(packs)
                packs.append([])
            packs[number].append(row)
            if room > length:
                insort(rooms, (room - length, number))
        rooms = rooms[-LOOK_AHEAD:]
    return packs
