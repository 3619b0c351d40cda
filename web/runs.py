"""Runs of train.py as the web interface starts, stops and finds them again.

What is known of a run is in its output folder: `webui_run.json` (how it was started, which process it is),
`webui.log` (what it prints) and what train.py writes. So any number of pages, also of an interface that was started
again, see the same. A relative path is one in the root, which is the current folder.
"""

import contextlib
import fcntl
import glob
import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import psutil
from filelock import FileLock, Timeout
from tqdm import tqdm

import entry
from arguments import PARTS, Arguments, parse_arguments, split_flags, yaml_to_flags
from command_line import by_flag
from evaluation.answers import ANSWERS_FOLDER
from evaluation.verdict import Verdict
from loaders.output_folder import ADAPTER_CONFIG, ARGUMENTS, adapter_config
from reading.files import leads_out_of, stays_in
from reading.references import kind_by_name
from reading.sources import ENDINGS, HUB_ID, HUB_PATH, find_source
from reading.split import make_datasets
from reports.run_comparison import read_log
from reports.run_report import PLOTTED, answers_of, curves_of, metrics_of
from training.progress import LOG_FILE
from training.run_folder import LOCK, rename_aside, results
from web.strings import text

HERE = str(entry.HERE)
DECLARED = {field.name: field for part in PARTS for field in fields(part)}
RECORD, LOG = "webui_run.json", "webui.log"
DEPTH = 4  # folders from the root down to a run, a model or a data file
MOST_FOLDERS = 20_000  # that are looked into for them
MOST_POINTS = 500  # of a curve
MOST_ANSWERS = 40
TOOL_SECONDS = 24 * 3600  # a merge of a large model, answers to a large file
# Left to train.py: they run a file of the user's.
UNCHECKED = ("metric", "metric_for_best_model")
# Of models and checkpoints, all of whose files are read.
FOLDERS = ("model_local_path", "lora_weight_path", "resume_from_checkpoint")
OWN_CONFIGURATIONS = {os.path.join(HERE, name) for name in ("ds_configs", "fsdp_configs")}
CONFIGURATIONS = ("deepspeed", "fsdp_config", "accelerator_config")  # JSON that may name folders
PARSING = threading.Lock()  # HfArgumentParser changes the fields that it reads (transformers 5.23)
REFUSED = {
    "allow_outside": "lets the data name files outside the root",
    "trust_remote_code": "runs the Python files of a checkpoint",
    "trust_checkpoint": "runs what a checkpoint names",
}


# ---- flags ----


def words_of(values: dict, more: str = "") -> list[str]:
    """The words of a command line: of these flags those that differ from their defaults, and the user's own.

    Args:
        values: by the name of a flag: text, a number, a bool or a list of them; empty: left out.
        more: further flags, as in a shell.

    Raises:
        ValueError: what `more` holds is no flag, or has its own value in `values`.
    """
    words = []
    for name, value in values.items():
        default = DECLARED[name].default
        if value in (None, "", []) or str(value) == str(default) or (value is False and default is None):
            continue
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    try:
        others = shlex.split(more)
    except ValueError as error:
        raise ValueError(f"the further flags cannot be read: {error}.") from error
    if others and not others[0].startswith("--"):
        raise ValueError(f"{others[0]!r} does not belong to any flag: further flags begin with --.")
    for name, _ in flags_of(others):
        if name in values:
            raise ValueError(f"--{name} has a field of its own: set it there.")
    return words + others


def flags_of(words: list[str]) -> list[tuple[str, list[str]]]:
    """(name, values) of each flag."""
    parts = [(name, own[0].partition("="), own[1:]) for name, own in by_flag(words)]
    return [(name, [value, *others] if equals else others) for name, (_, equals, value), others in parts]


def command_line(words: list[str], root: str, devices: int = 1) -> str:
    """The words as a command for a shell in the root, a flag a line."""
    script = "train.py" if root == HERE else os.path.join(HERE, "train.py")
    launcher = "python" if devices == 1 else f"torchrun --nproc_per_node {devices}"
    lines = [f"{launcher} {shlex.quote(script)}"]
    lines += [shlex.join([f"--{name}", *values]) for name, values in flags_of(words)]
    return " \\\n    ".join(lines)


