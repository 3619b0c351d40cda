"""Choose the rows of an epoch by the weights of paths, the weights of rows, and the classes of rows."""

import numpy as np
from torch.utils.data import Dataset

from reading.rows import WEIGHT


class WeightedRows(Dataset):
    """The part of a MultimodalDataset that chooses the rows of an epoch."""

    @property
    def is_drawn(self) -> bool:
        """Whether an epoch draws its rows, with replacement, by their weights or classes."""
        return self.weighted and (self.balance is not None or bool((self.of_rows("sampling_weights") != 1).any()))

    def how_drawn(self) -> str:
        how = f"by {WEIGHT}"
        if self.balance is not None:
            classes = np.count_nonzero(np.unique(self.of_rows("classes")))  # unusable rows have class 0
            how = f"each of {classes:,} classes of `{self.balance}` equally often"
        return f"{self.name}: an epoch draws {self.epoch_size:,} rows with replacement, {how}."

    @property
    def epoch_size(self) -> int:
        """The number of samples in an epoch, the sum of rows times weight over the paths."""
        return sum(self._shares())

    def _shares(self) -> list[int]:
        return [max(round(w * n), min(n, 1)) for w, n in zip(self.weights, np.diff(self._ends()).tolist())]

    def _ends(self) -> list[int]:
        """The position of the first row of each path, and the number of all rows."""
        return np.searchsorted(self.numbers, self.path_starts).tolist()

    def row_weights(self) -> np.ndarray:
        """Return how often each row is seen in an epoch, on average (rows,)."""
        shares, counts = self._shares(), np.diff(self._ends())
        weights = np.repeat(np.divide(shares, np.maximum(counts, 1)), counts)
        if not self.is_drawn:
            return weights
        weights *= self.of_rows("sampling_weights")
        _, group = np.unique(self.of_rows("classes"), return_inverse=True)  # without --balance, all rows are one group
        totals = np.bincount(group, weights)
        if not totals.all():
            of_class = f" of a class of --balance {self.balance}" if self.balance is not None else ""
            raise ValueError(f"{self.name}: no row{of_class} has a {WEIGHT} above 0, so none can be drawn.")
        weights /= totals[group]
        return weights * (sum(shares) / weights.sum())

    def epoch_rows(self, seed: int, epoch: int) -> np.ndarray:
        """Return the positions of an epoch's rows, not shuffled. They depend only on the data and the arguments.

        A path of weight 0.5 gives half of its rows, and the other half in the next epoch. Weight 2 gives rows twice.
        If rows have weights or classes, rows of all paths are drawn together, by row weight times path weight.
        """
        if self.is_drawn:
            draw = np.random.default_rng([seed % 2**32, len(self.weights), epoch])  # differs from the paths' seeds
            weights = self.row_weights()
            return np.sort(draw.choice(len(self), self.epoch_size, p=weights / weights.sum()))
        chosen, ends = [], self._ends()
        for path, (start, end, share) in enumerate(zip(ends, ends[1:], self._shares())):
            number = end - start
            if share == number:
                chosen.append(np.arange(start, end))
                continue
            # The next `share` rows of an endless sequence of shuffled passes over the path.
            first, last = epoch * share, (epoch + 1) * share
            for turn in range(first // max(number, 1), -(-last // max(number, 1))):
                order = np.random.default_rng([seed % 2**32, path, turn]).permutation(number)
                chosen.append(start + order[max(first - turn * number, 0) : last - turn * number])
        return np.concatenate(chosen)
