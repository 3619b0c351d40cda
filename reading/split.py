"""The data sets of a run: --sample_rows draws from the training data, and --eval_split holds out rows for evaluation.

Rows that show the same picture or video stay on one side, also where it has two names, and where a row of several
pictures links the rows of each. Media are the same where their bytes are; a file is read only where another name has
the same size, in pixels and in bytes; of a URL the name decides. Rows without media are linked to none.
"""

import numpy as np

from reading.dataset import MultimodalDataset, make_dataset
from reading.references import digest
from reading.rows import media_in


def make_datasets(data, seed: int, evaluation=True, **checked) -> tuple[MultimodalDataset, MultimodalDataset | None]:
    """The training data and the evaluation data of a run, from its DataArguments; the latter None without any.

    Args:
        evaluation: whether to read --eval_data_path too.
        checked: as of `make_dataset`.
    """
    train = make_dataset(data, "data_path", data.data_path, weighted=True, **checked)
    if data.sample_rows:
        rows = train.row_numbers()
        drawn = np.random.default_rng(seed).permutation(np.unique(rows[usable(train)]))[: data.sample_rows]
        train = train.part(np.union1d(np.flatnonzero(np.isin(rows, drawn)), [*train.errors]).astype(int))
    train.row_weights()  # refuses those by which no row can be drawn
    if data.eval_split:
        return hold_out(train, data.eval_split, seed)
    return train, make_dataset(data, "eval_data_path", data.eval_data_path, **checked) if evaluation else None


def usable(dataset: MultimodalDataset) -> np.ndarray:
    """The positions to draw from: training has left out unusable rows, previews and checks keep them."""
    return np.setdiff1d(np.arange(len(dataset)), [*dataset.errors])


def hold_out(dataset: MultimodalDataset, wanted: float, seed: int) -> tuple[MultimodalDataset, MultimodalDataset]:
    """Split the rows into those to train on and those held out: a number, or below 1 a fraction of them.

    Groups of linked rows are drawn as long as no more rows are held out; where each is larger, the smallest is.
    """
    rows = usable(dataset)
    _, groups, sizes = np.unique(linked(dataset)[rows], return_inverse=True, return_counts=True)
    number = wanted if wanted >= 1 else max(1, round(wanted * len(rows)))
    found = f"--eval_split {wanted:g}: the {len(rows):,} usable rows of {dataset.name}"
    if len(sizes) < 2:
        raise ValueError(f"{found} share their media, so none can be held out: give --eval_data_path.")
    if number >= len(rows):
        raise ValueError(f"{found} would all be held out: hold out fewer.")
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
    held_out.num_bad = 0  # counted in training
    return dataset.part(np.setdiff1d(np.arange(len(dataset)), positions)), held_out


def linked(dataset: MultimodalDataset) -> np.ndarray:
    """The first row of each row's group (rows,): rows that share media, or that others link, are one group."""
    of_files = [index.of_media(places, positions) for index, places, positions in dataset.by_file()]
    rows, numbers, sizes, hashes = map(np.concatenate, zip(*of_files))
    # By their names, or bytes in the row; where several have one size, by the bytes of all.
    _, first, names = np.unique(hashes, return_index=True, return_inverse=True)
    _, size, count = np.unique(sizes[first], axis=0, return_inverse=True, return_counts=True)
    contents = [
        digest(media_in(dataset.rows[rows[medium]]["messages"])[numbers[medium]][1]) if count[of_size] > 1 else medium
        for medium, of_size in zip(first.tolist(), size.ravel().tolist())
    ]
    known = {}
    contents = np.array([known.setdefault(content, len(known)) for content in contents], int)[names]
    # The samples of a row share it.
    contents = np.concatenate([contents, len(known) + dataset.row_numbers()])
    rows = np.concatenate([rows, np.arange(len(dataset))])
    # Each row takes the first row of any that shares a medium with it, until none changes.
    groups, before = np.arange(len(dataset)), None
    while not np.array_equal(groups, before):
        before, firsts = groups, np.full(contents.max() + 1, len(dataset))
        np.minimum.at(firsts, contents, groups[rows])
        groups = groups.copy()
        np.minimum.at(groups, rows, firsts[contents])
        groups = groups[groups]  # so that a long chain takes few rounds
    return groups
