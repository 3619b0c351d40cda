"""How a run reports its progress: one line in the terminal, and `log.jsonl` in the output folder for programs."""

import math
import os
import sys
import time

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from evaluation.verdict import Verdict
from reading.strict_json import strict_json
from training.engines import print_once
from training.trainable import compute_dtype

LOG_FILE = "log.jsonl"
# The figures of a log that the terminal shows.
FIGURES = {
    "loss": "loss {:.4g}",
    "learning_rate": "lr {:.2g}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "data_wait": "data wait {:.0%}",
    "peak_memory_gb": "{:.1f} GB",
    "mfu": "mfu {:.0%}",
}
# Figures whose names end like this measure the machine, not the model.
SPEED = ("_runtime", "_per_second", "_preparation_time")


class LogFile(TrainerCallback, ExportableState):
    """Writes each log at once as a line of `log.jsonl`, with its values, "step", "max_steps", "epoch" and "time".

    When a run is resumed, lines that were logged after the checkpoint are removed, so the file shows a single run. The
    last line of a run that has ended has "state" and "verdict". Checkpoints store how long the run has taken.
    """

    def __init__(self):
        self.earlier, self.begin = 0.0, None

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, including the time before it was resumed."""
        return self.earlier + (time.monotonic() - self.begin if self.begin else 0)

    def state(self) -> dict:
        return {"args": {}, "attributes": {"earlier": self.seconds}}

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get(type(self).__name__, self.state())
        self.earlier, self.begin = saved["attributes"]["earlier"], time.monotonic()
        if state.is_world_process_zero:
            self._write(args, state, "w", state.log_history)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            self._write(args, state, "a", [state.log_history[-1] | {"time": round(time.time(), 3)}])

    def end(self, args, state, verdict: Verdict) -> None:
        logs = {"step": state.global_step, "seconds": round(self.seconds, 1)}
        logs |= {"state": verdict.state, "verdict": verdict.sentence, "time": round(time.time(), 3)}
        self._write(args, state, "a", [logs])

    def _write(self, args, state, mode: str, history: list[dict]) -> None:
        with open(os.path.join(args.output_dir, LOG_FILE), mode, encoding="utf-8") as file:
            for logs in history:
                file.write(strict_json({"step": logs["step"], "max_steps": state.max_steps} | logs) + "\n")


class ProgressLine(TrainerCallback):
    """Shows loss, speed, memory and time left. A terminal shows one live line, and other outputs get a line per log.

    Each evaluation and the end of the run print a separate line.
    """

    def __init__(self):
        self.bar = tqdm(disable=True)
        self.begin, self.first_step, self.evaluated = None, 0, 0

    def on_train_begin(self, args, state, control, **kwargs):
        rows = (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size)
        dtype, processes = str(compute_dtype(args)).removeprefix("torch."), "process" + "es" * (args.world_size > 1)
        print_once(
            f"{state.max_steps:,} steps in {dtype} on {args.device.type}, with {math.prod(rows):,} rows per step: "
            f"{rows[0]:,} per batch x {rows[1]} accumulated x {rows[2]} {processes}"
        )
        if args.get_warmup_steps(state.max_steps) >= state.max_steps:
            print_once("WARNING: the warmup lasts the whole run: the learning rate never reaches its full value.")
        is_live = state.is_world_process_zero and sys.stderr.isatty() and not args.disable_tqdm
        form = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"
        look = {"bar_format": form, "dynamic_ncols": True, "leave": False, "disable": not is_live}
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, **look)

    def on_step_end(self, args, state, control, **kwargs):
        if self.begin is None:  # the first step is slower than the others
            self.begin, self.first_step = time.monotonic(), state.global_step
        self.bar.update(state.global_step - self.bar.n)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        self.evaluated += 1
        self.bar.set_description_str(f"evaluating {self.evaluated}/{len(eval_dataloader)} ")

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated = 0
        self.bar.set_description_str("")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        figures = ", ".join(describe_log(logs))
        if "loss" in logs and not self.bar.disable:
            self.bar.set_postfix_str(figures)
        elif "loss" in logs:
            print_once(f"step {state.global_step}/{state.max_steps}: {figures}{self._time_left(state)}")
        elif "train_loss" in logs:
            seconds = tqdm.format_interval(logs["train_runtime"])
            print_once(f"trained {state.global_step} steps in {seconds}: {figures}")
        else:
            print_once(f"step {state.global_step} evaluated: {figures}")

    def _time_left(self, state) -> str:
        done, left = state.global_step - self.first_step, state.max_steps - state.global_step
        if not done:
            return ""
        return f", {tqdm.format_interval((time.monotonic() - self.begin) / done * left)} left"


def describe_log(logs: dict) -> list[str]:
    """Format a log for the terminal: `loss 1.234`, `812 tokens/s`, ..."""
    logs = {name.removeprefix("train_"): value for name, value in logs.items()}
    shown = [name for name in logs if name.startswith(("eval_", "probe_")) and not name.endswith(SPEED)]
    return [form.format(logs[name]) for name, form in FIGURES.items() if name in logs] + [
        f"{name.removeprefix('eval_').replace('_', ' ')} {logs[name]:.4g}" for name in shown
    ]
