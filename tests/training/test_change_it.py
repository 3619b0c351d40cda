"""docs/change_it.md: each diff applies to a copy of the code, and trains what it says; the truth is plain torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import (
    IGNORE_INDEX,
    IMAGE_ROWS,
    MODEL_ID,
    REPO,
    VISION_FLAGS,
    copy_code,
    crossed,
    logs_of,
    make_loader,
    run,
)
from peft import PeftModel
from test_loss import LONG, SHORT, Parts
from transformers import AutoProcessor, LlavaForConditionalGeneration

from collators import COLLATORS
from reading.dataset import MultimodalDataset

pytestmark = pytest.mark.slow
FAMILY = "llava-1.5"
PAGE = (REPO / "docs/change_it.md").read_text(encoding="utf-8")
DIFFS = dict(re.findall(r"(?ms)^## ([^\n]*)\n(?:(?!^## ).)*?^```diff\n(.*?)^```$", PAGE))
# Padded and padding-free, and with positions of three axes. Each diff is run on one of them, and on the others in turn.
BATCHES = [(FAMILY, True), (FAMILY, False), ("qwen2.5-vl", True)]
ROWS = [IMAGE_ROWS[2], LONG, IMAGE_ROWS[0], SHORT]  # the first has two replies


def test_each_section_has_a_diff_of_at_most_two_files():
    assert len(DIFFS) == PAGE.count("\n## ") == 5
    assert all(diff.count("\n+++ ") <= 2 for diff in DIFFS.values())


class Changed:
    """A copy of the code with one of the page's diffs."""

    def __init__(self, folder: Path, section: str):
        self.folder = folder / "code"
        copy_code(self.folder)
        subprocess.run(["git", "apply", "-"], input=DIFFS[section], text=True, cwd=self.folder, check=True)

    def python(self, *words) -> str:
        words = [sys.executable, *map(str, words)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def train(self, checkpoint, path: str, *flags, family: str = FAMILY) -> tuple[list[float], str]:
        """The losses that a run logs, and what it prints."""
        words = ["--model_id", MODEL_ID[family], "--model_local_path", checkpoint, "--data_path", path]
        words += ["--output_dir", self.folder / "run", "--use_cpu", True, "--disable_tqdm", True, "--logging_steps", 1]
        words += ["--save_strategy", "no", "--report_to", "none", "--model_max_length", 2048]
        named = {word for word in flags if str(word).startswith("--")}
        given = {"--learning_rate": 1e-30, "--max_steps": 1, "--train_sampling_strategy": "sequential"}
        for name, value in given.items():
            words += [] if name in named else [name, value]
        printed = self.python("train.py", *words, *flags)
        log = logs_of(self.folder / "run")
        return [entry["loss"] for entry in log if "loss" in entry], printed


@pytest.mark.parametrize("family, padding_free", crossed(BATCHES, BATCHES[1:2]))
def test_token_weights(tiny, write_rows, tmp_path, family, padding_free):
    path = write_rows(ROWS)
    flags = ["--per_device_train_batch_size", 4, "--padding_free", padding_free]
    changed = Changed(tmp_path, "A loss with token weights")
    (found,), _ = changed.train(tiny(family), path, *flags, family=family)
    parts, losses, weights = Parts(tiny, family, path), [], []
    for i in range(4):
        labels = parts.collator([parts.dataset[i]])["labels"][0].tolist()
        starts = [before == IGNORE_INDEX for before, label in zip(labels, labels[1:]) if label != IGNORE_INDEX]
        weights += [3.0 if start else 1.0 for start in starts]
        losses.append(parts.label_losses([i]).detach())
    assert weights.count(3.0) == 5
    assert found == pytest.approx((torch.cat(losses) * torch.tensor(weights)).mean().item(), abs=1e-5)


@pytest.mark.parametrize("family, padding_free", crossed(BATCHES, BATCHES[2:]))
def test_a_column(tiny, write_rows, tmp_path, family, padding_free):
    weights = [0.25, 1.0, 2.0, 0.0]
    rows = [row | ({} if weight == 1 else {"importance": weight}) for row, weight in zip(ROWS, weights)]
    path = write_rows(rows)
    flags = ["--per_device_train_batch_size", 4, "--padding_free", padding_free]
    changed = Changed(tmp_path, "A column that reaches the loss")
    (found,), _ = changed.train(tiny(family), path, *flags, family=family)
    parts = Parts(tiny, family, path)
    losses = torch.cat([parts.label_losses([i]).detach() * weight for i, weight in enumerate(weights)])
    assert found == pytest.approx(losses.mean().item(), abs=1e-5)
    words = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", path, "--use_cpu", True]
    assert "GB" in changed.python("estimate.py", *words)  # whose batches have no weights


def test_a_sampler(tiny, write_rows, tmp_path):
    path = write_rows(ROWS)
    flags = ["--per_device_train_batch_size", 1, "--max_steps", 4, "--train_sampling_strategy", "short_first"]
    found, _ = Changed(tmp_path, "A sampler").train(tiny(FAMILY), path, *flags)
    parts = Parts(tiny, FAMILY, path)
    lengths = [parts.collator([parts.dataset[i]])["input_ids"].shape[1] for i in range(4)]
    order = sorted(range(4), key=lengths.__getitem__)
    assert order != [0, 1, 2, 3]
    assert found == pytest.approx([parts.label_losses([i]).mean().item() for i in order], abs=1e-5)


def test_another_vision_encoder(tiny, write_rows, tmp_path):
    changed, path = Changed(tmp_path, "Another vision encoder"), write_rows(ROWS)
    other = make_loader("llava-interleave", tiny("llava-interleave"))
    tower = other.load_model().model.vision_tower
    tower.save_pretrained(tmp_path / "siglip")
    other.load_processor().image_processor.save_pretrained(tmp_path / "siglip")
    changed.python("compose.py", tiny(FAMILY), tmp_path / "siglip", tmp_path / "composed")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "composed", dtype=torch.float32)
    llava = LlavaForConditionalGeneration.from_pretrained(tiny(FAMILY), dtype=torch.float32)
    for ours, theirs in [(model.model.vision_tower, tower), (model.model.language_model, llava.model.language_model)]:
        theirs = theirs.float().state_dict()
        assert all(torch.equal(weight, theirs[name]) for name, weight in ours.state_dict().items())
    assert torch.equal(model.lm_head.weight, llava.lm_head.weight)
    flags = ["--per_device_train_batch_size", 4, "--train_vision_projector", True]
    (found,), _ = changed.train(tmp_path / "composed", path, *flags)
    collator = COLLATORS.get(FAMILY)(AutoProcessor.from_pretrained(tmp_path / "composed"), 2048)
    dataset = MultimodalDataset(path)
    with torch.no_grad():
        assert found == pytest.approx(model(**collator([dataset[i] for i in range(4)])).loss.item(), abs=1e-5)


