"""Attention for rows of concatenated samples. Each sample attends only to itself and costs no more than it would alone.

transformers 5.23 separates such samples with a (tokens, tokens) mask for the whole row, and PyTorch computes every
entry. Here, attention is called once per sample. A mask is made only if the model needs more than causality, such as a
sliding window, and each call then gets its slice of that mask.

Recurrent modules (linear attention, convolutions) carry a state from token to token. They get the samples as a batch,
padded on the right, so no sample can influence another.
"""

from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SDPA_BY_SAMPLE = "sdpa_by_sample"
# Types of layers that need no mask beyond causality.
UNMASKED = {"full_attention", "linear_attention", "conv"}


def sdpa_by_sample(module, query, key, value, attention_mask, *, sample_lengths=None, **kwargs):
    """Compute the same as transformers' `sdpa`, one sample of the row at a time.

    Args:
        query, key, value: (1, heads, tokens, head size).
        attention_mask: (1, 1, tokens, tokens), True for visible tokens; None for causal attention.
        sample_lengths: number of tokens of each sample in the row; None if nothing was concatenated (generation).

    Returns:
        The output (1, tokens, heads, head size), and None instead of the attention weights.
    """
    if sample_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    parts, start = [], 0
    for q, k, v in zip(*(states.split(sample_lengths, dim=2) for states in (query, key, value))):
        end = start + q.shape[2]
        mask = None if attention_mask is None else attention_mask[..., start:end, start:end]
        parts.append(sdpa_attention_forward(module, q, k, v, mask, **kwargs)[0])
        start = end
    return torch.cat(parts, dim=1), None


def mask_by_sample(*, config, attention_mask=None, **kwargs) -> torch.Tensor | None:
    """Return the mask of transformers' `sdpa_mask`, or None if causality within each sample is enough."""
    kinds = {*(getattr(config, "layer_types", None) or [])} - UNMASKED  # not every config has these fields
    if attention_mask is None and not kinds and not getattr(config, "sliding_window", None):
        return None
    return sdpa_mask(config=config, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(SDPA_BY_SAMPLE, sdpa_by_sample)
AttentionMaskInterface.register(SDPA_BY_SAMPLE, mask_by_sample)


def is_padding_free(arguments, loader) -> bool:
    """Return whether the samples of a batch are concatenated, given the flags and what the model supports."""
    data, flag = arguments.data, "packing" if arguments.data.packing else "padding_free"
    reason = loader.cannot_be_padding_free
    if loader.is_tested_on_loading and (arguments.training.deepspeed or arguments.training.fsdp):
        reason = "only a test on the whole model can show that samples stay separate, but this engine shards the model"
    # FlashAttention separates samples by their positions, so it is allowed.
    if not reason and loader.text_attention != "sdpa" and "flash" not in loader.text_attention:
        reason = f"the cost of its {loader.text_attention} attention grows with the square of the concatenated length"
    if not reason and loader.text_attention == "sdpa" and arguments.training.torch_compile:
        reason = "--torch_compile True would recompile for every combination of sample lengths"
    if reason and getattr(data, flag):
        raise ValueError(f"--{flag} True cannot be used with {arguments.model.model_path}: {reason}. Remove the flag.")
    return data.padding_free is not False and not reason


def separate_samples(model, loader) -> None:
    """Make a loaded model keep the samples of a row separate. FlashAttention already does so, by their positions."""
    if loader.text_attention == "sdpa":
        model.get_decoder().set_attn_implementation(SDPA_BY_SAMPLE)
    for name, module in model.named_modules():
        if loader.recurrent and name.endswith(f".{loader.recurrent}"):
            by_sample = BySample()
            module.register_forward_pre_hook(by_sample.as_batch, with_kwargs=True)
            module.register_forward_hook(by_sample.as_row)
    if loader.bidirectional:
        model.model.register_forward_pre_hook(partial(_give_masks, loader), with_kwargs=True)


class BySample:
    """Hooks of a recurrent module: split a row into a batch of its samples, then concatenate the outputs again."""

    lengths: list[int] | None = None  # number of tokens of each sample; None in generation

    def as_batch(self, module, inputs: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Turn (1, tokens, hidden size) into (samples, longest sample, hidden size)."""
        kwargs = dict(kwargs)
        self.lengths = kwargs.pop("sample_lengths", None)
        if self.lengths:
            states = kwargs["hidden_states"][0].split(self.lengths)
            kwargs |= {"hidden_states": pad_sequence(states, batch_first=True), "attention_mask": None}
        return inputs, kwargs

    def as_row(self, module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if not self.lengths:
            return output
        return torch.cat([sample[:length] for sample, length in zip(output, self.lengths)])[None]


def _give_masks(loader, model, inputs: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    if kwargs.get("sample_lengths") is None:  # generation
        return None
    return inputs, kwargs | {"attention_mask": loader.masks_of_samples(kwargs)}


def causal_masks(position_ids: torch.Tensor, window: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two masks of concatenated samples, (1, 1, tokens, tokens), True for visible tokens.

    Args:
        position_ids: (1, tokens), starting at 0 in each sample.

    Returns:
        The causal mask within each sample, and a mask that hides only tokens `window` or more positions back.
    """
    sample = (position_ids == 0).cumsum(-1)
    place = torch.arange(position_ids.shape[-1], device=position_ids.device)
    distance = place[:, None] - place
    causal = (sample[:, :, None] == sample[:, None]) & (distance >= 0)
    return causal[:, None], (distance < window)[None, None]


def blocks_of(marked: torch.Tensor) -> torch.Tensor:
    """Number the runs of marked tokens in (1, tokens) marks. Return each token's number, or -1 if it is unmarked."""
    starts = marked & ~torch.nn.functional.pad(marked, (1, 0))[:, :-1]
    return (starts.cumsum(-1) - 1).masked_fill(~marked, -1)


def same_block(blocks: torch.Tensor) -> torch.Tensor:
    """Return a mask (1, 1, tokens, tokens) of token pairs in the same block, given the output of `blocks_of`."""
    return ((blocks[:, :, None] == blocks[:, None]) & (blocks[:, None] >= 0))[:, None]
