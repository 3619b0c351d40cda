"""PaliGemma 1 and 2: SigLIP, one linear projector, Gemma or Gemma 2."""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("paligemma")
class PaliGemmaLoader(BaseLoader):
    model_type = "paligemma"
    vision_encoder = ["model.vision_tower"]
    vision_projector = ["model.multi_modal_projector"]
    language_model = ["model.language_model", "lm_head"]

    def __init__(self, model_path: str, *args, **model_kwargs):
        super().__init__(model_path, *args, **model_kwargs)
        if self.config.text_config.model_type == "gemma2" and self.model_kwargs.get("attn_implementation") == "sdpa":
            # Gemma 2 has no sdpa, and refuses what the whole model is told (transformers 5.23).
            parts = {"": "sdpa", "vision_config": "sdpa", "text_config": "eager"}
            self.model_kwargs["attn_implementation"] = parts
