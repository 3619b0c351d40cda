"""Runs of the scripts as processes of their own, forked from one that has imported everything: seconds cheaper each.

`launch(["--model_id", ...], processes=2)` is `torchrun --nproc_per_node 2 train.py --model_id ...`.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["train", "merge_lora_weights", "predict", "peft", "deepspeed", "bitsandbytes"])
LOGS = tempfile.TemporaryDirectory()


class Launch:
    """Processes that run. `wait` ends with all of them, or with the first that fails, as torchrun does."""

    def __init__(self, words: list, processes: int = 1, script: str = "train", environment: dict | None = None):
        self.log, self.processes = Path(tempfile.mkstemp(dir=LOGS.name)[1]), []
        words = [str(word) for word in words]
        port = free_port()
        for rank in range(processes):
            env = {}
            if processes > 1:
                env |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            env |= environment or {}
            process = FORKSERVER.Process(target=_run, args=(script, words, env, str(self.log)))
            process.start()
            self.processes.append(process)

    @property
    def output(self) -> str:
        """What all of them have printed so far, stderr too."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def send(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        for process in self.processes:
            process.join()

    def wait(self, timeout: float = 600) -> list[int]:
        """The exit codes; of a process killed by a signal, minus its number."""
        end = time.monotonic() + timeout
        while self.running:
            failed = any(process.exitcode for process in self.processes)
            if failed or time.monotonic() > end:
                for process in self.processes:
                    process.join(5)  # the others may be about to end by themselves
                self.kill()
                if not failed:
                    raise TimeoutError(f"no end after {timeout} s\n{self.output[-6000:]}")
            time.sleep(0.05)
        return [process.exitcode for process in self.processes]


def launch(words: list, processes: int = 1, script: str = "train", environment: dict | None = None) -> str:
    """Run to the end and return what was printed; an exit code other than 0 is an AssertionError."""
    run = Launch(words, processes, script, environment)
    codes = run.wait()
    assert not any(codes), f"exit codes {codes}\n{run.output[-6000:]}"
    return run.output


def here(words: list, script: str = "train") -> None:
    """The same in this process."""
    with plots(False):
        importlib.import_module(script).main([str(word) for word in words])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def plots(are_drawn: bool):
    """The plots of the reports within; not drawn, each run is over a second earlier."""
    from reports import run_report

    if are_drawn:
        return contextlib.nullcontext()
    return mock.patch.multiple(run_report, draw=lambda fill: "", write_loss=lambda *_: None)


def _run(script: str, words: list[str], environment: dict, log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.chdir(Path(__file__).resolve().parent.parent)
    import torch

    from entry import cli

    torch.set_num_threads(1)
    # Ignored, where a shell started the tests in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own, for workers of a data loader
    sys.argv = [f"{script}.py", *words]
    with plots("PLOTS" in environment):
        cli(importlib.import_module(script).main)
