"""FlashAttention by the package `kernels`, which needs no compiler; here a stand-in of it runs on CPUs."""

import re
from importlib.metadata import version
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from conftest import REPO, make_loader, rows_for, turns
from packaging.version import Version
from test_padding_free import assert_alone_and_together_are_equal
from torch.nn.functional import scaled_dot_product_attention

from collators import COLLATORS
from reading.dataset import MultimodalDataset
from training.checks import ATTENTION
from training.loss import label_losses


def flash_attn(q, k, v, *, causal=False, softmax_scale=None, **others) -> torch.Tensor:
    """What FlashAttention computes, (batch, tokens, heads, size) each, by PyTorch's own."""
    assert not others.pop("dropout_p", 0) and not others.keys() - {"deterministic"}
    heads_first = (states.transpose(1, 2) for states in (q, k, v))
    return scaled_dot_product_attention(
        *heads_first, is_causal=causal, scale=softmax_scale, enable_gqa=q.shape[2] != k.shape[2]
    ).transpose(1, 2)


def flash_attn_varlen(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **others) -> torch.Tensor:
    """The same of sequences one after another, (tokens, heads, size); `cu_seqlens_q` says where each begins."""
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    pieces = [zip(*(states[None, start:end] for states in (q, k, v))) for start, end in pairwise(cu_seqlens_q.tolist())]
    return torch.cat([flash_attn(*(states[None] for states in one), **others)[0] for piece in pieces for one in piece])


@pytest.fixture
def kernel_of_the_hub(monkeypatch):
    """In the place of the package `kernels`: a FlashAttention that runs on CPUs."""
    kernel = SimpleNamespace(flash_attn_func=flash_attn, flash_attn_varlen_func=flash_attn_varlen)
    hub = "transformers.integrations.hub_kernels"
    monkeypatch.setattr(f"{hub}.is_kernels_available", lambda: True)
    monkeypatch.setattr(f"{hub}.get_kernel", lambda *args, **kwargs: kernel)
    monkeypatch.setattr("transformers.modeling_flash_attention_utils._loaded_implementation", None)
    return "kernels-community/flash-attn2"


def test_a_kernel_of_the_hub_keeps_samples_apart(tiny, kernel_of_the_hub, write_rows):
    loader = make_loader("qwen2.5-vl", tiny("qwen2.5-vl"), attn_implementation=kernel_of_the_hub)
    assert_alone_and_together_are_equal(loader, "qwen2.5-vl", write_rows(rows_for("qwen2.5-vl")))


def test_a_kernel_of_the_hub_computes_what_sdpa_does(tiny, kernel_of_the_hub, write_rows):
    dataset, losses = MultimodalDataset(write_rows(rows_for("qwen2.5-vl"))), []
    for attention in ("sdpa", kernel_of_the_hub):
        loader = make_loader("qwen2.5-vl", tiny("qwen2.5-vl"), attn_implementation=attention)
        batch = COLLATORS.get("qwen2.5-vl")(loader.load_processor(), 2048)([dataset[i] for i in range(3)])
        losses.append(label_losses(loader.load_model().float(), batch)[0])
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)


def test_a_kernel_of_the_hub_is_refused_where_the_library_would_drop_masks(tiny, kernel_of_the_hub):
    """transformers 5.23 asks the class only of names of its own, 5.24 of these too: drop the refusal with 5.23."""
    loader = make_loader("llama-3.2-vision", tiny("llama-3.2-vision"), attn_implementation=kernel_of_the_hub)
    if Version(version("transformers")) < Version("5.24"):
        loader.check_kernel, refused = lambda: None, loader.check_kernel
        assert loader.load_model().get_decoder().config._attn_implementation == kernel_of_the_hub
        loader.check_kernel = refused
    said = "cannot be loaded with .*flash-attn2: Mllama.* (has no|does not support) Flash ?Attention"
    with pytest.raises(ValueError, match=said):
        loader.load_model()
    with pytest.raises(ValueError, match="would change this model"):
        make_loader("gemma-3", tiny("gemma-3"), attn_implementation=kernel_of_the_hub)


def test_flash_attention_also_comes_from_the_package_kernels(monkeypatch):
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_kernel_fallback_available", lambda **_: True)
    for number in (2, 3, 4):
        is_available, _ = ATTENTION[f"flash_attention_{number}"]
        is_available.cache_clear()
        assert is_available(True)
        is_available.cache_clear()


def test_the_docs_name_the_packages_without_which_layers_are_slow(tiny, monkeypatch, write_rows):
    """As the library names them, where it computes the layers of these families without."""
    dataset, said = MultimodalDataset(write_rows([{"conversations": turns("Count.", "1 2 3")}])), []
    monkeypatch.setattr("transformers.integrations.hub_kernels.logger.warning_once", said.append)
    for family in ("qwen3.5", "lfm2-vl"):
        loader = make_loader(family, tiny(family))
        label_losses(loader.load_model().float(), COLLATORS.get(family)(loader.load_processor())([dataset[0]]))
    named = {re.search("because `(.+?)` is not", text)[1].replace("_", "-") for text in said}
    assert named == {"flash-linear-attention", "causal-conv1d"}
    page = (REPO / "docs/memory.md").read_text(encoding="utf-8")
    assert f"pip install {' '.join(sorted(named, reverse=True))}" in page
