"""Tensors of several samples -> those of one batch."""

import torch


def by_name(rows: list[dict]) -> dict[str, list]:
    """The values of each name, from the rows that have it."""
    return {name: [row[name] for row in rows if name in row] for name in dict.fromkeys(n for row in rows for n in row)}


def with_all_sequences(rows: list[dict], padding: dict[str, int]) -> list[dict]:
    """Give every row each per-token tensor that any of them has; a tensor that a row lacked is all padding.

    Args:
        rows: of batch size 1.
        padding: name of a tensor of shape (1, tokens, ...) -> its padding value; all others are concatenated, as pixels
            are.
    """
    found = by_name(rows)
    for name in found:
        pairs = [(row[name], row["input_ids"]) for row in rows if name in row]
        if name in padding:
            assert all(value.shape[:2] == ids.shape for value, ids in pairs), f"{name}: expected (1, tokens, ...)"
        elif len({ids.shape for _, ids in pairs}) > 1:  # of one length, pixels may look alike
            assert not all(torch.is_tensor(value) and value.shape == ids.shape for value, ids in pairs), (
                f"{name} has a value for each token: give it a padding value in `sequence_padding` of the collator"
            )
    full = []
    for row in rows:
        missing = {name: values[0] for name, values in found.items() if name in padding and name not in row}
        shape = row["input_ids"].shape
        full.append(row | {n: like.new_full((*shape, *like.shape[2:]), padding[n]) for n, like in missing.items()})
    return full


def concatenate(values: list[torch.Tensor], fill=0, side: str = "right") -> torch.Tensor:
    """Tensors along the first dimension, the others padded to the largest: images differ in their number of patches."""
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values))]
    values = [_pad_to(value, shape, fill, side) for value in values]
    return torch.cat(values) if len(values) > 1 else values[0]


def _pad_to(value: torch.Tensor, shape: list[int], fill, side: str) -> torch.Tensor:
    """Pad the dimensions after the first to `shape`: the second at the given side, the others at the right."""
    if list(value.shape[1:]) == shape:
        return value  # padding by nothing would copy the pixels
    pads = [0, 0] * len(shape)  # from the last dimension on: before, after
    pads[1::2] = [target - size for size, target in zip(reversed(value.shape[1:]), reversed(shape))]
    if side == "left":
        pads[-2:] = reversed(pads[-2:])
    return torch.nn.functional.pad(value, pads, value=fill)
