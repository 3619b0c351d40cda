"""The "Runs" tab: the table of runs, the progress of one run, and buttons for a finished run."""

import json
import os
import re
import zipfile
from functools import partial
from pathlib import Path

import gradio as gr

from reading.split import make_datasets
from reports.html_page import html_page, render
from reports.run_comparison import curves_of_runs, figures, read_log
from reports.run_report import PLOTTED, answered_steps, answers_of, draw_curves
from web import runs
from web.parts import framed, log_box, notice, or_error, or_notice, part, text
from web.runs import check_folder_inside, check_inside
from web.scripts import tool
from web.tune_page import QUIET

MOST_ANSWERS = 40


def runs_tab(root: str, uploads: str) -> tuple[gr.Dropdown, gr.Button, dict]:
    """Return the menu of runs, the button that reuses the settings of a run, and the event that lists the runs."""
    table = gr.HTML(elem_id="runs")
    run = gr.Dropdown([], label=text("run"), info=text("run_help"), allow_custom_value=True, elem_id="run")
    head = gr.HTML(elem_id="head", elem_classes="live")
    wide = {"scale": 0, "min_width": 220}
    with gr.Row():
        variants = {"stop": "stop", "kill": "stop", "resume": "primary"}
        buttons = [gr.Button(text(name), variant=look, visible=False, **wide) for name, look in variants.items()]
        again = gr.Button(text("again"), **wide)
    with gr.Row():
        ticked = gr.CheckboxGroup([], label=text("plot_with"), elem_id="ticked")
        log_scale = gr.Checkbox(label=text("log_scale"), elem_id="log_scale")
    plots = gr.HTML()
    step = gr.Dropdown([], label=text("answers_at"), visible=False, elem_id="step")
    answers, log = gr.HTML(), gr.HTML()
    with gr.Accordion(text("report"), open=False):
        report = gr.HTML()
    with gr.Accordion(text("after"), open=False):
        after_run(root, uploads, run)
    seen = gr.State()
    look = {"fn": partial(watch, root), "inputs": [run, ticked, log_scale, seen]} | QUIET
    look["outputs"] = [head, *buttons, plots, step, log, report, seen]
    gr.on([gr.Timer(2).tick, run.change, log_scale.change, ticked.change], **look, trigger_mode="always_last")
    step.change(partial(show_answers, root), step, answers, **QUIET)
    kill_ask = f"run => confirm({json.dumps(text('kill_ask'), allow_nan=False)}) ? run : null"
    actions = (runs.stop, partial(runs.stop, at_once=True), partial(runs.resume, root=root))
    for button, action, js in zip(buttons, actions, (None, kill_ask, None)):
        button.click(partial(act, root, action), run, js=js, **QUIET).then(**look)
    listed = {"fn": partial(list_runs, root), "inputs": run, "outputs": [run, ticked, table]} | QUIET
    gr.Timer(10).tick(**listed)
    return run, again, listed


def list_runs(root: str, chosen: str | None) -> tuple[dict, dict, str]:
    """Return the choices of the menu and of the tick boxes, and the table of runs. An unreadable run shows why."""
    found = {}
    for name in runs.find(root).runs:
        try:
            found[name] = runs.table_row(check_folder_inside(name, root, "the run"))
        except (ValueError, OSError) as error:
            found[name] = ["unreadable", str(error)]
    choices = gr.update(choices=[*found])  # no value, so that the user's choice stays
    first = choices if chosen in found else choices | {"value": next(iter(found), None)}
    return first, choices, part("runs", columns=runs.RUN_COLUMNS, runs=found)


@or_error()
def act(root: str, action, run: str | None) -> None:
    if run is not None:  # None: the user did not confirm
        action(check_folder_inside(run, root, "the run"))


