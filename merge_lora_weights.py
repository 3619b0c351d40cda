"""Merge an adapter into its base: one standalone checkpoint with the precision, key names and shards of the base.

    python merge_lora_weights.py --model_id qwen2.5-vl-3b-instruct --model_path out --model_save_path merged

The result loads with plain `AutoModelForImageTextToText` and `AutoProcessor`. It is written shard by shard
(merging/shard_merge.py) and then compared with base + adapter; a failed check ends with exit code 1.
"""

if __name__ == "__main__":
    import entry

    entry.begin(__file__)  # answers --help: the imports below take seconds

import argparse
import glob
import json
import os
import shutil
import tempfile

import psutil
import torch
from huggingface_hub import HfApi
from transformers.hf_argparser import string_to_bool

from collators import COLLATORS
from command_line import FlagParser
from entry import cli
from loaders import LOADERS, output_folder
from loaders.quantization import quantization_config
from merging import serving
from merging.shard_merge import ShardMerge, WholeModelNeeded
from merging.whole_model import check_logits, memory_needed, merge_whole
from reports.model_card import write_merged_card

SWITCH = {"type": string_to_bool, "default": False, "nargs": "?", "const": True}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    adapter = read_adapter(args.model_path)
    check_target(args)
    base_path = args.model_local_path or adapter.get("base_model_name_or_path")
    if not base_path:
        raise ValueError(f"{args.model_path} does not name its base model. Pass the base with --model_local_path.")
    saved = output_folder.saved_arguments(args.model_path)
    family = output_folder.family_in(args.model_path, base_path, args.model_id)
    loader = LOADERS.get(family)(base_path, args.trust_remote_code)
    if hasattr(loader.config, "quantization_config"):  # only configs of quantized weights have this field
        raise ValueError(
            f"The weights of {base_path} are quantized. Pass its full-precision base with --model_local_path."
        )
    if args.load_4bit and saved and not saved.get("q_lora"):
        raise ValueError("--load_4bit: the adapter was not trained on a 4-bit base (args.yaml). Remove --load_4bit.")
    if saved.get("q_lora") and not args.load_4bit:
        print("The adapter was trained on a 4-bit base (q_lora). Add --load_4bit to merge into that base.")
    if saved.get("load_in_8bit"):
        print("The adapter was trained on an 8-bit base (load_in_8bit). It is merged into the full-precision base.")

    dtype = DTYPES.get(args.dtype)
    seen_as = quantization_config(loader, loader.dtype, 4) if args.load_4bit else None
    try:
        shards = ShardMerge(loader, args.model_path, dtype, seen_as)
    except WholeModelNeeded as reason:
        shards = None
        print(
            f"The whole model is loaded to merge it ({gigabytes(memory_needed(loader))} of memory), because {reason}."
        )

    # The files are written to a temporary folder, which is then moved: --model_save_path is always complete.
    place = os.path.abspath(args.model_save_path)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f"{os.path.basename(place)}.partial-", dir=os.path.dirname(place), ignore_cleanup_errors=True
    ) as parent:
        folder = os.path.join(parent, "merged")
        os.mkdir(folder)
        if shards:
            shards.write(folder)
            shutil.copyfile(os.path.join(shards.folder, "config.json"), os.path.join(folder, "config.json"))
        else:
            merge_whole(loader, args.model_path, seen_as, dtype or loader.dtype).save_pretrained(folder)
        if dtype:
            write_dtype(os.path.join(folder, "config.json"), args.dtype)
        for path in (base_path, args.model_path):  # files of the run replace those of the base
            output_folder.copy_processor_files(path, folder)
        if saved:
            output_folder.write_arguments(folder, saved)
        for name in ("all_results.json", "loss.png"):
            if os.path.isfile(path := os.path.join(args.model_path, name)):
                shutil.copyfile(path, os.path.join(folder, name))
        write_merged_card(args.model_path, folder)
        output_folder.share_weights(folder)
        os.replace(folder, place)
    print(f"Merged {args.model_path} into {base_path}: {args.model_save_path} ({dtype or loader.dtype})", flush=True)

    if shards:
        print(f"Self-check of the files: {shards.check(place)}.", flush=True)
    if (needed := memory_needed(loader)) > psutil.virtual_memory().available:
        print(f"The logits were not checked: the check needs {gigabytes(needed)} of free memory.")
    else:
        merged = LOADERS.get(family)(place, args.trust_remote_code, dtype=torch.float32)
        processor = merged.load_processor()  # has the chat template of the run
        template = processor.chat_template if saved.get("chat_template") else None
        collator = COLLATORS.get(family)(processor, chat_template=template)
        print(check_logits(loader, args.model_path, seen_as, merged, collator, dtype), flush=True)
    if found := " ".join(f"{name}: {text}" for is_whole, name, text in serving.check_folder(place) if not is_whole):
        print(f"WARNING: inference servers may fail to load the result: {found}")
    print(f"How to serve it: python check_serving.py --model_path {args.model_save_path}")
    if args.push_to_hub:
        HfApi().upload_folder(repo_id=args.push_to_hub, folder_path=place)
        print(f"Pushed to {args.push_to_hub}.")


