"""The base class of all loaders: it loads the weights and knows which modules belong to which component."""

import logging
import os
from copy import copy
from importlib.util import find_spec

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_utils import set_zero3_state

from loaders.new_tokens import give_rows

COMPONENTS = ("vision_encoder", "vision_projector", "language_model")


class BaseLoader:
    """Base class of all loaders. A model family lists the modules of each component by their paths in the model.

    A path includes all modules inside it, except that modules in `vision_projector` belong to no other component.
    """

    model_type: str  # `model_type` in the checkpoint's config.json
    # If several families share a `model_type`: the `model_type` of `text_config` and of `vision_config`.
    text_model_type: str | None = None
    vision_model_type: str | None = None
    vision_encoder: list[str]
    vision_projector: list[str]
    language_model: list[str]
    # Whether some parameters of the language model get a gradient only if the batch contains media.
    language_model_sees_media = False
    # Suffixes of parameter names in a mixture of experts, such as "mlp.experts.down_proj" and "mlp.gate.weight".
    experts: list[str] = []
    routers: list[str] = []
    # Modules that belong to no component, such as an audio tower: never trained, never quantized.
    other: list[str] = []
    # Suffixes of Linear modules whose weight is used without a call of the module. They get no LoRA or quantization.
    bare_weights: list[str] = []
    # Whether some tokens attend to later ones. FlashAttention silently drops that part of a mask (transformers 5.23).
    bidirectional = False
    # Why the model cannot keep concatenated samples separate (--padding_free); "" if it can.
    cannot_be_padding_free = ""
    # Whether each run tests how the model handles a batch (training/auto_checks.py), since its type is untested.
    is_tested_on_loading = False
    # Name of the recurrent modules, which carry a state from token to token, such as linear attention.
    recurrent = ""
    # Whether rotary positions have time, height and width; such a model has `get_rope_index`.
    mrope = False
    # The attention if --attn_implementation is not passed.
    attention = "sdpa"
    # Size of the original tokenizer, with its added tokens. Tokens with larger ids were added later by others.
    vocabulary: int | None = None  # unknown
    # Package that only this family needs -> the reason, as a relative clause.
    packages: dict[str, str] = {}
    # A note in the model card on how the trained model differs from plain transformers.
    remark = ""
    # The token that stands for pixels, if the chat template writes a text placeholder instead of it.
    pixel_token = ""
    # Fields of config.json with the id of this token.
    pixel_token_fields: tuple[str, ...] = ("image_token_id", "image_token_index")
    # The end of the error for a checkpoint of another type.
    of_other_type = "choose the --model_id of its family"
    # Whether the classes are Python files in the checkpoint (loaders/remote_code.py).
    remote_code = False
    # Whether `load_model` reads the weights; False builds the model without them (`meta_model`).
    reads_weights = True
    # For --add_tokens (new_tokens.py). `pieces`: token id -> ids of the tokens whose rows are averaged for its first
    # row ([] if it has a row). `new_tokens`: id -> token, for tokens that the checkpoint's tokenizer does not have.
    pieces: dict[int, list[int]] = {}
    new_tokens: dict[int, str] = {}

    def __init__(self, model_path: str, trust_remote_code: bool = False, **model_kwargs):
        """
        Args:
            model_path: folder or Hub path of the weights, the processor and the config.
            trust_remote_code: the user's consent to run the checkpoint's Python files, if the family needs them.
            model_kwargs: arguments of `from_pretrained`: dtype, attn_implementation, quantization_config.
        """
        if self.remote_code and not trust_remote_code:
            raise ValueError(
                f"{model_path}: transformers has no classes for this family. They are Python files in the checkpoint, "
                "which run with your permissions on this machine. If you trust their author or have read them, add "
                "--trust_remote_code True."
            )
        if trust_remote_code and not self.remote_code:
            raise ValueError(
                f"--trust_remote_code True has no effect: transformers itself has the classes for {model_path}, so "
                "no Python file of the checkpoint is run. Remove the flag."
            )
        if missing := {package: purpose for package, purpose in self.packages.items() if not find_spec(package)}:
            wanted = "; ".join(f"{package}, {purpose}" for package, purpose in missing.items())
            raise ValueError(f"{model_path} needs the package {wanted}: pip install {' '.join(missing)}")
        self.model_path, self.model_kwargs = model_path, model_kwargs
        try:
            self.config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            where = "has no usable config.json" if os.path.isdir(model_path) else "is neither a folder nor reachable"
            raise ValueError(f"{model_path} {where} (--model_id, --model_local_path): {error}") from error
        if not self.fits(self.config):
            wanted = " with ".join(filter(None, [self.model_type, self.text_model_type, self.vision_model_type]))
            raise ValueError(
                f"{model_path} is a {self.config.model_type!r} checkpoint, but --model_id expects "
                f"{wanted!r}; {self.of_other_type}."
            )

        attention = model_kwargs.get("attn_implementation") or ""
        if self.bidirectional and "flash" in attention:
            raise ValueError(
                f"--attn_implementation {attention} (--use_flash_attn True) would change this model: some of its "
                "tokens attend to later ones, which FlashAttention cannot do. Remove the flag."
            )

    def set_attention(self, **parts: str) -> None:
        """Set the attention of sub-models that do not support the one requested for the whole model."""
        if wanted := self.model_kwargs.get("attn_implementation"):
            self.model_kwargs["attn_implementation"] = dict.fromkeys(("", *self.config.sub_configs), wanted) | parts

    @property
    def text_attention(self) -> str:
        """The attention implementation of the language model."""
        wanted = self.model_kwargs.get("attn_implementation") or self.attention
        return wanted["text_config"] if isinstance(wanted, dict) else wanted

    @classmethod
    def fits(cls, config) -> bool:
        """Return whether a checkpoint with this config belongs to the family."""
        if config.model_type != cls.model_type:
            return False
        parts = {"text_config": cls.text_model_type, "vision_config": cls.vision_model_type}
        return all(type is None or getattr(config, part).model_type == type for part, type in parts.items())

    def load_processor(self, path: str | None = None):
        """Load the processor of the checkpoint or of another folder, such as an adapter's, with a fast tokenizer."""
        path = path or self.model_path
        processor = self.load_with(AutoProcessor, path)
        needed = ("tokenizer", "image_processor", "image_token")
        if not all(hasattr(processor, name) for name in needed) or not isinstance(processor.image_token, str):
            raise ValueError(
                f"{path}: its {type(processor).__name__} lacks a tokenizer, an image processor or an image token, so "
                "it cannot insert images into text. Add a family (docs/add_new_model.md)."
            )
        # A tokenizer also loads if its files are missing (it is empty then) or belong to another checkpoint.
        token, fields = self.pixel_token or processor.image_token, self.config.to_dict()
        ids = [fields[name] for name in self.pixel_token_fields if name in fields]
        found = processor.tokenizer.get_vocab().get(token)
        if not processor.tokenizer.is_fast or found is None or ids and not {found, *processor.image_token_ids} & {*ids}:
            wanted = f" as token {ids[0]} (config.json)" if ids else ""
            raise ValueError(f"{path} has no fast tokenizer (tokenizer.json) that contains {token}{wanted}.")
        return processor

    def load_with(self, auto_class, path: str, **kwargs):
        """Load a folder with AutoProcessor or AutoTokenizer."""
        try:
            return auto_class.from_pretrained(path, trust_remote_code=self.remote_code, **kwargs)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path} has no usable processor or tokenizer files: {error}") from error

    def masks_of_samples(self, inputs: dict) -> dict[str, torch.Tensor] | torch.Tensor:
        """Return the masks of a `bidirectional` model for concatenated samples. transformers 5.23 gets them wrong.

        Args:
            inputs: inputs of the model, with `position_ids` (1, tokens) that start at 0 in each sample.

        Returns:
            The `attention_mask` of the language model: a (1, 1, tokens, tokens) mask, True for visible tokens, or one
            such mask per type of layer.
        """
        raise NotImplementedError  # only called for `bidirectional` families, which all override it

    def stop_tokens(self, tokenizer) -> list[str]:
        """Return the tokens that end generation, according to the checkpoint's generation_config.json."""
        try:
            ids = GenerationConfig.from_pretrained(self.model_path).eos_token_id
        except OSError:  # the checkpoint has no such file
            ids = tokenizer.eos_token_id
        return tokenizer.convert_ids_to_tokens(ids if isinstance(ids, list) else [ids])

    def model_class(self) -> type:
        return AutoModelForImageTextToText

    def load_model(self) -> nn.Module:
        try:
            if self.reads_weights:
                if "/" in self.text_attention:
                    self.check_kernel()
                told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
                model, loaded = self.model_class().from_pretrained(self.model_path, **told, **self.model_kwargs)
            else:
                model = self._model_without_weights()
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.model_path} has no usable weights: {error}") from error
        except (ImportError, ValueError) as error:  # such as an attention that the model class does not support
            attention = self.model_kwargs.get("attn_implementation")
            raise ValueError(f"{self.model_path} cannot be loaded with attention {attention}: {error}") from error
        if "quantization_config" in self.model_kwargs:
            # LLM.int8 casts inputs to float16, and bitsandbytes 0.50 warns of that for every layer at every call.
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
            for module in model.modules():
                # On a CPU with AVX512-BF16, evaluation would repack 4-bit weights permanently: they would be rounded
                # again, and their outputs would no longer have gradients (bitsandbytes 0.50).
                if hasattr(module, "support_avx512bf16_for_cpu"):
                    module.support_avx512bf16_for_cpu = False
        self.unused = self.unused_modules(model)
        if self.reads_weights:
            self.check_weights(model, loaded)
            self.restore_saved_names(model)
        if self.pieces:
            give_rows(model, self)
        return model

    def check_weights(self, model: nn.Module, loaded: dict) -> None:
        """Raise a ValueError if the files lack weights. transformers would only warn and use random numbers."""
        made_up = loaded["missing_keys"] | {name for name, *_ in loaded["mismatched_keys"]}
        names = sorted(made_up.intersection(name for name, _ in model.named_parameters()))
        if wrong := [name for name in names if self.component_of(name) and not self.is_unused(name)]:
            raise ValueError(
                f"{self.model_path}: {len(wrong)} weights that config.json describes are missing in the files or "
                f"have another shape, such as {wrong[0]}. They would be random: download the checkpoint again."
            )

    def check_kernel(self) -> None:
        """Raise a ValueError if a Hub kernel is requested for a class without FlashAttention (5.23 does not check)."""
        for part in self._model_without_weights().modules():
            if isinstance(part, PreTrainedModel) and part.config._attn_implementation == self.text_attention:
                if not part._supports_flash_attn:
                    raise ValueError(f"{type(part).__name__} does not support FlashAttention. Remove the flag.")

    def meta_model(self) -> nn.Module:
        """Build the model on the meta device, with shapes and dtypes but no values. Opens no weight file."""
        if self.remote_code:
            raise ValueError(
                f"{self.model_path}: its Python files need the weights, so its model cannot be built without them."
            )
        loader = copy(self)
        loader.reads_weights = False
        model = loader.load_model()
        self.unused = loader.unused
        return model

    def rope_index(self):
        """Return the method `get_rope_index` of an mrope model. The method needs no weights."""
        return self._model_without_weights(attn_implementation="eager").base_model.get_rope_index

    def _model_without_weights(self, **kwargs) -> nn.Module:
        kwargs = {"config": self.config, "dtype": "auto"} | self.model_kwargs | kwargs
        if kwargs["dtype"] == "auto":
            kwargs["dtype"] = self.dtype
        with torch.device("meta"), set_zero3_state():  # otherwise ZeRO-3 would shard the parameters
            return self.model_class().from_config(**kwargs)

    def restore_saved_names(self, model: nn.Module) -> None:
        """Make saving use the checkpoint's key names and shapes if transformers would save others."""
        if is_deepspeed_zero3_enabled() and getattr(model, "_weight_conversions", None):
            # Saving reverts the renamings of loading. Under ZeRO-3, transformers 5.23 also reverts renamings that
            # matched nothing, which would save text weights as `model.model.*`.
            model._weight_conversions = [c for c in model._weight_conversions if c.was_used()]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the checkpoint's stored weights."""
        return self.config.dtype or self.config.get_text_config().dtype or torch.float32

    def unused_modules(self, model: nn.Module) -> list[str]:
        """Return modules that do not affect the loss. They stay frozen, or DDP would fail for lack of gradients."""
        return []

    def is_unused(self, name: str) -> bool:
        """Return whether a module or parameter of the loaded model is in `unused_modules`."""
        return any(is_inside(name, path) for path in self.unused)

    def component_of(self, name: str) -> str | None:
        """Return the component that a parameter or module belongs to, or None."""
        named = ("vision_projector", "vision_encoder", "language_model")
        return next((part for part in named if any(is_inside(name, path) for path in getattr(self, part))), None)

    def mixture_part(self, name: str) -> str | None:
        """Return "experts" or "router" if a parameter or module, wrapped by peft or not, is inside one; else None."""
        for part, ends in (("experts", self.experts), ("router", self.routers)):
            if any(f".{end.rpartition('.')[0]}." in f".{name}." for end in ends):
                return part
        return None


def local_folder(model_path: str, patterns: list[str]) -> str:
    """Return a checkpoint's folder. For a Hub checkpoint, download the files that match `patterns` to the cache."""
    if os.path.isdir(model_path):
        return model_path
    from huggingface_hub import snapshot_download  # only a checkpoint on the Hub needs it

    return snapshot_download(model_path, allow_patterns=patterns)


def is_inside(name: str, path: str) -> bool:
    """Return whether a module or parameter is `path` itself or is inside it."""
    return name == path or name.startswith(path + ".")
