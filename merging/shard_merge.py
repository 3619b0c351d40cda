"""Base + adapter, one shard of the base's at a time.

The model is on torch's meta device, where it takes no memory. Parameter by parameter, the library turns tensors of the
checkpoint into the model's own, peft's layer adds its product, and the library turns the sum back into tensors of the
checkpoint. What is held at a time is one shard and one layer.
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
    """Why a merge cannot go shard by shard."""


class ShardMerge:
    """Base and adapter, matched by the headers of their files.

    Args:
        dtype: precision to write; None: each tensor's own in the base.
        quantization_config: merge into the weights as this quantization leaves them.

    Raises:
        WholeModelNeeded: base or adapter is of a kind that cannot be merged in parts.
        ValueError: a file is missing or broken, or the adapter does not fit the base.
    """

    def __init__(self, loader: BaseLoader, adapter_path: str, dtype=None, quantization_config=None):
        config = PeftConfig.from_pretrained(adapter_path)
        # Inits that subtract from the base's weights, such as pissa, are repeated by peft 0.21 on the loaded model.
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
            raise ValueError(f"{self.folder}: {min(missing)} is in {INDEX}, but in none of the shards.")
        self.adapter = open_file(os.path.join(adapter_path, "adapter_model.safetensors"))
        self.plain, self.adapted = skeleton(loader), skeleton(loader)
        try:
            inject_adapter_in_model(config, self.adapted, low_cpu_mem_usage=True)
            self.trained, self.layers = self.match_adapter()
        except ValueError as error:
            raise ValueError(f"{adapter_path} is not an adapter of {loader.model_path}: {error}.") from error
        self.adapted.eval()  # without dropout

        # The library learns from the headers which of its renamings this checkpoint needs.
        conversions = get_model_conversion_mapping(self.plain)
        self.loading = LoadStateDictConfig(weight_mapping=conversions, dtype=loader.dtype, device_map={"": "meta"})
        fill_model(self.plain, {key: self.header(key) for key in self.shard_of}, self.loading)
        loader.restore_saved_names(self.plain)
        self.loading = replace(self.loading, device_map={"": "cpu"})
        self.seen, self.quantizer, quantized = self.plain, None, []  # the base as the adapter is to see it
        if quantization_config:
            self.seen = skeleton(loader)
            quantized = self.quantize(quantization_config)
        self.keys = {name: self.keys_of(name) for name in dict.fromkeys([*self.trained, *self.layers, *quantized])}
        self.changed = {key: name for name, keys in self.keys.items() for key in keys}

    # ---- what belongs together ----

    def match_adapter(self) -> tuple[dict[str, str], dict[str, str]]:
        """Fully trained parameter -> its key in the adapter; other adapted parameter -> its LoRA layer.

        Raises:
            ValueError: the adapter lacks tensors of its layers, or has others.
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
        """Make `base_weight` quantize; returns the parameters that it quantizes."""
        from transformers.quantizers import AutoHfQuantizer

        self.quantizer = AutoHfQuantizer.from_config(quantization_config, pre_quantized=False)
        self.quantizer.preprocess_model(self.seen, device_map=None)
        names = [name for name, _ in self.seen.named_parameters()]
        return [name for name in names if self.quantizer.param_needs_quantization(self.seen, name)]

    def keys_of(self, name: str) -> list[str]:
        """The tensors of the checkpoint that a parameter is made of."""
        tied = self.plain.all_tied_weights_keys
        if name in tied or name in tied.values():
            raise ValueError(
                f"{self.adapter_path} changes {name}, but the base ties its embeddings to its head. A merged "
                "checkpoint of the base's layout could not hold both: use the adapter with its base."
            )
        found = revert_weight_conversion(self.plain, {name: self.plain.get_parameter(name)})
        if any(key not in self.shard_of or self.header(key).shape != found[key].shape for key in found):
            raise WholeModelNeeded(f"{name} shares tensors of the checkpoint with other weights")
        return list(found)

    def header(self, key: str) -> torch.Tensor:
        """A tensor of the base without its data."""
        entry = self.shards[self.shard_of[key]].get_slice(key)
        return torch.empty(entry.get_shape(), device="meta", dtype=SAFETENSORS_DTYPES.get(entry.get_dtype()))

    # ---- weights ----

    def base_weight(self, name: str) -> torch.Tensor:
        """A parameter of the base, in float32."""
        weight = self.read(name, self.shards, self.seen, self.quantizer)
        if hasattr(weight, "quant_state"):
            import bitsandbytes

            weight = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return weight.data.float()

    def read(self, name: str, shards: dict, model: nn.Module, quantizer=None) -> nn.Parameter:
        """A parameter of a model from shards of the base's layout."""
        tensors = {key: shards[self.shard_of[key]].get_tensor(key) for key in self.keys[name]}
        empty = model.get_parameter(name)
        fill_model(model, tensors, replace(self.loading, hf_quantizer=quantizer))
        parameter, (path, _, last) = model.get_parameter(name), name.rpartition(".")
        model.get_submodule(path).register_parameter(last, empty)
        return parameter

    def layer(self, name: str) -> LoraLayer:
        """The LoRA layer of a parameter with its tensors and the base's weight in it."""
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
        """A parameter of base + adapter, in float32."""
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
            raise ValueError(f"{self.adapter_path}: it makes {name} infinite or nan; the adapter is broken.")
        return weight

    def cast(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the checkpoint in the precision that is written: the one rounding of the merge."""
        return tensor.to(self.dtype or self.header(key).dtype) if tensor.is_floating_point() else tensor

    # ---- files ----

    def write(self, folder: str) -> None:
        """Every shard of the base, under its name and with its keys, and their index."""
        return_freed_memory()
        ready = {}  # a parameter's tensors may lie in several shards
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

        64 columns of a merged matrix are compared with its LoRA layer's output for unit vectors: the layer as it is
        trained and used, which adds two products without merging.

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
        return f"{len(self.changed)} tensors are sums of base and adapter, {rest} are the base's own"


def return_freed_memory() -> None:
    """Return freed tensors to the system; glibc would keep several shards of them for later."""
    if platform.libc_ver()[0] == "glibc":
        m_mmap_threshold = -3  # malloc.h: larger blocks are mapped, each by itself
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**20)


def check_equal(name: str, found: torch.Tensor, want: torch.Tensor, eps: float) -> None:
    """Raise where two tensors differ by more than rounding to a precision whose step is `eps`."""
    if eps and want.numel():
        same = ((found - want).abs() <= want.abs() * (eps / 2) + want.abs().max() * 1e-6).all()
    else:
        same = found.dtype == want.dtype and torch.equal(as_bytes(found), as_bytes(want))
    if not same:
        raise ValueError(f"Self-check failed: {name} is not the sum of base and adapter.")


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)  # in which nan equals nan


def key_in_base(name: str) -> str:
    """A parameter's name in the model without adapters."""
    return name.replace(".modules_to_save.default", "").replace(".base_layer", "")


def skeleton(loader: BaseLoader) -> nn.Module:
    with torch.device("meta"):
        return loader.model_class().from_config(deepcopy(loader.config), dtype=torch.float32)


def fill_model(model: nn.Module, tensors: dict[str, torch.Tensor], loading: LoadStateDictConfig) -> None:
    """Tensors of the checkpoint -> parameters of the model."""
    logging.disable_progress_bar()
    convert_and_load_state_dict_in_model(model, tensors, loading)
    logging.enable_progress_bar()


def stored_shards(loader: BaseLoader) -> tuple[str, dict[str, list[str]]]:
    """The folder of a checkpoint, and shard -> keys as its index has them.

    Raises:
        WholeModelNeeded: it is stored in another form, or only its own code can read it.
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
    """A safetensors file, read tensor by tensor; not mapped, since mapped pages count as memory of the process.

    Raises:
        ValueError: there is none, or it is broken.
    """
    try:
        return safe_open(path, framework="pt", backend="pread")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or broken: {error}") from error
