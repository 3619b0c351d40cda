"""Steps of finelmm against the bare model and against other tools: ratios of runs that take turns in one session.

    python benchmarks/speed.py --contenders bare prepared ours
    python benchmarks/speed.py --families llava-1.5 qwen2-vl --rows small mixture --contenders ours trl
    python benchmarks/speed.py --rows mixture --contenders bare ours --ours_flags "--train_sampling_strategy random"

Every contender is a process of its own, in float32, on the same random checkpoint (its sizes: checkpoints.py), the same
drawn rows, with the same batch size, LoRA of rank 8 on the language model or all of the language model, and without
worker processes of its data loader. All start one after the other and train for an epoch to warm up; then, in every
round, each trains for one epoch while the others are stopped (SIGSTOP). So all see the same weather, and whole epochs
hold the same tokens in whatever order and batches. What is read are the losses that they print, the clock, and the CPU
time of the process with its children; Linux only.

    bare          the limit: batches made before, forward with the head on labelled positions, backward, AdamW
    prepared      FinetuneTrainer on rows that were encoded before
    ours          train.py, with --ours_flags
    padded        train.py with padded batches; grouped: those, by length; packed: with two packs a step
    trl           TRL's SFTTrainer at its defaults (gradient checkpointing among them); --trl_python
    trl-plain     the same without gradient checkpointing
    predecessor   train.py of a clone of lmms-finetune at its defaults; --predecessor, --predecessor_python
    llamafactory  LLaMA-Factory at its defaults; --llamafactory_python

Each of the others wants a virtual environment of its own (benchmarks/README.md). One that does not run is named, with
the end of what it said, and left out.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from checkpoints import FAMILIES, ROWS, SIZES, make_checkpoint, make_rows  # noqa: E402

from supported_models import find_model  # noqa: E402

# train.py with other batches than its default's -> the flags.
BATCHES = {
    "padded": "--padding_free False",
    "grouped": "--padding_free False --train_sampling_strategy group_by_length",
    "packed": "--packing True --per_device_train_batch_size 2",
}
CONTENDERS = (*BATCHES, "bare", "prepared", "ours", "trl", "trl-plain", "predecessor", "llamafactory")
EPOCHS = 1000  # asked for; a contender is ended before
# What tells of a step: train.py's own line, or the Trainer's and what has its form.
STEP = re.compile(r"step (?P<step>\d+)/(?P<steps>\d+): loss|['\"]loss['\"]: .*['\"]epoch['\"]: ['\"]?(?P<epoch>[\d.]+)")
# The longest row in tokens, for all alike: (of llava-1.5 and qwen2-vl, of llava-onevision).
LENGTHS = {"small": (1024, 2048), "hd": (2048, 8192), "clips": (2048, 2048), "mixture": (1024, 2048)}
TEMPLATES = {"llava-1.5": "llava", "qwen2-vl": "qwen2_vl", "llava-onevision": "llava_next_qwen"}  # of LLaMA-Factory
VERSIONS = "torch transformers peft accelerate trl llamafactory"
PRINT_VERSIONS = """
import importlib.metadata as m, sys
found = {d.metadata["Name"].lower(): d.version for d in m.distributions()}
print(", ".join(f"{n} {found[n]}" for n in sys.argv[1].split() if n in found))
"""


class Failure(Exception):
    """A contender ended, or gave no sign of life in time."""


class Contender:
    """A process that prints a loss after every step. It runs only within `start` and `turn`."""

    def __init__(self, name: str, command: list, folder: str, log: Path, own):
        self.name, self.command, self.folder, self.log, self.own = name, [str(w) for w in command], folder, log, own
        self.epochs = 0

    def start(self) -> None:
        """Train for one epoch."""
        # A CPU alone, nothing from a hub, and nothing of this repository on the path of other tools.
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        env |= {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_DISABLED": "true"}
        env |= {"OMP_NUM_THREADS": str(self.own.threads), "FINELMM_CACHE": str(self.log.parent / "cache")}
        self.began = time.perf_counter()
        with open(self.log, "w") as errors:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=env,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # so that it can be stopped with its children
            )
        self.first_step = self._finish_epoch()
        os.killpg(self.process.pid, signal.SIGSTOP)

    def turn(self) -> tuple[float, float]:
        """One more epoch: seconds and CPU-seconds."""
        start, cpu = time.perf_counter(), self._cpu()
        os.killpg(self.process.pid, signal.SIGCONT)
        self._finish_epoch()
        result = time.perf_counter() - start, self._cpu() - cpu
        os.killpg(self.process.pid, signal.SIGSTOP)
        return result

    def _finish_epoch(self) -> float:
        """Read up to the last step of the epoch; when the first step since the start of the process ended."""
        self.epochs += 1
        first, said = None, []
        late = threading.Event()
        watchdog = threading.Timer(self.own.timeout, lambda: (late.set(), self.end()))
        watchdog.start()
        try:
            for line in self.process.stdout:
                said.append(line)
                if found := STEP.search(line):
                    first = first or time.perf_counter() - self.began
                    if epoch_of(found) >= self.epochs - 1e-3:
                        return first
        finally:
            watchdog.cancel()
        if late.is_set():
            raise Failure(f"no epoch within {self.own.timeout:g} s (--timeout)")
        if (code := self.process.wait()) < 0:
            raise Failure(f"killed by {signal.Signals(-code).name}; by SIGKILL where memory runs out")
        errors = self.log.read_text().strip().splitlines() + [line.rstrip() for line in said]
        raise Failure(next((line for line in reversed(errors) if "Error" in line), "\n".join(errors[-3:]) or "no word"))

    def _cpu(self) -> float:
        process = psutil.Process(self.process.pid)
        spent = process.cpu_times()
        total = spent.user + spent.system + spent.children_user + spent.children_system  # of children that have ended
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                total += times.user + times.system
        return total

    def peak(self) -> float:
        """Of its main process, in GB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e6

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def epoch_of(step: re.Match) -> float:
    """How many epochs have passed at the end of a step."""
    return float(step["epoch"]) if step["epoch"] else int(step["step"]) / int(step["steps"]) * EPOCHS


