"""See rows as they will be trained on: trained text marked, media folded. Takes train.py's flags; loads no weights.

    python preview.py --model_id qwen2.5-vl-3b-instruct --data_path train.json --num_rows 5
    python preview.py run.yaml --random 20 --html page.html
    python preview.py run.yaml --index 0 7 --json

With --json, stdout holds one object a line: {"index", "text", "trained", "num_tokens", "num_trained",
"num_image_tokens", "num_video_tokens", "cut", "token_ids", "labels"}, or {"index", "error"} for a row that cannot be
used (exit code 1).
"""

import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout

import preview_views
from arguments import cli, parse_arguments
from checks import check_writable
from collators import make_collator
from collators.base import ChatCollator
from datasets import MultimodalDataset, make_dataset
from loaders import LOADERS
from preview_rows import Preview, examine

# Of --html without a selection of rows.
PAGE_ROWS = 50


def main(words: list[str] | None = None) -> None:
    arguments, own = parse_arguments(words, description=__doc__, extend=add_flags)
    stdout, failed = sys.stdout, []
    with redirect_stdout(sys.stderr):  # whatever a library prints: stdout holds our lines only
        if own.html:
            check_file(own.html)
        dataset, collator = load(arguments)
        indices = chosen(own, len(dataset), arguments.training.seed)

        def previews() -> Iterator[Preview]:
            for index in indices:
                preview = examine(dataset, collator, index)
                failed.extend([index] if "error" in preview.row else [])
                yield preview

        if own.json:
            for preview in previews():
                print(json.dumps(preview.row, ensure_ascii=False), file=stdout, flush=True)
        elif own.html:
            model, shown = arguments.model, f"{len(indices)} of {len(dataset)} rows"
            facts = [f"{model.model_id}: {model.model_path}", shown]
            preview_views.write_page(own.html, previews(), collator, dataset.name, facts)
            print(f"{own.html}: {shown}", file=stdout)
        elif stdout.isatty():
            preview_views.print_rich(previews(), collator, stdout)
        else:
            preview_views.print_plain(previews(), collator, stdout)
    sys.exit(1 if failed else 0)


def add_flags(parser) -> None:
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--index", type=int, nargs="+", help="Rows to show, by their place in the data from 0.")
    rows.add_argument("--random", type=int, metavar="N", help="Show N rows, drawn at random by --seed.")
    parser.add_argument("--num_rows", type=int, help="Show only the first rows.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="One JSON object a line.")
    form.add_argument(
        "--html", metavar="FILE", help=f"Write one self-contained page; of {PAGE_ROWS} rows, if none are chosen."
    )


def check_file(path: str) -> None:
    if os.path.isdir(path):
        raise ValueError(f"--html {path} is a folder; name a file.")
    folder = os.path.dirname(os.path.abspath(path))
    check_writable("--html", folder)
    os.makedirs(folder, exist_ok=True)


def load(arguments) -> tuple[MultimodalDataset, ChatCollator]:
    """Data and collator as train.py makes them; rows that cannot be used stay, in `errors`."""
    data, model = arguments.data, arguments.model
    dataset = make_dataset(data, data.data_path, check=False, weighted=True)
    loader = LOADERS.get(model.family)(model.model_path, model.trust_remote_code)
    return dataset, make_collator(model.family, loader, data)


def chosen(own, length: int, seed: int) -> list[int]:
    """The rows to show: --index in the order asked for, else ascending."""
    for name in ("num_rows", "random"):
        if (value := getattr(own, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be 1 or more.")
    for index in own.index or []:
        if not 0 <= index < length:
            raise ValueError(f"--index {index} is outside the file, which has rows 0 to {length - 1}.")
    if own.random:
        indices = sorted(random.Random(seed).sample(range(length), min(own.random, length)))
    else:
        indices = own.index or range(length)
    is_all = not (own.index or own.random or own.num_rows)
    return list(indices[: PAGE_ROWS if own.html and is_all else own.num_rows])


if __name__ == "__main__":
    cli(main)
