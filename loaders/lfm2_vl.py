"""LFM2-VL, LFM2.5-VL: SigLIP 2 at native resolution, an MLP projector, and LFM2 (short convolutions and attention)."""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("lfm2-vl")
class Lfm2VLLoader(BaseLoader):
    model_type = "lfm2_vl"
    vision_encoder = ["model.vision_tower"]
    vision_projector = ["model.multi_modal_projector"]
    language_model = ["model.language_model", "lm_head"]
    recurrent = "conv"

    def unused_modules(self, model):
        """Return SigLIP 2's pooling head, if the checkpoint has one. It is never used."""
        return ["model.vision_tower.head"]
