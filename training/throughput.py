"""Measures a run: tokens and samples per second, padding, the time spent waiting for data, memory and MFU.

Counting never makes a process wait for its GPU, because sums stay on the device until they are logged.
"""

import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch
from accelerate.utils import gather_object
from torch.utils.flop_counter import FlopCounterMode

from reading.dataset import IGNORE_INDEX


def sample_lengths(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the number of tokens of each sample in a batch (samples,), or 0 for a dummy sample without labels."""
    labelled = batch["labels"] != IGNORE_INDEX
    if "sample_lengths" not in batch:
        return batch["attention_mask"].sum(1) * labelled.any(1)
    lengths = batch["sample_lengths"]
    has_label = torch.stack([labels.any() for labels in labelled[0].split(lengths)])
    return torch.tensor(lengths, device=labelled.device) * has_label


class ThroughputMeter:
    """Counts the batches and the time of one process, and reports figures over all processes.

    Args:
        device: the device on which this process trains.
        peak_tflops: peak speed of one device in 10^12 operations per second. MFU is the fraction that training uses.
            The operations per token are counted in the first batch.
        recomputes: whether the backward pass repeats the forward pass. MFU does not count this repetition.
    """

    def __init__(self, device: torch.device, peak_tflops: float | None = None, recomputes: bool = False):
        self.device, self.peak_tflops, self.recomputes = device, peak_tflops, recomputes
        self.flops_per_token = self.counter = None
        self.forward_flops = 0
        self.since = None  # when the stopwatch was started; None: it is stopped
        self.interval, self.run = Counter(), Counter()  # sums of this process since the last log; sums of all logs
        self.run_memory = 0.0

    # ---- counting ----

    def waiting(self, batches: Iterator) -> Iterator:
        """Yield the batches, and count the time spent waiting for them. Starts the stopwatch."""
        if self.since is None:
            self.since = perf_counter()
        while True:
            start = perf_counter()
            batch = next(batches, None)
            self.interval["wait"] += perf_counter() - start
            if batch is None:
                return
            yield batch

    def pause(self) -> None:
        """Stop the stopwatch until the next batch is requested."""
        if self.since is not None:
            self.interval["seconds"] += perf_counter() - self.since
            self.since = None

    @contextmanager
    def step(self, batch: dict[str, torch.Tensor]):
        """Count a batch. Its forward and backward passes run inside this context."""
        lengths, positions = sample_lengths(batch), batch["labels"].numel()
        self.interval["tokens"] += lengths.sum()  # `padding` and `mfu` are computed from this too
        self.interval["samples"] += (lengths > 0).sum()
        self.interval["positions"] += positions
        if self.peak_tflops and self.flops_per_token is None:
            with FlopCounterMode(display=False) as self.counter:
                yield
            # A padded position costs as much as a token. MFU then counts only the tokens.
            self.flops_per_token = (self.counter.get_total_flops() - self.forward_flops) / positions
            self.counter = None
        else:
            yield

    def end_forward(self) -> None:
        if self.counter and self.recomputes:
            self.forward_flops = self.counter.get_total_flops()

    # ---- reporting ----

    def log(self) -> dict[str, float]:
        """Return the figures since the last call, over all processes. All processes must call this method."""
        running = self.since is not None
        self.pause()
        self.since = perf_counter() if running else None
        mine = {name: float(value) for name, value in self.interval.items()} | {"memory": self._peak_memory()}
        mine["flops"] = mine.get("tokens", 0) * (self.flops_per_token or 0)
        processes = gather_object([mine])
        memory = max(process.pop("memory") for process in processes)
        interval = sum(map(Counter, processes), Counter({"processes": len(processes)}))
        self.interval.clear()
        self.run.update(interval)
        self.run["processes"] = len(processes)
        self.run_memory = max(self.run_memory, memory)
        return self._figures(interval, memory)

    def log_run(self) -> dict[str, float]:
        """Return the figures of the whole run, or of the time since it was resumed, with names `train_...`."""
        self.log()
        return {f"train_{name}": value for name, value in self._figures(self.run, self.run_memory).items()}

    def _figures(self, sums: Counter, memory: float) -> dict[str, float]:
        if not sums["positions"]:
            return {}
        seconds = sums["seconds"] / sums["processes"]
        figures = {
            "tokens_per_second": sums["tokens"] / seconds,
            "samples_per_second": sums["samples"] / seconds,
            "padding": 1 - sums["tokens"] / sums["positions"],
            "data_wait": sums["wait"] / sums["seconds"],
            "peak_memory_gb": memory,
        }
        if self.peak_tflops:
            figures["mfu"] = sums["flops"] / (sums["seconds"] * self.peak_tflops * 1e12)
        return {name: float(f"{value:.4g}") for name, value in figures.items()}

    def _peak_memory(self) -> float:
        """Return the peak in 10^9 bytes: on a GPU, of tensors since the last call; on a CPU, of the whole process."""
        if self.device.type != "cuda":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak
