"""Whether a sample is trained alike however it is computed: packed against alone, many processes against one.

    python benchmarks/equality.py --json equality.json
    python benchmarks/equality.py --families qwen2.5-vl --engines --steps 2
    python benchmarks/equality.py --families --engines qwen2.5-vl --optim sgd --learning_rate 0.1

Packed: each family's tiny checkpoint, rows of text and of pictures of several sizes; the loss, the gradients of all
weights and those of the vision encoder, once sample by sample and once with all samples in one row, in float32 and in
bfloat16. A figure is the norm of the difference over the norm. bfloat16 keeps eight bits, so it differs from float32
by itself: `rounding` is how far, of samples alone. Engines: full finetuning by train.py on two CPU processes, which
must end with the losses and weights of one; and the share of numbers whose gradient is rounding alone, which float64
tells: AdamW makes full steps of it, SGD none. docs/correctness.md shows it all (docs/generate.py). No network.
"""

import argparse
import contextlib
import datetime
import json
import os
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests")]
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}

import torch  # noqa: E402
from launch import launch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from collators import COLLATORS  # noqa: E402
from loaders import LOADERS, attention  # noqa: E402
from reading.dataset import IGNORE_INDEX, MultimodalDataset  # noqa: E402
from supported_models import MODELS, families  # noqa: E402
from tiny_checkpoints import make_tiny_checkpoint  # noqa: E402

OF_ENGINES = ["llava-1.5", "qwen2.5-vl", "gemma-3"]
FSDP = {"fsdp": True, "fsdp_config": "fsdp_configs/fsdp2.json"}
ENGINES = {
    "DDP": {},
    "ZeRO-3": {"deepspeed": "ds_configs/zero3.json"},
    "FSDP2": FSDP | {"accelerator_config": '{"use_configured_state": true}'},
}
FLAGS = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no", "report_to": "none"}
FLAGS |= {"learning_rate": 1e-3, "train_vision_encoder": True, "train_vision_projector": True, "max_grad_norm": 0}
FLAGS |= {"train_sampling_strategy": "sequential"}
NO_TEXTS = ("paligemma",)  # it was trained on images alone


