"""Answers of a base, adapter or merged checkpoint on a data file, beside the references.

    python predict.py --model_path out --data_path test.json --output_path answers.jsonl

Every assistant turn is answered greedily, with the reference history before it and the checkpoint's own template
around it. A line of the output is {"index", "turn", "prediction", "reference", "exact_match"}.
"""

if __name__ == "__main__":
    import entry

    entry.begin(__file__)  # answers --help: the imports below take seconds

import argparse
import json
import os
import sys

import torch
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

import metrics
import trainable
from answers import generate_answers
from arguments import ModelArguments, ReadingArguments, cli
from checks import adapter_config, check_reading, check_writable, processor_options
from collators import COLLATORS
from datasets import make_dataset
from loaders import LOADERS, family_of
from supported_models import find_model

# What the model gets to see of images and videos: as in training, unless a flag says otherwise.
# Flags of one group stand together: where one is given, none of it is taken from training.
AS_IN_TRAINING = (
    ("image_size", "min_pixels", "max_pixels", "jpeg_draft"),
    ("num_frames", "fps", "max_frames"),
    *[(name,) for name in ("image_resize_algorithm", "video_max_pixels", "video_backend", "processor_kwargs")],
)


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    check(args)
    dataset = make_dataset(args, args.data_path)
    model, collator = load(args.model_path, args.model_id, args.model_local_path, args.trust_remote_code)
    collator.set_processor_options(processor_options(args.processor_kwargs))
    if "video" in dataset.media_kinds and not collator.takes_videos:
        raise ValueError(f"{args.data_path} holds videos, but {args.model_path} takes none.")
    print(f"{args.model_path}: answering {args.data_path} ({len(dataset)} samples)", flush=True)
    answers = []
    with open(args.output_path, "w", encoding="utf-8") as file:
        for line in generate_answers(model, collator, dataset, args.batch_size, args.max_new_tokens):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            answers.append(line)
    if not answers:
        raise ValueError(f"{args.data_path} holds no reply to a user, so there is nothing to answer.")
    print(f"{len(answers)} answers written to {args.output_path}")
    for name, value in metrics.score(answers).items():
        print(f"{name.replace('_', ' ')}: {value:.2f}")


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = HfArgumentParser(
        ReadingArguments, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model_path", required=True, help="Folder of a base, adapter or merged checkpoint.")
    parser.add_argument("--data_path", required=True, help="A data file, as train.py takes it (docs/dataset.md).")
    parser.add_argument("--output_path", required=True, help="JSONL file to write.")
    parser.add_argument("--model_id", help="Model id, where neither args.yaml nor the config tells the family.")
    parser.add_argument("--model_local_path", help="Base of an adapter; default: the path it was trained from.")
    add_trust_flag(parser)
    parser.add_argument("--batch_size", type=int, default=8, help="Answers generated at a time.")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="Longest answer, in tokens.")
    saved = saved_arguments(parser.parse_args(words).model_path)
    given = {word.split("=")[0].removeprefix("--") for word in words or sys.argv[1:]}
    names = [name for group in AS_IN_TRAINING if not given.intersection(group) for name in group]
    parser.set_defaults(**{name: saved[name] for name in names if name in saved})
    return parser.parse_args(words)


def add_trust_flag(parser: argparse.ArgumentParser) -> None:
    """Never taken from args.yaml: whoever wrote the folder would consent for whoever runs it."""
    help = ModelArguments.__dataclass_fields__["trust_remote_code"].metadata["help"]
    parser.add_argument("--trust_remote_code", type=string_to_bool, nargs="?", const=True, default=False, help=help)


def check(args: argparse.Namespace) -> None:
    """Refuse what would fail only after the model is loaded, or change nothing."""
    for name in ("batch_size", "max_new_tokens"):
        if (value := getattr(args, name)) < 1:
            raise ValueError(f"--{name} is {value}; it must be 1 or more.")
    check_reading(args)
    if os.path.isdir(args.output_path):
        raise ValueError(f"--output_path {args.output_path} is a folder; name a file.")
    folder = os.path.dirname(os.path.abspath(args.output_path))
    check_writable("--output_path", folder)
    os.makedirs(folder, exist_ok=True)


def load(
    model_path: str, model_id: str | None = None, model_local_path: str | None = None, trust_remote_code: bool = False
):
    """(model, collator) of a checkpoint folder; an adapter is put on its base.

    Raises:
        ValueError: no checkpoint there, or its base or family cannot be told.
    """
    if not os.path.isdir(model_path):
        raise ValueError(f"--model_path {model_path!r} is not a folder.")
    adapter = adapter_config(model_path)
    base_path = model_path
    if adapter is not None:
        base_path = model_local_path or adapter["base_model_name_or_path"]
    elif model_local_path:
        print(f"--model_local_path is not needed: {model_path} is a whole checkpoint, not an adapter.")
    model_id = model_id or saved_arguments(model_path).get("model_id")
    family = find_model(model_id).family if model_id else family_of(base_path)
    placement = {"device_map": "auto"} if torch.cuda.is_available() else {}  # over all GPUs
    loader = LOADERS.get(family)(base_path, trust_remote_code, dtype="auto", **placement)
    if adapter is not None:
        saved = saved_arguments(model_path)
        # The adapter corrects the base that it saw, so it stands on one that is quantized alike.
        if bits := trainable.quantized_bits(saved.get("q_lora"), saved.get("load_in_8bit")):
            loader.model_kwargs["quantization_config"] = trainable.quantization_config(loader, loader.dtype, bits)
    model = loader.load_model()
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, model_path)
    own_processor = os.path.isfile(os.path.join(model_path, "tokenizer_config.json")) and not loader.remote_code
    processor = loader.load_processor(model_path if own_processor else base_path)
    replaced = saved_arguments(model_path).get("chat_template")  # the run saved it with its processor
    return model, COLLATORS.get(family)(processor, chat_template=processor.chat_template if replaced else None)


def saved_arguments(model_path: str) -> dict:
    """The flags in `args.yaml`, here or in the run's folder above a `checkpoint-N`; empty where there is none."""
    for folder in (model_path, os.path.dirname(os.path.abspath(model_path))):
        path = os.path.join(folder, "args.yaml")
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                return yaml.safe_load(file)
    return {}


if __name__ == "__main__":
    cli(main)
