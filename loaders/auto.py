"""Any other checkpoint of `AutoModelForImageTextToText`: its components are what the model's own accessors name."""

from inspect import signature

from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedConfig, ProcessorMixin

from loaders import LOADERS, register_loader
from loaders.base import BaseLoader, is_inside
from supported_models import MODELS


@register_loader("auto")
class AutoLoader(BaseLoader):
    """The vision projector is what is neither encoder nor language model; one inside the encoder belongs to it."""

    model_type = "any image-text-to-text"
    is_tested_on_loading = True
    pixel_token_fields = ()  # the token of some types is another than that of pixels
    of_other_type = "transformers does not list it for pictures and text, so --model_id auto cannot take it"

    @classmethod
    def fits(cls, config) -> bool:
        return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    def __init__(self, model_path: str, trust_remote_code: bool = False, **model_kwargs):
        if self._has_code_of_its_own(model_path):
            raise ValueError(
                f"{model_path}: transformers has no classes for it, and --model_id auto does not run the Python files "
                "of a checkpoint, with or without --trust_remote_code True, since nothing is known of what they do. "
                "Use a copy whose classes transformers has, or add a family (docs/add_new_model.md)."
            )
        super().__init__(model_path, trust_remote_code, **model_kwargs)
        if self.config.is_encoder_decoder or self.config.get_text_config(decoder=True).is_encoder_decoder:
            self._refuse("is an encoder-decoder, whose question and reply are two texts")
        try:
            model = self._model_of_parts()
        # A package that is missing, or code that reads numbers as it is made, of which the meta device has none.
        except (ImportError, NotImplementedError, RuntimeError) as error:
            self._refuse(f"cannot be made without its weights ({error})")
        names = {module: name for name, module in model.named_modules()}
        modules = [model.get_encoder(modality="image"), model.get_decoder(), model.get_output_embeddings()]
        encoder, decoder, head = (names.get(module) for module in modules)
        if not (encoder and decoder and head):  # "" is the model itself
            self._refuse(f"({type(model).__name__}) does not name its vision encoder, language model and head")
        if "attention_chunk_size" in self.config.get_text_config(decoder=True).to_dict():
            self.cannot_be_padding_free = (
                "it cuts attention into chunks by position in the row, which short probes cannot show"
            )
        rope_index = vars(type(model.base_model)).get("get_rope_index")  # those of Omni models ask for sound too
        self.mrope = bool(rope_index) and "mm_token_type_ids" in signature(rope_index).parameters
        self._takes_media_types = "mm_token_type_ids" in signature(model.forward).parameters
        self.vision_encoder = [encoder]
        self.language_model = [decoder] if is_inside(head, decoder) else [decoder, head]
        # Audio encoders belong to no component and stay frozen.
        audio = names[model.get_encoder(modality="audio")] or encoder
        known = [encoder, audio, *self.language_model]
        near = (self._shallowest(name, known) for name, _ in model.named_parameters())
        self.vision_projector = list(dict.fromkeys(name for name in near if name))

    def _model_of_parts(self):
        """The model without weights. Where a part of it lacks the usual attention, each takes the best that it has."""
        if self.model_kwargs.get("attn_implementation") == self.attention:
            try:
                return self._model_without_weights()
            except ValueError:
                self.model_kwargs["attn_implementation"] = None
                self.attention = "eager"  # of the language model too, as far as is known: samples are padded
        return self._model_without_weights(attn_implementation="eager")  # any other is for `load_model` to refuse

    @staticmethod
    def _has_code_of_its_own(model_path: str) -> bool:
        try:
            config, _ = PreTrainedConfig.get_config_dict(model_path)
        except (OSError, ValueError):
            return False  # said by the base
        return "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING

    def _refuse(self, reason: str) -> None:
        ids = [id for id, model in MODELS.items() if LOADERS.get(model.family).fits(self.config)]
        way = f"name that of its family, such as {ids[0]}" if ids else "add a family (docs/add_new_model.md)"
        raise ValueError(
            f"{self.model_path}: a {self.config.model_type!r} model {reason}, so --model_id auto cannot train it: "
            f"{way}."
        )

    def load_processor(self, path: str | None = None):
        processor = super().load_processor(path)
        if self._takes_media_types:  # the model asks for them where its processor leaves them out (5.23: Cosmos3-Edge)
            processor.return_mm_token_type_ids = True
        if type(processor).image_token_ids is ProcessorMixin.image_token_ids:
            # Where pixels go, which is not where the text has a placeholder (5.23: Ovis2 says only the latter).
            fields = self.config.to_dict()
            named = {fields[name] for name in ("image_token_id", "image_token_index") if name in fields}
            processor.image_token_ids = [*({*processor.image_token_ids, *named} - {None})]
        return processor

    @staticmethod
    def _shallowest(name: str, known: list[str]) -> str | None:
        """The largest module around a parameter that holds none of the known ones; None inside one of them."""
        if any(is_inside(name, path) for path in known):
            return None
        path = name.split(".")
        heads = (".".join(path[:depth]) for depth in range(1, len(path) + 1))
        return next(head for head in heads if not any(is_inside(other, head) for other in known))
