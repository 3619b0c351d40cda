"""Any other checkpoint of `AutoModelForImageTextToText`: its components are what the model's own accessors name."""

from transformers import AutoModelForImageTextToText

from loaders import register_loader
from loaders.base import BaseLoader, is_inside


@register_loader("auto")
class AutoLoader(BaseLoader):
    """The vision projector is what lies beside encoders and language model; one inside the encoder belongs to it."""

    model_type = "any image-text-to-text"
    inseparable = "no test has shown that its samples stay apart"

    @classmethod
    def fits(cls, config) -> bool:
        return type(config) in AutoModelForImageTextToText._model_mapping

    def __init__(self, model_path: str, *args, **model_kwargs):
        super().__init__(model_path, *args, **model_kwargs)
        model = self._model_without_weights()
        names = {module: name for name, module in model.named_modules()}
        modules = [model.get_encoder(modality="image"), model.get_decoder(), model.get_output_embeddings()]
        encoder, decoder, head = (names.get(module) for module in modules)
        if not (encoder and decoder and head):  # "" is the model itself
            raise ValueError(
                f"{model_path}: {type(model).__name__} does not tell its vision encoder, language model and head, so "
                "--model_id auto cannot train it: add a family (docs/add_new_model.md)."
            )
        self.vision_encoder = [encoder]
        self.language_model = [decoder] if is_inside(head, decoder) else [decoder, head]
        # Audio encoders belong to no component and stay frozen.
        audio = names[model.get_encoder(modality="audio")] or encoder
        known = [encoder, audio, *self.language_model]
        beside = (self._shallowest(name, known) for name, _ in model.named_parameters())
        self.vision_projector = list(dict.fromkeys(name for name in beside if name))

    @staticmethod
    def _shallowest(name: str, known: list[str]) -> str | None:
        """The largest module around a parameter that holds none of the known ones; None inside one of them."""
        if any(is_inside(name, path) for path in known):
            return None
        path = name.split(".")
        heads = (".".join(path[:depth]) for depth in range(1, len(path) + 1))
        return next(head for head in heads if not any(is_inside(other, head) for other in known))
