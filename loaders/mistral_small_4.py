"""Mistral Small 4: the vision encoder and projector of Small 3.1, and a mixture of experts with latent attention.

Mistral's own repository contains FP8 weights, which cannot be trained. The supported model is a BF16 copy.
"""

from collators.mistral_small_4 import MistralSmall4Collator
from loaders import register_loader
from loaders.mistral_small_3_1 import MistralSmall31Loader


@register_loader("mistral-small-4")
class MistralSmall4Loader(MistralSmall31Loader):
    text_model_type = "mistral4"
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    routers = ["mlp.gate.weight"]
    template_of_mistral_common = MistralSmall4Collator.chat_template
