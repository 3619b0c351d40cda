"""How long a script takes to start: --help and the table of models, and where a run's time goes before its end.

    python benchmarks/start.py
    python benchmarks/start.py --rounds 10 --family llava-1.5

First the medians of interleaved runs, as ratios to `python -c "import json"`, which is little more than Python itself.
Then three runs of one step on a tiny checkpoint: seconds by the statement of `finetune` in train.py that was under way,
by looking every 2 ms; before it lie the imports, whose floor is `import transformers.trainer`, peft and DeepSpeed's
included, and the flags. On a large model, loading weights and the step come to more; all else stays as it is here.
"""

import argparse
import ast
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from supported_models import MODELS  # noqa: E402

BASE = ["-c", "import json"]
COMMANDS = [
    ["supported_models.py"],
    *[[f"{name}.py", "--help"] for name in ("train", "preview", "predict", "merge_lora_weights", "tiny_models")],
]
FLOOR = ["-c", "import transformers.trainer"]
WAYS = {"full": [], "lora": ["--use_lora", "True"], "q_lora": ["--use_lora", "True", "--q_lora", "True"]}


def seconds(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=REPO, check=True, capture_output=True)
    return time.perf_counter() - start


def breakdown(words: list[str]) -> None:
    """Run train.py in this process and print seconds by statement of its `finetune`."""
    path = REPO / "train.py"
    body = next(node.body for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "finetune")
    statements = {line: ast.unparse(node) for node in body for line in range(node.lineno, node.end_lineno + 1)}
    main_thread, spent, done = threading.get_ident(), Counter(), threading.Event()

    def watch() -> None:
        last = time.perf_counter()
        while not done.wait(0.002):
            frame = sys._current_frames()[main_thread]
            while frame and not (frame.f_code.co_filename == str(path) and frame.f_code.co_name == "finetune"):
                frame = frame.f_back
            now = time.perf_counter()
            spent[statements[frame.f_lineno] if frame else "imports and flags"] += now - last
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        import train

        train.main(words)
    finally:
        done.set()
        watcher.join()
    for statement, time_spent in spent.items():
        if time_spent >= 0.01:
            print(f"{time_spent:8.2f} s  {statement.splitlines()[0][:90]}", file=sys.stderr)
    print(f"{spent.total():8.2f} s  in all", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command (default: 5)")
    parser.add_argument("--family", default="qwen2-vl", help="family of the tiny checkpoint (default: qwen2-vl)")
    args = parser.parse_args()
    commands = [BASE, *COMMANDS, FLOOR]
    times = [[seconds(words) for words in commands] for _ in range(args.rounds)]
    base, *others = (statistics.median(column) for column in zip(*times))
    for words, median in zip(commands[1:], others):
        print(f"python {' '.join(words):<36} {median / base:7.1f} x  ({median - base:+.2f} s)", flush=True)

    model_id = next(name for name, model in MODELS.items() if model.family == args.family)
    with tempfile.TemporaryDirectory() as folder:
        making = [sys.executable, "tiny_models.py", "--model_family_id", args.family, "--output_dir", f"{folder}/tiny"]
        subprocess.run(making, cwd=REPO, check=True, capture_output=True)
        for way, flags in WAYS.items():
            words = ["--model_id", model_id, "--model_local_path", f"{folder}/tiny", "--output_dir", f"{folder}/{way}"]
            words += ["--data_path", str(REPO / "example_data/sample.json"), "--max_steps", "1", "--use_cpu", "True"]
            run = [sys.executable, __file__, *words, *flags, "--save_strategy", "no", "--disable_tqdm", "True"]
            environment = os.environ | {"BREAKDOWN": "1", "FINELMM_CACHE": f"{folder}/cache-{way}"}
            done = subprocess.run(run, cwd=REPO, env=environment, capture_output=True, text=True)
            print(f"\n{args.family}, {way}:\n" + "".join(x for x in done.stderr.splitlines(True) if " s  " in x[:12]))


if __name__ == "__main__":
    if "BREAKDOWN" in os.environ:
        breakdown(sys.argv[1:])
    else:
        main()
