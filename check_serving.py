"""Check whether inference servers can load a whole checkpoint or an adapter, and show how to serve it.

    python check_serving.py --model_path merged
    python check_serving.py --model_path merged --data_path test.json --url http://127.0.0.1:8000/v1

It opens the files through transformers, as vLLM and SGLang do, and reads only the headers of the weights. This takes
seconds for a model of any size. Each check prints what it found, or a fault and its fix; after a fault, the exit code
is 1. Then the script prints what is known about each server (merging/servers.yaml), and the command for vLLM.

With --url, a running server and the folder both answer questions of --data_path, with greedy decoding, and one line
says whether the answers agree, or why not. All other flags are those of predict.py. OPENAI_API_KEY is sent if set.
"""

if __name__ == "__main__":
    import entry

    entry.begin(__file__)  # answers --help: the imports below take seconds

import argparse
import os
import sys

import predict
from command_line import FlagParser
from entry import cli
from merging import servers, serving
from merging.ask_server import compare_answers


def main(words: list[str] | None = None) -> None:
    args, other = parse(words)
    path = args.model_path
    if not os.path.isdir(path):
        raise ValueError(f"--model_path {path!r} is not a folder.")
    failed = 0
    for is_whole, name, text in serving.check_folder(path):
        failed += not is_whole
        print(f"{'ok' if is_whole else 'FAULT':<5} {name}: {text}", flush=True)
    if failed:
        raise ValueError(f"{path} cannot be served: {failed} of the checks failed. Fix each FAULT above.")
    print("The files are complete.")
    print(*([compare_answers(args, other)] if args.url else servers.advice(path)), sep="\n")


def parse(words: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the flags of this script, and the words left for predict.py."""
    parser = FlagParser(description=__doc__)
    parser.others = predict.make_parser().fields_of
    parser.add_argument("--model_path", required=True, help="Folder of a merged or fully trained model, or an adapter.")
    parser.add_argument("--data_path", help="With --url: a data file that was not trained on (docs/dataset.md).")
    parser.add_argument("--url", help="URL of a running OpenAI-compatible server, such as http://127.0.0.1:8000/v1.")
    parser.add_argument("--rows", type=int, default=12, help="With --url: number of questions to ask.")
    parser.add_argument("--served_model_name", help="Name of the model on the server. Default: the folder's name.")
    words = sys.argv[1:] if words is None else words
    args, other = parser.parse_known_args(words)
    if bool(args.url) != bool(args.data_path):
        raise ValueError("--url and --data_path require each other: pass the server to ask, and the questions to ask.")
    of_url = sorted(parser.given(words) & {"rows", "served_model_name"})
    if not args.url and (idle := [*other, *(f"--{name}" for name in of_url)]):
        raise ValueError(f"{idle[0]} has no effect without --url: add --url, or remove {idle[0]}.")
    if args.rows < 1:
        raise ValueError(f"--rows is {args.rows}; it must be 1 or more.")
    return args, other


if __name__ == "__main__":
    cli(main)
