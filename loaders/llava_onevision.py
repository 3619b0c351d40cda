"""LLaVA-OneVision: SigLIP, an MLP projector and Qwen2. A learned vector separates the rows of image patches."""

from loaders import register_loader
from loaders.llava_1_5 import LlavaLoader


@register_loader("llava-onevision")
class LlavaOnevisionLoader(LlavaLoader):
    model_type = "llava_onevision"
    vision_projector = ["model.multi_modal_projector", "model.image_newline"]
