"""Start, stop and find runs of train.py for the web interface.

All state of a run is in its output folder: `webui_run.json` (its flags and its process), `webui.log` (its output), and
the files that train.py writes. So all pages show the same state, even after webui.py was restarted. Relative paths
start at the root, which is the current folder.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import psutil
from tqdm import tqdm

import entry
from arguments import FLAG_PARTS, Arguments, parse_arguments, split_flags, yaml_to_flags
from command_line import by_flag
from evaluation.answers import ANSWERS_FOLDER
from evaluation.verdict import Verdict
from loaders.output_folder import ADAPTER_CONFIG, ARGUMENTS, adapter_config
from reading.files import resolve_in
from reading.references import kind_by_name
from reading.sources import ENDINGS, HUB_ID, HUB_PATH, find_source
from reading.unread import flat
from reports.run_comparison import read_log
from reports.run_report import metrics_of
from training.progress import LOG_FILE
from training.run_folder import is_locked, rename_aside, results
from web.parts import text
from web.scripts import Failed, tool

OWN_FOLDER = str(entry.HERE)
DECLARED = {field.name: field for part in FLAG_PARTS for field in fields(part)}
PROCESS_FILE, LOG = "webui_run.json", "webui.log"
RUN_COLUMNS = ("state", "verdict", "model", "data", "date", "time", "loss", "metric")  # columns of the table of runs
DEPTH = 4  # how many folders below the root a run, a model or a data file may be
MOST_FOLDERS = 20_000  # maximum number of folders to search for them
SHOWN_LINES = 40  # last lines of a run's output
UNCHECKED = ("metric", "metric_for_best_model")  # only train.py checks these, as it runs a file of the user
FOLDERS = ("model_local_path", "lora_weight_path", "resume_from_checkpoint")  # flags that read all files of a folder
OWN_CONFIGURATIONS = {os.path.join(OWN_FOLDER, name) for name in ("ds_configs", "fsdp_configs")}
CONFIGS_WITH_PATHS = ("deepspeed", "fsdp_config", "accelerator_config")  # the JSON may contain paths
PARSING = threading.Lock()  # not thread-safe: HfArgumentParser changes the fields that it reads (transformers 5.23)
RECORDING = threading.Lock()  # held while the record of a run is changed
REFUSED = {
    "allow_outside": "lets the data name files outside the root",
    "trust_remote_code": "runs the Python files of a checkpoint",
    "trust_checkpoint": "runs what a checkpoint names",
}


# ---- flags ----


def words_of(values: dict, more: str = "") -> list[str]:
    """Return the words of a command line: the flags that differ from their defaults, then the user's words in `more`.

    A value is text, a number, a bool or a list of these. Empty values are left out. Raises a ValueError if `more`
    contains a word that belongs to no flag, or a flag that is also in `values`.
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
        raise ValueError(f'"further flags" cannot be read: {error}.') from error
    if others and not others[0].startswith("--"):
        raise ValueError(f"{others[0]!r} does not belong to any flag: further flags begin with --.")
    if own := [name for name, _ in flags_of(others) if name in values]:
        raise ValueError(f"--{own[0]} has its own field: set it there.")
    return words + others


def flags_of(words: list[str]) -> list[tuple[str, list[str]]]:
    """Return (name, values) of each flag."""
    parts = [(name, own[0].partition("="), own[1:]) for name, own in by_flag(words)]
    return [(name, [value, *others] if equals else others) for name, (_, equals, value), others in parts]


def command_line(words: list[str], root: str, devices: int = 1) -> str:
    """Return the words as a shell command to run in the root, with one flag per line."""
    script = "train.py" if root == OWN_FOLDER else os.path.join(OWN_FOLDER, "train.py")
    launcher = "python" if devices == 1 else f"torchrun --nproc_per_node {devices}"
    lines = [f"{launcher} {shlex.quote(script)}"]
    lines += [shlex.join([f"--{name}", *values]) for name, values in flags_of(words)]
    return " \\\n    ".join(lines)


