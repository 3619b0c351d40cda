"""A tiny GLM-OCR."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TinyModel
from tiny_checkpoints.glm_4_1v import glm_vision_model
from tiny_checkpoints.glm_4_6v import GLM_4_6V_TEMPLATE


@register_tiny("glm-ocr")
def glm_ocr() -> TinyModel:
    """All of a head's 32 dimensions are rotated, divided in the real ratio 16 : 24 : 24."""
    from transformers import Glm46VImageProcessor, Glm46VProcessor, Glm46VVideoProcessor, GlmOcrConfig

    processors = Glm46VImageProcessor, Glm46VVideoProcessor, Glm46VProcessor
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    return glm_vision_model(GlmOcrConfig, processors, GLM_4_6V_TEMPLATE, {"rope_parameters": rope})
