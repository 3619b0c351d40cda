"""Gemma 3n: timm's MobileNet V5, an embedder as projector, and Gemma 3n text with alternating updates (AltUp).

The vision encoder consists of convolutions and has no Linear module, so LoRA cannot train it.
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
    # In training, AltUp clamps both weights (transformers 5.23). It clamps one in place, which would corrupt packed
    # 4-bit values, and multiplies by the other without calling its module, which would bypass an adapter.
    bare_weights = ["prediction_coefs", "correction_coefs"]
    packages = {"timm": "which contains its vision encoder"}

    def __init__(self, model_path: str, *args, **model_kwargs):
        super().__init__(model_path, *args, **model_kwargs)
        self.set_attention(vision_config="sdpa")  # timm chooses its own attention; the wrapper refuses FlashAttention
