"""See rows as they will be trained on: trained text coloured, media folded. Takes train.py's flags; loads no weights.

    python preview.py --model_id qwen2.5-vl-3b-instruct --data_path train.json --num_rows 5
    python preview.py run.yaml --index 0 7 --json

With --json, stdout holds one object a line: {"index", "text", "trained", "num_tokens", "num_trained",
"num_image_tokens", "num_video_tokens", "cut"}, or {"index", "error"} for a row that cannot be used (exit code 1).
"""

import json
import re
import sys

from arguments import cli, parse_arguments
from collators import COLLATORS
from collators.base import IGNORE_INDEX
from datasets import MultimodalDataset
from loaders import LOADERS

GREEN, GREY, RESET = "\033[32m", "\033[90m", "\033[0m"


def main(words: list[str] | None = None) -> None:
    arguments, own = parse_arguments(words, description=__doc__, extend=add_flags)
    data = arguments.data
    dataset = MultimodalDataset(
        data.data_path,
        data.image_folder,
        data.video_folder,
        data.num_frames,
        data.user_key,
        data.assistant_key,
        check=False,
    )
    loader = LOADERS.get(arguments.model.family)(arguments.model.model_path)
    collator = COLLATORS.get(arguments.model.family)(
        loader.load_processor(), data.model_max_length, data.mask_question_tokens
    )
    failed = False
    for index in chosen(own, len(dataset)):
        try:
            row, tokens = describe(collator, dataset[index])
        except ValueError as error:
            row, tokens, failed = {"index": index, "error": str(error)}, None, True
        print(json.dumps(row, ensure_ascii=False) if own.json else show(row, tokens, collator), flush=True)
    sys.exit(1 if failed else 0)


def add_flags(parser) -> None:
    parser.add_argument("--index", type=int, nargs="+", help="Rows to show, by their place in the file from 0.")
    parser.add_argument("--num_rows", type=int, help="Show only the first rows.")
    parser.add_argument("--json", action="store_true", help="One JSON object a line.")


def chosen(own, length: int) -> list[int]:
    """The rows to show, in the order asked for; all of them without a selection."""
    for index in own.index or []:
        if not 0 <= index < length:
            raise ValueError(f"--index {index} is outside the file, which has rows 0 to {length - 1}.")
    return (own.index or list(range(length)))[: own.num_rows]


def describe(collator, sample: dict) -> tuple[dict, list[tuple[str, bool]]]:
    """An opened sample -> what `--json` prints, and its tokens in runs of (text, trained)."""
    encoded = collator.encode(sample)
    ids, labels = encoded.inputs["input_ids"][0], encoded.inputs["labels"][0]
    runs = decoded_runs(ids, labels != IGNORE_INDEX, collator.processor.tokenizer)
    row = {
        "index": sample["index"],
        "text": encoded.text,
        "trained": [text for text, trained in runs if trained],
        "num_tokens": len(ids),
        "num_trained": int((labels != IGNORE_INDEX).sum()),
        "num_image_tokens": int(collator.is_media(ids, "image").sum()),
        "num_video_tokens": int(collator.is_media(ids, "video").sum()),
        "cut": encoded.cut,
    }
    return row, runs


def decoded_runs(ids, trained, tokenizer) -> list[tuple[str, bool]]:
    """Neighbouring tokens that are all trained, or all not, decoded together."""
    edges = [0, *(i for i in range(1, len(ids)) if trained[i] != trained[i - 1]), len(ids)]
    return [
        (tokenizer.decode(ids[a:b], clean_up_tokenization_spaces=False), bool(trained[a]))
        for a, b in zip(edges, edges[1:])
    ]


def show(row: dict, runs: list[tuple[str, bool]] | None, collator) -> str:
    """A row for the terminal; trained text is green (between >> and << where there are no colours)."""
    if runs is None:
        return f"--- row {row['index']}: cannot be used\n{row['error']}\n"
    paint, plain, end = (GREEN, GREY, RESET) if sys.stdout.isatty() else (">>", "", "<<")
    text = ""
    for run, trained in runs:
        text += f"{paint}{run}{end}" if trained else f"{plain}{fold(run, collator)}{end if plain else ''}"
    counts = (
        f"{row['num_tokens']} tokens, {row['num_trained']} trained, {row['num_image_tokens']} image, "
        f"{row['num_video_tokens']} video, {row['cut']} cut"
    )
    return f"--- row {row['index']}: {counts}\n{text}\n"


def fold(text: str, collator) -> str:
    """Runs of a media token -> `[image: 576 tokens]`."""
    for kind in ("image", "video"):
        token = getattr(collator.processor, f"{kind}_token", None)
        if token:
            text = re.sub(
                f"(?:{re.escape(token)}\\s?)+", lambda m, t=token, k=kind: f"[{k}: {m[0].count(t)} tokens]", text
            )
    return text


if __name__ == "__main__":
    cli(main)
