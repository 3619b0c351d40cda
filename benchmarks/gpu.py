"""What one GPU does with finelmm: one command of at most eight minutes, which needs no network and no checkpoint.

    python benchmarks/gpu.py --output gpu.json
    python benchmarks/gpu.py --output gpu.json --peak_tflops 989     # of the card, for the MFU; H100 and H200 are known
    python benchmarks/gpu.py --output gpu.json --dry_run             # tiny sizes, also on a CPU

Models have the shape of real ones and random weights, made on the device. Rows are drawn: pictures of 640x480 with text
before and after them, as many as fit into 4,096 tokens. Each cell is a few steps of LoRA in bfloat16, and the file is
written after each, so that a run that is cut short has told the most important ones. A cell that does not end in time,
or does not fit, says so; a package that is not installed makes its cell "absent".

    step       FinetuneTrainer as train.py wires it, samples concatenated: tokens a second, MFU, peak, forecast of it
    bare       forward, backward and fused AdamW on a batch that is on the device already: the limit of `step`
    padded     `step` with the same rows padded
    precision  the loss of a batch in bfloat16 and in float32
"""

import argparse
import contextlib
import gc
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_DISABLED": "true"}

import numpy as np  # noqa: E402
import torch  # noqa: E402
from checkpoints import draw_picture, words  # noqa: E402
from contenders.own_steps import KeptRows  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from transformers import TrainerCallback, TrainingArguments, set_seed  # noqa: E402

import estimate  # noqa: E402
import tiny_checkpoints  # noqa: E402
from arguments import parse_arguments  # noqa: E402
from loaders import LOADERS, attention  # noqa: E402
from loaders.output_folder import ProcessorFiles  # noqa: E402
from reading.dataset import make_dataset  # noqa: E402
from supported_models import find_model  # noqa: E402
from train import model_kwargs, quantize  # noqa: E402
from training import trainable  # noqa: E402
from training.loss import label_losses  # noqa: E402
from training.make_collator import make_collator  # noqa: E402
from training.trainer import FinetuneTrainer  # noqa: E402

TOKENS, DRY_TOKENS = 4096, 256
IMAGE, DRY_IMAGE = (640, 480), (112, 84)
SECONDS, CELL_SECONDS = 470, 20
WARM_UP, STEPS = 3, 12
# Dense bfloat16, in 10^12 operations a second, by what the name of a card holds.
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165, "B200": 2250}
# Sizes of config.json on the Hub: (language model, vision encoder).
MODELS = {
    "qwen2.5-vl-7b-instruct": (
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "max_window_layers": 28,
            "rope_sections": [16, 24, 24],
        },
        {
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "depth": 32,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    ),
    "qwen3-vl-8b-instruct": (
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "rope_sections": [24, 20, 20],
        },
        {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "depth": 27,
            "num_heads": 16,
            "out_hidden_size": 4096,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    ),
    "gemma-3-4b-it": (
        {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 262208,
            "sliding_window": 1024,
        },
        {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
        },
    ),
}
FIRST, *OTHERS = MODELS
PACKAGES = ("torch", "transformers", "peft", "accelerate", "flash_attn", "liger_kernel", "bitsandbytes", "kernels")

# On a machine with an older transformers: what these steps need of 5.23.
IS_OLD = not hasattr(TrainingArguments, "activation_checkpointing")
if IS_OLD:
    TrainingArguments.activation_checkpointing, TrainingArguments.activation_checkpointing_kwargs = False, None


def keep_by_mask(model):
    """Have the head of an older release compute the positions of a mask alone; returns the model."""
    kept = []

    def take_mask(module, inputs, kwargs):
        kept[:] = [kwargs.pop("logits_to_keep", None)]
        return inputs, kwargs

    model.register_forward_pre_hook(take_mask, with_kwargs=True)
    model.lm_head.register_forward_pre_hook(lambda module, inputs: inputs if kept[0] is None else inputs[0][kept[0]])
    return model


class Late(Exception):
    """A cell did not end in time."""


class Absent(Exception):
    """What a cell needs is not installed."""


# ---- a model and its rows ----


def write_checkpoint(model_id: str, folder: Path, dry: bool) -> None:
    """The config and processor of a model with its real sizes (dry: tiny ones), without weights."""
    tiny = tiny_checkpoints.TINY_CHECKPOINTS.get(find_model(model_id).family)()
    config, processor = tiny.config, tiny.processor
    if not dry:
        text, vision = MODELS[model_id]
        for part, sizes in ((config.text_config, text), (config.vision_config, vision)):
            for name, value in sizes.items():
                if name == "rope_sections":
                    part.rope_parameters |= {"mrope_section": value}
                else:
                    setattr(part, name, value)
        layers = config.text_config.num_hidden_layers
        if getattr(config.text_config, "layer_types", None):
            is_windowed = "sliding_attention" in config.text_config.layer_types  # gemma-3: every sixth sees all
            kinds = [("sliding_attention" if is_windowed and i % 6 < 5 else "full_attention") for i in range(layers)]
            config.text_config.layer_types = kinds
        if model_id.startswith("gemma"):
            processor.image_processor.size = {"height": 896, "width": 896}
            config.mm_tokens_per_image = processor.image_seq_length = 256
            processor.full_image_sequence = processor.full_image_sequence.replace(
                processor.image_token * processor.full_image_sequence.count(processor.image_token),
                processor.image_token * 256,
            )
        for part in (config, config.text_config):
            part.tie_word_embeddings = model_id.startswith("gemma")
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_rows(folder: Path, dry: bool) -> None:
    """Rows of one picture each with 60 to 200 words, half of them answered."""
    random, rows = np.random.default_rng(0), []
    for i in range(12 if dry else 64):
        draw_picture(random, *(DRY_IMAGE if dry else IMAGE)).save(folder / f"{i}.jpg", quality=90)
        asked = answered = int(random.integers(10, 20) if dry else random.integers(30, 100))
        turns = [{"from": "human", "value": f"<image>\n{words(random, asked)}"}]
        rows.append({"image": f"{i}.jpg", "conversations": [*turns, {"from": "gpt", "value": words(random, answered)}]})
    (folder / "rows.json").write_text(json.dumps(rows))


class Run:
    """A model on the device, and a batch of rows that fit into the budget of tokens."""

    def __init__(self, model_id: str, own, work: Path, *flags: str, dtype: torch.dtype = torch.bfloat16):
        folder = work / model_id
        if not folder.exists():
            folder.mkdir()
            write_checkpoint(model_id, folder, own.dry_run)
        tokens = DRY_TOKENS if own.dry_run else TOKENS
        given = ["--model_id", model_id, "--model_local_path", str(folder), "--output_dir", str(work / "out")]
        given += ["--data_path", str(work / "rows.json"), "--model_max_length", str(tokens), "--use_lora", "True"]
        given += ["--bf16", str(dtype == torch.bfloat16), "--report_to", "none", "--save_strategy", "no", "--seed", "0"]
        given += ["--use_cpu", str(not torch.cuda.is_available()), "--logging_steps", "1000", "--max_steps", "100000"]
        self.arguments = parse_arguments([*given, *flags, "--overwrite_output_dir", "True"])
        self.loader = LOADERS.get(find_model(model_id).family)(str(folder), **model_kwargs(self.arguments))
        self.device, self.dtype = self.arguments.training.device, dtype
        self.collator = make_collator(self.arguments.model.family, self.loader, self.arguments.data)
        self.is_joined = attention.is_padding_free(self.arguments, self.loader)
        if self.is_joined:
            self.collator.make_padding_free(self.loader)
        self.rows = KeptRows(make_dataset(self.arguments.data, "data_path", [str(work / "rows.json")]), self.collator)
        per_step = int(tokens / np.mean([row["input_ids"].shape[1] for row in self.rows.rows]))
        self.arguments.training.per_device_train_batch_size = per_step
        self.tokens = []  # of each batch that was made

    def collate(self, rows: list[dict]) -> dict:
        self.tokens.append(sum(row["input_ids"].shape[1] for row in rows))
        return self.collator.collate(rows)

    def batch(self) -> dict:
        batch = self.collate(self.rows.rows[: self.arguments.training.per_device_train_batch_size])
        return {name: value.to(self.device) if torch.is_tensor(value) else value for name, value in batch.items()}

    def model(self):
        """As train.py makes it trainable; random weights, of the size at which activations keep their scale."""
        set_seed(0)
        quantize(self.arguments, self.loader)
        with torch.device(self.device):
            model = self.loader.model_class().from_config(
                self.loader.config, dtype=self.dtype, attn_implementation=self.loader.text_attention
            )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.02)
        if IS_OLD:
            keep_by_mask(model)
        self.loader.unused = self.loader.unused_modules(model)
        if self.is_joined:
            attention.separate_samples(model, self.loader)
        return trainable.make_trainable(model, self.loader, self.arguments).to(self.device)


# ---- what is measured ----


class Clock(TrainerCallback):
    """Seconds of each step after the warm-up; ends the training after the last."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.began = device, [], None

    def on_step_end(self, args, state, control, **kwargs):
        synchronize(self.device)
        now = time.perf_counter()
        if state.global_step > WARM_UP:
            self.seconds.append(now - self.began)
        self.began = now
        control.should_training_stop = state.global_step == WARM_UP + STEPS


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def trained(run: Run, model) -> dict:
    """Steps of our trainer."""
    clock, run.tokens = Clock(run.device), []
    trainer = FinetuneTrainer(
        model=model,
        args=run.arguments.training,
        data_collator=run.collate,
        train_dataset=run.rows,
        processor_files=ProcessorFiles(run.arguments.model.model_path),
    )
    trainer.add_callback(clock)
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    return {"tokens_per_second": sum(run.tokens[WARM_UP:][: len(clock.seconds)]) / sum(clock.seconds)}


def bare(run: Run, model) -> float:
    """Tokens a second of the same steps on one batch, without a trainer."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-5, fused=True)
    batch, seconds = run.batch(), []
    model.train()
    for step in range(WARM_UP + STEPS):
        began = time.perf_counter()
        with torch.autocast(run.device.type, torch.bfloat16):
            losses, *_ = label_losses(model, batch)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        synchronize(run.device)
        seconds += [time.perf_counter() - began] * (step >= WARM_UP)
    return run.tokens[-1] / float(np.median(seconds))


def flops_per_token(run: Run, model) -> float:
    """Operations of forward and backward, from one batch."""
    batch = run.batch()
    with FlopCounterMode(display=False) as counter, torch.autocast(run.device.type, torch.bfloat16):
        label_losses(model, batch)[0].mean().backward()
    return counter.get_total_flops() / batch["labels"].numel()


def peak_of(run: Run) -> float | None:
    return torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else None


# ---- cells ----


def step(model_id: str, *flags: str, needs: str | None = None):
    def cell(own, work: Path) -> dict:
        if needs and not find_spec(needs):
            raise Absent(f"the package {needs} is not installed")
        run = Run(model_id, own, work, *flags)
        model = run.model()
        found = {"samples_per_step": run.arguments.training.per_device_train_batch_size}
        found["billions_of_parameters"] = sum(parameter.numel() for parameter in model.parameters()) / 1e9
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
        found |= trained(run, model)
        if peak := peak_of(run):
            found["peak_gb"] = peak / 1e9
        found["tflops_per_second"] = found["tokens_per_second"] * flops_per_token(run, model) / 1e12
        if own.peak_tflops:
            found["mfu"] = found["tflops_per_second"] / own.peak_tflops
        if not flags:
            found["bare_tokens_per_second"] = bare(run, model)
            found["of_bare"] = found["tokens_per_second"] / found["bare_tokens_per_second"]
        return found

    return cell


