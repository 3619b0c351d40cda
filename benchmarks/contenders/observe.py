"""Run a training tool through its own entry point, and write down what it trains on. Run by benchmarks/correctness.py.

    PYTHON_OF_THE_TOOL observe.py jobs.json

Nothing here knows a tool. Each job is a fork of one process that has imported the tool, with the tool's command line;
of several processes, with the variables that torchrun sets. Three public hooks of torch write down what happens: every
batch that a DataLoader hands out, every call of the language model, every step of an optimizer. They change nothing.
"""

import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_DISABLED": "true"}
os.environ |= {"DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false"}


# Loaded once, before the forks: transformers imports these when they are first asked for.
LOADED = [f"transformers:{name}" for name in ("Trainer", "AutoProcessor", "Qwen2VLForConditionalGeneration")]


def found(name: str):
    """module, or module:attribute."""
    module, _, attribute = name.partition(":")
    module = importlib.import_module(module)
    return getattr(module, attribute) if attribute else module


class Record:
    """What one process of a job fed and learned."""

    def __init__(self):
        self.batches: list[dict] = []  # input_ids, labels, attention_mask, grids of media
        self.states: list[dict] = []  # input_ids of a call of the model, what its language model returned
        self.steps: list[dict] = []  # gradients before an optimizer's step, parameters after it

    def install(self) -> None:
        import torch
        from torch.optim import optimizer
        from torch.utils.data import DataLoader
        from transformers import PreTrainedModel

        iterate = DataLoader.__iter__

        def iterate_and_keep(loader):
            for batch in iterate(loader):
                if hasattr(batch, "keys") and "input_ids" in batch:
                    kept = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor) and v.dtype != torch.float32}
                    self.batches.append({k: v.clone() for k, v in kept.items()})
                yield batch

        def after_call(module, args, kwargs, output):
            if isinstance(module, PreTrainedModel) and kwargs.get("inputs_embeds") is not None:
                self.states.append({"hidden": output[0].detach().clone()})
            elif isinstance(module, PreTrainedModel) and kwargs.get("input_ids") is not None and self.states:
                self.states[-1].setdefault("input_ids", kwargs["input_ids"].detach().clone())

        def vector(found: torch.optim.Optimizer, part) -> torch.Tensor:
            """Of all parameters but the table of tokens, which is eighty times the others."""
            parameters = [p for group in found.param_groups for p in group["params"] if p.numel() < 10**7]
            return torch.cat([part(p).detach().float().flatten().clone() for p in parameters])

        def before_step(found, args, kwargs):
            self.steps.append({"gradient": vector(found, lambda p: torch.zeros_like(p) if p.grad is None else p.grad)})

        def after_step(found, args, kwargs):
            self.steps[-1]["weights"] = vector(found, lambda p: p)

        DataLoader.__iter__ = iterate_and_keep
        torch.nn.modules.module.register_module_forward_hook(after_call, with_kwargs=True)
        optimizer.register_optimizer_step_pre_hook(before_step)
        optimizer.register_optimizer_step_post_hook(after_step)
        torch.manual_seed(0)
        torch.set_num_threads(1)

    def save(self, path: str) -> None:
        import torch

        torch.save(vars(self), path)


def run(job: dict, rank: int, port: int) -> None:
    """One process of a job: its output goes to a file, what was seen to another."""
    log = os.open(f"{job['folder']}/log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    os.chdir(job["cwd"])
    os.environ.update(job.get("environment", {}))
    if job["processes"] > 1:
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["processes"], "MASTER_ADDR": "127.0.0.1"}
        world |= {"LOCAL_WORLD_SIZE": job["processes"], "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in world.items()})
    sys.argv = [job["entry"], *job["words"]]
    record = Record()
    record.install()
    try:
        if job["entry"].endswith(".py"):
            sys.path[0] = str(Path(job["entry"]).parent)
            runpy.run_path(job["entry"], run_name="__main__")
        else:
            found(job["entry"])()
    finally:
        record.save(f"{job['folder']}/record-{rank}.pt")


def fork(job: dict, rank: int, port: int) -> int:
    if pid := os.fork():
        return pid
    os.setpgid(0, 0)
    code = 1
    try:
        run(job, rank, port)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        print(end.code or "", file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def wait(pids: list[int], seconds: float) -> str:
    """How a job ended: "done", "failed" with the first process that failed, or "hung"."""
    end, running, outcome = time.monotonic() + seconds, set(pids), "done"
    while running and outcome == "done":
        for pid in [*running]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                outcome = "done" if status == 0 and outcome == "done" else "failed"
        if running and time.monotonic() > end:
            outcome = "hung"
        time.sleep(0.1)
    for pid in running:
        time.sleep(1 if outcome == "failed" else 0)
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return outcome


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    sys.path[:0] = jobs["path"]
    for name in [*LOADED, *jobs["imports"]]:
        found(name)
    for job in jobs["jobs"]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if "copy" in job and Path(job["copy"][0]).exists():
            shutil.copytree(*job["copy"])
        pids = [fork(job, rank, port) for rank in range(job["processes"])]
        Path(job["folder"], "outcome.txt").write_text(wait(pids, job["seconds"]))


if __name__ == "__main__":
    main()
