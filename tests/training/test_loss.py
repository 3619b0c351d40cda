"""The loss and its gradients against plain sums over labels: one row at a time, all logits, float64, no Trainer."""

import itertools
from pathlib import Path

import pytest
import torch
from conftest import (
    CONSENT,
    CROSSED,
    FACTS,
    FAMILIES,
    FEW,
    KINDS,
    MODEL_ID,
    VISION_FLAGS,
    crossed,
    logs_of,
    make_loader,
    rows_for,
    turns,
)
from launch import launch
from transformers import TrainerCallback

from arguments import TrainingArguments, parse_arguments
from collators import COLLATORS
from collators.base import IGNORE_INDEX
from loaders.output_folder import ProcessorFiles
from reading.dataset import EncodedDataset, MultimodalDataset
from reading.options import MediaOptions
from training.loss import sample_sums
from training.trainable import make_trainable
from training.trainer import FinetuneTrainer

# Label counts from 1 to dozens: a mean of means over batches would be far off.
LONG = {"conversations": turns("Count.", " ".join(map(str, range(40))))}
SHORT = {"conversations": turns("A rather long question, is it not?", "1")}


def unequal_rows(family: str) -> list[dict]:
    """Nine rows: of batches of two, two accumulated, the last window of the epoch has one batch of one row."""
    rows = rows_for(family)
    return [*rows[:3], LONG, SHORT, *rows[3:5], SHORT, LONG] if FACTS[family].multi_turn else (rows * 2)[:9]


class Parts:
    """Model, collator and opened samples of a family's tiny checkpoint."""

    def __init__(self, tiny, family: str, path: str, **options):
        self.loader = make_loader(family, tiny(family))
        self.model = self.loader.load_model().float()
        self.collator = COLLATORS.get(family)(self.loader.load_processor(), 2048, **options)
        self.dataset = MultimodalDataset(path, media=MediaOptions(num_frames=4))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(bool(self.loader.component_of(name)) and not self.loader.is_unused(name))

    def trainer(self, output_dir, callbacks=(), **flags) -> FinetuneTrainer:
        """At a learning rate of 0, so that one model is the truth of all steps."""
        defaults = dict(learning_rate=0.0, max_grad_norm=0.0, logging_steps=1, save_strategy="no", use_cpu=True)
        defaults |= dict(disable_tqdm=True, train_sampling_strategy="sequential", num_train_epochs=1)
        return FinetuneTrainer(
            model=self.model,
            args=TrainingArguments(output_dir=str(output_dir), **defaults | flags),
            data_collator=self.collator.collate,
            train_dataset=EncodedDataset(self.dataset, self.collator),
            eval_dataset=EncodedDataset(self.dataset, self.collator, is_training=False),
            processor_files=ProcessorFiles(self.loader.model_path),
            callbacks=list(callbacks),
        )

    def label_losses(self, indices, smoothing: float = 0.0) -> torch.Tensor:
        """The loss of every label of these rows, each row alone; of what the model returns for all its tokens."""
        found = []
        for i in indices:
            batch = self.collator([self.dataset[i]])
            labels = batch.pop("labels")[0, 1:]
            logits = self.model(**batch, use_cache=False).logits[0, :-1].double()
            surprise = -(logits - logits.logsumexp(-1, keepdim=True))[labels != IGNORE_INDEX]
            exact = surprise[range(len(surprise)), labels[labels != IGNORE_INDEX]]
            found.append((1 - smoothing) * exact + smoothing * surprise.mean(-1))
        return torch.cat(found)


