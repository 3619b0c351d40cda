"""The loss for training, evaluation and the estimate of memory: the cross entropy of each label.

To use another loss, such as one with a weight for each token, change `label_losses` (docs/change_it.md).
"""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy, pad

from reading.dataset import IGNORE_INDEX


def label_losses(model: Callable, inputs: dict, label_smoothing: float = 0.0) -> tuple:
    """Return the cross entropy of each label. The output head runs only on positions that predict a label.

    Args:
        model: called with all `inputs` except `labels`, and with `logits_to_keep`, a boolean mask (batch, tokens).
        inputs: a batch of the collator; `labels` (batch, tokens).

    Returns:
        The losses (labels,) in float32, the mask of positions that predict a label (batch, tokens), and the output.
    """
    inputs = dict(inputs)
    # The token at position t + 1 is the target of position t.
    targets = pad(inputs.pop("labels"), (0, 1), value=IGNORE_INDEX)[:, 1:]
    keep = targets != IGNORE_INDEX
    outputs = model(**inputs, logits_to_keep=keep, use_cache=False)
    logits = outputs.logits
    if logits.shape[:2] == keep.shape:  # the model ignores `logits_to_keep`
        logits = logits[keep]
    logits = logits.view(-1, logits.shape[-1]).float()
    losses = cross_entropy(logits, targets[keep], reduction="none", label_smoothing=label_smoothing)
    return losses, keep, outputs


def sample_of_label(keep: torch.Tensor, sample_lengths: list[int] | None = None) -> torch.Tensor:
    """Return, for each label, the index of its sample in the batch (labels,).

    Args:
        keep: mask of the positions that predict a label (batch, tokens).
        sample_lengths: number of tokens of each sample in a padding-free row, or None if each row is one sample.
    """
    row, position = keep.nonzero(as_tuple=True)
    if sample_lengths is None:
        return row
    return torch.bucketize(position, torch.tensor(sample_lengths, device=keep.device).cumsum(0), right=True)


def sample_sums(
    losses: torch.Tensor, keep: torch.Tensor, sample_lengths: list[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of losses and the number of labels of each sample, both (samples,). See `sample_of_label`."""
    sample = sample_of_label(keep, sample_lengths)
    number = len(keep) if sample_lengths is None else len(sample_lengths)
    return losses.new_zeros(number).index_add(0, sample, losses), torch.bincount(sample, minlength=number)
