"""What is in an output folder next to weights: the flags of its run, an adapter's configuration, processor files."""

import glob
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from loaders import family_of
from loaders.base import local_folder
from loaders.new_tokens import write_tokens
from supported_models import find_model

ARGUMENTS, ADAPTER_CONFIG = "args.yaml", "adapter_config.json"
# What a checkpoint folder holds next to weights and config.json; copied, since re-saving can change a tokenizer.
PROCESSOR_FILES = [
    *["tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"],
    *["tekken.json", "*.tiktoken"],
    *["chat_template.json", "*.jinja", "additional_chat_templates/*", "generation_config.json"],
    *["processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"],
]


def check_writable(option: str, folder: str) -> None:
    """Raise a ValueError if a folder can be neither written to nor created. Creates nothing."""
    existing = os.path.abspath(folder)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise ValueError(f"{option} {folder} cannot be written: {existing} is not a folder. Name another.")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{option} {folder} cannot be written: no permission for {existing}. Name another.")


def write_arguments(folder: str, values: dict) -> None:
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ARGUMENTS), "w", encoding="utf-8") as file:
        yaml.safe_dump(values, file, sort_keys=False, allow_unicode=True)


def saved_arguments(folder: str) -> dict:
    """The flags in `args.yaml`, here or in the run's folder above a `checkpoint-N`; empty where there is none."""
    for place in (folder, os.path.dirname(os.path.abspath(folder))):
        path = os.path.join(place, ARGUMENTS)
        if os.path.isfile(path):
            return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return {}


def adapter_config(folder: str) -> dict | None:
    """The adapter's configuration, or None where the folder holds no adapter."""
    path = os.path.join(folder, ADAPTER_CONFIG)
    if not os.path.isfile(path):
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def fill_adapter(model, weights: Mapping) -> None:
    """Set the adapter of a model that has its layers, by the names that it was saved with.

    peft 0.21 renames what it loads by the rules for the base's files, and only warns of tensors that fit nowhere.

    Raises:
        ValueError: they are not those of its layers.
    """
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(model, save_embedding_layers=False)
    check_adapter({name: [*weight.shape] for name, weight in weights.items()}, layers)
    for name, layer in layers.items():
        if not weights[name].isfinite().all():
            raise ValueError(f"its {name} is infinite or nan; the adapter is broken")
        layer.data.copy_(weights[name])


def check_adapter(shapes: dict[str, list[int]], layers: Mapping) -> None:
    """Raise a ValueError where an adapter's tensors and those of its layers differ in names or shapes."""
    # Next to an adapter of embeddings or head, peft 0.21 saves a copy of what it adapts.
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith(".base_layer.weight")}
    faults = {"lacks tensors": layers.keys() - shapes, "has tensors of no layer": shapes.keys() - layers}
    for fault, names in faults.items():
        if names:
            raise ValueError(f"it {fault}, such as {min(names)} ({len(names)} in all)")
    for name, layer in layers.items():
        if shapes[name] != [*layer.shape]:
            raise ValueError(f"its {name} is {shapes[name]}, not {[*layer.shape]}")


def public_name(model_path: str) -> str:
    """How an adapter and a card name the base: by Hub id, if it is from the Hub or its cache, else by absolute path."""
    if not os.path.isdir(model_path):
        return model_path
    cached = re.search(r"/models--([^/]+)/snapshots/[^/]+$", os.path.abspath(model_path))
    return cached[1].replace("--", "/", 1) if cached else os.path.abspath(model_path)


def checkpoints_in(folder: str) -> list[str]:
    """The `checkpoint-N` of an output folder, by step."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    names = [name for name in names if re.fullmatch(r"checkpoint-\d+", name)]
    return [os.path.join(folder, name) for name in sorted(names, key=lambda name: int(name.rpartition("-")[2]))]


def share_weights(folder: str) -> None:
    """Give weights the file mode of their configuration: safetensors writes them for their owner alone."""
    config = os.path.join(folder, "config.json")
    config = config if os.path.isfile(config) else os.path.join(folder, ADAPTER_CONFIG)
    for path in glob.glob(os.path.join(glob.escape(folder), "*.safetensors")):
        shutil.copymode(config, path)


def family_in(folder: str, base_path: str, model_id: str | None = None) -> str:
    """The family of what was trained: by the model id, given or in `args.yaml`, else by the config of the base."""
    model_id = model_id or saved_arguments(folder).get("model_id")
    return find_model(model_id).family if model_id else family_of(base_path)


def copy_processor_files(model_path: str, folder: str) -> None:
    """Copy a checkpoint's own tokenizer, processor, template and generation files."""
    model_path = local_folder(model_path, PROCESSOR_FILES)  # in the cache since the processor was loaded
    for pattern in PROCESSOR_FILES:
        for path in glob.glob(os.path.join(model_path, pattern)):
            target = os.path.join(folder, os.path.relpath(path, model_path))
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(path, target)


class ProcessorFiles(NamedTuple):
    """The files that are saved with weights: those of the base, with what the run changed."""

    model_path: str  # of the base
    templates: Mapping[str, str] = {}  # file name -> the text of a chat template
    image_size: dict[str, int] | None = None  # `size` of the image processor
    new_tokens: Mapping[int, str] = {}  # id -> token, of those that the tokenizer gets

    def write(self, folder: str) -> None:
        copy_processor_files(self.model_path, folder)
        if self.image_size:
            write_image_size(folder, self.image_size)
        if self.new_tokens:
            write_tokens(folder, self.new_tokens)
        for name, text in self.templates.items():
            Path(folder, name).write_text(text, encoding="utf-8")


def write_image_size(folder: str, size: dict[str, int]) -> None:
    """Write the bounds of an image's pixels into the copied processor files, each file in its own spelling."""
    own, of_videos = (os.path.join(folder, f"{name}preprocessor_config.json") for name in ("", "video_"))
    if os.path.isfile(own) and not os.path.isfile(of_videos):  # videos are read by the same file, and keep their bounds
        shutil.copyfile(own, of_videos)
    for path in filter(os.path.isfile, (own, os.path.join(folder, "processor_config.json"))):
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        if images := config if path == own else config.get("image_processor"):
            older = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
            images |= {name: number for name, number in older.items() if images.get(name)}
            if "size" in images or not images.get("max_pixels"):
                images["size"] = size
        Path(path).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
