"""Compare two runs of train.py: how verdict, figures, settings, data and answers differ, and all losses in one plot.

    python compare_runs.py out/lora out/full --html compare.html

It reads `log.jsonl`, `args.yaml`, `run.json` and `eval_answers` in the output folders. The runs may still be active.
"""

import sys
from pathlib import Path

import entry
from command_line import FlagParser


def parse(words: list[str] | None = None):
    parser = FlagParser(description=__doc__)
    parser.add_argument("runs", nargs=2, metavar="RUN", help="output folder of train.py")
    parser.add_argument("--html", metavar="FILE", help="also write an HTML page with plots and answers")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    from loaders.output_folder import check_output_file  # these imports take seconds, and --help needs none
    from reports import run_comparison

    runs = [run_comparison.read_run(folder) for folder in args.runs]
    if args.html:
        check_output_file("--html", args.html, ".html")
        Path(args.html).write_text(run_comparison.page(*runs), encoding="utf-8")
    run_comparison.show(*runs, sys.stdout)


if __name__ == "__main__":
    entry.cli(main)
