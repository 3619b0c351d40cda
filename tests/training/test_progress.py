"""What a run says of itself while it goes on, and at its end."""

import json
import time
from types import SimpleNamespace

import torch
from transformers import TrainerState

from evaluation.verdict import Verdict
from training import progress
from training.progress import LogFile, ProgressLine


def test_the_log_counts_the_time_of_all_parts(tmp_path):
    args = SimpleNamespace(output_dir=str(tmp_path))
    saved = LogFile()
    saved.on_train_begin(args, TrainerState(stateful_callbacks=[saved]), None)
    saved.begin -= 1000
    resumed = LogFile()
    state = TrainerState(stateful_callbacks=[saved], global_step=5, max_steps=9)
    resumed.on_train_begin(args, state, None)
    resumed.begin -= 500
    resumed.end(args, state, Verdict("failed", "no memory"))
    (line,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert 1500 <= line.pop("seconds") < 1510 and abs(line.pop("time") - time.time()) < 10
    assert line == {"step": 5, "max_steps": 9, "state": "failed", "verdict": "no memory"}


def test_the_start_and_the_time_left(monkeypatch, capsys):
    args = SimpleNamespace(disable_tqdm=True, bf16=True, fp16=False, device=torch.device("cpu"), world_size=2)
    args.per_device_train_batch_size, args.gradient_accumulation_steps = 4, 3
    args.get_warmup_steps = lambda steps: 999
    state, line, now = TrainerState(max_steps=1000), ProgressLine(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line.on_train_begin(args, state, None)
    for seconds in (300, 2, 2):  # the first step is slow
        now[0] += seconds
        state.global_step += 1
        line.on_step_end(args, state, None)
        line.on_log(args, state, None, logs={"loss": 1.0})
    assert capsys.readouterr().out.splitlines() == [
        "1,000 steps in bfloat16 on cpu, with 24 rows per step: 4 per batch x 3 accumulated x 2 processes",
        "step 1/1000: loss 1",
        "step 2/1000: loss 1, 33:16 left",
        "step 3/1000: loss 1, 33:14 left",
    ]
    args.get_warmup_steps = lambda steps: 1000
    line.on_train_begin(args, state, None)
    assert "WARNING: the warmup lasts the whole run" in capsys.readouterr().out