def check_command(words: list[str], root: str) -> None:
    """Refuse what train.py would refuse at once (GPUs and packages are not checked), and paths outside the root."""
    for name, values in flags_of(words):
        if name in REFUSED:
            raise ValueError(f"--{name} {REFUSED[name]}: the web interface refuses it. Run the command in a terminal.")
        for value in values:
            if os.path.dirname(os.path.abspath(value)) in OWN_CONFIGURATIONS:
                continue
            for path in paths_in(value):
                (check_folder_inside if name in FOLDERS else check_inside)(path, root, f"--{name}")
            if name in CONFIGS_WITH_PATHS and os.path.isfile(value):
                for path in paths_in(Path(value).read_text(encoding="utf-8", errors="replace")):
                    check_inside(path, root, f"--{name} {value}:")
            if name in ("data_path", "eval_data_path"):
                check_data_files(value, root, f"--{name}")
    try:
        parsed(split_flags(words, UNCHECKED)[0])
    except SystemExit as error:  # of --help
        raise ValueError("these are not flags of a run.") from error


def parsed(words: list[str]) -> Arguments:
    with PARSING:
        return parse_arguments(words)


def check_data_files(value: str, root: str, what: str) -> None:
    for file in () if is_on_hub(value) else find_source(value).files:
        check_inside(file, root, what)


def check_start(words: list[str], root: str) -> str:
    """Apply `check_command`, refuse an output folder that `find` would not search, and return the output folder."""
    check_command(words, root)
    folder = " ".join(dict(flags_of(words)).get("output_dir", []))
    if not folder:
        raise ValueError("--output_dir is missing. Name a new folder, such as checkpoints/first.")
    if (inside := os.path.relpath(os.path.realpath(folder), root)) == "." or inside.count(os.sep) >= DEPTH:
        raise ValueError(f"--output_dir {folder} must be 1 to {DEPTH} folders below {root}.")
    check_folder_inside(folder, root, "--output_dir")
    return folder


def paths_in(value: str) -> Iterator[str]:
    """Yield all possible paths in the value of a flag. A data path may end with a split, a slice and a weight."""
    yield value
    yield from (value[: match.start()] for match in re.finditer(r"[:\[]", value))
    if value.lstrip().startswith(("{", "[")):
        with contextlib.suppress(ValueError):
            yield from (held for _, held in flat("", json.loads(value)) if isinstance(held, str))


def is_on_hub(value: str) -> bool:
    """Return whether a data path may have to be downloaded from the Hub."""
    paths = list(paths_in(value))
    is_named = any(HUB_ID.match(path) and not path.lower().endswith(ENDINGS) or HUB_PATH.match(path) for path in paths)
    return is_named and not any(map(os.path.exists, paths))


def check_inside(path: str, root: str, what: str) -> str:
    """Return the path with its links resolved. Raises a ValueError if the path is outside the root."""
    return resolve_in(os.path.join(root, os.path.expanduser(path)), [root], f"{what} {path}")


def check_folder_inside(path: str, root: str, what: str) -> str:
    """Apply `check_inside` to a folder and to the targets of all links in it."""
    folder = check_inside(path, root, what)
    for parent, folders, files in os.walk(folder):
        for inner in (os.path.join(parent, name) for name in (*folders, *files)):
            if os.path.islink(inner):
                check_inside(inner, root, what)
    return folder


def check_model_folder(path: str, root: str) -> str:
    """Return the folder of a model, with links resolved. The model, its base and its args.yaml must be in the root."""
    folder = check_folder_inside(path, root, "the model")
    if os.path.lexists(above := os.path.join(os.path.dirname(folder), ARGUMENTS)):  # for a checkpoint-N
        check_inside(above, root, "the flags of the model")
    if adapter := adapter_config(folder):
        check_folder_inside(adapter["base_model_name_or_path"], root, "the base of the adapter")
    return folder


