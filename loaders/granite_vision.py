"""Granite Vision: SigLIP, of which several layers are read, an MLP projector and Granite, as a LLaVA 1.6."""

from loaders import register_loader
from loaders.llava_1_5 import LlavaLoader


@register_loader("granite-vision")
class GraniteVisionLoader(LlavaLoader):
    model_type = "llava_next"
    text_model_type = "granite"
    vision_model_type = "siglip_vision_model"
    vision_projector = ["model.multi_modal_projector", "model.image_newline"]

    def unused_modules(self, model):
        """`vision_feature_layer` names several layers, the last one among them; what follows that is not read."""
        return ["model.vision_tower.post_layernorm", "model.vision_tower.head"]
