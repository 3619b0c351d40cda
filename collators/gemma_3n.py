"""Gemma 3n: the format of Gemma 3 with another image token. Attention within images is causal."""

from collators import register_collator
from collators.gemma_3 import Gemma3Collator, gemma_template


@register_collator("gemma-3n")
class Gemma3nCollator(Gemma3Collator):
    chat_template = gemma_template("<image_soft_token>")
