"""Gemma 4: a native-resolution vision transformer, one linear projector, Gemma 4 text.

E2B and E4B also have an audio tower, embeddings per layer, and layers that reuse the keys and values of earlier ones;
26B-A4B is a mixture of experts.
"""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("gemma-4")
class Gemma4Loader(BaseLoader):
    model_type = "gemma4"
    vision_encoder = ["model.vision_tower"]
    vision_projector = ["model.embed_vision"]
    language_model = ["model.language_model", "lm_head"]
    other = ["model.audio_tower", "model.embed_audio"]
    experts = ["experts.gate_up_proj", "experts.down_proj"]
    routers = ["router.proj.weight", "router.scale", "router.per_expert_scale"]

    def __init__(self, model_path: str, **model_kwargs):
        super().__init__(model_path, **model_kwargs)
        if attention := self.model_kwargs.get("attn_implementation"):
            # The audio tower has eager attention alone and refuses what the whole model is told (transformers 5.23).
            parts = dict.fromkeys(("", "text_config", "vision_config"), attention)
            self.model_kwargs["attn_implementation"] = parts | {"audio_config": "eager"}
