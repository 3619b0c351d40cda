"""Merge an adapter into its base, one shard of the base at a time.

The model is on torch's meta device, where it needs no memory. For each parameter, transformers converts tensors of the
checkpoint into the parameter, peft's LoRA layer adds its update, and transformers converts the sum back into tensors
of the checkpoint. Only one shard and one layer are in memory at a time.
"""

import ctypes
import json
import os
import platform
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model, revert_weight_conversion
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from loaders.base import BaseLoader, local_folder
from loaders.output_folder import check_adapter

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class WholeModelNeeded(Exception):
    """Raised, with the reason, if a merge cannot be done shard by shard."""


class ShardMerge:
    """Merge an adapter into its base. The tensors of both are matched by the headers of their files.

    Args:
        dtype: precision to write. Default: each tensor keeps the precision that it has in the base.
        quantization_config: if given, quantize and dequantize the base weights before merging.

    Raises:
        WholeModelNeeded: base or adapter is of a kind that cannot be merged shard by shard.
        ValueError: a file is missing or broken, or the adapter does not fit the base.
    """

    def __init__(self, loader: BaseLoader, adapter_path: str, dtype=None, quantization_config=None):
        config = PeftConfig.from_pretrained(adapter_path)
        # Some initializations, such as pissa, change the base weights. peft 0.21 repeats these on the loaded model.
        plain = isinstance(config, LoraConfig) and config.init_lora_weights in (True, False, "gaussian", "orthogonal")
        if not plain or config.lora_bias:
            raise WholeModelNeeded("this kind of adapter does more than add B @ A to the base weights")
        if config.trainable_token_indices:
            raise WholeModelNeeded("the adapter has rows of added tokens")
        self.dtype, self.adapter_path = dtype, adapter_path
        self.folder, shards = stored_shards(loader)
        self.shards = {shard: open_file(os.path.join(self.folder, shard)) for shard in shards}
        self.shard_of = {key: shard for shard, file in self.shards.items() for key in file.keys()}
        if missing := {key for keys in shards.values() for key in keys} - self.shard_of.keys():
            raise ValueError(f"{self.folder}: {INDEX} lists {min(missing)}, but no shard contains it.")
        self.adapter = open_file(os.path.join(adapter_path, "adapter_model.safetensors"))
        self.plain, self.adapted = skeleton(loader), skeleton(loader)
        try:
            inject_adapter_in_model(config, self.adapted, low_cpu_mem_usage=True)
            self.trained, self.layers = self.match_adapter()
        except ValueError as error:
            raise ValueError(f"{adapter_path} is not an adapter of {loader.model_path}: {error}.") from error
        self.adapted.eval()  # without dropout

        # transformers finds out from the headers which of its renamings this checkpoint needs.
        conversions = get_model_conversion_mapping(self.plain)
        self.loading = LoadStateDictConfig(weight_mapping=conversions, dtype=loader.dtype, device_map={"": "meta"})
        fill_model(self.plain, {key: self.header(key) for key in self.shard_of}, self.loading)
        loader.restore_saved_names(self.plain)
        self.loading = replace(self.loading, device_map={"": "cpu"})
        self.seen, self.quantizer, quantized = self.plain, None, []  # the base as the adapter sees it
        if quantization_config:
            self.seen = skeleton(loader)
            quantized = self.quantize(quantization_config)
        self.keys = {name: self.keys_of(name) for name in dict.fromkeys([*self.trained, *self.layers, *quantized])}
        self.changed = {key: name for name, keys in self.keys.items() for key in keys}

    # ---- matching of adapter and base ----

    def match_adapter(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return two mappings: fully trained parameter -> its key in the adapter; adapted parameter -> its LoRA layer.

        Raises:
            ValueError: the adapter lacks tensors of its layers, or has tensors of other layers.
        """
        layers = {}
        for path, module in self.adapted.named_modules():
            if isinstance(module, LoraLayer):
                parameter = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
                layers[key_in_base(f"{path}.{parameter}")] = path
        state = self.adapted.state_dict()
        names = {id(tensor): name for name, tensor in state.items()}
        expected = get_peft_model_state_dict(self.adapted, state_dict=state, save_embedding_layers=False)
        shapes = {key: self.adapter.get_slice(key).get_shape() for key in self.adapter.keys()}
        check_adapter({key.removeprefix("base_model.model."): shape for key, shape in shapes.items()}, expected)
        self.stored_as = {names[id(tensor)]: f"base_model.model.{key}" for key, tensor in expected.items()}
        own = (".lora_", ".original_module.")  # `--lora_bias all` saves biases of the untrained originals too
        whole = [name for name in self.stored_as if not any(part in name for part in own)]
        return {key_in_base(name): self.stored_as[name] for name in whole}, layers

    def quantize(self, quantization_config) -> list[str]:
        """Make `base_weight` quantize the base, and return the names of the quantized parameters."""
        from transformers.quantizers import AutoHfQuantizer

        self.quantizer = AutoHfQuantizer.from_config(quantization_config, pre_quantized=False)
        self.quantizer.preprocess_model(self.seen, device_map=None)
        names = [name for name, _ in self.seen.named_parameters()]
        return [name for name in names if self.quantizer.param_needs_quantization(self.seen, name)]

    def keys_of(self, name: str) -> list[str]:
        """Return the keys of the checkpoint's tensors that make up a parameter of the model."""
        tied = self.plain.all_tied_weights_keys
        if name in tied or name in tied.values():
            raise ValueError(
                f"{self.adapter_path} changes {name}, but the base ties its embeddings to its head. A merged "
                "checkpoint cannot store the two separately: use the adapter with its base."
            )
        found = revert_weight_conversion(self.plain, {name: self.plain.get_parameter(name)})
        if any(key not in self.shard_of or self.header(key).shape != found[key].shape for key in found):
            raise WholeModelNeeded(f"{name} shares tensors of the checkpoint with other weights")
        return list(found)

    def header(self, key: str) -> torch.Tensor:
        """Return a meta tensor with the shape and dtype of a tensor of the base."""
        entry = self.shards[self.shard_of[key]].get_slice(key)
        return torch.empty(entry.get_shape(), device="meta", dtype=SAFETENSORS_DTYPES.get(entry.get_dtype()))

    # ---- weights ----

    def base_weight(self, name: str) -> torch.Tensor:
        """Return a parameter of the base, in float32."""
        weight = self.read(name, self.shards, self.seen, self.quantizer)
        if hasattr(weight, "quant_state"):
            import bitsandbytes

            weight = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return weight.data.float()

    def read(self, name: str, shards: dict, model: nn.Module, quantizer=None) -> nn.Parameter:
        """Read a parameter of a model from shards that have the layout of the base."""
        tensors = {key: shards[self.shard_of[key]].get_tensor(key) for key in self.keys[name]}
        empty = model.get_parameter(name)
        fill_model(model, tensors, replace(self.loading, hf_quantizer=quantizer))
        parameter, (path, _, last) = model.get_parameter(name), name.rpartition(".")
        model.get_submodule(path).register_parameter(last, empty)
        return parameter

    def layer(self, name: str) -> LoraLayer:
        """Return the LoRA layer of a parameter, filled with its adapter tensors and the weight of the base."""
        path = self.layers[name]
        layer = self.adapted.get_submodule(path)
        for key, _ in [*layer.named_parameters()]:
            if key.startswith("lora_"):
                module, _, last = key.rpartition(".")
                tensor = self.adapter.get_tensor(self.stored_as[f"{path}.{key}"]).float()
                layer.get_submodule(module).register_parameter(last, nn.Parameter(tensor, False))
        last = name.rpartition(".")[2]
        layer.get_base_layer().register_parameter(last, nn.Parameter(self.base_weight(name), False))
        return layer

    def merged(self, name: str) -> torch.Tensor:
        """Return a parameter of base + adapter, in float32."""
        if name in self.trained:
            return self.adapter.get_tensor(self.trained[name]).float()
        if name not in self.layers:  # quantized, but not adapted
            return self.base_weight(name)
        layer = self.layer(name)
        layer.merge()
        layer.merged_adapters.clear()
        weight = layer.get_base_layer().get_parameter(name.rpartition(".")[2]).data
        layer.to("meta")
        if not weight.isfinite().all():
            raise ValueError(f"{self.adapter_path} is broken: it makes {name} infinite or nan.")
        return weight

    def cast(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """Cast a tensor of the checkpoint to the precision to write. This is the only rounding of the merge."""
        return tensor.to(self.dtype or self.header(key).dtype) if tensor.is_floating_point() else tensor

    # ---- files ----

    def write(self, folder: str) -> None:
        """Write each shard of the base, with the same name and keys, and the index."""
        return_freed_memory()
        ready = {}  # a parameter's tensors may be in several shards
        for shard, file in self.shards.items():
            tensors = {}
            for key in file.keys():
                if key in self.changed and key not in ready:
                    name = self.changed[key]
                    found = revert_weight_conversion(self.plain, {name: self.merged(name)})
                    ready |= {key: self.cast(key, tensor).contiguous() for key, tensor in found.items()}
                tensors[key] = ready.pop(key) if key in ready else self.cast(key, file.get_tensor(key))
            save_file(tensors, os.path.join(folder, shard), metadata=file.metadata())
            number = sum(key in self.changed for key in tensors)
            print(f"  {shard}: {number} of {len(tensors)} tensors merged", flush=True)
        if os.path.isfile(path := os.path.join(self.folder, INDEX)):
            index = json.loads(Path(path).read_text(encoding="utf-8"))
            if self.dtype:
                index["metadata"] = {"total_size": sum(os.path.getsize(os.path.join(folder, s)) for s in self.shards)}
            Path(folder, INDEX).write_text(json.dumps(index, indent=2, allow_nan=False), encoding="utf-8")

    @torch.no_grad()
    def check(self, folder: str) -> str:
        """Compare each written tensor with base and adapter.

        For a merged linear layer, 64 random columns are compared with the outputs of the LoRA layer for the matching
        unit vectors. As in training, the LoRA layer adds the outputs of base and adapter without merging.

        Raises:
            ValueError: a tensor differs by more than its rounding; the message names it.
        """
        written = {shard: open_file(os.path.join(folder, shard)) for shard in self.shards}
        for key, shard in self.shard_of.items():
            if key not in self.changed:
                want = self.cast(key, self.shards[shard].get_tensor(key))
                check_equal(key, written[shard].get_tensor(key), want, 0)
        for name, keys in self.keys.items():
            found = self.read(name, written, self.plain).data
            if name in self.layers:
                layer = self.layer(name)
                base_layer = layer.get_base_layer()
                if isinstance(base_layer, nn.Linear) and not isinstance(layer, ParamWrapper):
                    columns = torch.randperm(base_layer.in_features)[:64]
                    base_layer.register_parameter("bias", None)
                    want = layer(nn.functional.one_hot(columns, base_layer.in_features).float()).T
                    found = found[:, columns]
                else:
                    want = base_layer.get_parameter(name.rpartition(".")[2]) + layer.get_delta_weight("default")
                layer.to("meta")
            else:
                want = self.merged(name)
            check_equal(name, found, want, torch.finfo(self.dtype or self.header(keys[0]).dtype).eps)
        rest = len(self.shard_of) - len(self.changed)
        return f"{len(self.changed)} tensors are sums of base and adapter, {rest} are those of the base"


def return_freed_memory() -> None:
    """Make glibc return the memory of freed tensors to the system. Otherwise, glibc keeps that of several shards."""
    if platform.libc_ver()[0] == "glibc":
        m_mmap_threshold = -3  # malloc.h: larger blocks are mapped separately
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**20)


def check_equal(name: str, found: torch.Tensor, want: torch.Tensor, eps: float) -> None:
    """Raise a ValueError if two tensors differ by more than rounding with step `eps`, or at all if `eps` is 0."""
    if eps and want.numel():
        same = ((found - want).abs() <= want.abs() * (eps / 2) + want.abs().max() * 1e-6).all()
    else:
        same = found.dtype == want.dtype and torch.equal(as_bytes(found), as_bytes(want))
    if not same:
        raise ValueError(f"Self-check failed: {name} is not the sum of base and adapter.")


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)  # as bytes, nan equals nan


