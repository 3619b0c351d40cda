"""What OpenMP's waiting threads cost on CPUs: those that spin, which is libgomp's default, and those that sleep.

    python benchmarks/waiting_threads.py

A tiny model trains on the drawn pictures of the first example, on an idle machine and beside one busy process a core.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
# GOMP_SPINCOUNT wins over OMP_WAIT_POLICY, which the scripts set to PASSIVE.
POLICIES = {"spin": {"GOMP_SPINCOUNT": "300000"}, "sleep": {"OMP_WAIT_POLICY": "PASSIVE"}}
FLAGS = "--use_cpu True --disable_tqdm True --save_strategy no --train_vision_encoder True --learning_rate 3e-3"
FLAGS += " --train_vision_projector True --per_device_train_batch_size 32 --dataloader_num_workers 1"


def seconds_of(words: list[str], environment: dict) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a command, the import of its libraries included."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], cwd=REPO, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(words)}: exit code {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    own = parser.parse_args()
    chosen_here = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    base = {name: value for name, value in os.environ.items() if name not in chosen_here}
    with tempfile.TemporaryDirectory() as folder:
        seconds_of(["tiny_models.py", "--model_id", "llava-1.5-7b", "--output_dir", f"{folder}/tiny"], base)
        seconds_of(["example_data/draw.py", "--output_dir", f"{folder}/drawn"], base)
        words = f"train.py --model_id llava-1.5-7b --model_local_path {folder}/tiny {FLAGS} --max_steps {own.steps}"
        words += f" --data_path {folder}/drawn/train.json --overwrite_output_dir True --output_dir {folder}/out"
        for load in ("idle", "busy"):
            number = os.cpu_count() if load == "busy" else 0
            others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
            try:
                for policy, environment in POLICIES.items():
                    wall, cpu = seconds_of(words.split(), base | environment)
                    print(f"{load}, {policy:<6} wall s {wall:6.1f}, CPU s {cpu:6.1f}", flush=True)
            finally:
                for other in others:
                    other.kill()


if __name__ == "__main__":
    main()
