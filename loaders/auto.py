"""Any other checkpoint of `AutoModelForImageTextToText`. Accessors like `get_decoder` find the model's components."""

from inspect import signature

from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedConfig, ProcessorMixin

from loaders import LOADERS, register_loader
from loaders.base import BaseLoader, is_inside
from supported_models import MODELS


@register_loader("auto")
class AutoLoader(BaseLoader):
    """A loader of any model type. All modules outside the encoders and the language model are the projector."""

    model_type = "any image-text-to-text"
    is_tested_on_loading = True
    pixel_token_fields = ()  # some types use these fields for another token
    of_other_type = "--model_id auto accepts only types that transformers lists as image-text-to-text"

    @classmethod
    def fits(cls, config) -> bool:
        return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    def __init__(self, model_path: str, trust_remote_code: bool = False, **model_kwargs):
        if self._has_code_of_its_own(model_path):
            raise ValueError(
                f"{model_path}: transformers has no classes for this checkpoint. --model_id auto never runs a "
                "checkpoint's Python files, not even with --trust_remote_code True. Use a copy that transformers "
                "supports, or add a family (docs/add_new_model.md)."
            )
        super().__init__(model_path, trust_remote_code, **model_kwargs)
        if self.config.is_encoder_decoder or self.config.get_text_config(decoder=True).is_encoder_decoder:
            self._refuse("is an encoder-decoder, which reads the question and the reply as separate texts")
        try:
            model = self._model_of_parts()
        # A package is missing, or the constructor reads values of tensors, which the meta device does not have.
        except (ImportError, NotImplementedError, RuntimeError) as error:
            self._refuse(f"cannot be built without its weights ({error})")
        names = {module: name for name, module in model.named_modules()}
        modules = [model.get_encoder(modality="image"), model.get_decoder(), model.get_output_embeddings()]
        encoder, decoder, head = (names.get(module) for module in modules)
        if not (encoder and decoder and head):  # "" is the model itself
            self._refuse(f"({type(model).__name__}) does not name its vision encoder, language model and head")
        if "attention_chunk_size" in self.config.get_text_config(decoder=True).to_dict():
            self.cannot_be_padding_free = (
                "it cuts attention into chunks by position in the row, which the run's short test cannot detect"
            )
        rope_index = vars(type(model.base_model)).get("get_rope_index")  # Omni models have one that needs audio
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
        """Build the model without weights. If a sub-model lacks sdpa, let transformers choose each one's attention."""
        if self.model_kwargs.get("attn_implementation") == self.attention:
            try:
                return self._model_without_weights()
            except ValueError:
                self.model_kwargs["attn_implementation"] = None
                self.attention = "eager"  # the language model may be eager too, so samples are padded
        return self._model_without_weights(attn_implementation="eager")  # `load_model` refuses others that fail

    @staticmethod
    def _has_code_of_its_own(model_path: str) -> bool:
        try:
            config, _ = PreTrainedConfig.get_config_dict(model_path)
        except (OSError, ValueError):
            return False  # the base class reports this error
        return "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING

    def _refuse(self, reason: str) -> None:
        ids = [id for id, model in MODELS.items() if LOADERS.get(model.family).fits(self.config)]
        way = f"Use the --model_id of its family, such as {ids[0]}" if ids else "Add a family (docs/add_new_model.md)"
        raise ValueError(
            f"{self.model_path}: a {self.config.model_type!r} model {reason}, so --model_id auto cannot train it. "
            f"{way}."
        )

    def load_processor(self, path: str | None = None):
        processor = super().load_processor(path)
        if self._takes_media_types:  # Cosmos3-Edge's processor omits them, but its model needs them (5.23)
            processor.return_mm_token_type_ids = True
        if type(processor).image_token_ids is ProcessorMixin.image_token_ids:
            # The ids of the tokens that become pixels. Ovis2's processor has only that of its text placeholder (5.23).
            fields = self.config.to_dict()
            named = {fields[name] for name in ("image_token_id", "image_token_index") if name in fields}
            processor.image_token_ids = [*({*processor.image_token_ids, *named} - {None})]
        return processor

    @staticmethod
    def _shallowest(name: str, known: list[str]) -> str | None:
        """Return a parameter's outermost module without known modules inside, or None if it is in a known module."""
        if any(is_inside(name, path) for path in known):
            return None
        path = name.split(".")
        heads = (".".join(path[:depth]) for depth in range(1, len(path) + 1))
        return next(head for head in heads if not any(is_inside(other, head) for other in known))