def key_in_base(name: str) -> str:
    """Return the name of a parameter in the model without adapters."""
    return name.replace(".modules_to_save.default", "").replace(".base_layer", "")


def skeleton(loader: BaseLoader) -> nn.Module:
    with torch.device("meta"):
        return loader.model_class().from_config(deepcopy(loader.config), dtype=torch.float32)


def fill_model(model: nn.Module, tensors: dict[str, torch.Tensor], loading: LoadStateDictConfig) -> None:
    """Convert tensors of the checkpoint into parameters of the model."""
    logging.disable_progress_bar()
    convert_and_load_state_dict_in_model(model, tensors, loading)
    logging.enable_progress_bar()


def stored_shards(loader: BaseLoader) -> tuple[str, dict[str, list[str]]]:
    """Return the folder of a checkpoint, and the keys of each shard from its index (no keys for a single file).

    Raises:
        WholeModelNeeded: the weights are not safetensors files, or only the checkpoint's own code can read them.
    """
    if loader.remote_code:
        raise WholeModelNeeded("the classes of the model are Python files of the checkpoint")
    index, shards = os.path.join(local_folder(loader.model_path, [INDEX]), INDEX), {}
    if os.path.isfile(index):
        for key, shard in json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].items():
            shards.setdefault(shard, []).append(key)
    folder = local_folder(loader.model_path, [*shards] or [SINGLE])
    if not shards and os.path.isfile(os.path.join(folder, SINGLE)):
        shards[SINGLE] = []
    if not shards:
        raise WholeModelNeeded("the weights of the base are not safetensors files")
    return folder, shards


def open_file(path: str):
    """Open a safetensors file without mapping it into memory, because mapped pages count as memory of the process.

    Raises:
        ValueError: the file is missing or broken.
    """
    try:
        return safe_open(path, framework="pt", backend="pread")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or broken: {error}") from error
