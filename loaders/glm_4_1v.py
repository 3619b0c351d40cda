"""GLM-4.1V: a native-resolution vision transformer with its projector (`merger`) inside, and GLM-4."""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("glm-4.1v")
class Glm41VLoader(BaseLoader):
    model_type = "glm4v"
    vision_encoder = ["model.visual"]
    vision_projector = ["model.visual.merger"]
    language_model = ["model.language_model", "lm_head"]
    mrope = True
