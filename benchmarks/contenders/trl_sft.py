"""TRL's SFTTrainer on the rows of benchmarks/checkpoints.py. Run by benchmarks/speed.py, in a venv of its own.

    python benchmarks/contenders/trl_sft.py CHECKPOINT rows.json BATCH_SIZE MODE LENGTH [JSON]

MODE is lora or full, JSON more flags of SFTConfig. Loss on the replies alone (prompt and completion) and float32, as of
all contenders; else the defaults of SFTConfig, of which gradient checkpointing is one. Pictures are opened when their
row is wanted.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

import datasets

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def message(turn: dict, image: bool) -> list[dict]:
    content = [{"type": "text", "text": turn["value"].removeprefix("<image>\n")}]
    role = "user" if turn["from"] == "human" else "assistant"
    return [{"role": role, "content": ([{"type": "image", "text": None}] if image else []) + content}]


def read_rows(path: Path) -> datasets.Dataset:
    rows = json.loads(path.read_text())
    if any("video" in row for row in rows):
        sys.exit("TRL's SFTTrainer has no column for videos.")
    columns = {
        "prompt": [message(row["conversations"][0], "image" in row) for row in rows],
        "completion": [message(row["conversations"][1], False) for row in rows],
        "images": [[str(path.parent / row["image"])] if "image" in row else [] for row in rows],
    }
    return datasets.Dataset.from_dict(columns).cast_column("images", datasets.List(datasets.Image()))


def main() -> None:
    checkpoint, rows, batch_size, mode, length, *flags = sys.argv[1:]
    config = dict(per_device_train_batch_size=int(batch_size), num_train_epochs=1000, learning_rate=1e-5, bf16=False)
    config |= dict(logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True)
    config |= dict(max_length=int(length), train_sampling_strategy="sequential", output_dir=f"{rows}.trl")
    config |= json.loads(flags[0]) if flags else {}
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    model.requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    model.lm_head.requires_grad_(True)
    targets = rf".*language_model.*\.({'|'.join(PROJECTIONS)})"
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    SFTTrainer(
        model=model,
        args=SFTConfig(**config),
        train_dataset=read_rows(Path(rows)),
        processing_class=AutoProcessor.from_pretrained(checkpoint),
        peft_config=lora if mode == "lora" else None,
    ).train()


if __name__ == "__main__":
    main()
