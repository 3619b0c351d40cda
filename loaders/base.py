"""What all model families share: where the weights come from and which modules belong to which component."""

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
    """A family names its modules; paths are those of the loaded model, matched as exact prefixes.

    A parameter that is in `vision_projector` is not part of the two others, even where it is inside them.
    """

    model_type: str  # `model_type` in the checkpoint's config.json
    # Where several families share it: the `model_type` of `text_config` and of `vision_config`.
    text_model_type: str | None = None
    vision_model_type: str | None = None
    vision_encoder: list[str]
    vision_projector: list[str]
    language_model: list[str]
    # Whether the language model has parameters that get a gradient only from a batch that holds media.
    language_model_sees_media = False
    # Ends of the parameter names of a mixture of experts, such as "mlp.experts.down_proj" and "mlp.gate.weight".
    experts: list[str] = []
    routers: list[str] = []
    # What no flag names, such as an audio tower: never trained, never quantized.
    other: list[str] = []
    # Linear modules whose weight the model uses without calling them: neither adapted nor quantized; ends of names.
    bare_weights: list[str] = []
    # Whether some tokens attend to later ones. FlashAttention silently drops that part of a mask (transformers 5.23).
    bidirectional = False
    # Why concatenated samples would see each other (--padding_free), if they would.
    cannot_be_padding_free = ""
    # Whether nobody has tested how its model takes a batch, so that each run does (training/auto_checks.py).
    is_tested_on_loading = False
    # Name of the modules that carry what they have read from token to token, such as those of linear attention.
    recurrent = ""
    # Whether rotary positions are of time, height and width; such a model has `get_rope_index`.
    mrope = False
    # How attention is computed if --attn_implementation is not given.
    attention = "sdpa"
    # How many tokens the makers' tokenizer has, the added ones too: one of a larger id was added by somebody else.
    vocabulary: int | None = None  # not known
    # Packages that only this family needs -> what for.
    packages: dict[str, str] = {}
    # How the trained model differs from that of plain transformers, for its users; part of the card.
    remark = ""
    # The token that stands for pixels, where the template writes text in its place.
    pixel_token = ""
    # Fields of config.json that hold its id.
    pixel_token_fields: tuple[str, ...] = ("image_token_id", "image_token_index")
    # What follows for a checkpoint of another type.
    of_other_type = "choose the --model_id of its family"
    # Whether the classes are Python files of the checkpoint's own (loaders/remote_code.py).
    remote_code = False
    # Whether `load_model` reads the weights, or gives the model without them (`meta_model`).
    reads_weights = True
    # Of --add_tokens (new_tokens.py): id -> ids of the pieces that its row starts from, none where it has a row; and
    # id -> token, of those that the checkpoint's tokenizer does not have.
    pieces: dict[int, list[int]] = {}
    new_tokens: dict[int, str] = {}

    def __init__(self, model_path: str, trust_remote_code: bool = False, **model_kwargs):
        """
        Args:
            model_path: folder or Hub path of weights, processor and config alike.
            trust_remote_code: the user's consent to run the checkpoint's Python files, where the family needs them.
            model_kwargs: for `from_pretrained`: dtype, attn_implementation, quantization_config.
        """
        if self.remote_code and not trust_remote_code:
            raise ValueError(
                f"{model_path}: transformers has no classes for its family; they are Python files in the checkpoint, "
                "which run with your permissions on this machine. If you trust their author, or have read them, add "
                "--trust_remote_code True."
            )
        if trust_remote_code and not self.remote_code:
            raise ValueError(
                f"--trust_remote_code True has no effect: transformers itself has the classes for {model_path}, and "
                "no Python file of the checkpoint is run. Leave it out."
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
                f"{model_path} is a {self.config.model_type!r} checkpoint, but --model_id belongs to "
                f"{wanted!r}; {self.of_other_type}."
            )

        attention = model_kwargs.get("attn_implementation") or ""
        if self.bidirectional and "flash" in attention:
            raise ValueError(
                f"--attn_implementation {attention} (--use_flash_attn True) would change this model: some of its "
                "tokens attend to later ones, which FlashAttention cannot do. Leave the flag out."
            )

    def set_attention(self, **parts: str) -> None:
        """Name the attention of parts (sub-configs) that refuse the one that the whole model is told."""
        if wanted := self.model_kwargs.get("attn_implementation"):
            self.model_kwargs["attn_implementation"] = dict.fromkeys(("", *self.config.sub_configs), wanted) | parts

    @property
    def text_attention(self) -> str:
        """How the language model computes attention."""
        wanted = self.model_kwargs.get("attn_implementation") or self.attention
        return wanted["text_config"] if isinstance(wanted, dict) else wanted

    @classmethod
    def fits(cls, config) -> bool:
        """Whether a checkpoint with this config belongs to the family."""
        if config.model_type != cls.model_type:
            return False
        parts = {"text_config": cls.text_model_type, "vision_config": cls.vision_model_type}
        return all(type is None or getattr(config, part).model_type == type for part, type in parts.items())

    def load_processor(self, path: str | None = None):
        """The checkpoint's own processor, with a fast tokenizer; or that of another folder, such as an adapter's."""
        path = path or self.model_path
        processor = self.load_with(AutoProcessor, path)
        needed = ("tokenizer", "image_processor", "image_token")
        if not all(hasattr(processor, name) for name in needed) or not isinstance(processor.image_token, str):
            raise ValueError(
                f"{path}: its {type(processor).__name__} lacks a tokenizer, an image processor or an image token, so "
                "it cannot put an image into a text. Add a family (docs/add_new_model.md)."
            )
        # Without its files, a tokenizer loads all the same, empty; with those of another checkpoint, too.
        token, fields = self.pixel_token or processor.image_token, self.config.to_dict()
        ids = [fields[name] for name in self.pixel_token_fields if name in fields]
        found = processor.tokenizer.get_vocab().get(token)
        if not processor.tokenizer.is_fast or found is None or ids and not {found, *processor.image_token_ids} & {*ids}:
            wanted = f" as token {ids[0]} (config.json)" if ids else ""
            raise ValueError(f"{path} has no fast tokenizer (tokenizer.json) with {token}{wanted}.")
        return processor

    def load_with(self, auto_class, path: str, **kwargs):
        """What AutoProcessor or AutoTokenizer makes of a folder."""
        try:
            return auto_class.from_pretrained(path, trust_remote_code=self.remote_code, **kwargs)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path} has no usable processor or tokenizer files: {error}") from error

    def masks_of_samples(self, inputs: dict) -> dict[str, torch.Tensor] | torch.Tensor:
        """What a `bidirectional` model needs when samples are concatenated, since transformers 5.23 errs there.

        Args:
            inputs: of the model, with `position_ids` (1, tokens), from 0 in each sample.

        Returns:
            What its language model takes as attention_mask: a (1, 1, tokens, tokens) mask, True where a token is seen,
            or one for each kind of layer.
        """
        raise NotImplementedError  # asked only of families that are `bidirectional`, each of which has its own

    def stop_tokens(self, tokenizer) -> list[str]:
        """What ends generation, by the checkpoint's generation_config.json."""
        try:
            ids = GenerationConfig.from_pretrained(self.model_path).eos_token_id
        except OSError:  # it ships none
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
        except (ImportError, ValueError) as error:  # such as an attention that its class does not have
            attention = self.model_kwargs.get("attn_implementation")
            raise ValueError(f"transformers refuses {self.model_path} with attention {attention}: {error}") from error
        if "quantization_config" in self.model_kwargs:
            # LLM.int8 works on float16, which bitsandbytes 0.50 says of every layer at every call.
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
            for module in model.modules():
                # On a CPU with AVX512-BF16, evaluation would pack 4-bit weights again for good, rounded further, and
                # nothing that comes out of them would have a gradient again (bitsandbytes 0.50).
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
        """Refuse weights that transformers made up: it warns of those that it does not find, and goes on."""
        made_up = loaded["missing_keys"] | {name for name, *_ in loaded["mismatched_keys"]}
        names = sorted(made_up.intersection(name for name, _ in model.named_parameters()))
        if wrong := [name for name in names if self.component_of(name) and not self.is_unused(name)]:
            raise ValueError(
                f"{self.model_path}: {len(wrong)} weights that its config.json asks for are missing in its files or "
                f"have another shape there, such as {wrong[0]}, so they would be random. Download the checkpoint again."
            )

    def check_kernel(self) -> None:
        """Refuse a kernel of the Hub for a class without FlashAttention: transformers (5.23) does not."""
        for part in self._model_without_weights().modules():
            if isinstance(part, PreTrainedModel) and part.config._attn_implementation == self.text_attention:
                if not part._supports_flash_attn:
                    raise ValueError(f"{type(part).__name__} has no FlashAttention. Leave the flag out.")

    def meta_model(self) -> nn.Module:
        """The model of `load_model` on the meta device: shapes and precisions, no values; opens no weight file."""
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
        """`get_rope_index` of the model, with mrope: it needs no weights."""
        return self._model_without_weights(attn_implementation="eager").base_model.get_rope_index

    def _model_without_weights(self, **kwargs) -> nn.Module:
        kwargs = {"config": self.config, "dtype": "auto"} | self.model_kwargs | kwargs
        if kwargs["dtype"] == "auto":
            kwargs["dtype"] = self.dtype
        with torch.device("meta"), set_zero3_state():  # as within ZeRO-3's own, so that it shards nothing here
            return self.model_class().from_config(**kwargs)

    def restore_saved_names(self, model: nn.Module) -> None:
        """Correct how a loaded model maps back to the checkpoint's key names and shapes, where the library errs."""
        if is_deepspeed_zero3_enabled() and getattr(model, "_weight_conversions", None):
            # To save with the checkpoint's key names, the library reverts the renamings of loading, but under ZeRO-3
            # it also keeps those that matched nothing (transformers 5.23), and text weights become `model.model.*`.
            model._weight_conversions = [c for c in model._weight_conversions if c.was_used()]

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the checkpoint is stored in."""
        return self.config.dtype or self.config.get_text_config().dtype or torch.float32

    def unused_modules(self, model: nn.Module) -> list[str]:
        """Modules whose output the loss never sees. They stay frozen: DDP fails on parameters without gradient."""
        return []

    def is_unused(self, name: str) -> bool:
        """Whether a module or parameter of the loaded model is in `unused_modules`."""
        return any(is_inside(name, path) for path in self.unused)

    def component_of(self, name: str) -> str | None:
        """The component of a parameter or module name, or None."""
        named = ("vision_projector", "vision_encoder", "language_model")
        return next((part for part in named if any(is_inside(name, path) for path in getattr(self, part))), None)

    def mixture_part(self, name: str) -> str | None:
        """ "experts" or "router", for a parameter or module of theirs, also where peft wrapped it; else None."""
        for part, ends in (("experts", self.experts), ("router", self.routers)):
            if any(f".{end.rpartition('.')[0]}." in f".{name}." for end in ends):
                return part
        return None


def local_folder(model_path: str, patterns: list[str]) -> str:
    """The folder of a checkpoint; for one on the Hub, its cache folder, with the files that match `patterns`."""
    if os.path.isdir(model_path):
        return model_path
    from huggingface_hub import snapshot_download  # only a checkpoint on the Hub needs it

    return snapshot_download(model_path, allow_patterns=patterns)


def is_inside(name: str, path: str) -> bool:
    """Whether a module or parameter is `path` or is in it."""
    return name == path or name.startswith(path + ".")