# ---- how each is called ----


def own_flags(case, checkpoint: Path, rows: Path, output: Path) -> list:
    family, kind, mode, own = case
    words = ["--model_id", FAMILIES[family], "--model_local_path", checkpoint, "--data_path", rows, "--save_strategy"]
    words += ["no", "--use_lora", mode == "lora", "--lora_r", 8, "--lora_dropout", 0, "--output_dir", output]
    words = [word for word in words if mode == "lora" or word not in ("--lora_r", 8, "--lora_dropout", 0)]
    words += ["--per_device_train_batch_size", own.batch_size, "--num_train_epochs", EPOCHS, "--learning_rate", 1e-5]
    words += ["--logging_steps", 1, "--use_cpu", True, "--disable_tqdm", True, "--report_to", "none"]
    return words + ["--model_max_length", longest(family, kind)]


def longest(family: str, kind: str) -> int:
    return LENGTHS[kind][family == "llava-onevision"]


def command_of(name: str, case, checkpoint: Path, rows: Path, folder: Path) -> tuple[list, str]:
    """The command line of a contender and the folder that it runs in."""
    family, kind, mode, own = case
    output, repo = folder / f"{checkpoint.name}-{rows.name}-{mode}-{name}", HERE.parent
    if name in ("bare", "prepared", "ours", *BATCHES):
        words = own_flags(case, checkpoint, rows, output)
        words += [] if name == "packed" else ["--train_sampling_strategy", "sequential"]
        script = ["benchmarks/contenders/own_steps.py", name] if name in ("bare", "prepared") else ["train.py"]
        more = BATCHES.get(name, own.ours_flags if name != "bare" else "").split()
        return [sys.executable, *script, *words, *more], repo
    if name in ("trl", "trl-plain"):
        words = [checkpoint, rows, own.batch_size, mode, longest(family, kind)]
        words += [json.dumps({"gradient_checkpointing": False})] if name == "trl-plain" else []
        return [own.trl_python, HERE / "contenders" / "trl_sft.py", *words], folder
    if name == "predecessor":
        old, hub = for_transformers_4(checkpoint), checkpoint.with_name(checkpoint.name + "-hub")
        # It reads some files by the Hub path whatever --model_local_path says: that is a folder where it runs.
        link = hub / find_model(FAMILIES[family]).hub_path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(old)
        words = own_flags(case, old, rows, output) + ["--image_folder", rows.parent, "--video_folder", rows.parent]
        return [own.predecessor_python, Path(own.predecessor, "train.py").resolve(), *words], hub
    return [
        own.llamafactory_python,
        "-m",
        "llamafactory.cli",
        "train",
        llamafactory_file(case, checkpoint, rows),
    ], folder


