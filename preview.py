"""Show rows as training sees them, with the trained text marked. Accepts all flags of train.py; loads no weights.

    python preview.py --model_id qwen2.5-vl-3b-instruct --data_path train.json --num_rows 5
    python preview.py run.yaml --random 20 --html page.html
    python preview.py run.yaml --index 0 7 --json
    python preview.py run.yaml --check                    # check every row (reports/data_report.py)

With --json, each line of stdout is one object: {"index", "text", "trained", "num_tokens", "num_trained",
"num_image_tokens", "num_video_tokens", "cut", "token_ids", "labels"}, or {"index", "error"} for a row that cannot be
used. The exit code is 1 if train.py would refuse a row or the chat template.
"""

if __name__ == "__main__":
    import entry

    entry.begin(__file__)  # answers --help: the imports below take seconds

import json
import random
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout

from arguments import parse_arguments
from collators.base import ChatCollator
from collators.label_check import check_labels
from collators.template_check import check_template
from entry import cli, end
from loaders import LOADERS
from loaders.output_folder import check_output_file
from reading.dataset import MultimodalDataset
from reading.rows import content_parts
from reading.split import make_datasets
from reports import preview_views
from reports.preview_rows import Preview, examine
from training.added_tokens import added_tokens
from training.engines import print_once
from training.make_collator import make_collator

# The number of rows that --html shows by default.
PAGE_ROWS = 50


def main(words: list[str] | None = None) -> None:
    arguments, own = parse_arguments(words, description=__doc__, extend=add_flags)
    check_own_flags(own)
    if own.check:
        from reports import data_report  # it imports libraries that are not needed to show rows

        sys.exit(data_report.run(arguments, own))
    stdout, failed = sys.stdout, []
    with redirect_stdout(sys.stderr):  # libraries may print; stdout is for our lines only
        dataset, collator, refusal = load_data(arguments)
        (indices, number), typed = chosen(own, dataset, arguments.training.seed), 0

        def previews() -> Iterator[Preview]:
            for index in indices:
                nonlocal typed
                preview = examine(dataset, collator, index)
                typed += bool(preview.sample) and collator.template.holds_frame_tokens(preview.sample["messages"])
                failed.extend([index] if "error" in preview.row else [])
                yield preview

        if own.json:
            for preview in previews():
                print(json.dumps(preview.row, ensure_ascii=False, allow_nan=False), file=stdout, flush=True)
        elif own.html:
            model, shown = arguments.model, f"{len(indices)} of {number} rows"
            facts = [f"{model.model_id}: {model.model_path}", shown]
            preview_views.write_page(own.html, previews(), collator, dataset.name, facts)
            print(f"{own.html}: {shown}", file=stdout)
        else:
            preview_views.print_rows(previews(), collator, stdout)
        if typed:
            print(f"{typed} of {len(indices)} rows contain a control token, such as </s>, as text: it stays text.")
    if refusal:
        end(f"Error: {refusal}")  # train.py ends with this error too; the rows above show its cause
    sys.exit(1 if failed else 0)


def add_flags(parser) -> None:
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--index", type=int, nargs="+", help="Indices of the rows to show, from 0.")
    rows.add_argument("--random", type=int, metavar="N", help="Show N random rows, drawn with --seed.")
    rows.add_argument("--search", metavar="TEXT", help="Show the rows whose messages contain this text.")
    parser.add_argument("--num_rows", type=int, help="Show only the first N rows.")
    parser.add_argument("--skip_rows", type=int, default=0, help="Skip the first N rows.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object per line.")
    parser.add_argument("--html", metavar="FILE", help=f"Write an HTML page. Default: the first {PAGE_ROWS} rows.")
    parser.add_argument("--check", action="store_true", help="Check every row, and report whether training can start.")
    parser.add_argument("--num_processes", type=int, help="With --check: number of processes, to count the steps.")


def check_own_flags(own) -> None:
    for name, least in {"num_rows": 1, "random": 1, "num_processes": 1, "skip_rows": 0}.items():
        if (value := getattr(own, name)) is not None and value < least:
            raise ValueError(f"--{name} is {value}; it must be {least} or more.")
    if own.num_processes and not own.check:
        raise ValueError("--num_processes has no effect without --check: add --check.")
    for name in ("index", "random", "search", "num_rows", "skip_rows"):
        if getattr(own, name) and own.check:
            raise ValueError(f"--{name} has no effect with --check, which checks all rows: leave one out.")
    if own.json and own.html and not own.check:
        raise ValueError("--json and --html are mutually exclusive: leave one out.")
    if own.html:
        check_output_file("--html", own.html, ".html")


def load_data(arguments) -> tuple[MultimodalDataset, ChatCollator, ValueError | None]:
    """Return the data set and the collator of train.py, and the error if train.py would refuse the chat template.
    Unusable rows are kept, with their error messages in `errors` of the data set.
    """
    data, model = arguments.data, arguments.model
    dataset, _ = make_datasets(data, arguments.training.seed, evaluation=False, check=False)
    print(*dataset.notes(), sep="\n", end="\n" * bool(dataset.notes()))
    loader = LOADERS.get(model.family)(model.model_path, model.trust_remote_code)
    collator = make_collator(model.family, loader, data, dataset)
    check_labels(collator)
    print_once(added_tokens(loader, collator.template))
    try:
        print_once(check_template(collator, dataset))
    except ValueError as error:
        return dataset, collator, error
    return dataset, collator, None


def chosen(own, dataset: MultimodalDataset, seed: int) -> tuple[list[int], int]:
    """Return the indices of the rows to show (--index keeps its order), and the number of rows, or of --search hits."""
    length = len(dataset)
    for index in own.index or []:
        if not 0 <= index < length:
            raise ValueError(f"--index {index} is outside the file, which has rows 0 to {length - 1}.")
    if own.random:
        indices = sorted(random.Random(seed).sample(range(length), min(own.random, length)))
    else:
        indices = own.index or range(length)
    if own.search:
        found = [i for i in indices if (row := dataset.rows[i]) and own.search.lower() in text_of_row(row).lower()]
        indices, length = found, len(found)
    is_all = not (own.index or own.random or own.num_rows)
    most = PAGE_ROWS if own.html and is_all else own.num_rows
    return list(indices[own.skip_rows :][:most]), length


def text_of_row(row: dict) -> str:
    return "\n".join(part.get("text", "") for part in content_parts(row))


if __name__ == "__main__":
    cli(main)
