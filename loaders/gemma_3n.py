"""Gemma 3n: MobileNet V5 of timm, an embedder as projector, Gemma 3n text with alternating updates (AltUp).

The vision encoder has no Linear module but convolutions, so it takes no LoRA.
"""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("gemma-3n")
class Gemma3nLoader(BaseLoader):
    model_type = "gemma3n"
    vision_encoder = ["model.vision_tower"]
    vision_projector = ["model.embed_vision"]
    language_model = ["model.language_model", "lm_head"]
    other = ["model.audio_tower", "model.embed_audio"]
    # AltUp clamps both weights when it trains (transformers 5.23), the one in place, which would spoil packed 4-bit
    # values; the other it then multiplies itself, past any adapter.
    bare_weights = ["prediction_coefs", "correction_coefs"]
    packages = {"timm": "which has its vision encoder"}

    def __init__(self, model_path: str, *args, **model_kwargs):
        super().__init__(model_path, *args, **model_kwargs)
        self.set_attention(vision_config="sdpa")  # timm chooses for itself; its wrapper refuses FlashAttention
