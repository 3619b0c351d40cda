"""Gemma 3: SigLIP, a projector that pools an image to 256 tokens and maps them with one matrix, and Gemma 3 text."""

from loaders import attention, register_loader
from loaders.base import BaseLoader


@register_loader("gemma-3")
class Gemma3Loader(BaseLoader):
    model_type = "gemma3"
    vocabulary = 262_145
    vision_encoder = ["model.vision_tower"]
    vision_projector = ["model.multi_modal_projector"]
    language_model = ["model.language_model", "lm_head"]
    bidirectional = True  # within each image

    def masks_of_samples(self, inputs):
        causal, near = attention.causal_masks(inputs["position_ids"], self.config.text_config.sliding_window)
        same_image = attention.same_block(attention.blocks_of(inputs["token_type_ids"] == 1))
        return {"full_attention": causal | same_image, "sliding_attention": (causal | same_image) & near}
