"""Samples in one row: each token's loss, and all gradients, are those of every sample alone."""

import pytest
import torch
from conftest import BY_KIND, FACTS, make_loader, rows_for, turns

import attention
from collators import COLLATORS
from collators.base import IGNORE_INDEX
from datasets import MultimodalDataset
from media import MediaOptions

# Written by hand, from the models' papers and code: who mixes neighbours in a row by other means than attention.
MIXING = {
    "qwen-vl": "its own code",
    "phi3-v": "its own code",
    "qwen3.5": "linear attention",
    "qwen3.5-moe": "linear attention",
    "lfm2-vl": "convolutions",
    "llama-3.2-vision": "cross-attention",
    "llama4": "place of a token in its row",
    "auto": "no test",
}
JOINED = [pytest.param(*p.values, marks=p.marks) if hasattr(p, "values") else p for p in BY_KIND]
JOINED = [f for f in JOINED if (f if isinstance(f, str) else f.values[0]) not in MIXING]


def make_model(family, path):
    loader = make_loader(family, path, attn_implementation="sdpa")
    model = loader.load_model().float().eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(loader.component_of(name)) and not loader.is_unused(name))
    return loader, model


def token_losses(model, batch: dict) -> torch.Tensor:
    """The loss of each label, in the order of the tokens, from all logits."""
    batch = dict(batch)
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1]
    chosen = labels != IGNORE_INDEX
    return torch.nn.functional.cross_entropy(logits[chosen], labels[chosen], reduction="none")


@pytest.mark.parametrize("family", JOINED)
def test_losses_and_gradients_are_those_of_each_sample_alone(tiny, family, write_rows):
    """Also of a text after an image, and of samples longer than a sliding window or a chunk."""
    rows = rows_for(family)
    if FACTS[family].multi_turn:
        rows = [*rows, {"conversations": turns("Count.", " ".join(map(str, range(60))))}, rows[3], rows[0]]
    dataset = MultimodalDataset(write_rows(rows), media=MediaOptions(num_frames=4))
    loader, model = make_model(family, tiny(family))
    collator = COLLATORS.get(family)(loader.load_processor(), 2048)
    samples = [collator.encode(dataset[i]).inputs for i in range(len(dataset))]
    alone = torch.cat([token_losses(model, collator.collate([sample])) for sample in samples])
    alone.mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    attention.separate_samples(model, loader)
    collator.join_samples(loader)
    batch = collator.collate(samples)
    assert batch["input_ids"].shape == (1, sum(sample["input_ids"].shape[1] for sample in samples))
    assert "attention_mask" not in batch
    together = token_losses(model, batch)
    torch.testing.assert_close(together, alone, atol=FACTS[family].rounding, rtol=0)
    together.mean().backward()
    for name, gradient in expected.items():
        atol = 5e-5 * max(1, gradient.abs().max().item())
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=atol, rtol=0)
