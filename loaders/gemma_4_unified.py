"""Gemma 4 12B: no vision tower and no audio tower. The vision encoder is a linear layer and position embeddings, which
turn patches of pixels into features. The projector is a second linear layer (`multimodal_embedder`)."""

from loaders import attention, register_loader
from loaders.gemma_4 import Gemma4Loader


@register_loader("gemma-4-unified")
class Gemma4UnifiedLoader(Gemma4Loader):
    model_type = "gemma4_unified"
    vision_encoder = ["model.embed_vision"]
    vision_projector = ["model.embed_vision.multimodal_embedder"]
    other = ["model.embed_audio"]
    experts = []
    routers = []

    def masks_of_samples(self, inputs):
        """Match how transformers 5.23 computes a single sample: unlike in 26B-A4B and 31B, every layer is bidirectional
        within each image and video, even beyond its sliding window."""
        same_medium = attention.same_block(attention.blocks_of(inputs["mm_token_type_ids"] > 0))
        return {kind: mask | same_medium for kind, mask in super().masks_of_samples(inputs).items()}
