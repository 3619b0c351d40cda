"""Each benchmark at its smallest size runs to its end and prints its figures. What they say is no test's business."""

import os
import re
import subprocess
import sys

import pytest
import torch  # noqa: F401, which starts a process when it is imported
from conftest import REPO

# Script -> (flags, its last line)
SMALLEST = {
    "attention": ("--rounds 1", r"hidden 512, .*: mask [\d.]+, padded [\d.]+"),
    "auto_table": ("--output {folder}/types.json llava", r"llava template: llava-1.5 made components .* answered"),
    "checkpoints": ("--output_dir {folder}/checkpoint", None),
    "collate": ("llava-1.5", r"llava-1.5 +text only .* [\d.]+"),
    "correctness": ("--tools finelmm --columns text system", r"finelmm \| system \| yes"),
    "curves": ("--lengths 256 512 --images 1 2 --rounds 1", r"step: .* CPU-s each, r2 [\d.]+"),
    "decode": ("--seconds 2 --rounds 1 --film_seconds 40", r"drafted +\d+ +[\d.]+"),
    "gpu": ("--dry_run --cells step --cell_seconds 300 --output {folder}/gpu.json", r"gemma-3-.*: measured, .*"),
    "equality": ("--families llava-1.5 --engines", r"llava-1.5 \{'float32 loss': .*\}"),
    "label_masks": ("--families llava-1.5", r"eight: eight long exchanges, three images"),
    "lengths": ("--rows 100 --repeats 1", r" +100 \| .* [\d.]+"),
    "losses": ("--families llava-1.5 --steps 1 --write {folder}/losses.json", r"llava-1.5, full, packed: 1"),
    "memory": ("--rounds 1", r"cpu: labelled / full .*"),
    "merge_memory": ("--layers 4 --hidden 256", r"peak by shards / peak by whole: [\d.]+"),
    "merge_of_quantized": ("--steps 1", r"--load_in_8bit .* [\d.]+"),
    "open_rows": ("--rows 100 --forms jsonl", r"jsonl: .*; drawing an epoch [\d.]+ s"),
    "parity": ("--families qwen3.5", r"qwen3.5 \| tiny \| 25 of 25 \| 25 of 25 \| 25 of 25 \| 0 \| .*"),
    "plain_questions": ("--output_dir {folder}/plain", r"24 questions, 6 pictures in .*"),
    "rates": ("--rates 1e-3 --ranks 4 --steps 2 --picture {folder}/rates.png", r"\| kept \| [\d.]+ \|"),
    "serving": ("--families qwen2-vl --steps 1 --folder {folder}", r"    ran: \[\]"),
    "speed": ("--contenders trl bare prepared ours packed --steps 2 --rounds 1 --batch_size 2", r"packed .* [\d.]+"),
    "start": ("--rounds 1", r" +[\d.]+ s  in all"),
    "waiting_threads": ("--steps 1", r"busy, sleep .* [\d.]+"),
}


def test_no_benchmark_is_left_out():
    others = {"estimate", "tables"}  # whose figures test_estimate.py asserts; whose tables test_docs.py compares
    assert {path.stem for path in (REPO / "benchmarks").glob("*.py")} == SMALLEST.keys() | others


@pytest.mark.slow
@pytest.mark.cross
@pytest.mark.parametrize("script", SMALLEST)
def test_a_benchmark_runs(script, tmp_path):
    flags, last = SMALLEST[script]
    words = [sys.executable, f"benchmarks/{script}.py", *flags.format(folder=tmp_path).split()]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert last is None or re.fullmatch(last, done.stdout.rstrip().splitlines()[-1]), done.stdout
    if script == "speed":
        assert "trl: left out, --trl_python is not given" in done.stdout and "does not run" not in done.stdout


@pytest.mark.slow
@pytest.mark.cross
def test_a_planted_fault_turns_a_cell_of_the_correctness_bench(tmp_path):
    words = ["--tools", "finelmm", "--columns", "packed samples", "--fault", "samples of a row see each other"]
    command = [sys.executable, "benchmarks/correctness.py", *words]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=900)
    assert re.search(r"finelmm \| packed samples \| no: moves by \d+%", done.stdout), done.stdout + done.stderr


def test_labels_are_judged_by_the_spans_of_the_replies():
    sys.path.append(str(REPO / "benchmarks" / "contenders"))
    sys.path.append(str(REPO / "benchmarks"))
    from columns import labels_cell

    spans = [range(3, 6), range(9, 12)]
    replies = {3, 4, 5, 9, 10, 11}
    for taught, said in {
        "the replies": (replies, "yes"),
        "and what the template writes after an end token": (replies | {6}, "yes"),
        "a question": (replies | {2}, "no: trains the prompt"),
        "no end": (replies - {5, 11}, "no: no end token"),
        "the last": ({9, 10, 11}, "no: last reply only"),
        "nothing": (set(), "no: other labels"),
    }.values():
        assert str(labels_cell(taught, spans, "qwen2-vl")) == said


@pytest.mark.slow
def test_other_releases_are_installed_over_the_pinned_ones_and_tested(tmp_path):
    """By a stand-in for Python, whose environment only notes what it is asked."""
    (tmp_path / "python").write_text(
        f'#!/bin/sh\nmkdir -p "$3/bin"\nfor name in python pip; do ln -s {tmp_path}/note "$3/bin/$name"; done\n'
    )
    (tmp_path / "note").write_text(f'#!/bin/sh\necho "$(basename "$0") $*" >> {tmp_path}/notes\n')
    for script in ("python", "note"):
        (tmp_path / script).chmod(0o755)
    command = ["bash", "benchmarks/versions.sh", "av==19.0.2"]
    subprocess.run(command, cwd=REPO, env=os.environ | {"PYTHON": f"{tmp_path}/python"}, check=True)
    notes = (tmp_path / "notes").read_text().splitlines()
    assert notes == ["pip install -q -r requirements-dev.txt", "pip install -q av==19.0.2", "python -m pytest -q"]
