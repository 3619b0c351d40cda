"""PaliGemma 1 and 2: SigLIP, one linear projector, Gemma or Gemma 2."""

import attention
from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("paligemma")
class PaliGemmaLoader(BaseLoader):
    model_type = "paligemma"
    vision_encoder = ["model.vision_tower"]
    vision_projector = ["model.multi_modal_projector"]
    language_model = ["model.language_model", "lm_head"]
    bidirectional = True  # images and prefix

    def __init__(self, model_path: str, *args, **model_kwargs):
        super().__init__(model_path, *args, **model_kwargs)
        if self.config.text_config.model_type == "gemma2":
            self.set_attention(text_config="eager")  # Gemma 2 has no sdpa (transformers 5.23)

    def load_model(self):
        model = super().load_model()
        model.model.register_forward_pre_hook(mask_samples, with_kwargs=True)
        return model


def mask_samples(model, inputs: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """A mask for a row of several samples: transformers 5.23 would show each prefix to all others."""
    if not attention.is_row_of_samples(kwargs):
        return None
    causal, _ = attention.causal_masks(kwargs["position_ids"])
    prefix = attention.blocks_of(kwargs["token_type_ids"] == 0)
    return inputs, kwargs | {"attention_mask": causal | attention.same_block(prefix)}