def check_flags(words: list[str], root: str) -> None:
    """Refuse what train.py would refuse at once, and what leaves the root.

    Flags that ask for a GPU, a package or an engine are left to train.py.
    """
    for name, values in flags_of(words):
        if name in REFUSED:
            raise ValueError(f"--{name} {REFUSED[name]}: the web interface refuses it. Run the command in a terminal.")
        for value in values:
            if os.path.dirname(os.path.abspath(value)) in OWN_CONFIGURATIONS:
                continue
            for path in paths_in(value):
                (check_folder if name in FOLDERS else check_inside)(path, root, f"--{name}")
            if name in CONFIGURATIONS and os.path.isfile(value):
                for path in paths_in(Path(value).read_text(encoding="utf-8", errors="replace")):
                    check_inside(path, root, f"--{name} {value}:")
            if name in ("data_path", "eval_data_path"):
                check_data(value, root, f"--{name}")
    try:
        parsed(split_flags(words, UNCHECKED)[0])
    except SystemExit as error:  # of --help
        raise ValueError("these are not flags of a run.") from error


def parsed(words: list[str]) -> Arguments:
    with PARSING:
        return parse_arguments(words)


def check_data(value: str, root: str, what: str) -> None:
    for file in () if is_on_hub(value) else find_source(value).files:
        check_inside(file, root, what)


def check(words: list[str], root: str) -> str:
    """As `check_flags`, and refuse a run that could not be found again; returns its output folder."""
    check_flags(words, root)
    folder = " ".join(dict(flags_of(words)).get("output_dir", []))
    if not folder:
        raise ValueError("--output_dir is missing: a new folder for this run, such as checkpoints/first.")
    depth = len(os.path.relpath(os.path.realpath(folder), root).split(os.sep))
    if os.path.realpath(folder) == root or depth > DEPTH:
        raise ValueError(f"--output_dir {folder} must be 1 to {DEPTH} folders below {root}.")
    check_folder(folder, root, "--output_dir")
    return folder


def paths_in(value: str) -> Iterator[str]:
    """What may be a path in the value of a flag; behind one of data stand a split, a slice and a weight."""
    yield value
    yield from (value[: match.start()] for match in re.finditer(r"[:\[]", value))
    if value.lstrip().startswith(("{", "[")):
        try:
            waiting = [json.loads(value)]
        except ValueError:
            return
        while waiting:
            item = waiting.pop()
            if isinstance(item, str):
                yield item
            elif isinstance(item, (dict, list)):
                waiting += item.values() if isinstance(item, dict) else item


def is_on_hub(value: str) -> bool:
    """Whether a path of data may have to be fetched."""
    paths = list(paths_in(value))
    is_named = any(HUB_ID.match(path) and not path.lower().endswith(ENDINGS) or HUB_PATH.match(path) for path in paths)
    return is_named and not any(map(os.path.exists, paths))


def check_inside(path: str, root: str, what: str) -> str:
    """The path with its links resolved; a ValueError where it leaves the root."""
    try:
        resolved = os.path.realpath(os.path.join(root, os.path.expanduser(path)))
    except ValueError as error:  # a null character
        raise ValueError(f"{what} {path!r} is not a path.") from error
    if not stays_in(os.path.join(root, os.path.expanduser(path)), [root]):
        raise ValueError(f"{what} {path} {leads_out_of(root)}.")
    return resolved


def check_folder(path: str, root: str, what: str) -> str:
    """As `check_inside`, of a folder and of all that links in it lead to."""
    folder = check_inside(path, root, what)
    for parent, folders, files in os.walk(folder):
        for inner in (os.path.join(parent, name) for name in (*folders, *files)):
            if os.path.islink(inner):
                check_inside(inner, root, what)
    return folder


def check_model(path: str, root: str) -> str:
    """The folder of a model, with its links resolved: it, its base and the flags of its run are in the root."""
    folder = check_folder(path, root, "the model")
    if os.path.lexists(above := os.path.join(os.path.dirname(folder), ARGUMENTS)):  # of a checkpoint-N
        check_inside(above, root, "the flags of the model")
    if adapter := adapter_config(folder):
        check_folder(adapter["base_model_name_or_path"], root, "the base of the adapter")
    return folder


def tool(script: str, words: list[str], root: str) -> str:
    """What a script of the repository prints; a ValueError with what it said, where it failed."""
    command = [sys.executable, os.path.join(HERE, script), *words]
    pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(command, cwd=root, timeout=TOOL_SECONDS, **pipes)
    if done.returncode:
        said = done.stderr.strip().rpartition("Error: ")[2] or f"exit code {done.returncode}"
        raise ValueError(f"{done.stdout.strip()}\n{said[-2000:]}".strip())
    return done.stdout.strip()


def page_of(words: list[str], root: str, *options: str) -> str:
    """The page of preview.py, which writes it also where it finds faults."""
    check_flags(words, root)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        try:
            tool("preview.py", [*words, *options, "--html", str(page)], root)
        except ValueError:
            if not page.is_file():
                raise
        return page.read_text(encoding="utf-8")


# ---- processes ----


