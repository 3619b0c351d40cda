"""The files next to the weights in an output folder: the run's flags, the adapter config and the processor files."""

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
# The files next to weights and config.json in a checkpoint. They are copied, since re-saving can change a tokenizer.
PROCESSOR_FILES = [
    *["tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"],
    *["tekken.json", "*.tiktoken"],
    *["chat_template.json", "*.jinja", "additional_chat_templates/*", "generation_config.json"],
    *["processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"],
]


def check_writable(option: str, folder: str) -> None:
    """Raise a ValueError if a folder cannot be written to or created. Creates nothing."""
    existing = os.path.abspath(folder)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise ValueError(f"{option} {folder} cannot be written: {existing} is not a folder. Choose another folder.")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{option} {folder} cannot be written: no permission for {existing}. Choose another folder.")


def check_output_file(option: str, path: str, ending: str = "") -> None:
    """Raise a ValueError if a file cannot be written, or exists and has another ending. Makes its folder."""
    if os.path.isdir(path):
        raise ValueError(f"{option} {path} is a folder; name a file.")
    if os.path.exists(path) and not path.endswith(ending):
        raise ValueError(f"{option} {path} exists and does not end with {ending}: it may be data. Name another file.")
    folder = os.path.dirname(os.path.abspath(path))
    check_writable(option, folder)
    os.makedirs(folder, exist_ok=True)


def write_arguments(folder: str, values: dict) -> None:
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ARGUMENTS), "w", encoding="utf-8") as file:
        yaml.safe_dump(values, file, sort_keys=False, allow_unicode=True)


def saved_arguments(folder: str) -> dict:
    """Return the flags in `args.yaml` of this folder or its parent (for a `checkpoint-N`), or {} without that file."""
    for place in (folder, os.path.dirname(os.path.abspath(folder))):
        path = os.path.join(place, ARGUMENTS)
        if os.path.isfile(path):
            return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return {}


def adapter_config(folder: str) -> dict | None:
    """Return the adapter's configuration, or None if the folder contains no adapter."""
    path = os.path.join(folder, ADAPTER_CONFIG)
    if not os.path.isfile(path):
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def fill_adapter(model, weights: Mapping) -> None:
    """Copy an adapter's weights into the LoRA layers of a model, matched by the names in the adapter's file.

    peft 0.21 would rename the tensors by the rules for the base model's files, and only warn about unmatched tensors.
    Here, names or shapes that differ from those of the layers raise a ValueError.
    """
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(model, save_embedding_layers=False)
    check_adapter({name: [*weight.shape] for name, weight in weights.items()}, layers)
    for name, layer in layers.items():
        if not weights[name].isfinite().all():
            raise ValueError(f"its {name} is infinite or nan; the adapter is broken")
        layer.data.copy_(weights[name])


def check_adapter(shapes: dict[str, list[int]], layers: Mapping) -> None:
    """Raise a ValueError if an adapter's tensors and the model's LoRA layers differ in names or shapes."""
    # For an adapter of the embeddings or the head, peft 0.21 also saves a copy of the base layer.
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith(".base_layer.weight")}
    faults = {"lacks tensors": layers.keys() - shapes, "has tensors without a layer": shapes.keys() - layers}
    for fault, names in faults.items():
        if names:
            raise ValueError(f"it {fault}, such as {min(names)} ({len(names)} in all)")
    for name, layer in layers.items():
        if shapes[name] != [*layer.shape]:
            raise ValueError(f"its {name} has the shape {shapes[name]}, not {[*layer.shape]}")


def public_name(model_path: str) -> str:
    """Return the name of a base model for adapter configs and model cards: its Hub id or else its full path."""
    if not os.path.isdir(model_path):
        return model_path
    cached = re.search(r"/models--([^/]+)/snapshots/[^/]+$", os.path.abspath(model_path))
    return cached[1].replace("--", "/", 1) if cached else os.path.abspath(model_path)


def checkpoints_in(folder: str) -> list[str]:
    """Return the `checkpoint-N` folders of an output folder, sorted by step."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    names = [name for name in names if re.fullmatch(r"checkpoint-\d+", name)]
    return [os.path.join(folder, name) for name in sorted(names, key=lambda name: int(name.rpartition("-")[2]))]


def share_weights(folder: str) -> None:
    """Give weight files the permissions of their config file, since safetensors gives only the owner access."""
    config = os.path.join(folder, "config.json")
    config = config if os.path.isfile(config) else os.path.join(folder, ADAPTER_CONFIG)
    for path in glob.glob(os.path.join(glob.escape(folder), "*.safetensors")):
        shutil.copymode(config, path)


def family_in(folder: str, base_path: str, model_id: str | None = None) -> str:
    """Return a trained model's family, from `model_id`, else from `args.yaml`, else from the base model's config."""
    model_id = model_id or saved_arguments(folder).get("model_id")
    return find_model(model_id).family if model_id else family_of(base_path)


def copy_processor_files(model_path: str, folder: str) -> None:
    """Copy a checkpoint's tokenizer, processor, chat template and generation files."""
    model_path = local_folder(model_path, PROCESSOR_FILES)  # loading the processor has put them in the cache
    for pattern in PROCESSOR_FILES:
        for path in glob.glob(os.path.join(model_path, pattern)):
            target = os.path.join(folder, os.path.relpath(path, model_path))
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(path, target)


class ProcessorFiles(NamedTuple):
    """The processor files that are saved with the weights: the base model's files with the run's changes."""

    model_path: str  # the base model
    templates: Mapping[str, str] = {}  # file name -> chat template
    image_size: dict[str, int] | None = None  # `size` of the image processor
    new_tokens: Mapping[int, str] = {}  # id -> token added to the tokenizer

    def write(self, folder: str) -> None:
        copy_processor_files(self.model_path, folder)
        if self.image_size:
            write_image_size(folder, self.image_size)
        if self.new_tokens:
            write_tokens(folder, self.new_tokens)
        for name, text in self.templates.items():
            Path(folder, name).write_text(text, encoding="utf-8")


def write_image_size(folder: str, size: dict[str, int]) -> None:
    """Write the pixel bounds of images into the copied processor files, under the field names that each file uses."""
    own, of_videos = (os.path.join(folder, f"{name}preprocessor_config.json") for name in ("", "video_"))
    if os.path.isfile(own) and not os.path.isfile(of_videos):  # it also has the bounds of videos; keep those
        shutil.copyfile(own, of_videos)
    for path in filter(os.path.isfile, (own, os.path.join(folder, "processor_config.json"))):
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        if images := config if path == own else config.get("image_processor"):
            older = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
            images |= {name: number for name, number in older.items() if images.get(name)}
            if "size" in images or not images.get("max_pixels"):
                images["size"] = size
        Path(path).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
