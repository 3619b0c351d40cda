"""Qwen3.5, mixture of experts: the format of Qwen3.5."""

from collators import register_collator
from collators.qwen3_5 import Qwen35Collator


@register_collator("qwen3.5-moe")
class Qwen35MoeCollator(Qwen35Collator):
    pass
