"""Granite Vision: a LLaVA 1.6 with SigLIP, an MLP projector that reads several SigLIP layers, and Granite."""

from loaders import register_loader
from loaders.llava_1_5 import LlavaLoader


@register_loader("granite-vision")
class GraniteVisionLoader(LlavaLoader):
    model_type = "llava_next"
    text_model_type = "granite"
    vision_model_type = "siglip_vision_model"
    vision_projector = ["model.multi_modal_projector", "model.image_newline"]

    def unused_modules(self, model):
        """Return the modules after the last layer. `vision_feature_layer` includes that one, so all layers are used."""
        return ["model.vision_tower.post_layernorm", "model.vision_tower.head"]
