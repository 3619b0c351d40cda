"""InternVL3 and InternVL3.5: InternViT, a pixel shuffle with an MLP projector, and Qwen2 or Qwen3."""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("internvl3")
class InternVL3Loader(BaseLoader):
    model_type = "internvl"
    vision_encoder = ["model.vision_tower"]
    vision_projector = ["model.multi_modal_projector"]
    language_model = ["model.language_model", "lm_head"]