def test_a_second_objective(tiny, write_rows, tmp_path):
    path, adapter = write_rows(ROWS), tmp_path / "adapter"
    run(tiny, FAMILY, path, adapter, "--use_lora", True, "--lora_dropout", 0, "--learning_rate", 0.1, *VISION_FLAGS[2:])
    flags = ["--use_lora", True, *VISION_FLAGS[2:], "--lora_weight_path", adapter, "--per_device_train_batch_size", 4]
    (found,), _ = Changed(tmp_path, "A second objective").train(tiny(FAMILY), path, *flags)
    parts, sums, number = Parts(tiny, FAMILY, path), 0.0, 0
    model = PeftModel.from_pretrained(parts.model, adapter).eval()
    with torch.no_grad():
        for i in range(4):
            batch = parts.collator([parts.dataset[i]])
            targets = batch.pop("labels")[0, 1:]
            keep = targets != IGNORE_INDEX
            log_p = model(**batch).logits[0, :-1][keep].double().log_softmax(-1)
            with model.disable_adapter():
                log_q = model(**batch).logits[0, :-1][keep].double().log_softmax(-1)
            divergence = torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
            assert divergence > 0.01 * keep.sum()
            sums += torch.nn.functional.nll_loss(log_p, targets[keep], reduction="sum") + 0.1 * divergence
            number += int(keep.sum())
    assert found == pytest.approx((sums / number).item(), abs=1e-4)
