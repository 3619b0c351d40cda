"""Make a tiny random checkpoint of any supported family: offline, in seconds.

    python tiny_models.py --model_family_id qwen2-vl --output_dir tiny/qwen2-vl
    python tiny_models.py --model_id llava-1.5-7b --output_dir tiny/llava-1.5-7b

For dry runs and tests. Everything but the sizes follows the family's smallest Hub checkpoint: classes, files, special
tokens and their order, chat template, stop tokens, tied or untied head. So a script that runs on the tiny one has met
every class and file of the real one. The folder is a `--model_local_path` like any other.

A family's `tiny_checkpoints/<family>.py` holds its config, processor and generation ids; where the Hub checkpoint
brings Python files, a stand-in for them is in `tiny_checkpoints/remote`.
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
    which.add_argument("--model_family_id", help=f"one of {', '.join(families())} or {AUTO}")
    which.add_argument("--model_id", help="a model id of supported_models.py: use its family and chat format")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default: 0)")
    args = parser.parse_args()
    entry.let_threads_sleep()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # one line of output, not a bar for one small file
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # accelerate 1.15 imports DeepSpeed, which warns where no GPU is
    family, checkpoint = args.model_family_id, None
    if args.model_id:
        family, checkpoint = find_model(args.model_id)
    several = family in families() and COLLATORS.get(family).other_formats
    make_tiny_checkpoint(family, str(args.output_dir), args.seed, checkpoint if several else None)


if __name__ == "__main__":
    entry.cli(main)
