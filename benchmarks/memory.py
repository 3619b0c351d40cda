"""Peak memory of a training step with a large vocabulary: our loss against that of the model, with all logits.

    python benchmarks/memory.py

A random checkpoint with a vocabulary of 151,936 (checkpoints.py), two rows of 1,024 tokens of which a fifth are labels,
LoRA of rank 8. Every measurement is a process of its own: its peak over what it holds before the step, with the model,
the batch and the optimizer's state in place (the second of two steps; Linux). The two ways take turns.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROWS, TOKENS, LABELLED = 2, 1024, 0.2


def status(name: str) -> float:
    """In MB, of this process."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measure(way: str, checkpoint: str) -> dict:
    import torch

    from arguments import parse_arguments
    from loaders import LOADERS
    from loaders.output_folder import ProcessorFiles
    from reading.dataset import IGNORE_INDEX
    from training import trainable
    from training.trainer import FinetuneTrainer

    words = f"--model_id qwen2-vl-7b-instruct --model_local_path {checkpoint} --output_dir {checkpoint} --use_cpu True"
    arguments = parse_arguments([*words.split(), "--data_path", "none", "--use_lora", "True", "--lora_dropout", "0"])
    loader = LOADERS.get("qwen2-vl")(checkpoint)
    torch.manual_seed(0)
    model = trainable.make_trainable(loader.load_model(), loader, arguments).train()
    files = ProcessorFiles(checkpoint)
    trainer = FinetuneTrainer(model=model, args=arguments.training, processor_files=files)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-5)
    input_ids = torch.randint(0, 1000, (ROWS, TOKENS))
    labels = input_ids.clone()
    labels[:, : TOKENS - int(TOKENS * LABELLED)] = IGNORE_INDEX
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}

    def step() -> float:
        if way == "labelled":
            loss = trainer.compute_loss(model, dict(batch))
        else:
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    step()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    before, start = status("VmRSS"), time.process_time()
    loss = step()
    return {"peak": status("VmHWM") - before, "cpu": time.process_time() - start, "loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--task", nargs=2, help=argparse.SUPPRESS)  # of a child
    own = parser.parse_args()
    if own.task:
        print(json.dumps(measure(*own.task)))
        return
    from checkpoints import make_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint("qwen2-vl", "150k", folder)
        rounds = []
        for _ in range(own.rounds):
            rounds.append({})
            for way in ("full", "labelled"):
                command = [sys.executable, __file__, "--task", way, folder]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rounds[-1][way] = json.loads(done.stdout.splitlines()[-1])
        assert all(abs(turn["full"]["loss"] - turn["labelled"]["loss"]) < 1e-4 for turn in rounds), rounds
    print(f"{'':10} {'MB above the model':>18} {'CPU-s':>6}")
    for way in ("full", "labelled"):
        peak, cpu = (statistics.median(turn[way][what] for turn in rounds) for what in ("peak", "cpu"))
        print(f"{way:10} {peak:18.0f} {cpu:6.2f}")
    for what in ("peak", "cpu"):
        ratios = [turn["labelled"][what] / turn["full"][what] for turn in rounds]
        print(f"{what}: labelled / full {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