def page_of(words: list[str], root: str, *options: str) -> tuple[str, str | None]:
    """Return the page of preview.py, which also shows unusable rows, and the error if preview.py refuses the run."""
    check_command(words, root)
    with tempfile.TemporaryDirectory() as folder:
        page, refusal = Path(folder, "page.html"), None
        try:
            tool("preview", *words, *options, "--html", str(page))
        except Failed as error:
            if not page.is_file():
                raise
            refusal = None if error.fault == "1" else error.fault  # 1: rows are unusable, which the page shows
        return page.read_text(encoding="utf-8"), refusal


# ---- processes ----


def start(words: list[str], root: str, append: bool = False, devices: int = 1) -> str:
    """Start train.py in a new session on the given number of devices, and return the output folder.

    Raises a ValueError if `check_start` does, or if a run is active in that folder.
    """
    folder = check_start(words, root)
    with RECORDING:
        if is_alive(process_record(folder)) or is_locked(folder):
            raise ValueError(f"a run is active in --output_dir {folder}: stop it first, or name another folder.")
        if "overwrite_output_dir" in dict(flags_of(words)) and results(folder):
            rename_aside(folder)  # not left to train.py, which would also rename the files written below
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, LOG), "ab" if append else "wb") as log:
            launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(devices)] if devices > 1 else []
            process = subprocess.Popen(
                [sys.executable, *launcher, os.path.join(OWN_FOLDER, "train.py"), *words],
                **{"cwd": root, "stdin": subprocess.DEVNULL, "stdout": log, "stderr": log},
                env=os.environ | {"PYTHONUNBUFFERED": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3600"},
                start_new_session=True,  # Ctrl-C and the end of webui.py do not reach it
            )
        record = {"words": words, "devices": devices, "pid": process.pid, "started": time.time()}
        record["created"] = psutil.Process(process.pid).create_time()
        write_json(os.path.join(folder, PROCESS_FILE), record)
    threading.Thread(target=reap, args=(process, folder), daemon=True).start()
    return folder


def reap(process: subprocess.Popen, folder: str) -> None:
    """Wait for the end of a run, so that no zombie process stays, and record its exit code."""
    code = process.wait()
    with RECORDING:
        if (latest := process_record(folder)).get("pid") == process.pid:
            write_json(os.path.join(folder, PROCESS_FILE), latest | {"exit_code": code})


def resume(folder: str, root: str) -> None:
    """Resume a run from its newest complete checkpoint."""
    record = known_run(folder)
    words, _ = split_flags(record["words"], ("resume_from_checkpoint", "overwrite_output_dir"))
    start([*words, "--resume_from_checkpoint", "True"], root, append=True, devices=record.get("devices", 1))


def stop(folder: str, at_once: bool = False) -> None:
    """Ask a run to save a checkpoint after this step and end. With `at_once`, kill the run and all its child processes,
    including the sessions that torchrun starts."""
    with RECORDING:
        if is_alive(record := known_run(folder)):
            write_json(os.path.join(folder, PROCESS_FILE), record | {"stopping": True})
            process = psutil.Process(record["pid"])
            for one in [process, *process.children(recursive=True)] if at_once else [process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)


def words_of_run(folder: str) -> list[str]:
    """Return the flags of a run that was started here or in a terminal."""
    record, path = process_record(folder), os.path.join(folder, ARGUMENTS)
    return record["words"] if record else yaml_to_flags(path) if os.path.isfile(path) else []


def known_run(folder: str) -> dict:
    if not (record := process_record(folder)):
        raise ValueError(f"no run in {folder} was started here.")
    return record


def process_record(folder: str) -> dict:
    """Return the flags, the process and the exit code of a run that was started here; empty if there is none."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        record = json.loads(Path(folder, PROCESS_FILE).read_text(encoding="utf-8"))
        return record if record.keys() >= {"words", "pid", "created", "started"} else {}
    return {}


def write_json(path: str, held: dict) -> None:
    """Write a JSON file atomically: readers never see a part of it."""
    new = f"{path}.{threading.get_ident()}"
    with open(new, "w", encoding="utf-8") as file:
        json.dump(held, file, indent=1, allow_nan=False)
    os.replace(new, path)


def is_alive(record: dict) -> bool:
    """Return whether the process of a record is running. Another process with the same id does not count."""
    with contextlib.suppress(KeyError, psutil.NoSuchProcess):
        process = psutil.Process(record["pid"])
        return abs(process.create_time() - record["created"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    return False


def status(folder: str) -> Verdict:
    """Return "running" for an active run, else the verdict that the run wrote at its end, or one from its exit code."""
    record = process_record(folder)
    if is_alive(record) or is_locked(folder):
        return Verdict("running", text("stopping") if record.get("stopping") else "")
    last = (read_log(folder) or [{}])[-1]
    if "state" in last and last["time"] >= record.get("started", 0):
        return Verdict(last["state"], last["verdict"])
    if record.get("exit_code", -1) > 0:  # before its first step
        return Verdict("failed", text("see_below"))
    return Verdict("interrupted", text("killed"))


# ---- files in the root ----


class Found(NamedTuple):
    """Paths relative to the root."""

    runs: list[str]  # newest first
    models: list[str]  # checkpoints, of runs or others
    data: list[str]


def find(root: str) -> Found:
    """Find the runs, checkpoints and data up to DEPTH folders below the root. Links to folders are not followed."""
    runs, models, data, pictures = [], [], [], set()
    for folder, folders, files in islice(os.walk(root), MOST_FOLDERS):
        name = os.path.relpath(folder, root)
        is_model = not {"config.json", ADAPTER_CONFIG}.isdisjoint(files) and name != "."
        is_run = not {PROCESS_FILE, LOG_FILE, ARGUMENTS}.isdisjoint(files) and name != "."
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__")) and f != "node_modules")
        if is_run or is_model:
            folders[:] = [f for f in folders if f.startswith("checkpoint-")]
            runs += [name] if is_run and not os.path.basename(name).startswith("checkpoint-") else []
            models += [name] if is_model else []
        else:
            own = [f for f in sorted(files) if f.lower().endswith(ENDINGS)]
            own = [""] if "state.json" in own and any(f.endswith(".arrow") for f in own) else own  # by save_to_disk
            data += [os.path.normpath(os.path.join(name, f)) for f in own]
            if not own and any(map(kind_by_name, files)):  # captions, or one folder per class
                pictures.add(name if any(f.lower().endswith(".txt") for f in files) else os.path.dirname(name))
            folders[:] = [] if name != "." and name.count(os.sep) == DEPTH - 1 else folders
    data += sorted(pictures - {"", *map(os.path.dirname, data)})
    runs.sort(key=lambda name: os.path.getmtime(os.path.join(root, name)), reverse=True)
    return Found(runs, models, data)


# ---- state of one run ----


def table_row(folder: str) -> list[str]:
    """Return the row of a run in the table, in the order of RUN_COLUMNS."""
    log, flags = read_log(folder), dict(flags_of(words_of_run(folder)))
    newest = {name: value for line in log for name, value in line.items()}
    times = [line["time"] for line in log if "time" in line] or [os.path.getmtime(folder)]
    begun = process_record(folder).get("started", times[0])
    metrics = metrics_of(newest).items()
    return [
        *status(folder),
        " ".join(flags.get("model_id", [])),
        " ".join(flags.get("data_path", [])),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(begun)),
        tqdm.format_interval(times[-1] - begun) if log and times[-1] > begun else "",
        f"{newest['loss']:.4g}" if "loss" in newest else "",
        "{} {:.3g}".format(*[*metrics][-1]) if metrics else "",
    ]


def version(folder: str) -> tuple:
    """Return a value that changes when a run has something new to plot or to read."""
    paths = [os.path.join(folder, name) for name in (LOG_FILE, "report.html", ANSWERS_FOLDER)]
    return (folder, *(os.path.getmtime(path) if os.path.exists(path) else 0 for path in paths))


def log_tail(folder: str) -> str:
    """Return the last lines that a run printed, as a terminal would show them."""
    if not os.path.isfile(path := os.path.join(folder, LOG)):
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 32_768))
        printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.read().decode("utf-8", errors="replace"))
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in printed.split("\n")[-SHOWN_LINES:]).strip("\n")
