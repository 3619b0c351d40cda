"""What is not finite ends a run before it costs weights, names the cause, and is no word of JSON."""

import json
from pathlib import Path
from types import SimpleNamespace

import not_finite
import pytest
import torch
from conftest import run, turns
from launch import Launch
from safetensors.torch import load_file

from training.divergence import FiniteCheck
from training.trainer import FinetuneTrainer

ROWS = [{"image": "red.png", "conversations": turns(f"<image>\nQuestion {i}?", "Yes " * (i + 1))} for i in range(9)]
# 9 samples, two a step: 5 steps an epoch.
STEPS = ["--max_steps", 8, "--save_strategy", "steps", "--save_steps", 2, "--logging_steps", 500, "--use_lora", True]


def shuffled(length: int, seed: int) -> list[int]:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()


def weights_of(folder) -> dict:
    return load_file(folder / "adapter_model.safetensors")


def are_equal(one, other) -> bool:
    one, other = weights_of(one), weights_of(other)
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def checkpoints(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def strict(text: str):
    """Parse JSON and nothing else."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def assert_strict(folder) -> None:
    for path in folder.rglob("*.json"):
        strict(path.read_text())
    for line in (folder / "log.jsonl").read_text().splitlines():
        strict(line)


@pytest.mark.parametrize("max_norm", [1.0, pytest.param(0.0, marks=pytest.mark.slow)])
def test_the_update_is_not_made_and_the_weights_before_it_are_saved(tiny, write_rows, tmp_path, monkeypatch, max_norm):
    path, flags = write_rows(ROWS), [*STEPS, "--max_grad_norm", max_norm, "--save_total_limit", 2]
    run(tiny, "llava-1.5", path, tmp_path / "whole", *flags, "--save_steps", 5, "--save_total_limit", 9)
    not_finite.plant(6, monkeypatch)
    with pytest.raises(ValueError) as ended:
        run(tiny, "llava-1.5", path, tmp_path / "out", *flags)
    # The first step of the second epoch.
    samples = "; ".join(f"{Path(path).name}, sample {i}" for i in shuffled(9, 42 + 1)[:2])
    message, last = str(ended.value), tmp_path / "out" / "checkpoint-5"
    end = strict((tmp_path / "out" / "log.jsonl").read_text().splitlines()[-1])
    assert (end["state"], end["verdict"]) == ("diverged", message)
    assert message.startswith("step 6: the norm of the gradients is not finite, at a learning rate of 0.000375.")
    assert f"the last complete checkpoint is {last}. Samples: {samples}. Try" in message
    assert f"--max_grad_norm {'0.1' if max_norm else '1'}," in message and "add --on_nonfinite skip" in message
    assert checkpoints(tmp_path / "out") == ["checkpoint-4", "checkpoint-5"]
    assert are_equal(tmp_path / "out" / "checkpoint-5", tmp_path / "whole" / "checkpoint-5")
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    monkeypatch.undo()  # what broke the step is gone
    run(tiny, "llava-1.5", path, tmp_path / "out", *flags, "--resume_from_checkpoint", True)
    assert are_equal(tmp_path / "out", tmp_path / "whole")


def test_an_update_can_be_skipped(tiny, write_rows, tmp_path, monkeypatch, capsys):
    path, flags = write_rows(ROWS), [*STEPS, "--save_steps", 1, "--logging_steps", 1, "--on_nonfinite", "skip"]
    flags += ["--max_steps", 6]
    not_finite.plant(3, monkeypatch)
    run(tiny, "llava-1.5", path, tmp_path / "out", *flags)
    assert are_equal(tmp_path / "out" / "checkpoint-3", tmp_path / "out" / "checkpoint-2")
    assert not are_equal(tmp_path / "out" / "checkpoint-4", tmp_path / "out" / "checkpoint-3")
    assert "1 of 6 updates were skipped" in capsys.readouterr().out
    assert_strict(tmp_path / "out")
    losses = [strict(line).get("loss", 0) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [i for i, loss in enumerate(losses, 1) if loss is None] == [3]
    monkeypatch.undo()
    resume = ["--resume_from_checkpoint", tmp_path / "out" / "checkpoint-4"]
    run(tiny, "llava-1.5", path, tmp_path / "resumed", *flags, *resume, "--save_steps", 2)
    assert checkpoints(tmp_path / "resumed") == ["checkpoint-6"]  # by the flags of now
    assert are_equal(tmp_path / "resumed", tmp_path / "out")
    assert_strict(tmp_path / "resumed")


@pytest.mark.parametrize("step, skipped", [(3, 1), pytest.param(0, 20, marks=pytest.mark.slow)])
def test_what_the_scaler_of_fp16_skips_is_counted(tiny, write_rows, tmp_path, monkeypatch, capsys, step, skipped):
    """The scaler is torch's own, which computes in float32 here."""
    create = FinetuneTrainer.create_accelerator_and_postprocess

    def with_scaler(self):
        create(self)
        self.args.fp16, self.accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0)

    monkeypatch.setattr(FinetuneTrainer, "create_accelerator_and_postprocess", with_scaler)
    not_finite.plant(step, monkeypatch)
    path, out, flags = write_rows(ROWS), tmp_path / "out", [*STEPS, "--save_steps", 500]
    if step:
        run(tiny, "llava-1.5", path, out, *flags, "--max_steps", 5)
        assert "1 of 5 updates were skipped" in capsys.readouterr().out
    else:
        with pytest.raises(ValueError, match="step 20: for 20 updates in a row.*Try --bf16 True instead.*preview.py.$"):
            run(tiny, "llava-1.5", path, out, *flags, "--max_steps", 30)
        assert checkpoints(out) == ["checkpoint-20"]
        assert_strict(out / "checkpoint-20" / "..")


