"""See rows as they will be trained on: trained text coloured, media folded. Takes train.py's flags; loads no weights.

    python preview.py --model_id qwen2.5-vl-3b-instruct --data_path train.json --num_rows 5
    python preview.py run.yaml --index 0 7 --json

With --json, stdout holds one object a line: {"index", "text", "trained", "num_tokens", "num_trained",
"num_image_tokens", "num_video_tokens", "cut"}, or {"index", "error"} for a row that cannot be used (exit code 1).
"""

import json
import sys
from contextlib import redirect_stdout
from typing import NamedTuple

from arguments import cli, parse_arguments
from collators import make_collator
from collators.base import IGNORE_INDEX, ChatCollator
from datasets import MultimodalDataset, make_dataset
from loaders import LOADERS

# Terminal colours: green, grey, cyan.
COLOURS = {"trained": "\033[32m", "context": "\033[90m", "image": "\033[36m", "video": "\033[36m"}


class Run(NamedTuple):
    """Neighbouring tokens of one kind: "trained", "context", "image" or "video"."""

    kind: str
    text: str  # none of media
    num_tokens: int


def main(words: list[str] | None = None) -> None:
    arguments, own = parse_arguments(words, description=__doc__, extend=add_flags)
    stdout, failed = sys.stdout, False
    in_colour = stdout.isatty()
    with redirect_stdout(sys.stderr):  # whatever a library prints: stdout holds our lines only
        dataset, collator = load(arguments)
        if not own.json:
            print(f"Trained text is {'green' if in_colour else 'between >> and <<'}.\n", file=stdout)
        for index in chosen(own, len(dataset)):
            try:
                row, runs = describe(collator, dataset[index])
            except ValueError as error:
                row, runs, failed = {"index": index, "error": str(error)}, None, True
            line = json.dumps(row, ensure_ascii=False) if own.json else show(row, runs, in_colour)
            print(line, file=stdout, flush=True)
    sys.exit(1 if failed else 0)


def add_flags(parser) -> None:
    parser.add_argument("--index", type=int, nargs="+", help="Rows to show, by their place in the file from 0.")
    parser.add_argument("--num_rows", type=int, help="Show only the first rows.")
    parser.add_argument("--json", action="store_true", help="One JSON object a line.")


def load(arguments) -> tuple[MultimodalDataset, ChatCollator]:
    """Data and collator as train.py makes them; rows that cannot be used stay, in `errors`."""
    data, model = arguments.data, arguments.model
    dataset = make_dataset(data, data.data_path, check=False, weighted=True)
    loader = LOADERS.get(model.family)(model.model_path, model.trust_remote_code)
    return dataset, make_collator(model.family, loader, data)


def chosen(own, length: int) -> list[int]:
    """The rows to show, in the order asked for; all of them without a selection."""
    if own.num_rows is not None and own.num_rows < 1:
        raise ValueError(f"--num_rows is {own.num_rows}; it must be 1 or more.")
    for index in own.index or []:
        if not 0 <= index < length:
            raise ValueError(f"--index {index} is outside the file, which has rows 0 to {length - 1}.")
    return (own.index or list(range(length)))[: own.num_rows]


def describe(collator, sample: dict) -> tuple[dict, list[Run]]:
    """An opened sample -> what `--json` prints, and its tokens in runs."""
    encoded = collator.encode(sample)
    ids, labels = encoded.inputs["input_ids"][0], encoded.inputs["labels"][0]
    is_kind = {"trained": labels != IGNORE_INDEX} | {kind: collator.is_media(ids, kind) for kind in ("image", "video")}
    kinds = ["context"] * len(ids)
    for kind, mask in is_kind.items():
        for i in mask.nonzero()[:, 0].tolist():
            kinds[i] = kind
    edges = [0, *(i for i in range(1, len(ids)) if kinds[i] != kinds[i - 1]), len(ids)]
    decode = collator.processor.tokenizer.decode
    runs = []
    for a, b in zip(edges, edges[1:]):
        is_text = kinds[a] in ("trained", "context")
        runs.append(Run(kinds[a], decode(ids[a:b], clean_up_tokenization_spaces=False) if is_text else "", b - a))
    row = {
        "index": sample["index"],
        "text": encoded.text,
        "trained": [run.text for run in runs if run.kind == "trained"],
        "num_tokens": len(ids),
        "num_trained": int(is_kind["trained"].sum()),
        "num_image_tokens": int(is_kind["image"].sum()),
        "num_video_tokens": int(is_kind["video"].sum()),
        "cut": encoded.cut,
    }
    return row, runs


def show(row: dict, runs: list[Run] | None, in_colour: bool) -> str:
    """A row for the terminal: trained text marked, each run of media tokens folded to `[image: 576 tokens]`."""
    if runs is None:
        return f"--- row {row['index']} cannot be used\n{row['error']}\n"
    text = ""
    for run in runs:
        shown = run.text if run.kind in ("trained", "context") else f"[{run.kind}: {run.num_tokens} tokens]"
        if in_colour:
            text += f"{COLOURS[run.kind]}{shown}\033[0m"
        else:
            text += f">>{shown}<<" if run.kind == "trained" else shown
    counts = [f"{row['num_tokens']} tokens", f"{row['num_trained']} trained"]
    counts += [f"{row[f'num_{kind}_tokens']} {kind}" for kind in ("image", "video") if row[f"num_{kind}_tokens"]]
    counts += [f"{row['cut']} cut"] if row["cut"] else []
    return f"--- row {row['index']}: {', '.join(counts)}\n{text}\n"


if __name__ == "__main__":
    cli(main)
