"""Idefics3 and the first SmolVLM: SigLIP, a pixel shuffle with a linear connector, and Llama 3 or SmolLM2."""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("idefics3")
class Idefics3Loader(BaseLoader):
    model_type = "idefics3"
    vision_encoder = ["model.vision_model"]
    vision_projector = ["model.connector"]
    language_model = ["model.text_model", "lm_head"]
