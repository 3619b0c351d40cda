"""Make a tiny random checkpoint of any supported family: offline, in seconds.

    python tiny_models.py --model_family_id qwen2-vl --output_dir tiny/qwen2-vl
    python tiny_models.py --model_id llava-1.5-7b --output_dir tiny/llava-1.5-7b

Use it for dry runs and tests. Except for its sizes, it equals the family's smallest Hub checkpoint: the classes, files,
special tokens and their order, chat template, stop tokens, and tied or untied head are the same. A script that runs on
the tiny checkpoint has used every class and file of the real one. Pass the folder as --model_local_path.

The config, processor and generation ids of a family are in `tiny_checkpoints/<family>.py`. If the Hub checkpoint has
Python files, substitutes for these files are in `tiny_checkpoints/remote`.
"""

import os
from pathlib import Path

import entry
from collators import COLLATORS
from command_line import FlagParser
from supported_models import AUTO, families, find_model
from tiny_checkpoints import make_tiny_checkpoint


def main() -> None:
    parser = FlagParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model_family_id", help=f"the family: {', '.join(families())} or {AUTO}")
    which.add_argument("--model_id", help="a model id of supported_models.py, for its family and chat format")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default: 0)")
    args = parser.parse_args()
    entry.let_threads_sleep()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # no progress bar for one small file
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # accelerate 1.15 imports DeepSpeed, which warns without a GPU
    family, checkpoint = args.model_family_id, None
    if args.model_id:
        family, checkpoint = find_model(args.model_id)
    several = family in families() and COLLATORS.get(family).other_formats
    make_tiny_checkpoint(family, str(args.output_dir), args.seed, checkpoint if several else None)


if __name__ == "__main__":
    entry.cli(main)
