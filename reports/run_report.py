"""Files that a run writes for people: `report.html`, `loss.png`, and a model card next to the weights."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from huggingface_hub import ModelCardData
from markupsafe import Markup
from tqdm import tqdm

from arguments import Arguments, split_flags
from collators.thoughts_and_tools import SERVER_TEMPLATE
from entry import HERE
from evaluation import metrics
from evaluation.answers import read_answers
from evaluation.verdict import Verdict, of_run, painted
from loaders import LOADERS
from loaders.output_folder import ADAPTER_CONFIG, public_name
from reading.dataset import MultimodalDataset
from reports.html_page import ANSWERED, COLOUR, RIGHT, draw, embedded, html_page, pictures, render
from reports.model_card import CARD, TAG, forgiven
from training.engines import print_once
from training.forgetting import AFTER, BEFORE
from training.progress import SPEED
from training.trainable import ComponentSummary, format_summary

SHOWN_ANSWERS = 12
BOXES = {RIGHT: "reference_boxes", ANSWERED: "boxes"}
MOST_POINTS = 500  # maximum per line of a plot
PLOTTED = ("learning_rate", "grad_norm", "tokens_per_second", "data_wait")  # plotted after the loss and the metrics
# Flags with paths on this machine. The model card leaves them out.
LOCAL_FLAGS = {
    *("output_dir", "data_path", "eval_data_path", "model_local_path", "image_folder", "video_folder", "data_cache"),
    *("resume_from_checkpoint", "lora_weight_path", "chat_template", "metric"),
}
SECRETS = ("hub_token", "push_to_hub_token")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "bitsandbytes")


class RunFacts(NamedTuple):
    """Facts about a run that are known before its first step."""

    arguments: Arguments
    trained: list[ComponentSummary]
    train_dataset: MultimodalDataset
    eval_dataset: MultimodalDataset | None
    request: dict  # fields that a chat request to a server must add
    image_size: dict | None = None  # pixel limits that flags set in the processor
    probe: MultimodalDataset | None = None  # questions of --probe, answered before and after training

    @property
    def command(self) -> str:
        """The command that started the run, without secrets."""
        words, _ = split_flags(self.arguments.words, SECRETS)
        world_size = self.arguments.training.world_size
        launcher = f"torchrun --nproc_per_node {os.environ.get('LOCAL_WORLD_SIZE', world_size)}"
        return shlex.join([*(launcher.split() if world_size > 1 else ["python"]), "train.py", *words])

    @property
    def base(self) -> str | None:
        """The Hub path of the base model; None for a local folder, whose path means nothing on other machines."""
        name = public_name(self.arguments.model.model_path)
        return None if os.path.isabs(name) else name

    def verdict(self, state, ended: BaseException | None = None) -> Verdict:
        training = self.arguments.training
        metric, higher_is_better = training.metric_for_best_model, training.greater_is_better
        chosen = [name for name in training.metric or [] if name in metrics.METRICS]
        if chosen and metrics.kind_of(metric) == "loss":  # a loss does not measure answers
            metric, higher_is_better = chosen[0], metrics.METRICS[chosen[0]].higher_is_better
        return of_run(state.log_history, ended, metric, higher_is_better)


@contextmanager
def reported(trainer, facts: RunFacts):
    """Print the verdict when the run in this context ends or fails, and write the verdict to the log and the report."""
    ended = None
    try:
        yield
    except BaseException as error:
        ended = error
        raise
    finally:
        if trainer.is_world_process_zero():
            verdict, steps = facts.verdict(trainer.state, ended), steps_of(trainer.state)
            said = f"{verdict.state} after {steps}" if ended else verdict  # the error message gives the reason
            print_once(painted(said, verdict.tone, sys.stdout))
            with forgiven("report"):
                trainer.log_file.end(trainer.args, trainer.state, verdict)
                write_report(trainer.args.output_dir, facts, trainer.state, verdict)


# ---- the report ----


def steps_of(state) -> str:
    return f"step {state.global_step:,} of {state.max_steps:,}"


def write_report(output_dir: str, facts: RunFacts, state, verdict: Verdict) -> None:
    """Write `report.html` and `loss.png`.

    Args:
        state: the state of the Trainer, which contains the logs.
    """
    curves = curves_of(state.log_history)
    if losses := curves.get("loss"):
        write_loss(os.path.join(output_dir, "loss.png"), losses, facts.arguments.model.model_id)
    arguments, training = facts.arguments, facts.arguments.training
    answered = answered_steps(state.log_history)
    probed = [BEFORE, AFTER] if any("probe_lost" in logs for logs in state.log_history) else []
    device = f"{training.device.type}, {platform.processor() or platform.machine()}"
    if training.device.type == "cuda":
        device = torch.cuda.get_device_name(training.device)
    body = render(
        "report.html",
        model=arguments.model,
        verdict=verdict,
        steps=steps_of(state),
        when=datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        figures=figures_of(state),
        plots=plots_of(curves),
        trained=facts.trained,
        table=format_summary(facts.trained),
        data=data_of(facts),
        answers=list(answers_of(output_dir, facts.eval_dataset, answered)),
        probe=list(answers_of(output_dir, facts.probe, probed)),
        confusions=confusions_of(output_dir, facts, answered),
        command=facts.command,
        flags=given_flags(arguments),
        versions=versions(),
        processes=training.world_size,
        device=device,
    )
    page = html_page(f"Run of {arguments.model.model_id}", body)
    Path(output_dir, "report.html").write_text(page, encoding="utf-8")


def answered_steps(log_history: list[dict]) -> list[int]:
    """Return the steps of the evaluations that generated answers."""
    return sorted(logs["step"] for logs in log_history if "eval_exact_match" in logs)


def curves_of(log_history: list[dict]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return, by plot and by line ("training" or "evaluation"), the points (step, value)."""
    plots = {"loss": {}} | {name: {} for logs in log_history for name in metrics_of(logs)} | {n: {} for n in PLOTTED}
    for logs in log_history:
        for name, lines in plots.items():
            for key, line in ((name, "training"), (f"eval_{name}", "evaluation")):
                if key in logs:
                    lines.setdefault(line, []).append((logs["step"], logs[key]))
    return {name: lines for name, lines in plots.items() if lines}


