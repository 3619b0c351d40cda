"""Compare two runs by the files in their output folders, for `compare_runs.py`."""

import contextlib
import json
import os
from functools import lru_cache
from types import SimpleNamespace
from typing import NamedTuple, TextIO

from evaluation.answers import read_answers
from evaluation.verdict import Verdict
from loaders.output_folder import saved_arguments
from reports.data_report_views import Table, print_tables
from reports.html_page import html_page, render
from reports.run_report import SHOWN_ANSWERS, answered_steps, curves_of, figures_of, plots_of
from reports.terminal import terminal
from training.progress import LOG_FILE
from training.resume import differences
from training.run_folder import earlier_run

# Flags that are not compared, because they differ between any two runs or do not affect what is trained.
OWN = {"output_dir", "run_name", "resume_from_checkpoint", "overwrite_output_dir", "disable_tqdm", "report_to"}


class RunResult(NamedTuple):
    name: str
    log: list[dict]
    flags: dict
    record: dict | None  # from `training.resume.describe_run`
    answers: dict[tuple, dict]  # (row, turn) -> the answer of the last evaluation


def read_run(folder: str) -> RunResult:
    if not os.path.isfile(os.path.join(folder, LOG_FILE)):
        raise ValueError(f"{folder} has no {LOG_FILE}. Pass the --output_dir of a run of train.py.")
    log = read_log(folder)
    steps = answered_steps(log)
    answers = read_answers(folder, steps[-1]) if steps else []
    by_place = {(answer["index"], answer["turn"]): answer for answer in answers}
    return RunResult(os.path.normpath(folder), log, saved_arguments(folder), earlier_run(folder), by_place)


def read_log(folder: str) -> list[dict]:
    """Return the lines of a run's log, or an empty list if nothing was logged yet."""
    path = os.path.join(folder, LOG_FILE)
    try:
        state = os.stat(path)
    except OSError:
        return []
    return _read_lines(path, state.st_size, state.st_mtime_ns)


@lru_cache(64)
def _read_lines(path: str, size: int, time: int) -> list[dict]:
    lines = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError):  # a line that is still being written
                lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and line.keys() >= {"step", "max_steps"}]


def figures(log: list[dict]) -> dict[str, str]:
    """Compute the main figures of a run's report from its log. Return no figures before the first step."""
    if not log:
        return {}
    newest = {name: value for line in log for name, value in line.items()}
    about = {"global_step": newest["step"], "max_steps": newest["max_steps"], "epoch": newest.get("epoch")}
    return figures_of(SimpleNamespace(log_history=log, best_global_step=None, **about))


def result_fields(run: RunResult) -> dict[str, str]:
    """Return the verdict and the main figures of a run."""
    last = run.log[-1] if run.log else {}
    verdict = Verdict(last["state"], last["verdict"]) if "state" in last else "not over" if last else "no step yet"
    return {"verdict": str(verdict)} | figures(run.log)


def tables(first: RunResult, second: RunResult) -> list[Table]:
    """Return tables of what differs between two runs. Equal entries are left out."""

    def table(title: str, of_first: dict, of_second: dict) -> Table:
        rows = [[name, *(in_words(of.get(name, "")) for of in (of_first, of_second))] for name in of_first | of_second]
        return Table(title, dict.fromkeys(("", first.name, second.name), False), [r for r in rows if r[1] != r[2]])

    flags = [{f"--{name}": value for name, value in run.flags.items() if name not in OWN} for run in (first, second)]
    found = [table("Results", *map(result_fields, (first, second))), table("Settings", *flags)]
    if first.record and second.record:
        without_flags = [run.record | {"flags": {}} for run in (first, second)]
        lines = [[line] for line in differences(*without_flags)]
        found.append(Table("Data and processes", {f"of {second.name}, against {first.name}": False}, lines))
    shared = first.answers.keys() & second.answers.keys()
    pairs = [(first.answers[place], second.answers[place]) for place in sorted(shared)]
    pairs = [(a, b) for a, b in pairs if a["question"] == b["question"] and a["exact_match"] != b["exact_match"]]
    columns = dict.fromkeys(("question", "reference", first.name, second.name), False)
    rows = [[a["question"], a["reference"], a["prediction"], b["prediction"]] for a, b in pairs[:SHOWN_ANSWERS]]
    found.append(Table(f"Answers that only one run got right: {len(pairs)} of {len(shared)}", columns, rows))
    return [table for table in found if table.rows]


def in_words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def show(first: RunResult, second: RunResult, file: TextIO) -> None:
    found = tables(first, second)
    print_tables(found, terminal(file))
    if not found:
        print("Results, settings, data and answers are equal.", file=file)


def page(first: RunResult, second: RunResult) -> str:
    """Return the comparison as a self-contained HTML page."""
    title, plots = f"{first.name} and {second.name}", plots_of(curves_of_runs({r.name: r.log for r in (first, second)}))
    return html_page(title, render("comparison.html", title=title, plots=plots, tables=tables(first, second)))


def curves_of_runs(logs: dict[str, list[dict]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return the `curves_of` several runs. Each line name starts with the name of its run, unless that name is ""."""
    plots = {}
    for name, log in logs.items():
        for title, lines in curves_of(log).items():
            named = {f"{name}, {line}".removeprefix(", "): points for line, points in lines.items()}
            plots.setdefault(title, {}).update(named)
    return plots
