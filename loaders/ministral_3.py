"""Ministral 3: Mistral Small 3.1 with a language model for long texts. The smallest size has a tied head.

Only the BF16 repositories are supported; those without "-BF16" in their names contain FP8 weights.
"""

from loaders import register_loader
from loaders.mistral_small_3_1 import MistralSmall31Loader


@register_loader("ministral-3")
class Ministral3Loader(MistralSmall31Loader):
    text_model_type = "ministral3"