def metrics_of(logs: dict) -> dict[str, float]:
    """Return the metrics that an evaluation computed from generated answers."""
    names = [name for name in sorted(logs) if name.startswith("eval_") and not name.endswith((*SPEED, "answers"))]
    found = {name.removeprefix("eval_"): logs[name] for name in names}
    others = {"loss", *(f"blind_{name}" for name in found)}
    return {name: value for name, value in found.items() if name not in others}


def figures_of(state) -> dict[str, str]:
    """Return the main numbers of a run."""
    losses = [logs for logs in state.log_history if "loss" in logs]
    evaluations = [logs for logs in state.log_history if "eval_loss" in logs]
    of_all = f" of {state.max_steps:,}" if state.global_step < state.max_steps else ""
    figures = {"steps": f"{state.global_step:,}{of_all}", "epochs": f"{state.epoch or 0:.3g}"}
    if losses:
        figures["training loss"] = short(losses[-1]["loss"])
    if evaluations:
        figures["evaluation loss"] = short(evaluations[-1]["eval_loss"])
        figures |= {name.replace("_", " "): short(value) for name, value in metrics_of(evaluations[-1]).items()}
    if state.best_global_step:
        figures["best step"] = f"{state.best_global_step:,} ({short(state.best_metric)})"
    whole = next((logs for logs in reversed(state.log_history) if "train_runtime" in logs), {})
    speed = {name.removeprefix("train_"): value for name, value in (whole or (losses or [{}])[-1]).items()}
    if "runtime" in speed:
        figures["time"] = tqdm.format_interval(speed["runtime"])
    if "tokens_per_second" in speed:
        figures["tokens a second"] = f"{speed['tokens_per_second']:,.0f}"
        figures["data wait"] = f"{speed['data_wait']:.0%}"
        figures["peak memory"] = f"{speed['peak_memory_gb']:.1f} GB"
    if "mfu" in speed:
        figures["MFU"] = f"{speed['mfu']:.0%}"
    return figures


