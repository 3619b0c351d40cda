"""Llama 4: a vision transformer over tiles, a linear projector, and a mixture of experts with chunked attention."""

from importlib.metadata import version

from packaging.version import Version

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("llama4")
class Llama4Loader(BaseLoader):
    model_type = "llama4"
    vision_encoder = ["vision_model"]
    # The adapter shuffles and mixes the patches; the projector then maps them to the width of the language model.
    vision_projector = ["multi_modal_projector", "vision_model.vision_adapter"]
    language_model = ["language_model"]
    pixel_token = "<|patch|>"
    experts = ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]
    routers = ["feed_forward.router.weight"]
    # transformers 5.23 uses the position in the row, not in the sample.
    cannot_be_padding_free = "layers without rotary positions scale attention by the position of a token in the row"

    def __init__(self, model_path: str, *args, **model_kwargs):
        super().__init__(model_path, *args, **model_kwargs)
        if Version(version("transformers")) >= Version("5.24"):
            raise ValueError(
                f"{model_path}: Llama 4 fails in transformers 5.24, which reads a field that the language model does "
                "not return. Run: pip install 'transformers<5.24'"
            )

    def load_model(self):
        model = super().load_model()
        model.vision_model.register_forward_pre_hook(fit_pixels)
        return model


def fit_pixels(vision_model, inputs: tuple) -> tuple:
    """Cast pixels to the model's dtype, since the processor returns bfloat16 and the model casts nothing (5.23)."""
    pixel_values, *others = inputs
    return pixel_values.to(vision_model.dtype), *others