class Gradients(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(gradients_of(model))


def gradients_of(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# Of a gradient, in parts of its largest element, where it is more than a logit's: those of its vision tower reach 1000.
ROUNDING = {"gemma-3n": 5e-5}
REPLIES, ALL_TEXT = {}, {"mask_question_tokens": False}


def marks_of(family: str, chosen: tuple[str, ...]) -> list:
    """All but a few are slow, and all but the chosen ones the rest of a cross."""
    return ([] if family in FEW else [pytest.mark.slow]) + ([] if family in chosen else [pytest.mark.cross])


VARIANTS = [
    *[pytest.param(family, REPLIES, 0.0, id=f"{family}-replies", marks=marks_of(family, KINDS)) for family in FAMILIES],
    *[
        pytest.param(
            family,
            ALL_TEXT,
            0.2,
            id=f"{family}-smoothed text",
            marks=[pytest.mark.slow, *marks_of(family, FEW)],
        )
        for family in FAMILIES
        if family != "paligemma"  # it refuses that
    ],
]


@pytest.mark.parametrize("family, options, smoothing", VARIANTS)
def test_accumulated_loss_and_gradients_are_those_of_the_labels(tiny, family, options, smoothing, write_rows, tmp_path):
    parts, seen = Parts(tiny, family, write_rows(unequal_rows(family)), **options), Gradients()
    flags = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, label_smoothing_factor=smoothing)
    trainer = parts.trainer(tmp_path, [seen], **flags)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    each = []
    for step, indices in enumerate([range(4), range(4, 8), range(8, 9)]):
        losses = parts.label_losses(indices, smoothing)
        assert logged[step] == pytest.approx(losses.mean().item(), abs=FACTS[family].rounding)
        parts.model.zero_grad()
        losses.mean().backward()
        expected = gradients_of(parts.model)
        assert seen.steps[step].keys() == expected.keys()
        for name, gradient in expected.items():
            atol = ROUNDING.get(family, FACTS[family].rounding) * max(1, gradient.abs().max().item())
            torch.testing.assert_close(seen.steps[step][name], gradient, atol=atol, rtol=0)
        each.append(losses.detach())
    assert len(logged) == len(seen.steps) == 3
    assert trainer.evaluate()["eval_loss"] == pytest.approx(torch.cat(each).mean().item(), abs=FACTS[family].rounding)


def test_each_evaluation_path_has_a_loss_of_its_own(tiny, write_rows, tmp_path):
    """A batch has rows of both; a row that is left out takes no part."""
    parts, paths = (
        Parts(tiny, "qwen2-vl", write_rows([SHORT])),
        [write_rows([LONG, SHORT, SHORT]), write_rows([SHORT, LONG])],
    )
    parts.dataset = MultimodalDataset(paths)
    trainer = parts.trainer(tmp_path, per_device_eval_batch_size=2)
    names = [Path(path).stem for path in paths]
    with torch.no_grad():
        first, second = (parts.label_losses(rows) for rows in (range(3), range(3, 5)))
    expected = {"": torch.cat([first, second]), f"{names[0]}_": first, f"{names[1]}_": second}
    found = trainer.evaluate()
    for name, losses in expected.items():
        assert found[f"eval_{name}loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
    assert abs(first.mean() - second.mean()) > 1e-3

    parts.dataset.select([0, 1, 3, 4])  # as rows that are left out
    with torch.no_grad():
        first = parts.label_losses([0, 1])
    trainer.eval_dataset = EncodedDataset(parts.dataset, parts.collator, is_training=False)
    found = trainer.evaluate()
    assert found[f"eval_{names[0]}_loss"] == pytest.approx(first.mean().item(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", CROSSED)
def test_adapters_and_recomputed_activations_have_the_gradients_of_the_labels(tiny, family, write_rows, tmp_path):
    words = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--output_dir", str(tmp_path)]
    words += ["--data_path", "x", "--use_lora", "True", "--lora_dropout", "0", *CONSENT[family]]
    parts, seen = Parts(tiny, family, write_rows(unequal_rows(family))), Gradients()
    parts.model = make_trainable(parts.model, parts.loader, parse_arguments(words))
    torch.manual_seed(0)
    for name, parameter in parts.model.named_parameters():
        if "lora_B" in name:  # zeros, behind which the other half has no gradient
            torch.nn.init.normal_(parameter, std=0.02)
    trainer = parts.trainer(tmp_path, [seen], per_device_train_batch_size=3, activation_checkpointing=True)
    trainer.train()
    parts.model.gradient_checkpointing_disable()
    for step, gradients in enumerate(seen.steps):
        parts.model.zero_grad()
        parts.label_losses(range(3 * step, 3 * step + 3)).mean().backward()
        for name, expected in gradients_of(parts.model).items():
            atol = ROUNDING.get(family, FACTS[family].rounding) * max(1, expected.abs().max().item())
            torch.testing.assert_close(gradients[name], expected, atol=atol, rtol=0)
        assert sum(gradient.any() for name, gradient in gradients.items() if "lora_A" in name) > 7


ENGINES = {
    "ddp": [],
    "zero2": ["--deepspeed", "ds_configs/zero2.json"],
    "zero3": ["--deepspeed", "ds_configs/zero3.json"],
}
SHARING = ("llava-1.5", "qwen2.5-vl", "gemma-3")  # the library is right for the first alone


@pytest.mark.slow
@pytest.mark.parametrize("family, engine", crossed(itertools.product(SHARING, ENGINES), [*zip(SHARING, ENGINES)]))
def test_two_processes_share_the_labels_of_a_step(tiny, family, engine, write_rows, tmp_path):
    """Eleven rows, batches of two, two accumulated: the last window has one batch a process, filled up with row 0."""
    rows = unequal_rows(family) + [SHORT, LONG]
    path = write_rows(rows)
    words = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--output_dir", tmp_path / "out"]
    halves = [f"{path}[:5]", f"{path}[5:]"]  # a batch of one process has rows of both
    words += ["--data_path", path, "--eval_data_path", *halves, "--num_frames", 4, "--use_cpu", True, *VISION_FLAGS]
    words += ["--per_device_train_batch_size", 2, "--per_device_eval_batch_size", 2, "--learning_rate", 1e-30]
    words += ["--gradient_accumulation_steps", 2, "--num_train_epochs", 1, "--logging_steps", 1, "--max_grad_norm", 0]
    words += ["--train_sampling_strategy", "sequential", "--save_strategy", "no", "--model_max_length", 2048]
    launch([*words, *ENGINES[engine]], processes=2)
    log = logs_of(tmp_path / "out")
    logged = [entry for entry in log if "loss" in entry]
    parts = Parts(tiny, family, path)
    assert len(logged) == 2
    for entry, indices in zip(logged, [range(8), [8, 9, 10, 0]]):
        losses = parts.label_losses(indices)
        parts.model.zero_grad()
        losses.mean().backward()
        norm = torch.stack([gradient.norm() for gradient in gradients_of(parts.model).values()]).norm().item()
        assert entry["loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
        assert entry["grad_norm"] == pytest.approx(norm, rel=1e-4)
    for name, rows in (("", range(11)), (f"{halves[0]}_", range(5)), (f"{halves[1]}_", range(5, 11))):
        with torch.no_grad():
            truth = parts.label_losses(rows).mean().item()
        assert log[-1][f"eval_{name}loss"] == pytest.approx(truth, abs=1e-5)


@pytest.mark.parametrize("lengths", [None, [2, 3, 1]], ids=["padded", "one row"])
def test_losses_belong_to_their_samples(lengths):
    """Labels at both ends of a sample; the last one of a batch has none."""
    rows = [[True, True], [True, False, True], [False]]
    keep = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    keep = keep if lengths is None else torch.tensor([sum(rows, [])])
    sums, numbers = sample_sums(torch.tensor([1.0, 2.0, 4.0, 8.0]), keep, lengths)
    assert sums.tolist() == [3, 12, 0] and numbers.tolist() == [2, 2, 0]