def short(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"


def data_of(facts: RunFacts) -> list[dict]:
    """Return the files and the number of rows of each kind, for training and evaluation data."""
    found = []
    for name, dataset in (("training", facts.train_dataset), ("evaluation", facts.eval_dataset)):
        if dataset is None:
            continue
        kinds = Counter()
        for layout, _, positions in dataset.groups():
            kinds[layout.kind] += len(positions)
        files = [os.path.basename(path) for path in dataset.paths]
        found.append({"name": name, "dataset": dataset, "files": files, "kinds": kinds})
    return found


def shown_answers(output_dir: str, dataset: MultimodalDataset, step: int, most: int) -> Iterator[tuple[dict, Iterator]]:
    """Yield answers of an evaluation, wrong ones first, each with the `pictures` of its row and boxes drawn on them."""
    answers = sorted(read_answers(output_dir, step), key=lambda answer: answer.get("right", answer["exact_match"]))
    for answer in answers[:most]:
        told = {colour: answer.get(name, []) for colour, name in BOXES.items()}
        boxes = {colour: dataset.in_pixels(answer["index"], found, back=True) for colour, found in told.items()}
        yield answer, pictures(dataset[answer["index"]], boxes)


def answers_of(output_dir: str, dataset: MultimodalDataset, steps: list[int], most=SHOWN_ANSWERS) -> Iterator[dict]:
    """Yield the last step's answers, each with the first step's as "before". Repeated pictures are left out."""
    if not steps:
        return
    before = {(answer["index"], answer["turn"]): answer for answer in read_answers(output_dir, steps[0])}
    last_row = None
    for answer, shown in shown_answers(output_dir, dataset, steps[-1], most):
        is_new = answer["index"] != last_row or any(answer.get(name) for name in BOXES.values())
        last_row = answer["index"]
        yield answer | {
            "pictures": [embedded(picture, caption) for _, picture, caption in shown] if is_new else [],
            "before": before.get((last_row, answer["turn"]), {}).get("prediction"),
        }


def confusions_of(output_dir: str, facts: RunFacts, steps: list[int]) -> dict[str, list]:
    """Return, for each part of the evaluation data, `metrics.confusion` of its last answers (empty without classes)."""
    answers = read_answers(output_dir, steps[-1]) if steps else []
    parts = [*facts.eval_dataset.parts().items()][-len(facts.eval_dataset.paths) :] if answers else []  # each path
    return {part: metrics.confusion([a for a in answers if a["index"] in rows]) for part, rows in parts}


def given_flags(arguments: Arguments) -> dict:
    return {name: value for name, value in arguments.as_dict().items() if name in arguments.given}


@cache
def versions() -> dict[str, str]:
    """Return the versions of installed packages, and of this repository if it is a git checkout."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    with suppress(OSError, subprocess.CalledProcessError):  # no git; no repository
        command = ["git", "-C", HERE, "describe", "--always", "--dirty"]
        found["finelmm"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return found


# ---- plots ----


def fill_axes(axes, lines: dict[str, list[tuple[int, float]]], colours: dict[str, str], log_scale=False) -> None:
    for line, points in lines.items():
        points = points[:: -(-len(points) // MOST_POINTS)]
        marker = "o" if line.endswith("evaluation") or len(points) == 1 else None
        axes.plot(*zip(*points), color=colours[line], label=line, marker=marker, markersize=4, linewidth=1.8)
    axes.set(xlabel="step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(lines) > 1:
        axes.legend(frameon=False, labelcolor="linecolor")
    if log_scale:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")  # more would overlap


def plots_of(curves: dict[str, dict]) -> list[tuple[str, Markup]]:
    """Return (title, SVG) of each plot. A loss has a log scale if its maximum is over ten times its minimum."""
    found = []
    for name, lines in curves.items():
        values = [value for points in lines.values() for _, value in points]
        is_steep = name.endswith("loss") and 0 < 10 * min(values) < max(values)
        found.append((f"{name.replace('_', ' ')}{', log scale' * is_steep}", draw_curves(lines, is_steep)))
    return found


def draw_curves(lines: dict, log_scale: bool) -> Markup:
    """Draw the lines. "training" and "evaluation" always have the same colours; each further run has one colour."""
    colours, others = {"training": COLOUR["image"], "evaluation": COLOUR["cut"]}, {}
    for line in lines.keys() - colours.keys():
        others.setdefault(line.rpartition(", ")[0], []).append(line)
    for colour, run in zip(cycle(("video", "trained", "context", "text")), sorted(others)):
        colours |= dict.fromkeys(others[run], COLOUR[colour])
    return draw(lambda axes: fill_axes(axes, lines, colours, log_scale))


def write_loss(path: str, lines: dict, title: str) -> None:
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    fill_axes(axes, lines, {"training": "#1f5fa8", "evaluation": "#c25100"})
    axes.set(title=title, ylabel="loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb")
    figure.savefig(path, dpi=120)


# ---- the model card ----


@forgiven("model card")
def write_card(facts: RunFacts, folder: str, state) -> None:
    """Write the model card for the weights in a folder."""
    arguments, data = facts.arguments, facts.arguments.data
    is_adapter = os.path.isfile(os.path.join(folder, ADAPTER_CONFIG))
    is_final = folder == arguments.training.output_dir
    metadata = ModelCardData(
        base_model=facts.base,
        base_model_relation=facts.base and ("adapter" if is_adapter else "finetune"),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=[TAG, *(["lora"] if is_adapter else [])],
    )
    flags = {name: value for name, value in given_flags(arguments).items() if name not in LOCAL_FLAGS}
    card = render(
        "model_card.md",
        metadata=Markup(metadata.to_yaml()),
        name=os.path.basename(os.path.abspath(arguments.training.output_dir)),
        base=facts.base or os.path.basename(os.path.abspath(arguments.model.model_path)),
        is_adapter=is_adapter,
        image_size=facts.image_size,
        resized=" ".join(f"--{n} {v}" for n in ("image_size", "min_pixels", "max_pixels") if (v := getattr(data, n))),
        verdict=facts.verdict(state) if is_final else "",
        figures=figures_of(state),
        table=Markup(format_summary(facts.trained)),
        data=data_of(facts),
        has_plot=is_final and "loss" in curves_of(state.log_history),
        flags=yaml.safe_dump(flags, sort_keys=False),
        request=facts.request,
        server_template=os.path.isfile(os.path.join(folder, SERVER_TEMPLATE)) and SERVER_TEMPLATE,
        remark=LOADERS.get(arguments.model.family).remark,
        versions=versions(),
    )
    Path(folder, CARD).write_text(card, encoding="utf-8")
