"""MiniCPM-V 4.6: a SigLIP that merges 2x2 patches between two layers, a projector that merges again, and Qwen3.5."""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("minicpm-v-4.6")
class MiniCPMV46Loader(BaseLoader):
    model_type = "minicpmv4_6"
    vision_encoder = ["model.vision_tower"]
    vision_projector = ["model.merger"]
    language_model = ["model.language_model", "lm_head"]
    recurrent = "linear_attn"
