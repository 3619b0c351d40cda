"""Generate answers with a base, adapter or merged checkpoint: for all rows of a data file, or in a conversation.

    python predict.py --model_path out --data_path test.json --output_path answers.jsonl
    python predict.py --model_path out --chat
    python predict.py --model_path out --image photo.png --prompt "What is broken?"

Decoding is greedy, and each conversation is rendered with the checkpoint's own chat template. With --data_path, every
assistant turn is generated after the reference history, and each output line is {"index", "turn", "question",
"prediction", "reference", "exact_match"}. A chat reads questions from the terminal, or one per line of standard input.
"""

if __name__ == "__main__":
    import entry

    entry.begin(__file__)  # answers --help: the imports below take seconds

import argparse
import json
import os
import sys
from dataclasses import fields

import torch
from tqdm import tqdm

from arguments import SWITCH, Parser, ReadingArguments
from collators import COLLATORS
from collators.label_check import check_labels
from collators.pixel_bounds import set_options, settle_resize
from collators.template_check import check_template
from entry import cli
from evaluation import metrics
from evaluation.answers import generate_answers, questions
from evaluation.chat import Conversation, chat
from loaders import LOADERS
from loaders.new_tokens import trained_rows
from loaders.output_folder import adapter_config, check_output_file, family_in, saved_arguments
from loaders.quantization import quantization_config, quantized_bits
from merging.whole_model import with_adapter
from reading.dataset import make_dataset
from reading.options import AUTO_PIXELS
from reading.strict_json import json_object

# Flags that change what the model sees or is expected to write. They default to their values in training.
# If one flag of a group is given, no flag of this group is taken from training.
AS_IN_TRAINING = (
    ("image_size", "min_pixels", "max_pixels", "jpeg_draft", "keep_processor_config"),
    ("num_frames", "fps", "max_frames"),
    *(("image_resize_algorithm",), ("video_max_pixels",), ("processor_kwargs",), ("template_kwargs",), ("box_format",)),
)

# Flags that only work with --data_path, and flags that only work with --chat or --prompt.
OF_A_FILE = ("output_path", "metric", "batch_size", "max_samples", "allow_outside")
OF_A_FILE += ("user_key", "assistant_key", "field_messages", "columns")
OF_A_CHAT = ("image", "video")


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    check_words(args)
    if args.data_path:
        answer_file(args)
    else:
        answer_questions(args)


def answer_file(args: argparse.Namespace) -> None:
    measures = metrics.load_metrics(args.metric)
    dataset = make_dataset(args, "data_path", args.data_path)
    if os.path.realpath(args.output_path) in [os.path.realpath(index.path) for index in dataset.files]:
        raise ValueError(f"--output_path {args.output_path} is a file of --data_path: name another, or it is lost.")
    if not (asked := questions(dataset)):
        raise ValueError(f"{args.data_path} has no reply to a user message, so there is nothing to answer.")
    model, collator = load_with_options(args)
    if "video" in dataset.media_kinds and not collator.template.takes_videos:
        raise ValueError(f"{args.data_path} contains videos, but {args.model_path} does not accept videos.")
    notes = dataset.notes()
    try:
        notes.append(check_template(collator, dataset))
    except ValueError as error:  # a checkpoint that was trained elsewhere: use the format of its family
        notes.append(f"WARNING: {error}")
    about = f"{args.model_path}: answering {args.data_path} ({len(dataset)} samples)"
    print("\n".join([about, *filter(None, notes)]), flush=True)
    answers = []
    with open(args.output_path, "w", encoding="utf-8", buffering=1) as file:  # write each answer at once
        found = generate_answers(model, collator, dataset, args.batch_size, args.max_new_tokens or 128, asked)
        for line in tqdm(found, "Answering", len(asked), unit="answer", disable=None):
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            answers.append(line)
    print(f"{len(answers)} answers written to {args.output_path}")
    for name, value in metrics.score(answers, measures).items():
        print(f"{name.replace('_', ' ')}: {value:.2f}")


def answer_questions(args: argparse.Namespace) -> None:
    conversation = Conversation(args, args.system_prompt)
    opened = [conversation.add(kind, path) for kind in ("image", "video") for path in getattr(args, kind) or []]
    model, collator = load_with_options(args)
    if args.video and not collator.template.takes_videos:
        raise ValueError(f"--video: {args.model_path} does not accept videos.")
    print(*opened, sep="\n", end="\n" * bool(opened), file=sys.stderr)
    max_new_tokens = args.max_new_tokens or 512
    if args.chat:
        chat(model, collator, conversation, max_new_tokens)
    else:
        conversation.ask(model, collator, args.prompt, max_new_tokens)


def load_with_options(args: argparse.Namespace):
    """Return the (model, collator) chosen by the flags, with the processor options of the flags applied."""
    flags = ("model_path", "model_id", "model_local_path", "trust_remote_code", "template_kwargs", "box_format")
    model, collator = load(**{name: getattr(args, name) for name in flags})
    set_options(collator, args)
    check_labels(collator)
    return model, collator


