"""The loss of one batch, the order of samples and what a run leaves behind."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import (
    CROSSED,
    FACTS,
    FAMILIES,
    MODEL_ID,
    OF_FEW,
    TAKES_VIDEO,
    VISION_FLAGS,
    crossed_but,
    logs_of,
    make_loader,
    rows_for,
    run,
    slow,
    turns,
)
from official import official_processor
from safetensors.torch import load_file

import train
from collators import COLLATORS
from loaders.output_folder import ProcessorFiles
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions
from training.sampling import EpochSampler, LengthSampler
from training.trainer import FinetuneTrainer


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_the_models_own(tiny, family, write_rows, tmp_path):
    """On one batch the library's own loss over all logits is the same mean over labels."""
    from arguments import TrainingArguments

    dataset = MultimodalDataset(write_rows(rows_for(family)), media=MediaOptions(num_frames=4))
    loader = make_loader(family, tiny(family))
    model, collator = loader.load_model(), COLLATORS.get(family)(loader.load_processor(), 2048)
    batch = collator([dataset[i] for i in range(len(dataset))])
    expected = model(**batch, use_cache=False).loss
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none")
    trainer = FinetuneTrainer(
        model=model, args=args, data_collator=collator, processor_files=ProcessorFiles(tiny(family))
    )
    num_labels = (batch["labels"] != -100).sum()
    loss = trainer.compute_loss(model, batch, num_items_in_batch=num_labels)
    loss.backward()
    assert abs(loss.item() - expected.item()) < 5e-6
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4)


def test_order_is_a_pure_function_of_seed_epoch_and_position():
    whole = SimpleNamespace(epoch_size=100, epoch_rows=lambda seed, epoch: np.arange(100))
    sampler, other = EpochSampler(whole, seed=7), EpochSampler(whole, seed=8)
    order = sampler.rows_of(3).tolist()
    assert sorted(order) == list(range(100))
    torch.manual_seed(0)
    assert sampler.rows_of(3).tolist() == order
    assert sampler.rows_of(4).tolist() != order and other.rows_of(3).tolist() != order
    sampler.set_epoch(3)
    assert list(sampler) == list(sampler) == order


def test_grouping_puts_similar_lengths_together():
    lengths = np.arange(200) % 50
    order = LengthSampler(None, seed=1, group=8, lengths=lengths).order(np.arange(200), epoch=0)
    assert sorted(order) == list(range(200))
    spread = [max(g) - min(g) for g in (([lengths[i] for i in order[k : k + 8]]) for k in range(0, 200, 8))]
    assert sum(spread) / len(spread) < 12  # about 40 in random order


