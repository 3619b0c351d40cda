"""Ministral 3: Mistral Small 3.1 with a language model for long texts; the head of the smallest is tied.

The repositories in BF16 are listed; those without that ending hold FP8 weights.
"""

from loaders import register_loader
from loaders.mistral_small_3_1 import MistralSmall31Loader


@register_loader("ministral-3")
class Ministral3Loader(MistralSmall31Loader):
    text_model_type = "ministral3"
