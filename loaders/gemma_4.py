"""Gemma 4: a native-resolution vision transformer, one linear projector, and Gemma 4 text.

E2B and E4B also have an audio tower, embeddings per layer, and layers that reuse the keys and values of earlier layers.
26B-A4B is a mixture of experts.
"""

from loaders import attention, register_loader
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

    def __init__(self, model_path: str, *args, **model_kwargs):
        super().__init__(model_path, *args, **model_kwargs)
        self.set_attention(audio_config="eager")  # all that the audio tower supports (transformers 5.23)

    @property
    def bidirectional(self) -> bool:
        """26B-A4B, 31B and 12B use bidirectional attention within images and videos; E2B and E4B do not."""
        return self.config.text_config.use_bidirectional_attention is not None

    def masks_of_samples(self, inputs):
        """Return masks like Gemma 3's, but only layers with a sliding window are bidirectional within media."""
        causal, near = attention.causal_masks(inputs["position_ids"], self.config.text_config.sliding_window)
        same_medium = attention.same_block(attention.blocks_of(inputs["mm_token_type_ids"] > 0))
        return {"full_attention": causal, "sliding_attention": (causal | same_medium) & near}