def write_rows(family: str, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in {"red": (64, 64), "blue": (100, 50), "green": (60, 140)}.items():
        Image.new("RGB", size, name).save(folder / f"{name}.png")
    asked = {
        "What colour is it?": (["red"], "Red"),
        "Which of them is wide?": (["red", "blue"], "The second, and it is blue"),
        "Is it wide or tall?": (["green"], "It is a tall green picture"),
        "Name two colours.": ([], "Blue, and green"),
    }
    rows = []
    for question, (pictures, answer) in asked.items():
        if pictures or family not in NO_TEXTS:
            text = "<image>\n" * len(pictures) + question
            turns = [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
            rows.append({"image": [f"{name}.png" for name in pictures], "conversations": turns})
    path = folder / f"{family}.json"
    path.write_text(json.dumps(rows))
    return str(path)


# ---- packed against alone ----


def gradients(model, batches: list[dict], labels: int) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss of all labels of some batches, and the gradient of each weight, in float32 or float64."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        inputs = dict(batch)
        targets = inputs.pop("labels")[:, 1:]
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        chosen = targets != IGNORE_INDEX
        loss = torch.nn.functional.cross_entropy(logits[chosen], targets[chosen], reduction="sum") / labels
        loss.backward()
        total += loss.item()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return total, {name: grad.to(torch.promote_types(grad.dtype, torch.float32)) for name, grad in found.items()}


def apart(found: dict, expected: dict) -> float:
    """The norm of the difference of two sets of gradients over that of the second."""
    norm = sum(value.double().square().sum() for value in expected.values()).sqrt()
    return ((sum((found[n] - expected[n]).double().square().sum() for n in expected)).sqrt() / norm).item()


def alone_in(dtype: torch.dtype, family: str, checkpoint: str, rows: str) -> tuple:
    """Loader, model, collator, samples, number of labels; and loss and gradients of the samples one by one."""
    loader = LOADERS.get(family)(checkpoint, attn_implementation="sdpa")
    model, collator = loader.load_model().to(dtype).eval(), COLLATORS.get(family)(loader.load_processor(), 2048)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(loader.component_of(name)) and not loader.is_unused(name))
    dataset = MultimodalDataset(rows)
    samples = [collator.encode(dataset[i]).inputs for i in range(len(dataset))]
    labels = sum(int((sample["labels"][:, 1:] != IGNORE_INDEX).sum()) for sample in samples)
    alone = gradients(model, [in_type(collator.collate([sample]), dtype) for sample in samples], labels)
    return loader, model, collator, samples, labels, alone


def rounding_alone(family: str, checkpoint: str, rows: str) -> float:
    """The share of numbers whose gradient in float32 is off by more than a tenth of that in float64."""
    single, double = (alone_in(dtype, family, checkpoint, rows)[-1][1] for dtype in (torch.float32, torch.float64))
    off = sum(int(((single[name] - exact).abs() > 0.1 * exact.abs()).sum()) for name, exact in double.items())
    return off / sum(exact.numel() for exact in double.values())


def packed(family: str, checkpoint: str, rows: str) -> dict[str, float]:
    """Of both types: how far losses, all gradients and those of the vision encoder are from each sample's alone."""
    found, exact = {}, None
    for dtype in (torch.float32, torch.bfloat16):
        loader, model, collator, samples, labels, alone = alone_in(dtype, family, checkpoint, rows)
        attention.separate_samples(model, loader)
        collator.make_padding_free(loader)
        together = gradients(model, [in_type(collator.collate(samples), dtype)], labels)

        def vision(of: dict, loader=loader) -> dict:
            return {name: value for name, value in of.items() if loader.component_of(name) == "vision_encoder"}

        name = str(dtype).removeprefix("torch.")
        found |= {f"{name} loss": abs(together[0] - alone[0]) / alone[0]}
        found |= {f"{name} gradients": apart(together[1], alone[1])}
        found |= {f"{name} vision": apart(vision(together[1]), vision(alone[1]))}
        exact = exact or alone
    return found | {"rounding": apart(alone[1], exact[1]), "rounding vision": apart(vision(alone[1]), vision(exact[1]))}


def in_type(batch: dict, dtype: torch.dtype) -> dict:
    return {k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in batch.items()}


# ---- two processes against one ----


def engine(name: str, family: str, checkpoint: str, rows: str, steps: int, out: Path) -> tuple[list[float], dict]:
    """The logged losses and the saved weights of a run; all rows of a step, shared among the processes."""
    model_id = next(id for id, model in MODELS.items() if model.family == family)
    flags = FLAGS | ENGINES.get(name, {}) | {"model_id": model_id, "model_local_path": checkpoint, "data_path": rows}
    processes = 2 if name in ENGINES else 1
    flags |= {"output_dir": out, "max_steps": steps, "per_device_train_batch_size": 4 // processes}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    launch(words, processes, "fsdp_on_cpu" if name == "FSDP2" else "train")
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry], load_file(out / "model.safetensors")


def engines(family: str, checkpoint: str, rows: str, steps: int, folder: Path) -> dict[str, dict[str, float]]:
    """Engine -> how far its losses are from those of one process, and how far its weights moved elsewhere."""
    losses, weights = engine("one", family, checkpoint, rows, steps, folder / "one")
    before = load_file(Path(checkpoint, "model.safetensors"))
    moved = {name: value - before[name] for name, value in weights.items()}
    found = {}
    for name in ENGINES:
        theirs, ended = engine(name, family, checkpoint, rows, steps, folder / name)
        assert len(theirs) == len(losses)
        worst = max(abs(a - b) / b for a, b in zip(theirs, losses))
        found[name] = {"losses": worst, "weights": apart({n: v - before[n] for n, v in ended.items()}, moved)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", choices=families(), default=families(), help="packed against alone")
    parser.add_argument("--engines", nargs="*", choices=families(), default=OF_ENGINES, help="families for engines")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--optim", default="adamw_torch_fused", help="of the engines' runs")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--json", type=Path)
    own = parser.parse_args()
    FLAGS.update(optim=own.optim, learning_rate=own.learning_rate)
    found = json.loads(own.json.read_text()) if own.json and own.json.exists() else {"packed": {}, "engines": {}}
    found["date"] = datetime.date.today().isoformat()
    found["versions"] = f"torch {torch.__version__.split('+')[0]}, transformers {version('transformers')}"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FINELMM_CACHE"] = folder
        for family in dict.fromkeys([*own.families, *own.engines]):
            loader, checkpoint = LOADERS.get(family), f"{folder}/{family}"
            with contextlib.redirect_stdout(sys.stderr):
                make_tiny_checkpoint(family, checkpoint)
            rows = write_rows(family, Path(folder, "rows"))
            if family in own.families and loader.cannot_be_padding_free:
                print(f"{family} is padded: {loader.cannot_be_padding_free}")
            elif family in own.families:
                found["packed"][family] = packed(family, checkpoint, rows)
                print(family, {name: f"{value:.0e}" for name, value in found["packed"][family].items()}, flush=True)
            if family in own.engines:
                found["engines"][family] = engines(family, checkpoint, rows, own.steps, Path(folder, f"runs-{family}"))
                share = found.setdefault("rounding alone", {})[family] = rounding_alone(family, checkpoint, rows)
                print(family, found["engines"][family], f"rounding alone: {share:.1%}", flush=True)
            if own.json:
                own.json.write_text(json.dumps(found, indent=1) + "\n")


def version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)


if __name__ == "__main__":
    main()