def forecast(own, work: Path) -> dict:
    """The peak by estimate.py of the first model's step."""
    run = Run(FIRST, own, work)
    family = type(run.loader)
    make, prepare = family.meta_model, keep_by_mask if IS_OLD else lambda model: model
    with mock.patch.object(family, "meta_model", lambda loader: prepare(make(loader))):
        return {"forecast_gb": estimate.forecast_run(run.arguments, 1).total / 1e9}


def precision(own, work: Path) -> dict:
    """The loss of one batch in both precisions, with the same weights."""
    losses = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        run = Run(FIRST, own, work, dtype=dtype)
        model = run.model().eval()
        with torch.no_grad(), torch.autocast(run.device.type, torch.bfloat16, enabled=name == "bfloat16"):
            losses[name] = label_losses(model, run.batch())[0].mean().item()
        del model
        free()
    return losses | {"relative_difference": abs(losses["bfloat16"] / losses["float32"] - 1)}


CELLS = {
    f"{FIRST}: step and bare": step(FIRST),
    f"{FIRST}: forecast of the peak": forecast,
    f"{FIRST}: padded": step(FIRST, "--padding_free", "False"),
    f"{FIRST}: loss in both precisions": precision,
    **{f"{name}: step and bare": step(name) for name in OTHERS},
    f"{FIRST}: FlashAttention 2": step(FIRST, "--attn_implementation", "flash_attention_2", needs="flash_attn"),
    f"{FIRST}: Liger": step(FIRST, "--use_liger_kernel", "True", needs="liger_kernel"),
    f"{FIRST}: Q-LoRA": step(FIRST, "--q_lora", "True", needs="bitsandbytes"),
    f"{FIRST}: torch.compile": step(FIRST, "--torch_compile", "True", "--padding_free", "False"),
    f"{FIRST}: activation checkpointing": step(FIRST, "--activation_checkpointing", "True"),
}


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def within(seconds: float):
    def end(*_):
        raise Late(f"not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_cell(cell, own, work: Path) -> dict:
    began = time.perf_counter()
    try:
        with within(own.cell_seconds):
            found = {"state": "measured"} | cell(own, work)
    except Absent as error:
        found = {"state": "absent", "reason": str(error)}
    except Exception as error:  # the other cells are measured all the same
        traceback.print_exc()
        found = {"state": "failed", "reason": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"}
    free()
    return found | {"wall_s": time.perf_counter() - began}


def about() -> dict:
    found = {"date": time.strftime("%Y-%m-%d"), "python": sys.version.split()[0]}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="JSON file, written after each cell")
    parser.add_argument("--peak_tflops", type=float, help="of the card in dense bfloat16, for the MFU")
    parser.add_argument("--cell_seconds", type=float, default=CELL_SECONDS)
    parser.add_argument("--cells", help="only those whose name holds this")
    parser.add_argument("--dry_run", action="store_true", help="tiny sizes")
    own = parser.parse_args()
    if not own.dry_run and not torch.cuda.is_available():
        sys.exit("Error: no GPU is visible. --dry_run goes through all cells at tiny sizes.")
    report = {"about": about(), "cells": {}}
    if not own.peak_tflops:
        known = [peak for name, peak in PEAKS.items() if name in report["about"]["device"]]
        own.peak_tflops = known[0] if known else None
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        os.environ["FINELMM_CACHE"] = work
        write_rows(Path(work), own.dry_run)
        for name, cell in CELLS.items():
            if own.cells and own.cells not in name:
                continue
            if time.perf_counter() - began + own.cell_seconds > SECONDS:
                report["cells"][name] = {"state": "no time left"}
            else:
                report["cells"][name] = run_cell(cell, own, Path(work))
            Path(own.output).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
            print(f"{name}: {line(report['cells'][name])}", flush=True)


def line(found: dict) -> str:
    numbers = [f"{key} {value:.4g}" for key, value in found.items() if isinstance(value, (int, float))]
    return ", ".join([found["state"], *filter(None, [found.get("reason")]), *numbers])


if __name__ == "__main__":
    main()
