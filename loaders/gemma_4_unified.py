"""Gemma 4 12B: no vision tower and no audio tower. Patches of pixels are embedded by a linear layer and their position,
which count as its vision encoder, and projected by another (`multimodal_embedder`)."""

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
        """As transformers 5.23 computes a sample alone: unlike in 26B-A4B and 31B, all layers see all of a medium in
        both directions, with or without a sliding window, also past it."""
        same_medium = attention.same_block(attention.blocks_of(inputs["mm_token_type_ids"] > 0))
        return {kind: mask | same_medium for kind, mask in super().masks_of_samples(inputs).items()}