@pytest.mark.parametrize("family", [family if family == "qwen2.5-vl" else slow(family) for family in FAMILIES])
def test_full_run_leaves_a_standalone_checkpoint(tiny, family, write_rows, tmp_path):
    """In bfloat16, in which parts of some vision encoders go unused."""
    out = tmp_path / "out"
    steps = run(tiny, family, write_rows(rows_for(family)), out, *VISION_FLAGS, "--bf16", True, "--use_cpu", True)
    assert all(entry["loss"] > 0 and entry["grad_norm"] > 0 for entry in steps)
    before, after = load_file(f"{tiny(family)}/model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert {name: (t.shape, t.dtype) for name, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name in FACTS[family].files:
        assert (out / name).read_bytes() == open(f"{tiny(family)}/{name}", "rb").read()
    official_processor(family, out)
    make_loader(family, out).load_model()
    saved = yaml.safe_load((out / "args.yaml").read_text())
    assert saved["model_id"] == MODEL_ID[family] and saved["learning_rate"] == 1e-3
    assert "train_loss" in json.loads((out / "all_results.json").read_text())


def test_args_yaml_repeats_the_run(tiny, write_rows, tmp_path):
    first = run(tiny, "llava-1.5", write_rows(rows_for("llava-1.5")), tmp_path / "out", "--use_lora", True)
    train.main([str(tmp_path / "out" / "args.yaml"), "--output_dir", str(tmp_path / "again")])
    log = logs_of(tmp_path / "again")
    assert [e["loss"] for e in log if "loss" in e] == [e["loss"] for e in first]


@pytest.mark.parametrize("family", crossed_but("llava-1.5"))
def test_bfloat16_keeps_trained_weights_in_float32(tiny, family, write_rows, tmp_path):
    """Adam's small updates would be rounded away in bfloat16."""
    flags = ["--bf16", True, "--use_cpu", True, "--learning_rate", 1e-6, "--train_vision_projector", True]
    run(tiny, family, write_rows(rows_for(family)), tmp_path / "out", *flags)
    before = load_file(f"{tiny(family)}/model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name].to(before[name].dtype))}
    trained = FACTS[family].vision_projector  # in the encoder, where it is its head
    frozen = {name for name in before if re.search("vision_tower|visual.blocks|audio", name)}
    assert not {name for name in frozen if not re.search(trained, name)} & changed
    elsewhere = "visual|vision|audio|layer_scalar"  # the last is a buffer
    assert {name for name in before if ".layers." in name and not re.search(elsewhere, name)} <= changed


@pytest.mark.slow
@pytest.mark.parametrize("family", CROSSED)
def test_lora_in_bfloat16_trains_a_vision_encoder_of_which_a_part_is_unused(tiny, family, write_rows, tmp_path):
    flags = ["--bf16", True, "--use_cpu", True, "--use_lora", True, *VISION_FLAGS]
    steps = run(tiny, family, write_rows(rows_for(family)), tmp_path / "out", *flags)
    assert all(entry["grad_norm"] > 0 for entry in steps)


def test_an_impossible_image_is_named_before_step_1(tiny, media_folder, write_rows, tmp_path):
    from PIL import Image

    Image.new("RGB", (3000, 10)).save(media_folder / "thin.png")
    path = write_rows([{"image": "thin.png", "conversations": turns("<image>\nWhat?", "A line")}])
    with pytest.raises(ValueError, match="sample 0: Qwen2VLProcessor refuses it: .*aspect ratio"):
        run(tiny, "qwen2-vl", path, tmp_path / "out")


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json", "processor_config.json"])
def test_an_incomplete_checkpoint_is_named(tiny, missing, write_rows, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny("llava-1.5"), folder)
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=f"{folder} has no"):
        run(lambda _: str(folder), "llava-1.5", write_rows(rows_for("llava-1.5")), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("family", OF_FEW)
def test_a_resumed_run_goes_on_as_if_never_stopped(tiny, family, write_rows, tmp_path):
    path, out = write_rows(rows_for(family)), tmp_path / "out"
    flags = [*VISION_FLAGS, "--save_strategy", "steps", "--save_steps", 1, "--learning_rate", 1e-2]
    whole = run(tiny, family, path, out, *flags)
    shutil.rmtree(out / "checkpoint-2")
    resumed = run(tiny, family, path, out, *flags, "--resume_from_checkpoint", True)
    for key in ("loss", "grad_norm"):
        assert [e[key] for e in resumed] == pytest.approx([e[key] for e in whole], abs=1e-5, rel=1e-5)


def test_the_best_checkpoint_is_the_one_left(tiny, write_rows, tmp_path):
    path = write_rows(rows_for("llava-1.5"))
    best = ["--load_best_model_at_end", True, "--eval_strategy", "steps", "--eval_steps", 1, "--save_steps", 1]
    best += ["--save_strategy", "steps", "--eval_data_path", path, "--learning_rate", 1e-2, "--max_steps", 3]
    best += ["--metric_for_best_model", "eval_loss", "--greater_is_better", True]  # so it is not the last one
    run(tiny, "llava-1.5", path, tmp_path / "out", *best, *VISION_FLAGS)
    log = logs_of(tmp_path / "out")
    *each, last = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert len(each) == 3 and max(each) > each[-1] and last == pytest.approx(max(each), abs=1e-5)


def test_training_vision_on_text_alone_is_refused(tiny, write_rows, tmp_path):
    path = write_rows([{"conversations": turns("Hello.", "Hi")}])
    with pytest.raises(ValueError, match="--train_vision_encoder True has no effect"):
        run(tiny, "llava-1.5", path, tmp_path / "out", *VISION_FLAGS)


def test_a_video_for_a_model_without_videos_is_refused_before_step_1(tiny, write_rows, tmp_path):
    path = write_rows(rows_for(TAKES_VIDEO[0]))
    with pytest.raises(ValueError, match="sample 5.*does not support videos"):
        run(tiny, "llava-1.5", path, tmp_path / "out")


def test_overlong_samples_are_refused_or_dropped_and_counted(tiny, write_rows, tmp_path, capsys):
    path = write_rows(rows_for("llava-1.5"))
    with pytest.raises(ValueError, match=r"2 of 5 samples do not fit \(40%\):\n.*sample 1: .*--model_max_length 40"):
        run(tiny, "llava-1.5", path, tmp_path / "a", "--model_max_length", 40)
    run(tiny, "llava-1.5", path, tmp_path / "b", "--model_max_length", 40, "--drop_overlong", True)
    assert "of 5 samples, 1 are cut to --model_max_length, 2 are dropped" in capsys.readouterr().out
