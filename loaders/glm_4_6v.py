"""GLM-4.6V-Flash: the same modules as GLM-4.1V, with another model type."""

from loaders import register_loader
from loaders.glm_4_1v import Glm41VLoader


@register_loader("glm-4.6v")
class Glm46VLoader(Glm41VLoader):
    model_type = "glm46v"
    text_model_type = "glm4v_text"  # the larger GLM-4.6V is a mixture of experts