def llamafactory_file(case, checkpoint: Path, rows: Path) -> Path:
    """Its own form of the rows (a list of media beside each conversation) and its flags, as files."""
    family, kind, mode, own = case
    converted = []
    for row in json.loads(rows.read_text()):
        media = {f"{k}s": [str(rows.parent / row[k])] if k in row else [] for k in ("image", "video")}
        converted.append({"conversations": row["conversations"], **media})
    kinds = [k for k in ("images", "videos") if any(row[k] for row in converted)]
    folder = rows.parent / "llamafactory"
    folder.mkdir(exist_ok=True)
    (folder / "converted.json").write_text(json.dumps(converted))
    columns = {"messages": "conversations"} | {k: k for k in kinds}
    info = {"rows": {"file_name": "converted.json", "formatting": "sharegpt", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    flags = {
        **{"model_name_or_path": str(checkpoint), "stage": "sft", "do_train": True, "template": TEMPLATES[family]},
        **{"finetuning_type": mode, "dataset": "rows", "dataset_dir": str(folder), "cutoff_len": longest(family, kind)},
        **{"output_dir": str(folder / "output"), "logging_steps": 1, "save_strategy": "no", "report_to": "none"},
        **{"per_device_train_batch_size": own.batch_size, "num_train_epochs": 1000, "learning_rate": 1e-5},
        **{"use_cpu": True, "disable_tqdm": True, "overwrite_cache": True, "dataloader_num_workers": 0},
        **({"lora_rank": 8, "lora_target": "all"} if mode == "lora" else {}),
    }
    path = folder / "run.yaml"  # JSON is YAML; of a .json file, 0.9.5 cannot read it
    path.write_text(json.dumps(flags))
    return path


def for_transformers_4(checkpoint: Path) -> Path:
    """A copy of a checkpoint whose JSON files are as transformers 4.45 wrote and reads them."""
    target = checkpoint.with_name(checkpoint.name + "-4.45")
    if target.exists():
        return target
    shutil.copytree(checkpoint, target)
    config = json.loads((target / "config.json").read_text())
    text, processor = config["text_config"], json.loads((target / "processor_config.json").read_text())
    rope = text.pop("rope_parameters", {})
    text["rope_theta"] = rope.get("rope_theta", 10000.0)
    config["torch_dtype"] = "float32"
    if config["model_type"] == "qwen2_vl":  # the text model's fields stood at the top, and it had another type
        text.pop("model_type")
        config |= text | {"rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
        del config["text_config"]
        config["vision_config"].pop("rope_parameters")
        config["vision_config"]["in_chans"] = config["vision_config"].pop("in_channels")
    image = processor.pop("image_processor")
    processor.pop("video_processor", None)
    if config["model_type"] == "qwen2_vl":
        size = image.pop("size")
        image |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    (target / "preprocessor_config.json").write_text(json.dumps(image))
    template = (target / "chat_template.jinja").read_text()
    (target / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (target / "processor_config.json").write_text(json.dumps(processor))
    (target / "config.json").write_text(json.dumps(config))
    return target


# ---- a case ----


def compare(family: str, size: str, kind: str, mode: str, cache: Path, own) -> None:
    """Print the table of one case."""
    checkpoint = cache / f"{family}-{size}"
    if not checkpoint.exists():
        make_checkpoint(family, size, str(checkpoint))
    rows = make_rows(kind, own.batch_size * own.steps, cache / f"{kind}-{own.batch_size * own.steps}")
    tokens, labels = count_tokens(family, checkpoint, rows)
    case = (family, kind, mode, own)
    print(
        f"\n{family}, {size}, {kind} rows, {mode}, batch {own.batch_size}: "
        f"{tokens / own.steps / own.batch_size:.0f} tokens a row, {labels / tokens:.0%} of them labels"
    )
    running: list[Contender] = []
    try:
        for name in own.contenders:
            python_given = {"trl": "trl_python", "trl-plain": "trl_python", "llamafactory": "llamafactory_python"}
            needed = "predecessor" if name == "predecessor" else python_given.get(name)
            if needed and not getattr(own, needed):
                print(f"{name}: left out, --{needed} is not given")
                continue
            command, folder = command_of(name, case, checkpoint, rows, cache)
            contender = Contender(name, command, str(folder), cache / f"{name}.log", own)
            try:
                contender.start()
                running.append(contender)
            except Failure as failure:
                print(f"{name}: does not run: {failure}")
                contender.end()
        rounds = []
        for _ in range(own.rounds):
            rounds.append({})
            for contender in list(running):
                try:
                    rounds[-1][contender.name] = contender.turn()
                except Failure as failure:
                    print(f"{contender.name}: stopped: {failure}")
                    contender.end()
                    running.remove(contender)
        if running:
            report(running, rounds, tokens, own)
    finally:
        for contender in running:
            contender.end()


def report(running: list[Contender], rounds: list[dict], tokens: int, own) -> None:
    base = own.base if own.base in rounds[-1] else running[0].name
    print(
        f"{'':13} {'s/step':>8} {'CPU-s/step':>10} {'tokens/s':>9} {'tokens/CPU-s':>12} | "
        f"{'speed of ' + base + ' / its':>22} {'by CPU-seconds':>14} | {'first step':>10} {'peak GB':>7}"
    )
    for contender in running:
        name = contender.name
        wall, cpu = (statistics.median(turn[name][i] for turn in rounds) for i in (0, 1))
        ratios = [[turn[name][i] / turn[base][i] for turn in rounds] for i in (0, 1)]
        spread = f"({min(ratios[1]):.2f}-{max(ratios[1]):.2f})"
        print(
            f"{name:13} {wall / own.steps:8.2f} {cpu / own.steps:10.2f} {tokens / wall:9.0f} {tokens / cpu:12.0f} | "
            f"{statistics.median(ratios[0]):22.2f} {statistics.median(ratios[1]):7.2f} {spread:>12} | "
            f"{contender.first_step:8.1f} s {contender.peak():7.2f}",
            flush=True,
        )


def count_tokens(family: str, checkpoint: Path, rows: Path) -> tuple[int, int]:
    """Of all rows: tokens, media included, and labels."""
    sys.path.insert(0, str(HERE.parent))
    from collators import COLLATORS
    from loaders import LOADERS
    from reading.dataset import IGNORE_INDEX, MultimodalDataset

    collator = COLLATORS.get(family)(LOADERS.get(family)(str(checkpoint)).load_processor())
    dataset = MultimodalDataset(str(rows))
    encoded = [collator.encode(dataset[i]).inputs for i in range(len(dataset))]
    return sum(e["labels"].numel() for e in encoded), sum(int((e["labels"] != IGNORE_INDEX).sum()) for e in encoded)


def print_machine(own) -> None:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = psutil.virtual_memory().total / 1e9
    print(f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores, {memory:.0f} GB; ", end="")
    print(f"threads a contender: {own.threads}; load before: {os.getloadavg()[0]:.1f}; {time.strftime('%Y-%m-%d')}")
    pythons = {"finelmm": sys.executable, "trl": own.trl_python, "predecessor": own.predecessor_python}
    for name, python in (pythons | {"llamafactory": own.llamafactory_python}).items():
        if python:
            command = [python, "-c", PRINT_VERSIONS, VERSIONS]
            print(f"{name}: {subprocess.run(command, capture_output=True, text=True, cwd='/').stdout.strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=["qwen2-vl"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["32k"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["small"])
    parser.add_argument("--modes", nargs="+", choices=["lora", "full"], default=["lora"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=["bare", "prepared", "ours"])
    parser.add_argument("--base", choices=CONTENDERS, default="ours", help="all are divided by this one")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="of an epoch, which is a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--timeout", type=float, default=600, help="seconds that a contender has for its first epoch")
    parser.add_argument("--ours_flags", default="", help="more flags for `prepared` and `ours`, as one word")
    parser.add_argument("--trl_python", help="interpreter with TRL")
    parser.add_argument("--predecessor", help="folder of a clone of lmms-finetune")
    parser.add_argument("--predecessor_python", help="interpreter with what it needs")
    parser.add_argument("--llamafactory_python", help="interpreter with LLaMA-Factory")
    parser.add_argument("--cache", help="folder of checkpoints and rows to keep; default: a temporary one")
    own = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not without ending those that are stopped
    print_machine(own)
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(own.cache or temporary).resolve()
        cases = [(f, s, r, m) for f in own.families for s in own.sizes for r in own.rows for m in own.modes]
        for family, size, kind, mode in cases:
            compare(family, size, kind, mode, cache, own)


if __name__ == "__main__":
    main()
