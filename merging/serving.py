"""Checks of the files that inference servers read; servers.py has what is known about each server. Files are opened
through transformers, as vLLM and SGLang do; of weights only the headers.
"""

import glob
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, GenerationConfig

from loaders import LOADERS
from loaders.output_folder import adapter_config, family_in
from supported_models import AUTO

INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "*.tiktoken")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
CONFIGS = ("config.json", "tokenizer_config.json", *PROCESSORS)
COPY = "Copy it from the base."
SAVE_AGAIN = "Save or merge again."
MERGE = "Merge it (merge_lora_weights.py) and serve the result."


def check_folder(path: str) -> Iterator[tuple[bool, str, str]]:
    """(whether it is as servers need it, what was checked, what was found) of each check of a folder."""
    checks = ADAPTER_CHECKS if adapter_config(path) else REMOTE_CHECKS if remote_classes(path) else CHECKS
    for name, function in checks.items():
        try:
            yield True, name, function(path)
        except ValueError as fault:
            yield False, name, str(fault)


# ---- of a whole checkpoint ----


def check_config(path: str) -> str:
    config = read_json(path, "config.json", COPY)
    if not config.get("architectures"):
        raise ValueError("config.json has no `architectures`, which tell a server the model class. Copy the base's.")
    if not remote_classes(path):
        from_folder(AutoConfig, path, "config.json")
    dtype = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype") or "float32"
    advice = "; servers halve it unless started with --dtype bfloat16 or float32" if dtype == "float32" else ""
    return f"{', '.join(config['architectures'])}, {config.get('model_type')}, {dtype}{advice}"


def check_generation_config(path: str) -> str:
    if not os.path.isfile(os.path.join(path, "generation_config.json")):
        return "none: answers end at the eos_token_id of config.json, and are sampled at temperature 1"
    config = from_folder(GenerationConfig, path, "generation_config.json")
    if config.eos_token_id is None:
        raise ValueError('generation_config.json has no "eos_token_id", so no answer would end. Copy the base\'s.')
    sampling = ("temperature", "top_p", "top_k", "repetition_penalty")
    asked = {"temperature": 1.0} | {name: value for name in sampling if (value := getattr(config, name)) is not None}
    return f"answers end at token {config.eos_token_id}, sampled with {asked} by default"


def check_tokenizer(path: str) -> str:
    if not (name := first_of(path, TOKENIZERS)):  # transformers (5.23) would make an empty one
        raise ValueError(f"none of {', '.join(TOKENIZERS)}, which AutoTokenizer needs. Copy them from the base.")
    return f"{name}, {len(from_folder(AutoTokenizer, path, name)):,} tokens"


def check_processor(path: str) -> str:
    if not (name := first_of(path, PROCESSORS)):
        raise ValueError(f"neither {' nor '.join(PROCESSORS)}: no image could be read. Copy the base's.")
    processor = from_folder(AutoProcessor, path, name)
    if "image_processor" not in processor.get_attributes():
        raise ValueError(f"{name} loads as a {type(processor).__name__}, which takes no images. Copy the base's.")
    return f"{name}: {type(processor).__name__}"


def check_chat_template(path: str) -> str:
    processor = from_folder(AutoProcessor, path, "The processor")
    template = processor.chat_template or processor.tokenizer.chat_template
    if not template:
        if read_json(path, "config.json", COPY).get("model_type") == "paligemma":
            return "none, as in the base; vLLM has its own, elsewhere pass one with --chat-template"
        raise ValueError("none, so chat requests would fail. Copy chat_template.jinja from the base.")
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    try:
        text = processor.apply_chat_template([{"role": "user", "content": content}], template, tokenize=False)
    except Exception as error:  # a template may raise anything
        raise ValueError(f"it cannot be rendered with an image: {error}. Copy the base's.") from error
    if processor.image_token not in text:
        raise ValueError(f"it leaves the image out (no {processor.image_token}). Copy the base's.")
    return f"{len(template):,} characters, with a place for images"


def check_python_files(path: str) -> str:
    """That the Python files which its configurations name are there."""
    found = remote_classes(path)
    for module, name in found.items():
        if not os.path.isfile(os.path.join(path, module)):
            raise ValueError(f"{name} names {module}, which is missing. Copy the Python files of the base.")
    return f"{', '.join(found)}; servers need --trust-remote-code"


