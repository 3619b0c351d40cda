"""Samples in one row: each token's loss, and all gradients, are those of every sample alone."""

import shutil
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FACTS, FAMILIES, KINDS, MODEL_ID, VISION_FLAGS, logs_of, make_loader, rows_for, run, turns
from launch import here, launch
from test_loss import Parts

from collators import COLLATORS
from collators.base import IGNORE_INDEX
from loaders import attention
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions
from training.sampling import PackSampler

# Written by hand, from the models' papers and code: who mixes neighbours in a row by other means than attention.
MIXING = {
    "qwen-vl": "its own code",
    "phi3-v": "its own code",
    "llama-3.2-vision": "images of all samples",
    "llama4": "position of a token in the row",
}
JOINED = [
    family if family in KINDS else pytest.param(family, marks=pytest.mark.slow)
    for family in FAMILIES
    if family not in MIXING
]


def token_losses(model, batch: dict) -> torch.Tensor:
    """The loss of each label, in the order of the tokens, from all logits."""
    batch = dict(batch)
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1]
    chosen = labels != IGNORE_INDEX
    return torch.nn.functional.cross_entropy(logits[chosen], labels[chosen], reduction="none")


def assert_alone_and_together_are_equal(loader, family: str, path: str) -> None:
    """The loss of each token, and the gradients of the mean, of samples one by one and of all in one row."""
    model = loader.load_model().float().eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(loader.component_of(name)) and not loader.is_unused(name))
    dataset = MultimodalDataset(path, media=MediaOptions(num_frames=4))
    collator = COLLATORS.get(family)(loader.load_processor(), 2048)
    samples = [collator.encode(dataset[i]).inputs for i in range(len(dataset))]
    alone = torch.cat([token_losses(model, collator.collate([sample])) for sample in samples])
    alone.mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    attention.separate_samples(model, loader)
    collator.make_padding_free(loader)
    batch = collator.collate(samples)
    assert batch["input_ids"].shape == (1, sum(sample["input_ids"].shape[1] for sample in samples))
    assert "attention_mask" not in batch
    together = token_losses(model, batch)
    torch.testing.assert_close(together, alone, atol=FACTS[family].rounding, rtol=0)
    together.mean().backward()
    for name, gradient in expected.items():
        atol = 5e-5 * max(1, gradient.abs().max().item())
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=atol, rtol=0)


@pytest.mark.parametrize("family", JOINED)
def test_losses_and_gradients_are_those_of_each_sample_alone(tiny, family, write_rows):
    """Also of a text after an image, and of samples longer than a sliding window."""
    rows = rows_for(family)
    if FACTS[family].multi_turn:
        rows = [*rows, {"conversations": turns("Count.", " ".join(map(str, range(60))))}, rows[3], rows[0]]
    loader = make_loader(family, tiny(family), attn_implementation="sdpa")
    assert_alone_and_together_are_equal(loader, family, write_rows(rows))


@pytest.mark.parametrize("family", ["llava-next-video", "llava-onevision"])
def test_videos_of_several_lengths_in_a_batch(tiny, family, write_rows):
    rows = [{"video": "clip.mp4", "fps": fps, "conversations": turns("<video>?", "Red")} for fps in (1, 4)]
    refused = pytest.raises(ValueError, match=r"videos of \d and \d frames into one batch. Use --num_frames")
    with refused if family == "llava-onevision" else nullcontext():
        loader = make_loader(family, tiny(family), attn_implementation="sdpa")
        assert_alone_and_together_are_equal(loader, family, write_rows(rows))


@pytest.mark.parametrize("family", ["llava-1.5", "qwen3.5", "gemma-3", pytest.param("lfm2-vl", marks=pytest.mark.slow)])
def test_another_neighbour_changes_no_bit_of_a_sample(tiny, family, write_rows):
    loader = make_loader(family, tiny(family), attn_implementation="sdpa")
    model, collator = loader.load_model().float().eval(), COLLATORS.get(family)(loader.load_processor())
    attention.separate_samples(model, loader)
    collator.make_padding_free(loader)
    path = write_rows([{"conversations": turns("Count.", text)} for text in ("1 2 3", "4 5 6", "7 8 9")])
    samples = [collator.encode(MultimodalDataset(path)[i]).inputs for i in range(3)]
    found = []
    for first in samples[:2]:
        batch = collator.collate([first, samples[2], first])
        start, length = first["input_ids"].shape[1], samples[2]["input_ids"].shape[1]
        del batch["labels"]
        with torch.no_grad():
            found.append(model(**batch, use_cache=False).logits[:, start : start + length])
    assert torch.equal(*found)


