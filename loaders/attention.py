"""Attention in a row that holds several samples: each sees itself alone, at the cost of its own length.

transformers 5.23 keeps such samples apart with a mask of (tokens, tokens) for the whole row, of which PyTorch computes
all. Here each sample is a call of its own, and a mask is made only where a model needs more than causality, such as a
sliding window; each call gets its sample's part of it.

A module that carries what it has read from token to token (linear attention, a convolution) takes the samples as a
batch, padded on the right for it alone: nothing that follows a sample reaches it.
"""

from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SDPA_BY_SAMPLE = "sdpa_by_sample"
# Layers that need no mask beyond causality.
UNMASKED = {"full_attention", "linear_attention", "conv"}


def sdpa_by_sample(module, query, key, value, attention_mask, *, sample_lengths=None, **kwargs):
    """As transformers' `sdpa`, sample by sample.

    Args:
        query, key, value: (1, heads, tokens, head size).
        attention_mask: (1, 1, tokens, tokens), True where a token is seen; None for causal attention.
        sample_lengths: tokens of each sample of the row; None if the row is not made of samples, as in generation.

    Returns:
        (1, tokens, heads, head size), and None for the weights.
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
    """As transformers' `sdpa_mask`, but None where causality within each sample is all there is to mask."""
    kinds = {*(getattr(config, "layer_types", None) or [])} - UNMASKED  # neither is a field of every config
    if attention_mask is None and not kinds and not getattr(config, "sliding_window", None):
        return None
    return sdpa_mask(config=config, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(SDPA_BY_SAMPLE, sdpa_by_sample)
AttentionMaskInterface.register(SDPA_BY_SAMPLE, mask_by_sample)


def is_padding_free(arguments, loader) -> bool:
    """Whether the samples of a batch are concatenated: by the flags, and by what the model supports."""
    data, flag = arguments.data, "packing" if arguments.data.packing else "padding_free"
    reason = loader.cannot_be_padding_free
    if loader.is_tested_on_loading and (arguments.training.deepspeed or arguments.training.fsdp):
        reason = "only a test of the whole model shows that its samples stay separate, but this engine shards it"
    # FlashAttention tells samples apart by their positions.
    if not reason and loader.text_attention != "sdpa" and "flash" not in loader.text_attention:
        reason = f"its {loader.text_attention} attention would compute the square of the whole row"
    if not reason and loader.text_attention == "sdpa" and arguments.training.torch_compile:
        reason = "--torch_compile True would compile again for every mixture of lengths"
    if reason and getattr(data, flag):
        raise ValueError(f"--{flag} True cannot be used with {arguments.model.model_path}: {reason}. Leave it out.")
    return data.padding_free is not False and not reason


def separate_samples(model, loader) -> None:
    """Have a loaded model keep the samples of a row apart; FlashAttention, by their positions, does so itself."""
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
    """The hooks of a module that reads one token after the other, for which the samples of a row become a batch."""

    lengths: list[int] | None = None  # of the samples of the row; None: in generation

    def as_batch(self, module, inputs: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """(1, tokens, hidden size) -> (samples, longest, hidden size)."""
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
    if kwargs.get("sample_lengths") is None:  # in generation
        return None
    return inputs, kwargs | {"attention_mask": loader.masks_of_samples(kwargs)}


def causal_masks(position_ids: torch.Tensor, window: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two masks of a row of samples, (1, 1, tokens, tokens), True where a token is seen.

    Args:
        position_ids: (1, tokens), from 0 in each sample.

    Returns:
        What is earlier in the same sample; what is fewer than `window` places before, or later.
    """
    sample = (position_ids == 0).cumsum(-1)
    place = torch.arange(position_ids.shape[-1], device=position_ids.device)
    distance = place[:, None] - place
    causal = (sample[:, :, None] == sample[:, None]) & (distance >= 0)
    return causal[:, None], (distance < window)[None, None]


def blocks_of(marked: torch.Tensor) -> torch.Tensor:
    """(1, tokens) marks -> for each token, the index of its run of marked tokens; -1 if it is not marked."""
    starts = marked & ~torch.nn.functional.pad(marked, (1, 0))[:, :-1]
    return (starts.cumsum(-1) - 1).masked_fill(~marked, -1)


def same_block(blocks: torch.Tensor) -> torch.Tensor:
    """(1, tokens) indices of blocks, -1 outside of all -> (1, 1, tokens, tokens), True for two tokens of one block."""
    return ((blocks[:, :, None] == blocks[:, None]) & (blocks[:, None] >= 0))[:, None]