def check_weights(path: str) -> str:
    shards, shard_of = sorted(os.path.basename(file) for file in glob.glob(os.path.join(path, "*.safetensors"))), {}
    if os.path.isfile(os.path.join(path, INDEX)):
        shard_of = read_json(path, INDEX, SAVE_AGAIN).get("weight_map", {})
        shards = sorted(set(shard_of.values()))
    elif len(shards) > 1:
        raise ValueError(f"{len(shards)} files, but no {INDEX} that says which tensor is where. {SAVE_AGAIN}")
    if not shards:
        if glob.glob(os.path.join(path, "pytorch_model*.bin")):
            return "pytorch_model*.bin, pickled: servers read it, but safetensors load faster and run no code"
        raise ValueError("no model*.safetensors. Combine the shards of a training engine (docs/merging.md).")
    stored = {shard: tensors_of(path, shard) for shard in shards}
    for name, shard in shard_of.items():
        if name not in stored[shard]:
            raise ValueError(f"{INDEX} says that {name} is in {shard}, but it is not. {SAVE_AGAIN}")
    size = sum(os.path.getsize(os.path.join(path, shard)) for shard in shards)
    return f"{sum(map(len, stored.values())):,} tensors in {len(shards)} file(s), {size / 1e9:.2f} GB"


# ---- of an adapter ----


def check_kind(path: str) -> str:
    """That the adapter is LoRA and nothing else, on the base as it is stored."""
    config = adapter_config(path)
    for name in ("modules_to_save", "use_dora", "target_parameters", "trainable_token_indices", "bias"):
        if config.get(name) and config[name] != "none":
            raise ValueError(f"{name} is {config[name]}, which servers refuse or ignore. {MERGE}")
    if str(config.get("init_lora_weights")).startswith(("pissa", "olora", "corda", "loftq")):
        raise ValueError(f"training started from changed base weights ({config['init_lora_weights']}). {MERGE}")
    return f"LoRA of rank {config['r']}, which --max-lora-rank of vLLM must allow"


def check_parts(path: str) -> str:
    """That servers support adapters on every layer that it adapts."""
    names = tensors_of(path, "adapter_model.safetensors")
    if linear := [name for name in names if ".linear_attn." in name]:
        raise ValueError(
            f"{len(linear):,} of {len(names):,} tensors adapt linear attention (linear_attn), which vLLM silently "
            f"left out, and SGLang refused or dropped in part, in 2026. {MERGE}"
        )
    if seeing := of_vision(path, names):
        return f"{len(seeing):,} of {len(names):,} tensors adapt the vision parts, which SGLang leaves out"
    return f"{len(names):,} tensors, all of the language model"


def of_vision(path: str, names: set[str]) -> list[str]:
    """The tensors of an adapter that belong to the vision encoder or the vision projector."""
    base = adapter_config(path)["base_model_name_or_path"]
    family = family_in(path, base)
    loader = LOADERS.get(family)(base) if family == AUTO else LOADERS.get(family)
    parts = tuple(f"base_model.model.{module}." for module in loader.vision_encoder + loader.vision_projector)
    return [name for name in names if name.startswith(parts)]


# ---- files ----


def first_of(path: str, patterns: tuple[str, ...]) -> str | None:
    return next((file for name in patterns for file in glob.glob(name, root_dir=path)), None)


def read_json(path: str, name: str, fix: str) -> dict:
    try:
        return json.loads(Path(path, name).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"no {name}. {fix}") from error
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {error}. {fix}") from error


def from_folder(auto_class, path: str, name: str):
    """What transformers makes of a folder."""
    try:
        return auto_class.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # on broken files they raise nearly any
        raise ValueError(f"{name} cannot be used: {error}. Copy the base's.") from error


def remote_classes(path: str) -> dict[str, str]:
    """Python file of the checkpoint -> the configuration that names a class in it."""
    found = {}
    for name in CONFIGS:
        if (file := Path(path, name)).is_file():
            text = file.read_text(encoding="utf-8")  # which may be broken JSON: the check of it says so
            for classes in re.findall(r'"auto_map": *(\{.*?\})', text, re.DOTALL):
                found |= dict.fromkeys(re.findall(r'"(\w+)\.\w+"', classes), name)
    return {f"{module}.py": name for module, name in found.items()}


def tensors_of(path: str, shard: str) -> set[str]:
    """The names of the tensors in a safetensors file."""
    try:
        with safe_open(os.path.join(path, shard), framework="pt") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{shard} is missing or cut short: {error}. {SAVE_AGAIN}") from error


CHECKS: dict[str, Callable[[str], str]] = {
    "config": check_config,
    "generation config": check_generation_config,
    "tokenizer": check_tokenizer,
    "processor": check_processor,
    "chat template": check_chat_template,
    "weights": check_weights,
}
REMOTE_CHECKS = {name: CHECKS[name] for name in ("config", "generation config", "weights")}
REMOTE_CHECKS["Python files"] = check_python_files
ADAPTER_CHECKS = {"kind": check_kind, "parts": check_parts}
