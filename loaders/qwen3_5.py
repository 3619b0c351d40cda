"""Qwen3.5, 3.6, 3.8: the vision encoder of Qwen3-VL without DeepStack; most layers of the language model are linear
attention."""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("qwen3.5")
class Qwen35Loader(BaseLoader):
    model_type = "qwen3_5"
    vision_encoder = ["model.visual"]
    vision_projector = ["model.visual.merger"]
    language_model = ["model.language_model", "lm_head"]
    mrope = True
    recurrent = "linear_attn"
