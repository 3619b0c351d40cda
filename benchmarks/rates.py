"""What learning rate and rank of LoRA do: to what is learned, and to what was known before.

    python benchmarks/rates.py --picture docs/images/rates.png

A tiny Qwen2-VL is first trained in full until it knows where 24 people live. Then adapters learn to name the colours of
pictures, by each learning rate at rank 8, and by each rank at one rate. Shown are the right answers about pictures that
were held out (`--eval_generate`), and what of the answers about people is left (`--probe`).
"""

import argparse
import json
import random
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from PIL import Image  # noqa: E402

import train  # noqa: E402
from tiny_checkpoints import make_tiny_checkpoint  # noqa: E402

RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
RANKS = [1, 2, 4, 8, 16]
RANK, RATE = 8, 3e-3
NAMES = (
    "Ada Ben Cleo Dan Eva Finn Gina Hugo Ida Jon Kim Leo Mia Ned Ola Pia Quin Rosa Sam Tom Una Vera Will Zoe".split()
)
TOWNS = "Rome Paris Oslo Lima Cairo Delhi".split()
COLOURS = {"Red": (210, 40, 40), "Green": (40, 160, 70), "Blue": (40, 80, 210), "Yellow": (240, 200, 30)}
COLOURS |= {"Black": (30, 30, 30), "White": (240, 240, 240), "Grey": (130, 130, 130), "Pink": (240, 140, 190)}
FLAGS = "--use_cpu True --disable_tqdm True --save_strategy no --report_to none --seed 0"


def write_rows(folder: Path) -> None:
    draw = random.Random(0)
    people = [{"question": f"Where does {name} live?", "answer": draw.choice(TOWNS)} for name in NAMES]
    (folder / "people.json").write_text(json.dumps(people))
    for part, number in (("train", 96), ("test", 32)):
        rows = []
        for i in range(number):
            name, shade = [*COLOURS][i % len(COLOURS)], draw.randint(-15, 15)
            path = folder / f"{part}-{i}.png"
            Image.new("RGB", (56, 56), tuple(max(0, min(255, value + shade)) for value in COLOURS[name])).save(path)
            rows.append({"image": path.name, "question": "Which colour is it?", "answer": name})
        (folder / f"{part}.json").write_text(json.dumps(rows))


def run(folder: Path, base: str, name: str, flags: dict) -> list[dict]:
    """A run of train.py -> what it logged."""
    words = ["--model_id", "qwen2-vl-2b-instruct", "--model_local_path", str(folder / base), *FLAGS.split()]
    words += ["--output_dir", str(folder / name)]
    words += [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    with open(folder / f"{name}.txt", "w") as log, redirect_stdout(log):
        train.main(words)
    return [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]


def measure(folder: Path, rate: float, rank: int, steps: int) -> tuple[float, float]:
    """The shares of right answers about new pictures, and of those about people that are still right."""
    flags = {"data_path": folder / "train.json", "eval_data_path": folder / "test.json", "max_steps": steps}
    flags |= {"use_lora": True, "lora_dropout": 0, "lora_r": rank, "lora_alpha": 2 * rank, "learning_rate": rate}
    flags |= {"eval_generate": 32, "eval_max_new_tokens": 8, "probe": folder / "people.json"}
    log = run(folder, "base", f"run-{rate}-{rank}", flags)
    learned = [logs["eval_exact_match"] for logs in log if "eval_exact_match" in logs][-1]
    probed = next(logs for logs in log if "probe_lost" in logs)
    kept = 1 - probed["probe_lost"] / probed["probe_right"]
    print(f"rate {rate:g}, rank {rank}: learned {learned:.2f}, kept {kept:.2f} of {probed['probe_right']}", flush=True)
    return learned, kept


def table(head: str, found: dict) -> str:
    lines = [f"| {head} | {' | '.join(f'{value:g}' for value in found)} |", "| --- " * (len(found) + 1) + "|"]
    for i, what in enumerate(("learned", "kept")):
        lines.append(f"| {what} | {' | '.join(f'{shares[i]:.2f}' for shares in found.values())} |")
    return "\n".join(lines)


def draw(curves: dict[str, dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, (title, found) in zip(figure.subplots(1, 2, sharey=True), curves.items()):
        for i, (what, colour) in enumerate((("learned", "#1f5fa8"), ("kept", "#c25100"))):
            axes.plot([*found], [shares[i] for shares in found.values()], "o-", color=colour, label=what)
        axes.set(xscale="log", xlabel=title, ylim=(-0.05, 1.05))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e7eb")
    axes.set_xscale("log", base=2)
    axes.set_xticks([*found], [f"{rank}" for rank in found])
    axes.legend(frameon=False, labelcolor="linecolor")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--picture", type=Path)
    own = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder)
        make_tiny_checkpoint("qwen2-vl", str(folder / "tiny"))
        flags = {"data_path": folder / "people.json", "max_steps": 2 * own.steps, "learning_rate": 2e-3}
        run(folder, "tiny", "base", flags)
        by_rate = {rate: measure(folder, rate, RANK, own.steps) for rate in own.rates}
        by_rank = {rank: measure(folder, RATE, rank, own.steps) for rank in own.ranks}
    curves = {f"learning rate, at rank {RANK}": by_rate, f"rank, at a learning rate of {RATE:g}": by_rank}
    if own.picture:
        draw(curves, own.picture)
    print("\n\n".join(table(title, found) for title, found in curves.items()))


if __name__ == "__main__":
    main()
