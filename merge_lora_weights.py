"""Adapter + base -> one standalone checkpoint, in the base's precision and with the base's key names.

    python merge_lora_weights.py --model_id qwen2.5-vl-3b-instruct --model_path out --model_save_path merged

The result loads with plain `AutoModelForImageTextToText` and `AutoProcessor`.
"""

import argparse
import os
import shutil

from transformers.hf_argparser import string_to_bool

from arguments import check_writable, cli
from loaders import LOADERS, family_of
from predict import adapter_config, add_trust_flag, saved_arguments
from supported_models import find_model
from trainable import quantization_config
from trainer import copy_processor_files


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    adapter = adapter_config(args.model_path)
    if adapter is None:
        raise ValueError(f"{args.model_path} holds no adapter (adapter_config.json), so there is nothing to merge.")
    if os.path.isdir(args.model_save_path) and os.listdir(args.model_save_path):
        raise ValueError(f"--model_save_path {args.model_save_path} exists and is not empty; name a new folder.")
    check_writable("--model_save_path", args.model_save_path)
    if args.load_model:
        print("--load_model is implied: the base is always loaded.")
    base_path = args.model_local_path or adapter["base_model_name_or_path"]
    saved = saved_arguments(args.model_path)
    model_id = args.model_id or saved.get("model_id")
    family = find_model(model_id).family if model_id else family_of(base_path)
    loader = LOADERS.get(family)(base_path, args.trust_remote_code)
    if saved.get("q_lora") and not args.load_4bit:
        print("The adapter was trained on a 4-bit base (q_lora). --load_4bit merges into the weights that it saw.")
    merge(loader, args.model_path, args.model_save_path, args.load_4bit)
    for path in (base_path, args.model_path):  # the run may have had a --chat_template of its own
        copy_processor_files(path, args.model_save_path)
    for name in ("args.yaml", "all_results.json"):
        if os.path.isfile(os.path.join(args.model_path, name)):
            shutil.copyfile(os.path.join(args.model_path, name), os.path.join(args.model_save_path, name))
    print(f"Merged {args.model_path} into {base_path}: {args.model_save_path} ({loader.dtype})")


def merge(loader, adapter_path: str, save_path: str, load_4bit: bool = False) -> None:
    """Write base + adapter to `save_path`.

    Args:
        load_4bit: merge into the base as its 4-bit quantization saw it: quantized, then dequantized.
    """
    from peft import PeftModel

    # Small updates are rounded away in 16 bits, so the sum is formed in the base's own precision.
    loader.model_kwargs["dtype"] = loader.dtype
    if load_4bit:
        loader.model_kwargs["quantization_config"] = quantization_config(loader, loader.dtype)
    model = loader.load_model()
    if load_4bit:
        model = model.dequantize().to(loader.dtype)
    model = PeftModel.from_pretrained(model, adapter_path).merge_and_unload(safe_merge=True)
    model.save_pretrained(save_path)


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model_id", help="Model id of the base; default: the one in the adapter's args.yaml.")
    parser.add_argument("--model_local_path", help="The base; default: the path that the adapter was trained from.")
    parser.add_argument("--model_path", required=True, help="Folder of the adapter.")
    parser.add_argument("--model_save_path", required=True, help="Folder to write, new or empty.")
    add_trust_flag(parser)
    switch = {"type": string_to_bool, "nargs": "?", "const": True, "default": False}
    parser.add_argument("--load_model", **switch, help="Implied; accepted for old scripts.")
    parser.add_argument("--load_4bit", **switch, help="Merge into the base as its 4-bit quantization saw it.")
    return parser.parse_args(words)


if __name__ == "__main__":
    cli(main)