@pytest.mark.parametrize("family", ["llava-1.5", "qwen2.5-vl"])
def test_positions_begin_again_in_each_sample(tiny, family, write_rows):
    """By them FlashAttention tells samples apart. Of a text, those of time, height and width are the same (mrope)."""
    loader = make_loader(family, tiny(family))
    collator = COLLATORS.get(family)(loader.load_processor())
    dataset = MultimodalDataset(write_rows([{"conversations": turns("Count.", "1 2 3 " * n)} for n in (1, 4, 2)]))
    collator.make_padding_free(loader)
    batch = collator([dataset[i] for i in range(3)])
    lengths = [collator.encode(dataset[i]).inputs["input_ids"].shape[1] for i in range(3)]
    expected = [place for length in lengths for place in range(length)]
    assert batch["position_ids"].view(-1, len(expected)).tolist() == [expected] * (4 if loader.mrope else 1)
    assert batch["sample_lengths"] == lengths


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma-3", "gemma-4", "gemma-4-unified"])
def test_media_seen_in_both_directions_and_longer_than_a_sliding_window(tiny, write_rows, family):
    """Gemma 4 as 26B-A4B and 31B, in layers with a sliding window only; the 12B also past the window."""
    loader = make_loader(family, tiny(family), attn_implementation="sdpa")
    both = {"use_bidirectional_attention": "vision"} if family == "gemma-4" else {}
    loader.config.text_config.update({"sliding_window": 5} | both)
    loader.model_kwargs["config"] = loader.config
    assert_alone_and_together_are_equal(loader, family, write_rows(rows_for(family)))


@pytest.mark.parametrize("family", MIXING)
def test_a_family_that_would_mix_samples_is_refused_by_name_and_padded_by_default(tiny, family, write_rows, tmp_path):
    path = write_rows(rows_for(family))
    for flag in ("--padding_free", "--packing"):
        with pytest.raises(ValueError, match=f"{flag} True cannot be used with .*{MIXING[family]}.*Remove the"):
            run(tiny, family, path, tmp_path / "out", flag, True)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--attn_implementation", "eager", "--padding_free", True], "its eager attention grows with the square"),
        (["--packing", True, "--padding_free", False], "leave one out"),
        (
            ["--packing", True, "--train_sampling_strategy", "group_by_length"],
            "--packing True and --train_sampling_strategy group_by_length are mutually exclusive",
        ),
    ],
)
def test_flags_that_do_not_go_together(tiny, flags, message, write_rows, tmp_path):
    path = write_rows(rows_for("llava-1.5"))
    with pytest.raises(ValueError, match=message):
        run(tiny, "llava-1.5", path, tmp_path / "out", *flags)


def test_a_run_without_padding_is_the_run_with_it(tiny, write_rows, tmp_path):
    """Two epochs of training and evaluation: same losses and gradient norms, to rounding."""
    path = write_rows(rows_for("qwen2-vl")[1:6])
    flags = ["--eval_data_path", path, "--num_train_epochs", 2, "--max_steps", -1, "--lora_dropout", 0]
    flags += ["--use_lora", True, "--eval_strategy", "epoch", *VISION_FLAGS]
    logs = []
    for value in (True, False):
        out = tmp_path / str(value)
        run(tiny, "qwen2-vl", path, out, *flags, "--padding_free", value)
        logs.append(logs_of(out))
    for joined, padded in zip(*logs, strict=True):
        for key in {"loss", "grad_norm", "eval_loss"} & padded.keys():
            assert joined[key] == pytest.approx(padded[key], rel=1e-4, abs=1e-5)


# ---- packing ----


def whole(number: int, epoch_rows=None):
    return SimpleNamespace(epoch_size=number, epoch_rows=epoch_rows or (lambda seed, epoch: np.arange(number)))


