"""Rows per second of counting tokens: one by one, by `token_lengths` for the first time, and from what it kept.

    python benchmarks/lengths.py
    python benchmarks/lengths.py --rows 1000 10000 --model_family_id llava-1.5

Makes a tiny checkpoint and data sets of text and image references (all to a few small pictures) in a temporary folder.
Every measurement is a process of its own, after the data set was opened; the three ways take turns, the medians are
shown. One by one means: read the row, render it, call its tokenizer; of at most 2,000 rows.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from open_rows import write  # noqa: E402
from PIL import Image  # noqa: E402

ALONE = 2000
PICTURES = 8


def measure(way: str, family: str, checkpoint: str, path: str, cache: str) -> float:
    """Seconds a row, in a process of its own."""

    from collators import COLLATORS
    from loaders import LOADERS
    from reading.dataset import MultimodalDataset
    from reading.options import MediaOptions

    dataset = MultimodalDataset(path, media=MediaOptions(cache_folder=cache))
    collator = COLLATORS.get(family)(LOADERS.get(family)(checkpoint).load_processor())
    collator.budget.count_text_tokens([dataset.rows[0]])  # the template is compiled
    start = time.perf_counter()
    if way == "one by one":
        for i in range(min(ALONE, len(dataset))):
            text, _ = collator.template.render(dataset.rows[i]["messages"])
            len(collator._tokenizer(text).input_ids)
        return (time.perf_counter() - start) / min(ALONE, len(dataset))
    collator.budget.token_lengths(dataset)
    return (time.perf_counter() - start) / len(dataset)


def in_child(*task) -> float:
    command = [sys.executable, __file__, "--task", *map(str, task)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--model_family_id", default="qwen2.5-vl")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--task", nargs=5, help=argparse.SUPPRESS)  # of a child
    own = parser.parse_args()
    if own.task:
        print(json.dumps(measure(*own.task)))
        return
    from tiny_checkpoints import make_tiny_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = os.path.join(folder, "checkpoint")
        make_tiny_checkpoint(own.model_family_id, checkpoint)
        for i in range(PICTURES):
            Image.new("RGB", (64 + 28 * i, 64), (i * 30, 99, 99)).save(os.path.join(folder, f"{i}.png"))
        print("     rows | rows/s: one by one    first time        kept | first: ratio   kept: ratio    kept: s")
        for count in own.rows:
            path, cache = Path(folder) / f"{count}.jsonl", os.path.join(folder, "cache")
            write(path, count, PICTURES)
            task = own.model_family_id, checkpoint, path, cache
            in_child("one by one", *task)  # the index is made
            seconds = {"one by one": [], "first": [], "kept": []}
            for _ in range(own.repeats):
                for way, found in seconds.items():
                    if way == "first":
                        for numbers in Path(cache).rglob("*.numbers"):
                            numbers.unlink()
                    found.append(in_child(way, *task))
            alone, first, kept = (statistics.median(found) for found in seconds.values())
            rates = f"{1 / alone:12,.0f} {1 / first:17,.0f} {1 / kept:13,.0f}"
            print(f"{count:9,} | {rates} | {alone / first:9.1f} {alone / kept:15.1f} {kept * count:12.3f}", flush=True)


if __name__ == "__main__":
    main()
