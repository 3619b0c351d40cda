"""How far a merged checkpoint is from the model that was trained on a quantized base.

    python benchmarks/merge_of_quantized.py

Trains a tiny Qwen2-VL to name eight colours, with adapters on a base in 4 and in 8 bits, and merges each adapter. The
adapter's own effect is the distance of the quantized base with and without it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

import merge_lora_weights  # noqa: E402
import predict  # noqa: E402
import train  # noqa: E402
from reading.dataset import MultimodalDataset  # noqa: E402
from tiny_checkpoints import make_tiny_checkpoint  # noqa: E402

COLOURS = ["red", "green", "blue", "yellow", "black", "white", "orange", "purple"]
MERGES = [("--q_lora", []), ("--q_lora", ["--load_4bit"]), ("--load_in_8bit", [])]


def write_rows(folder: Path) -> str:
    rows = []
    for colour in COLOURS:
        Image.new("RGB", (64, 64), colour).save(folder / f"{colour}.png")
        turns = [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": f"It is {colour}."}]
        rows.append({"image": f"{colour}.png", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))
    return str(folder / "rows.json")


@torch.no_grad()
def outputs(model, batch: dict) -> tuple[torch.Tensor, float]:
    """The logits (batch, tokens, vocabulary) and the mean loss over labels."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model.eval()(**inputs).logits.float()
    return logits, cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()).item()


def rms(difference: torch.Tensor) -> float:
    return difference.square().mean().sqrt().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    lines = ["trained with     merged with    adapter moves   merged differs   loss trained   loss merged"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, data = str(folder / "base"), write_rows(folder)
        make_tiny_checkpoint("qwen2-vl", base)
        for number, (flag, merge_flags) in enumerate(MERGES):
            adapter, merged = str(folder / flag), str(folder / f"merged-{number}")
            words = ["--model_id", "qwen2-vl-2b-instruct", "--model_local_path", base, "--data_path", data]
            words += ["--use_lora", "True", flag, "True", "--lora_dropout", "0", "--use_cpu", "True"]
            words += [
                "--max_steps",
                str(steps),
                "--learning_rate",
                "5e-3",
                "--save_strategy",
                "no",
                "--disable_tqdm",
                "True",
            ]
            train.main([*words, "--output_dir", adapter])
            merge_lora_weights.main(["--model_path", adapter, "--model_save_path", merged, *merge_flags])
            model, collator = predict.load(adapter)
            dataset = MultimodalDataset(data)
            batch = collator([dataset[i] for i in range(len(dataset))])
            trained, trained_loss = outputs(model, batch)
            with model.disable_adapter():
                moved = rms(trained - outputs(model, batch)[0])
            found, loss = outputs(predict.load(merged)[0], batch)
            lines.append(
                f"{flag:<17}{' '.join(merge_flags) or '-':<15}{moved:>13.2f}{rms(found - trained):>17.3f}"
                f"{trained_loss:>15.3f}{loss:>14.3f}"
            )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