def watch(root: str, run: str | None, ticked: list[str], log_scale: bool, seen) -> list:
    """Return what the page shows of a run. Plots, steps with answers and the report are sent only if they are new."""
    try:
        folder = check_folder_inside(run, root, "the run") if run else ""
        if not os.path.isdir(folder):
            raise ValueError(text("no_such_run" if run else "no_run"))
        others = {name: check_folder_inside(name, root, "the run") for name in ticked if name != run}
    except ValueError as error:
        return [notice(str(error), is_error=bool(run)), *[gr.update(visible=False)] * 3, *[gr.skip()] * 5]
    verdict, record, log = runs.status(folder), runs.process_record(folder), read_log(folder)
    tail = runs.log_tail(folder)
    left = re.findall(r", ([\d:]+) left$", tail, re.MULTILINE)[-1:] if verdict.state == "running" else []
    head = part("run", verdict=verdict, last=(log or [{}])[-1], left=left, figures=figures(log).items())
    is_mine, is_stopping = runs.is_alive(record), record.get("stopping", False)
    shown = [
        gr.update(visible=is_mine, interactive=not is_stopping),  # visible, so that Kill does not move here
        gr.update(visible=is_mine and is_stopping),
        gr.update(visible=bool(record) and verdict.state not in ("running", "finished")),
    ]
    version = log_scale, *map(runs.version, (folder, *others.values()))
    plots = step = report = gr.skip()
    if version != seen:
        curves = curves_of_runs({"": log} | {name: read_log(other) for name, other in others.items()})
        drawn = {title: draw_curves(lines, log_scale) for title, lines in curves.items() if title not in PLOTTED}
        plots = part("plots", plots=drawn)
        steps = [(str(number), f"{run}:{number}") for number in dict.fromkeys(reversed(answered_steps(log)))]
        step = gr.update(choices=steps, value=steps[0][1] if steps else None, visible=bool(steps))
        path = Path(folder, "report.html")
        page = framed(path.read_text(encoding="utf-8"), text("report")) if path.is_file() else ""
        report = page or notice(text("no_report"))
    return [head, *shown, plots, step, log_box(tail), report, version]


@or_notice
def show_answers(root: str, chosen: str | None) -> str:
    """Return the held-out answers of an evaluation as in the report: with images, the wrong ones first."""
    run, _, step = (chosen or "").rpartition(":")
    if not run:
        return ""
    arguments = runs.parsed(runs.words_of_run(folder := check_folder_inside(run, root, "the run")))
    _, dataset = make_datasets(arguments.data, arguments.training.seed, check=False)
    found = answers_of(folder, dataset, [answered_steps(read_log(folder))[0], int(step)], MOST_ANSWERS)
    return framed(html_page(text("answers"), render("answers.html", answers=[*found])), text("answers"))


def after_run(root: str, uploads: str, run: gr.Dropdown) -> None:
    """Add buttons that each run a script on the chosen run and show what the script prints."""
    with gr.Row():
        names = ("merged", "answered")
        target, data = (gr.Textbox(label=text(n), info=text(f"{n}_help"), elem_id=n) for n in names)
    with gr.Row():
        names = ("merge", "serve", "answer", "pack")
        merge, serve, answer, pack = (gr.Button(text(name), size="sm") for name in names)
    download, said = gr.DownloadButton(text("download"), visible=False), gr.HTML(elem_classes="live")
    run.change(lambda run: f"{run}-merged" if run else "", run, target)
    merge.click(partial(run_tool, root, "merge_lora_weights", "--model_save_path"), [run, target], said)
    serve.click(partial(run_tool, root, "check_serving", None), [run, target], said)
    answer.click(partial(run_tool, root, "predict", "--data_path"), [run, data], said)
    pack.click(partial(packed, root, uploads), run, download)


@or_notice
def run_tool(root: str, script: str, flag: str | None, run: str | None, value: str) -> str:
    """Run a script on a model and, if `flag` is given, a path in the root. Return what the script prints."""
    words = ["--model_path", runs.check_model_folder(run or "none", root)]
    if flag:
        (runs.check_data_files if flag == "--data_path" else check_inside)(value, root, flag)
        words += [flag, value]
    if flag == "--data_path":
        words += ["--output_path", os.path.join(run, "answers.jsonl")]
    return log_box(tool(script, *words))


@or_error()
def packed(root: str, uploads: str, run: str | None) -> dict:
    """Pack the files of a run or a model, without its checkpoints, into a zip file to download."""
    folder = runs.check_model_folder(run or "none", root)
    path = os.path.join(uploads, f"{os.path.basename(folder)}.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for entry in filter(os.DirEntry.is_file, os.scandir(folder)):
            archive.write(entry.path, entry.name)
    return gr.update(value=path, visible=True)
