"""A tiny Qwen2.5-VL."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, qwen_tokenizer
from tiny_checkpoints.qwen2_vl import QWEN_VISION_TOKENS, qwen_vl

QWEN_2_5_PLAIN_TOKENS = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
).split()


@register_tiny("qwen2.5-vl")
def qwen2_5_vl() -> TinyModel:
    """As Qwen2-VL, with window attention in the first vision block (2x2 tokens a window), full in the second."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLProcessor

    vision = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "out_hidden_size": TEXT["hidden_size"],
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }
    tokenizer = qwen_tokenizer(QWEN_VISION_TOKENS, QWEN_2_5_PLAIN_TOKENS)
    return qwen_vl(Qwen2_5_VLConfig, Qwen2_5_VLProcessor, tokenizer, vision)
