"""Qwen3-VL, mixture of experts: the format of Qwen3-VL."""

from collators import register_collator
from collators.qwen3_vl import Qwen3VLCollator


@register_collator("qwen3-vl-moe")
class Qwen3VLMoeCollator(Qwen3VLCollator):
    pass
