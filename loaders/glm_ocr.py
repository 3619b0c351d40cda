"""GLM-OCR: a vision transformer with its projector (`merger`) inside, and a GLM of half a billion parameters."""

from loaders import register_loader
from loaders.glm_4_1v import Glm41VLoader


@register_loader("glm-ocr")
class GlmOcrLoader(Glm41VLoader):
    model_type = "glm_ocr"
