"""Protects the output folder. Only one run writes to it at a time, and no results of another run are overwritten."""

import fcntl
import json
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from loaders.output_folder import checkpoints_in
from reading.strict_json import strict_json
from training.engines import print_once
from training.resume import differences, discard, read_record, whole_checkpoints

LOCK, RUN = "_lock", "run.json"  # the Trainer does not upload names that begin with _


@contextmanager
def locked(arguments) -> Iterator[None]:
    """Lock the output folder during a run. If the run ends without writing anything, remove the folders it created.

    Raises:
        ValueError: another run is writing to the folder, or the run also reads its model or data from there.
    """
    training, folder = arguments.training, arguments.training.output_dir
    check_place(arguments)
    if not training.should_save:
        yield
        return
    if "output_dir" not in arguments.given:
        print_once(f"No --output_dir is given: the run is written to {folder}.")
    made, path = [], os.path.abspath(folder)
    while not os.path.lexists(path):
        made.append(path)
        path = os.path.dirname(path)
    held = lock(folder)
    try:
        yield
    finally:
        if is_lock_of(held, folder):
            os.unlink(os.path.join(folder, LOCK))
        held.close()
        for path in made:
            with suppress(OSError):  # if it is not empty
                os.rmdir(path)


def check_place(arguments) -> None:
    folder = os.path.realpath(arguments.training.output_dir)
    read = [("--model_local_path", arguments.model.model_path), ("--lora_weight_path", arguments.lora.lora_weight_path)]
    for flag, paths in (("--data_path", arguments.data.data_path), ("--eval_data_path", arguments.data.eval_data_path)):
        for path in paths or []:
            path = re.split(r"[:\[]", path)[0]  # without the split, slice or weight after the path
            read += [(flag, path), (flag, os.path.dirname(path) or ".")]
    for flag, path in read:
        if path and os.path.realpath(path) == folder:
            raise ValueError(f"--output_dir {path} contains files of {flag} that it could replace: use another folder.")


def lock(folder: str) -> TextIO:
    os.makedirs(folder, exist_ok=True)
    file = open(os.path.join(folder, LOCK), "w")  # open during the run, since closing it ends the lock
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # child processes do not inherit this lock
    except (BlockingIOError, PermissionError) as error:
        raise ValueError(f"--output_dir {folder}: another run is writing to it. Wait or use another folder.") from error
    except OSError as error:
        print_once(f"WARNING: {folder} cannot be locked ({error.strerror}). Start no second run in it.")
    return file if is_lock_of(file, folder) else lock(folder)  # another run ended and deleted the file


def is_lock_of(file: TextIO, folder: str) -> bool:
    path = os.path.join(folder, LOCK)
    return os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path))


def results(folder: str) -> list[str]:
    """List the weight files and checkpoints in an output folder."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [name for name in names if re.fullmatch(r"checkpoint-\d+|.*\.safetensors", name)]


def is_locked(folder: str) -> bool:
    """Return whether a run on this machine is writing to a folder. Take no lock, since a lock could stop a new run."""
    with suppress(OSError), open(os.path.join(folder, LOCK), "rb") as file:
        asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # `struct flock` of Linux with 64 bits
        return struct.unpack_from("h", fcntl.fcntl(file, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK
    return False


def check_run(training, run: dict) -> None:
    """Raise a ValueError if the output folder contains results of another run than `run` (of `describe_run`)."""
    folder = training.output_dir
    if training.should_save and not training.overwrite_output_dir and (held := results(folder)):
        before = earlier_run(folder)
        found = differences(before, run) if before else ["no record says which run wrote them"]
        if found:
            raise ValueError(
                f"--output_dir {folder} contains results of another run ({held[0]}): {'; '.join(found)}. Use another "
                "folder, or add --overwrite_output_dir True, which renames this one."
            )


def earlier_run(folder: str) -> dict | None:
    try:
        run = json.loads(Path(folder, RUN).read_text(encoding="utf-8"))
        differences(run, run)  # raises an error if the file lacks a value
        return run
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = whole_checkpoints(folder)
        return read_record(whole[-1])["run"] if whole else None


def begin_run(training, run: dict, checkpoint: str | None) -> None:
    """Record which run the folder belongs to. With `--overwrite_output_dir`, first rename a folder with results.

    Checkpoints from an earlier start of the same run are deleted, unless the run is resumed from one of them.
    """
    folder = training.output_dir
    if training.should_save:
        if training.overwrite_output_dir and results(folder):
            rename_aside(folder)
        if not checkpoint and (held := results(folder)):
            print_once(f"{folder} has results of an earlier start, to be replaced: {', '.join(held)}.")
            for earlier in checkpoints_in(folder):
                discard(earlier)
        Path(folder, RUN).write_text(strict_json(run, indent=1), encoding="utf-8")


def rename_aside(folder: str) -> None:
    number = 1
    while os.path.lexists(aside := f"{os.path.normpath(folder)}.old-{number}"):
        number += 1
    os.rename(folder, aside)
    os.mkdir(folder)
    with suppress(FileNotFoundError):  # no lock if the web page renames before a run
        os.rename(os.path.join(aside, LOCK), os.path.join(folder, LOCK))
    print_once(f"--overwrite_output_dir True: renamed {folder} to {aside}.")
