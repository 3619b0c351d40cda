"""PaliGemma 1 and 2: SigLIP, one linear projector, and Gemma or Gemma 2."""

from loaders import attention, register_loader
from loaders.base import BaseLoader


@register_loader("paligemma")
class PaliGemmaLoader(BaseLoader):
    model_type = "paligemma"
    vision_encoder = ["model.vision_tower"]
    vision_projector = ["model.multi_modal_projector"]
    language_model = ["model.language_model", "lm_head"]
    bidirectional = True  # within the images and the prefix

    def __init__(self, model_path: str, *args, **model_kwargs):
        super().__init__(model_path, *args, **model_kwargs)
        if self.config.text_config.model_type == "gemma2":
            self.set_attention(text_config="eager")  # Gemma 2 does not support sdpa (transformers 5.23)

    def masks_of_samples(self, inputs):
        causal, _ = attention.causal_masks(inputs["position_ids"])
        return causal | attention.same_block(attention.blocks_of(inputs["token_type_ids"] == 0))
