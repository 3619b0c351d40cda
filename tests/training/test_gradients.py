"""What is to train and gets no gradient is named, once; the truth is a plain backward pass."""

import re

import pytest
import torch
from conftest import IMAGE_ROWS, MODEL_ID, VISION_FLAGS, make_loader, run, turns
from launch import launch
from safetensors.torch import load_file
from test_trainable import batch_with_everything, names_without_gradient

from loaders.llava_1_5 import LlavaLoader
from training import engines
from training.adapters import largest_modules

FAMILY = "llava-1.5"
WARNING = re.compile(r"WARNING: ([\d,]+) parameters should train, but no gradient reached them in (\d+) update")
LORA = ["--use_lora", True, "--use_vision_lora", True, "--lora_dropout", 0]
TEXTS = [{"conversations": turns(f"Question {i}?", "Yes")} for i in range(5)]
ORDER = ["--train_sampling_strategy", "sequential", "--per_device_train_batch_size", 1]


@pytest.fixture
def emptied(monkeypatch):
    monkeypatch.setattr(LlavaLoader, "unused_modules", lambda self, model: [])


def without_gradient(tiny, write_rows) -> int:
    """How many parameters of CLIP come after its features, so that the loss sees nothing of them."""
    loader = make_loader(FAMILY, tiny(FAMILY))
    model = loader.load_model()
    never = names_without_gradient(model, batch_with_everything(tiny, FAMILY, write_rows, loader))
    assert {name.split(".")[2] for name in never} == {"encoder", "post_layernorm"}
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name in never)


@pytest.mark.parametrize("lora", [[], pytest.param(["--use_lora", True], marks=pytest.mark.slow)], ids=["full", "lora"])
def test_a_family_that_names_no_unused_module_is_told(tiny, write_rows, tmp_path, capsys, emptied, lora):
    """The images come with the third update; of five, all are waited for."""
    path = write_rows([*TEXTS, *IMAGE_ROWS[:3], *IMAGE_ROWS[:3]])
    flags = [*ORDER, "--gradient_accumulation_steps", 2, "--max_steps", 5]
    run(tiny, FAMILY, path, tmp_path / "out", *VISION_FLAGS, *flags, *lora)
    printed = capsys.readouterr().out
    ((number, updates),) = WARNING.findall(printed)
    assert int(number.replace(",", "")) == without_gradient(tiny, write_rows) and updates == "5"
    assert "learn nothing: model.vision_tower.encoder.layers.1, model.vision_tower.post_layernorm. If" in printed


def test_where_all_has_a_gradient_nothing_is_said(tiny, write_rows, tmp_path, capsys):
    path = write_rows([*TEXTS[:1], *IMAGE_ROWS[:3]])
    run(tiny, FAMILY, path, tmp_path / "out", *VISION_FLAGS, *ORDER, "--max_steps", 3)
    assert not WARNING.search(capsys.readouterr().out)


def test_after_20_updates_no_medium_is_waited_for(tiny, write_rows, tmp_path, capsys):
    path = write_rows([*TEXTS * 5, IMAGE_ROWS[0]])
    run(tiny, FAMILY, path, tmp_path / "out", *VISION_FLAGS, *ORDER, "--max_steps", 21)
    assert [updates for _, updates in WARNING.findall(capsys.readouterr().out)] == ["20"]


ENGINES = {
    "ddp": [],
    "zero2": ["--deepspeed", "ds_configs/zero2.json"],
    "zero3": ["--deepspeed", "ds_configs/zero3.json"],
    "fsdp2": ["--fsdp", True, "--fsdp_config", "fsdp_configs/fsdp2.json"]
    + ["--accelerator_config", '{"use_configured_state": true}'],
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_are_told_the_same(tiny, write_rows, tmp_path, engine):
    path = write_rows([*IMAGE_ROWS[:3], *TEXTS[:3]])
    words = ["--model_id", MODEL_ID[FAMILY], "--model_local_path", tiny(FAMILY), "--output_dir", tmp_path / "out"]
    words += ["--data_path", path, "--use_cpu", True, *VISION_FLAGS, *ORDER, "--max_steps", 3, "--save_strategy", "no"]
    printed = launch([*words, *ENGINES[engine]], 2, "emptied_unused")
    ((number, updates),) = WARNING.findall(printed)
    assert int(number.replace(",", "")) == without_gradient(tiny, write_rows) and updates == "3"
    assert not WARNING.search(launch([*words, *ENGINES[engine]], 2, "fsdp_on_cpu" if engine == "fsdp2" else "train"))


ADAMW = ["--learning_rate", "1e-2", "--weight_decay", "0.5", "--adam_epsilon", "1e-4"]  # some gradients are but noise


ACCUMULATED_LORA = pytest.param([*LORA, "--gradient_accumulation_steps", 2], marks=pytest.mark.slow)


@pytest.mark.parametrize("lora", [[], ACCUMULATED_LORA], ids=["full", "lora, accumulated"])
def test_a_step_of_texts_goes_on_as_one_with_a_dummy_image(tiny, write_rows, tmp_path, monkeypatch, lora):
    """PyTorch's AdamW is told nothing of the vision part, or a gradient of zero, as by several processes."""
    path = write_rows([*IMAGE_ROWS[:2], *TEXTS[:2], IMAGE_ROWS[2], TEXTS[2], *TEXTS[3:]])
    flags = [*ORDER, *VISION_FLAGS, *ADAMW, "--max_steps", 3, *lora]
    if not lora:
        flags[flags.index("--per_device_train_batch_size") + 1] = 2
    found, weights = [], []
    for name, kinds in (("alone", set()), ("dummies", {"image"})):
        monkeypatch.setattr(engines, "equal_vision_calls", lambda *_, kinds=kinds: kinds)
        found.append([step["loss"] for step in run(tiny, FAMILY, path, tmp_path / name, *flags)])
        (file,) = (tmp_path / name).glob("*model.safetensors")
        weights.append(load_file(file))
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=1e-5, rtol=0, msg=name)


def test_largest_modules():
    names = ["a.head.w", "a.head.b", "a.layers.0.q.w", "a.layers.1.k.w"]
    assert largest_modules(names, ["a.layers.0.k.w", "c"]) == ["a.head", "a.layers.0.q", "a.layers.1"]
