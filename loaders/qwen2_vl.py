"""Qwen2-VL: a native-resolution vision transformer with its projector (`merger`) inside, and Qwen2."""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("qwen2-vl")
class Qwen2VLLoader(BaseLoader):
    model_type = "qwen2_vl"
    vocabulary = 151_657
    vision_encoder = ["model.visual"]
    vision_projector = ["model.visual.merger"]
    language_model = ["model.language_model", "lm_head"]
    mrope = True