def make_parser() -> Parser:
    parser = Parser(ReadingArguments, prog="predict.py", description=__doc__)
    parser.add_argument("--model_path", required=True, help="Folder of a base, adapter or merged checkpoint.")
    parser.add_argument("--data_path", help="Data file to answer, in any format of train.py (docs/dataset.md).")
    parser.add_argument("--output_path", help="JSONL file to write the answers to.")
    parser.add_argument("--chat", **SWITCH, help="Chat in the terminal, or answer each line of piped input.")
    parser.add_argument("--image", nargs="+", help="Images for --prompt, or for the first question of --chat.")
    parser.add_argument("--video", nargs="+", help="Videos for --prompt, or for the first question of --chat.")
    parser.add_argument("--model_id", help="Model id, if neither args.yaml nor the config names the family.")
    parser.add_argument("--model_local_path", help="Base model of an adapter. Default: the path used in training.")
    # Never taken from args.yaml: only the user may consent, not the author of the checkpoint.
    parser.add_argument("--trust_remote_code", **SWITCH, help="Run the checkpoint's own code, with your permissions.")
    parser.add_argument("--batch_size", type=int, default=8, help="Batch size of the generation, with --data_path.")
    parser.add_argument("--max_new_tokens", type=int, help="Maximum tokens of an answer. Default: 128; 512 in a chat.")
    more = f"More metrics for --data_path: {', '.join(metrics.METRICS)}, or FILE.py:FUNCTION (docs/evaluation.md)."
    parser.add_argument("--metric", nargs="+", help=more)
    return parser


def parse(words: list[str] | None) -> argparse.Namespace:
    parser, words = make_parser(), sys.argv[1:] if words is None else words
    saved = saved_arguments(parser.parse_args(words).model_path)
    given = parser.given(words)
    names = [name for group in AS_IN_TRAINING if not given.intersection(group) for name in group]
    parser.set_defaults(**{name: saved[name] for name in names if name in saved})
    # A data file may lack the answers. All replies of a row are compared, whatever --train_replies was in training.
    parser.set_defaults(allow_empty_answers=True, train_replies="all")
    args = parser.parse_args(words)
    args.given = given
    return args


def check_words(args: argparse.Namespace) -> None:
    """Refuse flags that have no effect, and flags that would fail only after the model is loaded."""
    modes = [name for name in ("data_path", "chat", "prompt") if getattr(args, name)]
    if modes[0:2] == ["data_path", "prompt"]:
        modes.pop()  # with --data_path, --prompt is the question of each row
    if len(modes) != 1:
        found = " and ".join(f"--{name}" for name in modes) or "none of them is given"
        raise ValueError(f"Choose one: --data_path with --output_path, --chat, or --prompt ({found}).")
    for name in OF_A_CHAT if args.data_path else OF_A_FILE:
        if name in args.given:
            raise ValueError(f"--{name} has no effect with --{modes[0]}; leave it out.")
    for name in ("batch_size", "max_new_tokens"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be 1 or more.")
    ReadingArguments(**{field.name: getattr(args, field.name) for field in fields(ReadingArguments)})  # validates
    if args.max_pixels == AUTO_PIXELS:
        raise ValueError("--max_pixels auto works only in training. Pass a number, or remove the flag.")
    if args.given & {"min_pixels", "max_pixels"} and os.path.isdir(args.model_path):  # otherwise, as in training
        base = args.model_local_path or (adapter_config(args.model_path) or {}).get("base_model_name_or_path")
        settle_resize(args, family_in(args.model_path, base or args.model_path, args.model_id))
    if not args.data_path:
        return
    if not args.output_path:
        raise ValueError("--data_path needs --output_path, the file to write the answers to.")
    check_output_file("--output_path", args.output_path)


def load(
    model_path: str,
    model_id: str | None = None,
    model_local_path: str | None = None,
    trust_remote_code: bool = False,
    template_kwargs: str | None = None,
    box_format: str | None = None,
):
    """Return the (model, collator) of a checkpoint folder. An adapter is loaded together with its base model.

    Args:
        template_kwargs, box_format: values of the flags with these names. Default: those of the training run.

    Raises:
        ValueError: the folder is not a checkpoint, or its base model or its family is unknown.
    """
    if not os.path.isdir(model_path):
        raise ValueError(f"--model_path {model_path!r} is not a folder.")
    adapter, base_path = adapter_config(model_path), model_path
    if adapter is not None:
        base_path = model_local_path or adapter["base_model_name_or_path"]
    elif model_local_path:
        print(f"--model_local_path is ignored: {model_path} is a whole checkpoint, not an adapter.")
    saved, family = saved_arguments(model_path), family_in(model_path, base_path, model_id)
    placement = {"device_map": "auto"} if torch.cuda.is_available() else {}  # spread the layers over all GPUs
    loader = LOADERS.get(family)(base_path, trust_remote_code, dtype="auto", **placement)
    loader.pieces = trained_rows(adapter)
    # If the adapter was trained on a quantized base, quantize the base the same way.
    if adapter is not None and (bits := quantized_bits(saved.get("q_lora"), saved.get("load_in_8bit"))):
        loader.model_kwargs["quantization_config"] = quantization_config(loader, loader.dtype, bits)
    model = loader.load_model()
    if adapter is not None:
        model = with_adapter(model, model_path, base_path)
    own_processor = os.path.isfile(os.path.join(model_path, "tokenizer_config.json")) and not loader.remote_code
    processor = loader.load_processor(model_path if own_processor else base_path)
    chat_template = processor.chat_template if saved.get("chat_template") else None  # saved with the run's processor
    return model, COLLATORS.get(family)(
        processor,
        chat_template=chat_template,
        stop_tokens=loader.stop_tokens(processor.tokenizer),
        template_kwargs=json_object("template_kwargs", template_kwargs or saved.get("template_kwargs")),
        box_format=box_format or saved.get("box_format"),
    )


if __name__ == "__main__":
    cli(main)
