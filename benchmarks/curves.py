"""How the cost of a step grows: with the length of a row, and with the pictures in it.

    python benchmarks/curves.py
    python benchmarks/curves.py --lengths 256 1024 4096 --images 1 4 --rounds 2

A random qwen2-vl checkpoint (checkpoints.py), LoRA of rank 8, one row a step, in one process; all lengths take turns.
CPU-seconds are medians; the fit is a straight line through them. `encode` opens the pictures, renders, tokenizes and
makes the tensors; `step` is forward with the loss of FinetuneTrainer, backward and AdamW; `off` is how far a point lies
from the line. Attention grows with the square of the length, more visibly in a small model than in a large one.

How opening a data set grows with its rows is measured by benchmarks/open_rows.py.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from checkpoints import SIZES, draw_picture, make_checkpoint, words  # noqa: E402

from arguments import parse_arguments  # noqa: E402
from loaders import LOADERS  # noqa: E402
from loaders.output_folder import ProcessorFiles  # noqa: E402
from training import trainable  # noqa: E402
from training.make_collator import make_collator  # noqa: E402
from training.trainer import FinetuneTrainer  # noqa: E402


class Bench:
    def __init__(self, folder: str, size: str):
        make_checkpoint("qwen2-vl", size, folder)
        flags = f"--model_id qwen2-vl-7b-instruct --model_local_path {folder} --output_dir {folder}/out --use_cpu True"
        flags += " --data_path none --use_lora True --lora_dropout 0 --model_max_length 100000"
        arguments = parse_arguments(flags.split())
        loader = LOADERS.get("qwen2-vl")(folder)
        self.collator = make_collator("qwen2-vl", loader, arguments.data)
        self.model = trainable.make_trainable(loader.load_model(), loader, arguments).train()
        self.trainer = FinetuneTrainer(
            model=self.model, args=arguments.training, processor_files=ProcessorFiles(folder)
        )
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], 1e-5)

    def cost(self, sample: dict) -> tuple[int, float, float]:
        """Tokens, CPU-seconds of encoding, CPU-seconds of the step."""
        start = time.process_time()
        batch = self.collator.collate([self.collator.encode(sample).inputs])
        encoded = time.process_time()
        self.trainer.compute_loss(self.model, batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return batch["input_ids"].numel(), encoded - start, time.process_time() - encoded

    def curve(self, samples: dict[int, dict], rounds: int) -> dict[int, tuple[float, ...]]:
        """Medians of `cost` over the rounds, after one to warm up."""
        found = {key: [] for key in samples}
        for _ in range(rounds + 1):
            for key, sample in samples.items():
                found[key].append(self.cost(sample))
        return {key: tuple(map(statistics.median, zip(*costs[1:]))) for key, costs in found.items()}


def row(asked: int, answered: int, pictures: int = 0, seed: int = 0) -> dict:
    random = np.random.default_rng(seed)
    content = [{"type": "image", "image": draw_picture(random, 448, 448)} for _ in range(pictures)]
    content.append({"type": "text", "text": words(random, asked)})
    reply = [{"type": "text", "text": words(random, answered)}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]}


def show(name: str, curve: dict[int, tuple[float, ...]], of_tokens: bool) -> None:
    """The points and how near they are to straight lines: of the tokens, or of `name`."""
    tokens, encode, step = np.array(list(curve.values())).T
    x = tokens if of_tokens else np.array(list(curve))
    lines = {what: straight(x, y) for what, y in (("encode", encode), ("step", step))}
    print(
        f"\n{name:>9} {'tokens':>7} {'encode CPU-s':>12} {'off':>5} {'step CPU-s':>10} {'off':>5} {'tokens/CPU-s':>12}"
    )
    for i, key in enumerate(curve):
        off = [y[i] / line(x[i]) - 1 for y, (line, _) in zip((encode, step), lines.values())]
        print(
            f"{key:>9} {tokens[i]:>7.0f} {encode[i]:>12.4f} {off[0]:>+5.0%} {step[i]:>10.3f} {off[1]:>+5.0%} "
            f"{tokens[i] / (encode[i] + step[i]):>12.0f}"
        )
    for what, (line, r2) in lines.items():
        print(f"{what}: {line(0):.4f} + {line(1) - line(0):.3g} CPU-s each, r2 {r2:.4f}")


def straight(x: np.ndarray, y: np.ndarray):
    line = np.poly1d(np.polyfit(x, y, 1))
    return line, 1 - ((y - line(x)) ** 2).sum() / ((y - y.mean()) ** 2).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="32k")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    own = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, own.size)
        # A fifth of the row is answered, whatever its length.
        show("length", bench.curve({n: row(n * 4 // 5 - 30, n // 5) for n in own.lengths}, own.rounds), True)
        show("pictures", bench.curve({n: row(20, 40, n) for n in own.images}, own.rounds), False)


if __name__ == "__main__":
    main()