def test_weights_that_are_not_finite_are_not_saved(tiny, write_rows, tmp_path):
    path, out, flags = write_rows(ROWS), tmp_path / "out", [*STEPS, "--learning_rate", 1e39, "--save_total_limit", 1]
    for steps in (["--save_steps", 1], ["--save_steps", 500, "--max_steps", 1]):
        with pytest.raises(ValueError, match="step 1: the weights are no longer finite.*there is no checkpoint yet"):
            run(tiny, "llava-1.5", path, out, *flags, *steps)
        assert not list(out.glob("**/*.safetensors"))


@pytest.mark.parametrize("losses, is_warned", [([1.0] * 10 + [3.1] * 20, True), ([1.0] + [1.9] * 40, False)])
def test_losses_that_rise_are_a_warning_said_once(capsys, losses, is_warned):
    check, state = FiniteCheck(None), SimpleNamespace(log_history=[{"loss": losses[0]}, {"eval_loss": 9.0}])
    for loss in losses[1:]:  # resumed after the first
        state.log_history.append({"loss": loss})
        check.on_log(None, state, None, logs=state.log_history[-1])
    assert capsys.readouterr().out.count("WARNING: the mean of the last 20 logged losses") == is_warned


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_all_processes_end_where_one_loss_is_not_finite(tiny, write_rows, tmp_path, engine):
    path, out = write_rows(ROWS), tmp_path / "out"
    words = ["--model_id", "llava-1.5-7b", "--model_local_path", tiny("llava-1.5"), "--data_path", path, *STEPS]
    words += ["--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 2, "--use_cpu", True]
    words += ["--deepspeed", "ds_configs/zero2.json"] if engine == "zero2" else []
    started = Launch([*words, "--output_dir", out], 2, "not_finite", {"NOT_FINITE": "1:4"})
    assert started.wait() == [1, 1]
    # Of the second step, four samples, it is the second batch of the second process.
    what = "the loss" if engine == "zero2" else "the norm of the gradients"
    assert f"step 2: {what} is not finite" in started.output and "Traceback" not in started.output
    assert f"Samples: {Path(path).name}, sample {shuffled(9, 42)[7]}. Try" in started.output.replace("\n", " ")
    assert checkpoints(out) == ["checkpoint-1"]
    assert all(weights.isfinite().all() for weights in weights_of(out / "checkpoint-1").values())
    assert_strict(out)
