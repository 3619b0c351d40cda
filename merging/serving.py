"""Check the files that inference servers read. What is known about each server is in servers.py. The files are opened
through transformers, as vLLM and SGLang do; of the weights, only the headers are read.
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
SAVE_AGAIN = "Save or merge the model again."
MERGE = "Merge the adapter (merge_lora_weights.py) and serve the result."


def check_folder(path: str) -> Iterator[tuple[bool, str, str]]:
    """Yield (whether the check passed, its name, what it found) for each check of a folder."""
    checks = ADAPTER_CHECKS if adapter_config(path) else REMOTE_CHECKS if remote_classes(path) else CHECKS
    for name, function in checks.items():
        try:
            yield True, name, function(path)
        except ValueError as fault:
            yield False, name, str(fault)


# ---- checks of a whole checkpoint ----


def check_config(path: str) -> str:
    config = read_json(path, "config.json", COPY)
    if not config.get("architectures"):
        raise ValueError(f"config.json has no `architectures`, which name the model class. {COPY}")
    if not remote_classes(path):
        from_folder(AutoConfig, path, "config.json")
    dtype = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype") or "float32"
    advice = "; servers use half precision without --dtype bfloat16 or float32" if dtype == "float32" else ""
    return f"{', '.join(config['architectures'])}, {config.get('model_type')}, {dtype}{advice}"


def check_generation_config(path: str) -> str:
    if not os.path.isfile(os.path.join(path, "generation_config.json")):
        return "none: answers end at the eos_token_id of config.json, and are sampled at temperature 1"
    config = from_folder(GenerationConfig, path, "generation_config.json")
    if config.eos_token_id is None:
        raise ValueError('generation_config.json has no "eos_token_id", so answers never end. Copy it from the base.')
    sampling = ("temperature", "top_p", "top_k", "repetition_penalty")
    asked = {"temperature": 1.0} | {name: value for name in sampling if (value := getattr(config, name)) is not None}
    return f"answers end at token {config.eos_token_id} and are sampled with {asked} by default"


def check_tokenizer(path: str) -> str:
    if not (name := first_of(path, TOKENIZERS)):  # transformers (5.23) would create an empty tokenizer
        raise ValueError(f"AutoTokenizer needs one of {', '.join(TOKENIZERS)}; there is none. {COPY}")
    return f"{name}, {len(from_folder(AutoTokenizer, path, name)):,} tokens"


def check_processor(path: str) -> str:
    if not (name := first_of(path, PROCESSORS)):
        raise ValueError(f"neither {' nor '.join(PROCESSORS)} exists, so images cannot be read. {COPY}")
    processor = from_folder(AutoProcessor, path, name)
    if "image_processor" not in processor.get_attributes():
        raise ValueError(f"{name} loads as a {type(processor).__name__}, which does not accept images. {COPY}")
    return f"{name}: {type(processor).__name__}"


def check_chat_template(path: str) -> str:
    processor = from_folder(AutoProcessor, path, "The processor")
    template = processor.chat_template or processor.tokenizer.chat_template
    if not template:
        if read_json(path, "config.json", COPY).get("model_type") == "paligemma":
            return "none, as in the base; vLLM has its own template, other servers need --chat-template"
        raise ValueError("none, so chat requests would fail. Copy chat_template.jinja from the base.")
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    try:
        text = processor.apply_chat_template([{"role": "user", "content": content}], template, tokenize=False)
    except Exception as error:  # a template may raise anything
        raise ValueError(f"the template fails for an image: {error}. {COPY}") from error
    if processor.image_token not in text:
        raise ValueError(f"the template drops the image (no {processor.image_token}). {COPY}")
    return f"{len(template):,} characters, with a place for images"


def check_python_files(path: str) -> str:
    """Check that the Python files named in the configurations exist."""
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
        raise ValueError(f"{len(shards)} files, but no {INDEX} that maps tensors to files. {SAVE_AGAIN}")
    if not shards:
        if glob.glob(os.path.join(path, "pytorch_model*.bin")):
            return "pytorch_model*.bin, pickled: servers read it, but safetensors load faster and run no code"
        raise ValueError("no model*.safetensors. If a training engine wrote shards, combine them (docs/merging.md).")
    stored = {shard: tensors_of(path, shard) for shard in shards}
    for name, shard in shard_of.items():
        if name not in stored[shard]:
            raise ValueError(f"{INDEX} lists {name} in {shard}, which does not contain it. {SAVE_AGAIN}")
    size = sum(os.path.getsize(os.path.join(path, shard)) for shard in shards)
    return f"{sum(map(len, stored.values())):,} tensors in {len(shards)} file(s), {size / 1e9:.2f} GB"


# ---- checks of an adapter ----


def check_kind(path: str) -> str:
    """Check that the adapter contains only plain LoRA, trained on the unchanged weights of the base."""
    config = adapter_config(path)
    for name in ("modules_to_save", "use_dora", "target_parameters", "trainable_token_indices", "bias"):
        if config.get(name) and config[name] != "none":
            raise ValueError(f"{name} is {config[name]}, which servers refuse or ignore. {MERGE}")
    if str(config.get("init_lora_weights")).startswith(("pissa", "olora", "corda", "loftq")):
        raise ValueError(f"training started from changed base weights ({config['init_lora_weights']}). {MERGE}")
    return f"LoRA of rank {config['r']}, which --max-lora-rank of vLLM must allow"


def check_parts(path: str) -> str:
    """Check that servers support adapters on every adapted layer."""
    names = tensors_of(path, "adapter_model.safetensors")
    if linear := [name for name in names if ".linear_attn." in name]:
        raise ValueError(
            f"{len(linear):,} of {len(names):,} tensors adapt linear attention (linear_attn). In 2026, vLLM silently "
            f"ignored these tensors, and SGLang refused them or dropped some of them. {MERGE}"
        )
    if seeing := of_vision(path, names):
        return f"{len(seeing):,} of {len(names):,} tensors adapt the vision parts; SGLang ignores these tensors"
    return f"{len(names):,} tensors, all of the language model"


def of_vision(path: str, names: set[str]) -> list[str]:
    """Return the tensors of an adapter that belong to the vision encoder or the vision projector."""
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
    """Load a folder with one of transformers' auto classes."""
    try:
        return auto_class.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # broken files raise nearly any exception
        raise ValueError(f"{name} cannot be used: {error}. {COPY}") from error


def remote_classes(path: str) -> dict[str, str]:
    """Map each Python file of the checkpoint to the configuration file that names a class in it."""
    found = {}
    for name in CONFIGS:
        if (file := Path(path, name)).is_file():
            text = file.read_text(encoding="utf-8")  # another check reports broken JSON
            for classes in re.findall(r'"auto_map": *(\{.*?\})', text, re.DOTALL):
                found |= dict.fromkeys(re.findall(r'"(\w+)\.\w+"', classes), name)
    return {f"{module}.py": name for module, name in found.items()}


def tensors_of(path: str, shard: str) -> set[str]:
    """Return the names of the tensors in a safetensors file."""
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
