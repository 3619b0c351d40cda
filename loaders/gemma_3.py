"""Gemma 3: SigLIP, average pooling to 256 tokens and one matrix, a bare parameter of the projector; Gemma 3 text."""

import attention
from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("gemma-3")
class Gemma3Loader(BaseLoader):
    model_type = "gemma3"
    vision_encoder = ["model.vision_tower"]
    vision_projector = ["model.multi_modal_projector"]
    language_model = ["model.language_model", "lm_head"]
    bidirectional = True  # the tokens of an image

    def load_model(self):
        model = super().load_model()
        model.model.register_forward_pre_hook(mask_samples, with_kwargs=True)
        return model


def mask_samples(model, inputs: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """Masks for a row of several samples: transformers 5.23 confuses places in a sample with places in the row."""
    if not attention.is_row_of_samples(kwargs):
        return None
    causal, near = attention.causal_masks(kwargs["position_ids"], model.config.text_config.sliding_window)
    same_image = attention.same_block(attention.blocks_of(kwargs["token_type_ids"] == 1))
    masks = {"full_attention": causal | same_image, "sliding_attention": (causal | same_image) & near}
    return inputs, kwargs | {"attention_mask": masks}
