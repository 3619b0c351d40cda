"""Qwen3-VL: the outputs of several layers of the vision transformer are added to the first layers of Qwen3 (DeepStack).
Each of these outputs has a separate merger."""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("qwen3-vl")
class Qwen3VLLoader(BaseLoader):
    model_type = "qwen3_vl"
    vocabulary = 151_669
    vision_encoder = ["model.visual"]
    vision_projector = ["model.visual.merger", "model.visual.deepstack_merger_list"]
    language_model = ["model.language_model", "lm_head"]
    mrope = True
