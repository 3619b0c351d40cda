"""PaddleOCR-VL 1.5 and 1.6: a SigLIP at native resolution, an MLP projector that merges 2x2 patches, and ERNIE 4.5."""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("paddleocr-vl")
class PaddleOCRVLLoader(BaseLoader):
    model_type = "paddleocr_vl"
    vision_encoder = ["model.visual"]
    vision_projector = ["model.projector"]
    language_model = ["model.language_model", "lm_head"]
    mrope = True
