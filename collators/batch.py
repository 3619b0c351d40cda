"""Combine the tensors of several samples into one batch."""

import torch


def by_name(rows: list[dict]) -> dict[str, list]:
    """Return, for each name, the list of values from the rows that have this name."""
    return {name: [row[name] for row in rows if name in row] for name in dict.fromkeys(n for row in rows for n in row)}


def with_all_sequences(rows: list[dict], padding: dict[str, int]) -> list[dict]:
    """Give all rows the same per-token tensors. A tensor that a row lacks is filled with its padding value.

    Args:
        rows: rows of batch size 1.
        padding: name -> padding value of each tensor of shape (1, tokens, ...). All other tensors, such as pixels, are
            concatenated.
    """
    found = by_name(rows)
    for name in found:
        pairs = [(row[name], row["input_ids"]) for row in rows if name in row]
        if name in padding:
            assert all(value.shape[:2] == ids.shape for value, ids in pairs), f"{name}: expected (1, tokens, ...)"
        elif len({ids.shape for _, ids in pairs}) > 1:  # with equal lengths, pixels might match by chance
            assert not all(torch.is_tensor(value) and value.shape == ids.shape for value, ids in pairs), (
                f"{name} has one value per token: add its padding value to the collator's `sequence_padding`"
            )
    full = []
    for row in rows:
        missing = {name: values[0] for name, values in found.items() if name in padding and name not in row}
        shape = row["input_ids"].shape
        full.append(row | {n: like.new_full((*shape, *like.shape[2:]), padding[n]) for n, like in missing.items()})
    return full


def concatenate(values: list[torch.Tensor], fill=0, side: str = "right") -> torch.Tensor:
    """Concatenate along the first dimension. Pad the others to the largest, since numbers of patches differ."""
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values))]
    values = [_pad_to(value, shape, fill, side) for value in values]
    return torch.cat(values) if len(values) > 1 else values[0]


def _pad_to(value: torch.Tensor, shape: list[int], fill, side: str) -> torch.Tensor:
    """Pad all dimensions after the first to `shape`: the second on the given side, the others on the right."""
    if list(value.shape[1:]) == shape:
        return value  # `pad` would copy the pixels even if there is nothing to pad
    pads = [0, 0] * len(shape)  # (before, after) per dimension, the last dimension first
    pads[1::2] = [target - size for size, target in zip(reversed(value.shape[1:]), reversed(shape))]
    if side == "left":
        pads[-2:] = reversed(pads[-2:])
    return torch.nn.functional.pad(value, pads, value=fill)