def test_packs_hold_each_row_once_within_the_budget_and_are_nearly_full():
    lengths = np.random.default_rng(0).integers(20, 1200, 20_000)
    sampler = PackSampler(whole(20_000), 7, np.minimum(lengths, 1024), 1024, batch=8, epochs=3)
    seen = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        packs = list(sampler)
        seen.append(packs)
        assert sorted(row for pack in packs for row in pack) == list(range(20_000))
        totals = [np.minimum(lengths[list(pack)], 1024).sum() for pack in packs]
        assert max(totals) <= 1024 and np.mean(totals) > 0.97 * 1024
        assert len(packs) == len(sampler) and len(packs) % 8 == 0
        # No trend: the long rows of a look-ahead do not come first.
        sizes = np.array([len(pack) for pack in packs], float)
        assert abs(sizes[: len(sizes) // 2].mean() - sizes[len(sizes) // 2 :].mean()) < 0.1
    assert seen[0] != seen[1]
    again = PackSampler(whole(20_000), 7, np.minimum(lengths, 1024), 1024, batch=8, epochs=3)
    again.set_epoch(2)
    assert list(again) == seen[2]


def test_epochs_of_other_rows_have_the_same_number_of_packs():
    """As with a path of weight 0.5, whose epochs differ in their rows and so in their tokens."""
    lengths = np.array([100] * 50 + [900] * 50)
    halves = whole(50, lambda seed, epoch: np.arange(50) + 50 * (epoch % 2))
    sampler = PackSampler(halves, 0, lengths, 1000, batch=4, epochs=2)
    counts = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        packs = list(sampler)
        counts.append(len(packs))
        assert sorted(row for pack in packs for row in pack) == list(range(50 * epoch, 50 * epoch + 50))
    assert counts == [50, 50]  # one long row a pack; 52 would be a multiple of 4, but there are only 50 rows


def test_the_loss_of_a_packed_epoch_is_that_of_every_sample_alone(tiny, write_rows, tmp_path):
    """All packs accumulated to one step: a sample left out, cut or taken twice would change the mean over labels."""
    rows = [*rows_for("qwen2-vl"), *({"conversations": turns("Count.", "1 2 3 " * n)} for n in range(1, 9))]
    path = write_rows(rows)
    flags = ["--packing", True, "--model_max_length", 256, "--num_train_epochs", 1, "--max_steps", -1]
    flags += ["--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 100, "--learning_rate", 1e-30]
    (step,) = run(tiny, "qwen2-vl", path, tmp_path / "out", *flags)
    with torch.no_grad():
        expected = Parts(tiny, "qwen2-vl", path).label_losses(range(len(rows))).mean().item()
    assert step["loss"] == pytest.approx(expected, abs=1e-4)  # as it is logged


@pytest.mark.slow
def test_a_packed_run_resumes_exactly(tiny, write_rows, tmp_path):
    rows = [*rows_for("qwen2-vl"), *({"conversations": turns("Count.", "1 2 3 " * n)} for n in range(1, 9))]
    path = write_rows(rows)
    flags = ["--packing", True, "--model_max_length", 256, "--num_train_epochs", 2, "--max_steps", -1]
    flags += ["--per_device_train_batch_size", 1, "--use_lora", True, "--save_strategy", "steps", "--save_steps", 2]
    whole_run = run(tiny, "qwen2-vl", path, tmp_path / "out", *flags)
    saved = sorted((tmp_path / "out").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for checkpoint in saved[1:]:
        shutil.rmtree(checkpoint)
    resumed = run(tiny, "qwen2-vl", path, tmp_path / "out", *flags, "--resume_from_checkpoint", True)
    assert len(whole_run) >= 6
    for key in ("loss", "grad_norm", "learning_rate"):
        assert [entry[key] for entry in resumed] == [entry[key] for entry in whole_run]


@pytest.mark.slow
def test_two_processes_take_all_packs_between_them(tiny, write_rows, tmp_path):
    """A pack a process and step: the losses are those of one process with two packs a step."""
    rows = [*rows_for("llava-1.5"), *({"conversations": turns("Count.", "1 2 3 " * n)} for n in range(1, 9))]
    words = ["--model_id", MODEL_ID["llava-1.5"], "--model_local_path", tiny("llava-1.5"), "--packing", True]
    words += ["--data_path", write_rows(rows), "--num_train_epochs", 2, "--logging_steps", 1, "--use_cpu", True]
    words += ["--model_max_length", 200, "--learning_rate", 1e-2, "--save_strategy", "no", "--disable_tqdm", True]
    logs = []
    for start, size in ((here, 2), (partial(launch, processes=2), 1)):
        out = tmp_path / str(size)
        start([*words, "--per_device_train_batch_size", size, "--output_dir", out])
        log = logs_of(out)
        logs.append([entry["loss"] for entry in log if "loss" in entry])
    assert len(logs[0]) >= 4
    assert logs[0] == pytest.approx(logs[1], abs=1e-5)
