"""TRL's SFTTrainer on chats with images. Run by benchmarks/correctness.py, as TRL's documentation shows it.

    python benchmarks/contenders/trl_chats.py run.json

run.json: checkpoint, rows (JSONL with prompt, completion, images, tools), config (of SFTConfig), lora (of LoraConfig)
or null, and resume, a checkpoint of the trainer or null.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

import datasets


def read_rows(path: str) -> datasets.Dataset:
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    if not any("images" in row for row in rows):
        return datasets.Dataset.from_list(rows)
    rows = [row | {"images": row.get("images", [])} for row in rows]
    return datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))


def main() -> None:
    run = json.loads(Path(sys.argv[1]).read_text())
    SFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(run["checkpoint"], dtype=torch.float32),
        args=SFTConfig(**run["config"]),
        train_dataset=read_rows(run["rows"]),
        processing_class=AutoProcessor.from_pretrained(run["checkpoint"]),
        peft_config=LoraConfig(**run["lora"]) if run["lora"] else None,
    ).train(resume_from_checkpoint=run["resume"])


if __name__ == "__main__":
    main()
