"""A tiny Qwen3.5, mixture of experts."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TinyModel
from tiny_checkpoints.qwen3_5 import QWEN3_5_TEMPLATE, qwen3_5_model


@register_tiny("qwen3.5-moe")
def qwen3_5_moe() -> TinyModel:
    """Eight experts per layer, two per token plus a shared one. It thinks by default."""
    from transformers import Qwen3_5MoeConfig

    experts = {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 48,
    }
    tiny = qwen3_5_model(Qwen3_5MoeConfig, experts, tie_word_embeddings=False)
    tiny.processor.chat_template = QWEN3_5_TEMPLATE.replace("enable_thinking is true", "enable_thinking is not false")
    return tiny
