"""LLaVA 1.5: CLIP, an MLP projector and Vicuna."""

from loaders import register_loader
from loaders.base import BaseLoader


class LlavaLoader(BaseLoader):
    """Base of the LLaVA families, whose projector reads the hidden states of one layer of the vision tower."""

    vision_encoder = ["model.vision_tower"]
    vision_projector = ["model.multi_modal_projector"]
    language_model = ["model.language_model", "lm_head"]

    def unused_modules(self, model):
        """Return the layers after `vision_feature_layer` and the modules after the last layer."""
        tower = "model.vision_tower"
        num_layers = len(model.get_submodule(f"{tower}.encoder.layers"))
        # hidden_states[0] is the embedding, hidden_states[i] the output of layer i - 1
        used_layers = range(num_layers + 1)[model.config.vision_feature_layer]
        unused = [f"{tower}.encoder.layers.{i}" for i in range(used_layers, num_layers)]
        return unused + [f"{tower}.post_layernorm", f"{tower}.head"]


@register_loader("llava-1.5")
class Llava15Loader(LlavaLoader):
    vocabulary = 32_002
    model_type = "llava"
    text_model_type = "llama"
    vision_model_type = "clip_vision_model"
