"""The recipes of example_scripts/, run on tiny checkpoints: only device, steps and rows differ."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import REPO, crossed, lines_of
from launch import launch
from safetensors.torch import load_file

from supported_models import find_model

SCRIPTS = REPO / "example_scripts"
# What each prints of what trains, on which data. multi_node.* are run in tests/training/test_distributed.py, example_*
# in full in test_examples.py.
RECIPES = {
    "multi_image": (r"pair_train.json", r"vision_projector +full .* 2e-05", r"language_model +lora r=16"),
    "text_and_image": (r"text_train.json", r"vision_projector +full .* 2e-05", r"language_model +lora r=16"),
    "q_lora_24gb": (r"vision_projector +frozen", r"language_model +lora r=16 .* 0.0002 .*nf4 \(14 Linear\)"),
    "full_8_gpus": (r"vision_encoder +frozen", r"vision_projector +full .* 1e-05", r"language_model +full .* 1e-05"),
    "vision_tuning": (
        r"vision_encoder +full .* 2e-06",
        r"vision_projector +full .* 1e-05",
        r"language_model +lora .* 0.0001",
    ),
    "two_stages": (
        r"vision_projector +full .* 0.001 .*\nlanguage_model +frozen",
        r"vision_projector +full .* 2e-05 .*\nlanguage_model +lora r=16 .* 0.0001",
    ),
}
SHORT = ["--use_cpu", "True", "--max_steps", "2", "--gradient_accumulation_steps", "1", "--max_samples", "8"]
SHORT += ["--dataloader_num_workers", "0", "--eval_steps", "2", "--save_steps", "2", "--logging_steps", "1"]
SHORT += ["--eval_max_new_tokens", "4"]


def environment(**values) -> dict:
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    values = {"DS_ACCELERATOR": "cpu", "PATH": path, "HF_HUB_OFFLINE": 1, "NUM_GPUS": 2} | values
    return os.environ | {name: str(value) for name, value in values.items()}


def bash(*words, **values) -> str:
    """What a command line prints."""
    done = subprocess.run(
        ["bash", *map(str, words)], cwd=REPO, env=environment(**values), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_each_recipe_is_run():
    others = {"example_image", "example_video", "multi_node"}
    assert {path.stem for path in SCRIPTS.iterdir()} == others | set(RECIPES)


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.stem)
def test_each_flag_says_why(script):
    """Four flags say it themselves: the places that the head of the script names."""
    lines = [line.strip() for line in script.read_text().splitlines()]
    flags = [line for line in lines if line.startswith("--") and line.count("--") == 1]
    silent = {line.split()[0] for line in flags if " # " not in line}
    assert silent <= {"--model_id", "--data_path", "--eval_data_path", "--output_dir"}
    assert max(map(len, script.read_text().splitlines())) <= 120


# Each engine and each way of training once; the others are run in turn.
CHOSEN = [("full_8_gpus",), ("q_lora_24gb",)]


@pytest.mark.slow
@pytest.mark.parametrize("name", crossed(((name,) for name in RECIPES), CHOSEN))
def test_a_recipe_runs_and_so_do_the_commands_that_it_ends_with(name, tiny, tmp_path):
    model_id = re.search(r"MODEL_ID:-([\w.-]+)", (SCRIPTS / f"{name}.sh").read_text())[1]
    out = tmp_path / "out"
    printed = bash(SCRIPTS / f"{name}.sh", *SHORT, MODEL_LOCAL_PATH=tiny(find_model(model_id).family), OUTPUT_DIR=out)
    for said in RECIPES[name]:
        assert re.search(said, printed), printed
    logs = lines_of(out / "log.jsonl")
    assert [line["step"] for line in logs if "loss" in line] == [1, 2]
    assert [line["step"] for line in logs if "eval_exact_match" in line] == [0, 2]
    assert (out / "checkpoint-2/global_step2").is_dir() == (name == "full_8_gpus")  # shards of ZeRO-3

    commands = [words.split() for words in re.findall(r"(?m)^  python (.*)$", printed)]
    scripts = ["predict.py", "merge_lora_weights.py"][: 1 if name == "full_8_gpus" else 2]
    assert [script for script, *_ in commands] == scripts
    for script, *words in commands:
        few = ["--max_samples", "4", "--max_new_tokens", "4"] if script == "predict.py" else []
        launch([*words, *few], script=script.removesuffix(".py"))
    assert len((out / "answers.jsonl").read_text().splitlines()) == 4 * (2 if name == "multi_image" else 4)
    whole = out if name == "full_8_gpus" else tmp_path / "out-merged"
    assert (whole / "model.safetensors").exists()
    if name == "two_stages":
        base, first = tiny(find_model(model_id).family), tmp_path / "out-projector"
        assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(first)
        before, after = (load_file(f"{folder}/model.safetensors") for folder in (base, first))
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        assert moved == {key for key in before if "multi_modal_projector" in key} and moved


@pytest.mark.slow
def test_data_of_ones_own_needs_held_out_rows_too():
    done = subprocess.run(
        ["bash", SCRIPTS / "q_lora_24gb.sh"],
        cwd=REPO,
        env=environment(TRAIN_DATA="train.json"),
        capture_output=True,
        text=True,
    )
    assert done.returncode and "TEST_DATA: is not set" in done.stderr
