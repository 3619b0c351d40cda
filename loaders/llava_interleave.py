"""LLaVA-NeXT-Interleave: SigLIP, an MLP projector and Qwen 1.5, with the classes of LLaVA 1.5."""

from loaders import register_loader
from loaders.llava_1_5 import LlavaLoader


@register_loader("llava-interleave")
class LlavaInterleaveLoader(LlavaLoader):
    model_type = "llava"
    text_model_type = "qwen2"
    vision_model_type = "siglip_vision_model"
