"""Ovis2: AIMv2, a head that maps patches to a visual vocabulary, an embedding table of that vocabulary, and Qwen2.5."""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("ovis2")
class Ovis2Loader(BaseLoader):
    model_type = "ovis2"
    vision_encoder = ["model.vision_tower"]
    vision_projector = [
        *("model.vision_tower.head_linear", "model.vision_tower.head_norm"),
        "model.visual_embeddings_table",
    ]
    language_model = ["model.language_model", "lm_head"]
    pixel_token = "<IMG_ATOM>"
