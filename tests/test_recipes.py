"""The recipes of example_scripts/, run on tiny checkpoints: only device, steps and rows differ."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import REPO

from supported_models import find_model

SCRIPTS = REPO / "example_scripts"
# multi_node.* are run in test_distributed.py, example_* to their end in test_examples.py.
RECIPES = ["multi_image", "text_and_image", "q_lora_24gb", "full_8_gpus", "vision_tuning"]
SHORT = ["--use_cpu", "True", "--max_steps", "2", "--gradient_accumulation_steps", "1", "--max_samples", "8"]
SHORT += ["--dataloader_num_workers", "0", "--eval_steps", "1", "--save_steps", "2", "--logging_steps", "1"]


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


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """`run(name)`: (what the recipe printed, its output folder)."""
    made = {}

    def get(name: str, *flags, **values):
        if name not in made:
            model_id = re.search(r"MODEL_ID:-([\w.-]+)", (SCRIPTS / f"{name}.sh").read_text())[1]
            out = tmp_path_factory.mktemp(name) / "out"
            values |= {"MODEL_LOCAL_PATH": tiny(find_model(model_id).family), "OUTPUT_DIR": out}
            made[name] = bash(SCRIPTS / f"{name}.sh", *SHORT, *flags, **values), out
        return made[name]

    return get


def log(out) -> list[dict]:
    return json.loads((out / "trainer_state.json").read_text())["log_history"]


def test_each_recipe_is_run():
    others = {"example_image", "example_video", "multi_node"}
    assert {path.stem for path in SCRIPTS.iterdir()} == others | set(RECIPES)


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.stem)
def test_each_flag_says_why(script):
    """Four flags say it themselves: the places that the head of the script names."""
    lines = [line.strip() for line in script.read_text().splitlines()]
    flags = [line for line in lines if line.startswith("--") and not line.endswith("\\")]
    silent = {line.split()[0] for line in flags if " # " not in line}
    assert silent <= {"--model_id", "--data_path", "--eval_data_path", "--output_dir"}
    assert max(map(len, script.read_text().splitlines())) <= 120


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_and_so_do_the_commands_that_it_ends_with(name, run):
    printed, out = run(name)
    steps = log(out)
    assert [entry["step"] for entry in steps if "loss" in entry] == [1, 2]
    assert [entry["step"] for entry in steps if "eval_loss" in entry] == [1, 2, 2]
    assert (out / "checkpoint-2").is_dir()
    next_commands = re.findall(r"(?m)^  python (\w+\.py .*)$", printed)
    assert [words.split(".")[0] for words in next_commands] == (
        ["predict"] if name == "full_8_gpus" else ["predict", "merge_lora_weights"]
    )
    for words in next_commands:
        few = " --max_samples 4 --max_new_tokens 4" if words.startswith("predict") else ""
        bash("-c", f"python {words}{few}")
    assert len((out / "answers.jsonl").read_text().splitlines()) == 4 * (2 if name == "multi_image" else 4)
    if name != "full_8_gpus":
        assert (out.parent / "out-merged/model.safetensors").exists()
