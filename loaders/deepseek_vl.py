"""DeepSeek-VL 1.3B: SigLIP, an MLP projector (`aligner`) and Llama."""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("deepseek-vl")
class DeepseekVLLoader(BaseLoader):
    model_type = "deepseek_vl"
    vision_encoder = ["model.vision_model"]
    vision_projector = ["model.aligner"]
    language_model = ["model.language_model", "lm_head"]
