"""Qwen3.5, 3.6 and 3.8: the vision encoder of Qwen3-VL without DeepStack, and a language model in which most layers
use linear attention."""

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
