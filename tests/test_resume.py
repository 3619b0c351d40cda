"""Stopped runs go on as if never stopped: every logged value and every weight, to the last bit."""

import json
import shutil

import pytest
from conftest import IMAGE_ROWS, run, turns
from launch import launch
from safetensors.torch import load_file

ROWS = [{"image": "red.png", "conversations": turns(f"<image>\nQuestion {i}?", "Yes " * (i + 1))} for i in range(9)]
ROWS += IMAGE_ROWS[:2]
# 11 samples, one a batch and two a step: 6 steps an epoch, the last of one batch. Losses are logged between saves.
STEPS = ["--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 2, "--max_steps", 14]
STEPS += ["--logging_steps", 4, "--save_strategy", "steps", "--save_steps", 1, "--learning_rate", 1e-2]
LORA = ["--use_lora", True, "--lora_dropout", 0.3]
# Where it is not the same in every run: time, and paths.
TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
TIMES |= {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}


def log_of(folder) -> list[dict]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in log]


def assert_equal_runs(found, expected) -> None:
    """The same logged values and the same weights, to the last bit."""
    assert log_of(found) == log_of(expected)
    names = sorted(path.name for path in expected.glob("*.safetensors"))
    assert names and names == sorted(path.name for path in found.glob("*.safetensors"))
    for name in names:
        weights, wanted = load_file(found / name), load_file(expected / name)
        assert weights.keys() == wanted.keys()
        assert all(weights[key].equal(wanted[key]) for key in wanted)


WAYS = {
    "lora": LORA,
    "full": [],
    "workers": [*LORA, "--dataloader_num_workers", 2, "--dataloader_persistent_workers", True],
    "length": [*LORA, "--train_sampling_strategy", "group_by_length"],
    "bf16": ["--bf16", True, "--use_cpu", True, "--train_vision_projector", True],
    "q_lora": [*LORA, "--q_lora", True],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_equals_the_unbroken_one(tiny, write_rows, tmp_path, way):
    path = write_rows(ROWS)
    flags = [*STEPS, *WAYS[way], "--eval_data_path", path, "--eval_strategy", "epoch"]
    run(tiny, "llava-1.5", path, tmp_path / "whole", *flags)
    assert len(log_of(tmp_path / "whole")) == 3 + 3 + 2
    # In the first epoch, at its end, in the second, at the end of the run.
    for step in (5, 6, 9, 14):
        out = tmp_path / f"from-{step}"
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        run(tiny, "llava-1.5", path, out, *flags, "--resume_from_checkpoint", checkpoint)
        assert_equal_runs(out, tmp_path / "whole")
        shutil.rmtree(out)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2"])
@pytest.mark.parametrize("lora", [[], LORA], ids=["full", "lora"])
def test_two_resumed_processes_equal_the_unbroken_ones(tiny, write_rows, tmp_path, engine, lora):
    words = flags(tiny, write_rows(ROWS), *lora, *(["--deepspeed", "ds_configs/zero2.json"] * (engine == "zero2")))
    launch([*words, "--output_dir", tmp_path / "whole"], 2)
    for step in (2, 3, 4):  # in the first epoch, at its end, in the second
        words += ["--resume_from_checkpoint", tmp_path / "whole" / f"checkpoint-{step}"]
        launch([*words, "--output_dir", tmp_path / "resumed"], 2)
        assert_equal_runs(tmp_path / "resumed", tmp_path / "whole")


def flags(tiny, path: str, *more) -> list:
    """Words of a run of train.py, without its output folder."""
    words = ["--model_id", "llava-1.5-7b", "--model_local_path", tiny("llava-1.5"), "--data_path", path]
    return [*words, *STEPS, "--use_cpu", True, "--disable_tqdm", True, *more]
