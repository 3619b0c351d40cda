"""A tiny Qwen3-VL, mixture of experts."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TinyModel
from tiny_checkpoints.qwen3_vl import DEEPSTACK, QWEN3_ROPE, qwen3_template, qwen3_vl_model


@register_tiny("qwen3-vl-moe")
def qwen3_vl_moe(checkpoint: str = "Qwen3-VL-30B-A3B-Instruct") -> TinyModel:
    """Eight experts per layer, two per token. The head is not tied."""
    from transformers import Qwen3VLMoeConfig

    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    text = experts | {"rope_parameters": QWEN3_ROPE}
    template = qwen3_template(checkpoint)
    return qwen3_vl_model(Qwen3VLMoeConfig, text, DEEPSTACK, tie_word_embeddings=False, chat_template=template)
