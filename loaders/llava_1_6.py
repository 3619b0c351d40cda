"""LLaVA 1.6 (LLaVA-NeXT): CLIP, an MLP projector, and Vicuna or Mistral. A learned vector ends each row of patches."""

from loaders import register_loader
from loaders.llava_1_5 import LlavaLoader


@register_loader("llava-1.6")
class Llava16Loader(LlavaLoader):
    model_type = "llava_next"
    vision_model_type = "clip_vision_model"
    vision_projector = ["model.multi_modal_projector", "model.image_newline"]