def start(words: list[str], root: str, append: bool = False, devices: int = 1) -> str:
    """Start train.py, in a session of its own, on so many devices; returns the output folder.

    Raises:
        ValueError: as `check`; or a run is alive in that folder.
    """
    folder = check(words, root)
    if "overwrite_output_dir" in dict(flags_of(words)) and results(folder):
        check_idle(folder)
        rename_aside(folder)  # train.py would rename what is written here too
    os.makedirs(folder, exist_ok=True)
    try:
        with FileLock(os.path.join(folder, "webui.lock"), timeout=5):
            check_idle(folder)
            with open(os.path.join(folder, LOG), "ab" if append else "wb") as log:
                launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(devices)] if devices > 1 else []
                process = subprocess.Popen(
                    [sys.executable, *launcher, os.path.join(HERE, "train.py"), *words],
                    **{"cwd": root, "stdin": subprocess.DEVNULL, "stdout": log, "stderr": log},
                    env=os.environ | {"PYTHONUNBUFFERED": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3600"},
                    start_new_session=True,  # neither Ctrl-C nor the end of the interface reaches it
                )
            created = psutil.Process(process.pid).create_time()
            record = {"words": words, "devices": devices, "pid": process.pid, "created": created}
            record |= {"started": time.time()}
            write_json(os.path.join(folder, RECORD), record)
    except Timeout as error:
        raise ValueError(f"another page is starting a run in --output_dir {folder}.") from error
    threading.Thread(target=reap, args=(process, folder, record), daemon=True).start()
    return folder


def check_idle(folder: str) -> None:
    if is_alive(read_record(folder)) or is_locked(folder):
        raise ValueError(f"a run is active in --output_dir {folder}: stop it first, or name another folder.")


def reap(process: subprocess.Popen, folder: str, record: dict) -> None:
    """Wait for the end of a run, so that no zombie stays, and write down how it ended."""
    code = process.wait()
    with FileLock(os.path.join(folder, "webui.lock")):
        latest = read_record(folder)
        if latest and latest["pid"] == record["pid"]:
            write_json(os.path.join(folder, RECORD), latest | {"exit_code": code})


def resume(folder: str, root: str) -> None:
    """Start a run again from its newest whole checkpoint."""
    record = known_run(folder)
    words, _ = split_flags(record["words"], ("resume_from_checkpoint", "overwrite_output_dir"))
    start([*words, "--resume_from_checkpoint", "True"], root, append=True, devices=record.get("devices", 1))


def stop(folder: str, at_once: bool = False) -> None:
    """Ask a run to save a checkpoint after this step and end; or kill it and all that it started, also in sessions of
    their own, as torchrun starts them."""
    known_run(folder)  # else the lock would make a folder
    with FileLock(os.path.join(folder, "webui.lock")):
        record = read_record(folder)
        if is_alive(record):
            write_json(os.path.join(folder, RECORD), record | {"stopping": True})
            process = psutil.Process(record["pid"])
            for one in [process, *process.children(recursive=True)] if at_once else [process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)


def words_of_run(folder: str) -> list[str]:
    """The flags of a run, started here or in a terminal."""
    record, path = read_record(folder), os.path.join(folder, ARGUMENTS)
    return record["words"] if record else yaml_to_flags(path) if os.path.isfile(path) else []


def known_run(folder: str) -> dict:
    if not (record := read_record(folder)):
        raise ValueError(f"no run in {folder} was started here.")
    return record


def read_record(folder: str) -> dict | None:
    try:
        record = json.loads(Path(folder, RECORD).read_text(encoding="utf-8"))
        return record if record.keys() >= {"words", "pid", "created", "started"} else None
    except (OSError, ValueError, AttributeError):
        return None


def write_json(path: str, held: dict) -> None:
    """Write a file that is whole at any time."""
    new = f"{path}.{threading.get_ident()}"
    with open(new, "w", encoding="utf-8") as file:
        json.dump(held, file, indent=1, allow_nan=False)
    os.replace(new, path)


def is_alive(record: dict | None) -> bool:
    """Whether the process of a record runs; a process that only got its number does not count."""
    if not record:
        return False
    try:
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["created"]) < 2
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_locked(folder: str) -> bool:
    """Whether a run on this machine is writing to an output folder; takes no lock, which a starting run would meet."""
    try:
        with open(os.path.join(folder, LOCK), "rb") as file:
            asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # `struct flock` of Linux with 64 bits
            return struct.unpack_from("h", fcntl.fcntl(file, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK
    except OSError:
        return False


def status(folder: str) -> Verdict:
    """What the run itself wrote at its end, or what can be seen of it."""
    record = read_record(folder) or {}
    if is_alive(record) or is_locked(folder):
        return Verdict("running", text("stopping") if record.get("stopping") else "")
    last = (read_log(folder) or [{}])[-1]
    if "state" in last and last["time"] >= record.get("started", 0):
        return Verdict(last["state"], last["verdict"])
    if record.get("exit_code", -1) > 0:  # before its first step
        return Verdict("failed", text("see_below"))
    return Verdict("interrupted", text("killed"))


# ---- what a root holds ----


class Found(NamedTuple):
    """Paths relative to the root."""

    runs: list[str]  # the newest first
    models: list[str]  # checkpoints of runs and others
    data: list[str]


def find(root: str) -> Found:
    """The runs, checkpoints and data up to DEPTH folders below the root. Follows no links to folders."""
    runs, models, data, pictures = [], [], [], set()
    for number, (folder, folders, files) in enumerate(os.walk(root)):
        if number == MOST_FOLDERS:
            break
        name = os.path.relpath(folder, root)
        is_model = not {"config.json", ADAPTER_CONFIG}.isdisjoint(files) and name != "."
        is_run = not {RECORD, LOG_FILE, ARGUMENTS}.isdisjoint(files) and name != "."
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__")) and f != "node_modules")
        if is_run or is_model:
            folders[:] = [f for f in folders if f.startswith("checkpoint-")]
            runs += [name] if is_run and not os.path.basename(name).startswith("checkpoint-") else []
            models += [name] if is_model else []
        else:
            own = [f for f in sorted(files) if f.lower().endswith(ENDINGS)]
            own = [""] if "state.json" in own and any(f.endswith(".arrow") for f in own) else own  # of save_to_disk
            data += [os.path.normpath(os.path.join(name, f)) for f in own]
            if not own and any(map(kind_by_name, files)):  # with captions, or a class of the folder above
                pictures.add(name if any(f.lower().endswith(".txt") for f in files) else os.path.dirname(name))
            folders[:] = [] if name != "." and name.count(os.sep) == DEPTH - 1 else folders
    data += sorted(pictures - {"", *map(os.path.dirname, data)})
    runs.sort(key=lambda name: os.path.getmtime(os.path.join(root, name)), reverse=True)
    return Found(runs, models, data)


# ---- what a run says of itself ----


def curves(log: list[dict]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """The curves of the report but those of speed, loss first; each thinned to MOST_POINTS."""
    return {
        name: {line: points[:: -(-len(points) // MOST_POINTS)] for line, points in lines.items()}
        for name, lines in curves_of(log).items()
        if name not in PLOTTED
    }


COLUMNS = ("state", "verdict", "model", "data", "date", "time", "loss", "metric")


def summary(folder: str) -> list[str]:
    """What the table of runs says of one, by COLUMNS."""
    verdict, log, record = status(folder), read_log(folder), read_record(folder) or {}
    flags = dict(flags_of(words_of_run(folder)))
    timed = [line["time"] for line in log if "time" in line]
    begun = record.get("started") or (timed or [os.path.getmtime(folder)])[0]
    losses = [line["loss"] for line in log if "loss" in line]
    found = [pair for line in log for pair in metrics_of(line).items()]
    return [
        *verdict,
        " ".join(flags.get("model_id", [])),
        " ".join(flags.get("data_path", [])),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(begun)),
        tqdm.format_interval(timed[-1] - begun) if timed and timed[-1] > begun else "",
        f"{losses[-1]:.4g}" if losses else "",
        "{} {:.3g}".format(*found[-1]) if found else "",
    ]


def version(folder: str) -> tuple:
    """It changes when there is something new to plot or to read."""
    paths = [os.path.join(folder, name) for name in (LOG_FILE, "report.html", ANSWERS_FOLDER)]
    return (folder, *(os.path.getmtime(path) if os.path.exists(path) else 0 for path in paths))


def log_tail(folder: str, lines: int = 40) -> str:
    """The last lines that a run printed, as a terminal would show them."""
    try:
        with open(os.path.join(folder, LOG), "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 32_768))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")[-lines:]).strip("\n")


def steps_with_answers(folder: str) -> list[int]:
    """The steps of the evaluations whose answers are on disk, the newest first."""
    paths = glob.glob(os.path.join(glob.escape(folder), ANSWERS_FOLDER, "step-*.jsonl"))
    return sorted((int(match[1]) for path in paths if (match := re.search(r"step-(\d+)\.jsonl$", path))), reverse=True)


def answers(folder: str, step: int) -> list[dict]:
    """Held-out answers of an evaluation, the wrong ones first, with pictures: as in the report."""
    arguments = parsed(words_of_run(folder))
    _, dataset = make_datasets(arguments.data, arguments.training.seed, check=False)
    return list(answers_of(folder, dataset, [min(steps_with_answers(folder)), step], MOST_ANSWERS))
