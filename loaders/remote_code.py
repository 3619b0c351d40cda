"""Families whose classes are Python files in the checkpoint, written for a transformers version of 2023 or 2024.

To make such a class work on transformers 5.23, loading creates a subclass of it with overrides, and fixes the loaded
model where overrides are not enough. No library and no file of the checkpoint is changed.
"""

import glob
import os
import shutil

import torch
from safetensors import safe_open
from transformers import AutoTokenizer, GenerationMixin
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from loaders.base import BaseLoader, local_folder
from loaders.new_tokens import gathered

# Files to copy next to saved weights, since the checkpoint's code cannot load a config.json of transformers 5.23.
CODE_FILES = ["config.json", "*.py"]
WEIGHT_FILES = ["*.safetensors", "pytorch_model*.bin"]


class RemoteModel:
    """A mixin for every remote model class, which must be the first base."""

    @classmethod
    def can_generate(cls) -> bool:
        return True  # 5.23 would check the bases one by one and print a warning for each

    def forward(self, *args, logits_to_keep=None, **kwargs):
        """Call the checkpoint's `forward`; compute logits only where `logits_to_keep` (batch, tokens) is True."""
        if logits_to_keep is None:
            return super().forward(*args, **kwargs)
        select = self.get_output_embeddings().register_forward_pre_hook(lambda _, hidden: hidden[0][logits_to_keep])
        try:
            return super().forward(*args, **kwargs)
        finally:
            select.remove()

    def save_pretrained(self, save_directory, *args, **kwargs):
        super().save_pretrained(save_directory, *args, **kwargs)
        folder = local_folder(self.config.name_or_path, CODE_FILES)
        for path in [path for pattern in CODE_FILES for path in glob.glob(os.path.join(folder, pattern))]:
            shutil.copyfile(path, os.path.join(save_directory, os.path.basename(path)))


class RemoteCodeLoader(BaseLoader):
    """Base of the families with remote code."""

    remote_code = True
    attention = "eager"
    cannot_be_padding_free = "its own code separates samples only by padding"
    end_tokens: list[str]  # tokens that end a reply; the checkpoint has these only in its sample code
    model_shim: type  # a subclass of `RemoteModel`
    renamed: tuple[str, str] = ("", "")  # a substring of weight names: in the file, in the loaded model

    def __init__(self, model_path: str, trust_remote_code: bool = False, **model_kwargs):
        super().__init__(model_path, trust_remote_code, **model_kwargs)
        asked = model_kwargs.get("attn_implementation")
        if asked not in (None, "eager"):
            raise ValueError(
                f"--attn_implementation {asked} (or --use_flash_attn True) cannot be used with "
                f"{model_path}: the checkpoint's code computes attention itself (eager). Remove the flag."
            )
        self.model_kwargs["attn_implementation"] = "eager"

    def model_class(self):
        remote = get_class_from_dynamic_module(self.config.auto_map["AutoModelForCausalLM"], self.model_path)
        # PreTrainedModel no longer has `generate` since transformers 4.50. The class name is saved in config.json.
        return type(remote.__name__, (self.model_shim, remote, GenerationMixin), {"__module__": remote.__module__})

    def load_model(self):
        model = super().load_model()
        # The remote code does not support the cache classes of transformers 5.
        model.config.use_cache = model.generation_config.use_cache = False
        tokenizer = self.load_with(AutoTokenizer, self.model_path)
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(self.end_tokens)
        return model

    def stop_tokens(self, tokenizer) -> list[str]:
        return self.end_tokens

    def check_weights(self, model, loaded) -> None:
        """Compare each weight with the file: old code can make `from_pretrained` silently leave random weights."""
        folder = local_folder(self.model_path, WEIGHT_FILES)
        loaded = dict(model.named_parameters())
        wrong, unseen = [], set(loaded)
        for name, weight in stored_weights(folder):
            name = name.replace(*self.renamed)
            if name not in loaded:
                continue  # a buffer, or a second name of a shared weight
            unseen.discard(name)
            parameter = loaded[name]
            if not parameter.is_floating_point():
                continue  # quantized
            with gathered([parameter]):
                if not torch.equal(parameter.data, weight.to(parameter.device, parameter.dtype)):
                    wrong.append(name)
        if wrong or unseen:
            raise ValueError(
                f"{self.model_path} was not loaded correctly: {len(wrong)} weights differ from the file, "
                f"{len(unseen)} are missing, such as {sorted([*wrong, *unseen])[0]}. The checkpoint's Python files do "
                "not work with this version of transformers."
            )


def stored_weights(folder: str):
    """Yield the (name, tensor) pairs of a checkpoint's weight files."""
    paths = sorted(glob.glob(os.path.join(folder, WEIGHT_FILES[0])))
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)
    for path in [] if paths else sorted(glob.glob(os.path.join(folder, WEIGHT_FILES[1]))):
        yield from torch.load(path, map_location="cpu", mmap=True, weights_only=True).items()