def read_adapter(path: str) -> dict:
    """Return the configuration of the adapter in a folder.

    Raises:
        ValueError: the folder has no adapter; the message says what to do with its files.
    """
    if (config := output_folder.adapter_config(path)) is not None:
        return config
    why = "so there is nothing to merge"
    for shards, command in {
        "global_step*": f"python {path}/zero_to_fp32.py {path} {path} --safe_serialization",
        "pytorch_model_fsdp_*": f"accelerate merge-weights {path}/pytorch_model_fsdp_0 {path}",
    }.items():
        if glob.glob(os.path.join(path, shards)) and not glob.glob(os.path.join(path, "model*.safetensors")):
            why = f"but the shards of a training engine. Run `{command}` to get a whole checkpoint; no merge is needed"
    if glob.glob(os.path.join(path, "model*.safetensors")):
        why = "but a whole checkpoint of full training. There is nothing to merge: use the folder directly"
    elif checkpoints := output_folder.checkpoints_in(path):
        why = f"but checkpoints of a run. Pass the last one: --model_path {checkpoints[-1]}"
    raise ValueError(f"{path} contains no adapter (adapter_config.json), {why}.")


def check_target(args: argparse.Namespace) -> None:
    """Raise a ValueError, before anything is read, if the target cannot be written here or on the Hub."""
    if os.path.isdir(args.model_save_path) and os.listdir(args.model_save_path):
        raise ValueError(f"--model_save_path {args.model_save_path} exists and is not empty; name a new folder.")
    output_folder.check_writable("--model_save_path", args.model_save_path)
    if args.load_model:
        print("--load_model has no effect: the base is always loaded.")
    if args.push_to_hub:
        try:
            HfApi().create_repo(args.push_to_hub, exist_ok=True)
        except Exception as error:  # the Hub's and the HTTP client's errors share no base class
            raise ValueError(f"--push_to_hub {args.push_to_hub} cannot be created: {error}") from error


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def write_dtype(path: str, dtype: str) -> None:
    """Set the precision in a config.json, at the top level and in each nested part that has one."""

    def rename(config: dict) -> dict:
        config = {key: rename(value) if isinstance(value, dict) else value for key, value in config.items()}
        return config | {key: dtype for key in ("dtype", "torch_dtype") if config.get(key)}

    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(rename({"dtype": dtype} | config), file, indent=2)


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = FlagParser(description=__doc__)
    parser.add_argument("--model_id", help="Model id of the base. Default: the one in the adapter's args.yaml.")
    parser.add_argument("--model_local_path", help="The base model. Default: the path used in training.")
    parser.add_argument("--model_path", required=True, help="Folder of the adapter.")
    parser.add_argument("--model_save_path", required=True, help="Output folder, which must be new or empty.")
    parser.add_argument("--dtype", choices=DTYPES, help="Precision to write. Default: that of each tensor in the base.")
    parser.add_argument(
        "--trust_remote_code", **SWITCH, help="Run the Python files of the checkpoint, with your permissions."
    )
    parser.add_argument("--load_model", **SWITCH, help="No effect; accepted for old scripts.")
    parser.add_argument("--load_4bit", **SWITCH, help="Merge into the dequantized 4-bit base of training.")
    parser.add_argument(
        "--push_to_hub", metavar="ORG/NAME", help="Upload the result to the Hub. Log in first with `hf auth login`."
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    cli(main)
