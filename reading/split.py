"""Build the data sets of a run: --sample_rows draws training rows, and --eval_split holds out rows for evaluation.

Rows that share an image or video, directly or via other rows, are linked, and --eval_split keeps them together. Media
are the same if their bytes are the same, whatever their names. A file is only read if another file has the same size
in pixels and in bytes. URLs are compared as text. Rows without media are not linked to other rows.
"""

import numpy as np

from reading.dataset import MultimodalDataset, make_dataset
from reading.references import digest
from reading.rows import media_in


def make_datasets(data, seed: int, evaluation=True, **checked) -> tuple[MultimodalDataset, MultimodalDataset | None]:
    """Return the training data and the evaluation data (or None) of a run, from its DataArguments.

    Args:
        evaluation: whether to read --eval_data_path too.
        checked: further arguments of `make_dataset`.
    """
    train = make_dataset(data, "data_path", data.data_path, weighted=True, **checked)
    if data.sample_rows:
        rows = train.row_numbers()
        drawn = np.random.default_rng(seed).permutation(np.unique(rows[usable(train)]))[: data.sample_rows]
        train = train.part(np.union1d(np.flatnonzero(np.isin(rows, drawn)), [*train.errors]).astype(int))
    train.row_weights()  # raises an error if the weights let no row be drawn
    if data.eval_split:
        return hold_out(train, data.eval_split, seed)
    return train, make_dataset(data, "eval_data_path", data.eval_data_path, **checked) if evaluation else None


def usable(dataset: MultimodalDataset) -> np.ndarray:
    """Return the positions of usable rows. Training has dropped unusable rows, but previews and checks keep them."""
    return np.setdiff1d(np.arange(len(dataset)), [*dataset.errors])


def hold_out(dataset: MultimodalDataset, wanted: float, seed: int) -> tuple[MultimodalDataset, MultimodalDataset]:
    """Split the rows into training rows and held-out rows. `wanted` is a number of rows or, below 1, a fraction.

    Random groups of linked rows are held out, up to `wanted` rows in all. If all are larger, only the smallest is.
    """
    rows = usable(dataset)
    _, groups, sizes = np.unique(linked(dataset)[rows], return_inverse=True, return_counts=True)
    number = wanted if wanted >= 1 else max(1, round(wanted * len(rows)))
    found = f"--eval_split {wanted:g}: the {len(rows):,} usable rows of {dataset.name}"
    if len(sizes) < 2:
        raise ValueError(f"{found} share their media, so none can be held out: pass --eval_data_path.")
    if number >= len(rows):
        raise ValueError(f"{found} would all be held out: use a smaller number.")
    held, count = [], 0
    for group in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        if count + sizes[group] <= number:
            held.append(group)
            count += sizes[group]
    positions = rows[np.isin(groups, held or sizes.argmin())]
    held_out = dataset.part(positions)
    held_out.name, held_out.is_held_out = f"{dataset.name} (held out)", True
    held_out.paths = [f"{path} (held out)" for path in dataset.paths]
    held_out.weights, held_out.weighted = [1.0] * len(dataset.weights), False  # each row counts once
    held_out.num_bad = 0  # already counted in the training data
    return dataset.part(np.setdiff1d(np.arange(len(dataset)), positions)), held_out


def linked(dataset: MultimodalDataset) -> np.ndarray:
    """Return, for each row, the first row of its group (rows,). A group is all rows that are linked by media."""
    of_files = [index.of_media(places, positions) for index, places, positions in dataset.by_file()]
    rows, numbers, sizes, hashes = map(np.concatenate, zip(*of_files))
    # Compare media by name, or by bytes in the row. If names differ but sizes are the same, compare the bytes of files.
    _, first, names = np.unique(hashes, return_index=True, return_inverse=True)
    _, size, count = np.unique(sizes[first], axis=0, return_inverse=True, return_counts=True)
    contents = [
        digest(media_in(dataset.rows[rows[medium]]["messages"])[numbers[medium]][1]) if count[of_size] > 1 else medium
        for medium, of_size in zip(first.tolist(), size.ravel().tolist())
    ]
    known = {}
    contents = np.array([known.setdefault(content, len(known)) for content in contents], int)[names]
    # Samples of the same row are linked.
    contents = np.concatenate([contents, len(known) + dataset.row_numbers()])
    rows = np.concatenate([rows, np.arange(len(dataset))])
    # Each row gets the first row of all rows that share media with it, until nothing changes.
    groups, before = np.arange(len(dataset)), None
    while not np.array_equal(groups, before):
        before, firsts = groups, np.full(contents.max() + 1, len(dataset))
        np.minimum.at(firsts, contents, groups[rows])
        groups = groups.copy()
        np.minimum.at(groups, rows, firsts[contents])
        groups = groups[groups]  # so that a long chain of links needs few rounds
    return groups
