"""Whether inference servers can read a folder's files, and how to serve it: a whole checkpoint, or an adapter.

    python check_serving.py --model_path merged

It opens the files as vLLM and SGLang do, through transformers, and reads the headers of the weights, which takes
seconds for a model of any size. Each line says what was found, or what is missing or broken and the fix; a fault makes
the exit code 1. Then come what is known of each server (merging/servers.yaml; it asks none), and the command for vLLM.
"""

if __name__ == "__main__":
    import entry

    entry.begin(__file__)  # answers --help: the imports below take seconds

import argparse
import os

from entry import cli
from merging import servers, serving


def main(words: list[str] | None = None) -> None:
    path = parse(words).model_path
    if not os.path.isdir(path):
        raise ValueError(f"--model_path {path!r} is not a folder.")
    failed = 0
    for is_whole, name, text in serving.check(path):
        failed += not is_whole
        print(f"{'ok' if is_whole else 'FAULT':<5} {name}: {text}", flush=True)
    if failed:
        raise ValueError(f"{path} cannot be served as it is: {failed} of the checks failed (above).")
    print("The files are whole.", *servers.advice(path), sep="\n")


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model_path", required=True, help="Folder of a merged or fully trained model, or an adapter.")
    return parser.parse_args(words)


if __name__ == "__main__":
    cli(main)
