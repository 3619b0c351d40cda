"""The tab "Tune": model, data, how, start; beside them the rows, below them the bar with command and Start."""

import os
import random
import re
import shutil
import time
from enum import Enum
from functools import partial
from types import SimpleNamespace

import gradio as gr

from arguments import yaml_to_flags
from reading.sources import ENDINGS
from reports.html_page import render
from training.run_folder import results
from web import form, runs
from web.form import DEVICES, ENGINE, ENGINES, FOLDED, FURTHER, MENUS, MODEL, NAMES, NUMBERS, STRATEGIES
from web.html import framed, log_box, notice, or_notice
from web.runs import FIELDS, check_inside

UPLOADED = "uploaded"  # folder of the root that dropped files are copied into
SHOWN_ROWS = 5
NEEDED = {"model_id": "a model", "data_path": "data", "output_dir": "a new output folder"}
QUIET = {"show_progress": "hidden", "concurrency_limit": None}
# Announce what changes, and call a button what it says (gradio 6.31).
ACCESSIBLE = """() => {
    for (const id of ["message", "head"]) document.getElementById(id)?.setAttribute("aria-live", "polite");
    for (const button of document.querySelectorAll(".upload-container")) button.removeAttribute("aria-label");
}"""


def tune_tab(root: str) -> SimpleNamespace:
    """Its `inputs`, of NAMES in this order; `start`, with what it `asked` and what it `told`; `restored`: whether the
    form holds what it held before."""
    made = {}
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            gr.Markdown("## 1. Model")
            with gr.Group():
                search = gr.Textbox(label="search", info="Words, such as: qwen 7b video", max_lines=1, elem_id="search")
                made["model_id"] = field("model_id", choices=form.choices_of_models(""), allow_custom_value=True)
                made["model_local_path"] = field("model_local_path", choices=[], allow_custom_value=True)
            gr.Markdown("## 2. Data")
            with gr.Group():
                made["data_path"] = field("data_path")
                label = f"or drop a table or JSON with its pictures (copied to {UPLOADED}/)"
                drop = gr.File(label=label, file_count="multiple", height=150, elem_id="drop")
                row = gr.HTML(elem_classes="first-row")
                with gr.Row(elem_classes="fields"):
                    info = "Field of the data, where it has another name."
                    made |= {n: gr.Dropdown([], value="", label=n, info=info, allow_custom_value=True) for n in MENUS}
                    made |= {name: field(name) for name in ("prompt", "columns", "eval_data_path", "eval_split")}
            gr.Markdown("## 3. How")
            preset = gr.Radio([*form.PRESETS], value=form.FIRST, label="preset", elem_id="preset")
            with gr.Group():
                made |= {component: strategy(component) for component in STRATEGIES}
            with gr.Group(), gr.Row(elem_classes="fields"):
                made |= {name: field(name) for name in NUMBERS}
            for title, names in FOLDED.items():
                with gr.Accordion(title, open=False), gr.Row(elem_classes="fields"):
                    made |= {name: field(name) for name in names}
            with gr.Accordion("Devices, engine and further flags", open=False):
                with gr.Row():
                    info = "Processes, one for each GPU."
                    made[DEVICES] = gr.Number(1, label=DEVICES, info=info, precision=0, minimum=1, elem_id=DEVICES)
                    info = "How several share weights and optimizer."
                    made[ENGINE] = gr.Dropdown([*ENGINES], label=ENGINE, info=info, elem_id=ENGINE)
                info = "Any other flag of `python train.py --help_all`, as in a shell."
                made[FURTHER] = gr.Textbox(label=FURTHER, info=info, max_lines=4, elem_id="further_flags")
            gr.Markdown("## 4. Start")
            with gr.Group():
                made["output_dir"] = field("output_dir")
            with gr.Row():
                tools = [gr.Button("Forecast the memory"), gr.Button("Check all rows")]
            found = gr.HTML()
            with gr.Accordion("Settings as a YAML file", open=False):
                file = gr.Textbox(label="YAML file", info="In the root, for `python train.py FILE`.", elem_id="yaml")
                with gr.Row():
                    save, load = gr.Button("Save these settings"), gr.Button("Load settings")
                saved = gr.HTML()
        with gr.Column(scale=2, min_width=320, elem_classes="beside"):
            gr.Markdown("## Rows as they are trained on")
            with gr.Row():
                words = gr.Textbox(label="search in the rows", max_lines=1, elem_id="search_rows")
                skip = gr.Number(0, label="from row", precision=0, minimum=0, elem_id="from_row")
            with gr.Row():
                moves = [gr.Button(name, size="sm", min_width=80) for name in ("Previous", "Next", "Random", "Show")]
            rows = gr.HTML()
    with gr.Row(elem_classes="bar"):
        with gr.Column(scale=3, min_width=250):
            message = gr.HTML(elem_id="message")
            command = gr.Textbox(label="command", lines=3, max_lines=3, interactive=False, buttons=["copy"])
        start = gr.Button("Start", variant="primary", scale=0, min_width=180)
    inputs = [made[name] for name in NAMES]
    read, total, wrong, asked, restored = gr.State(), gr.State(0), gr.State(), gr.State(), gr.State(False)
    tell = {
        "fn": partial(explain, root, {name: made[name].info for name in NAMES}),
        "inputs": [restored, read, wrong, *inputs],
        "outputs": [command, message, start, asked, wrong, preset, *inputs],
    } | QUIET
    gr.on([restored.change, *(component.change for component in inputs)], **tell, trigger_mode="always_last")
    search.change(lambda text: gr.update(choices=form.choices_of_models(text)), search, made["model_id"], **QUIET)
    named = [made[name] for name in MODEL]
    made["model_id"].input(model_of, named, named, **QUIET)
    preset.input(preset_values, preset, [made[name] for name in form.OF_PRESETS], **QUIET)
    # One of the two says what is evaluated.
    made["eval_data_path"].input(lambda paths: "" if paths else gr.skip(), made["eval_data_path"], made["eval_split"])
    columns = [row, *(made[name] for name in (*MENUS, "columns"))]
    row_of = {"fn": partial(show_columns, root), "inputs": made["data_path"], "outputs": columns} | QUIET
    made["data_path"].input(**row_of)
    dropped = drop.upload(partial(take_files, root), [drop, made["data_path"]], [drop, made["data_path"]])
    dropped.then(**row_of).then(None, js=ACCESSIBLE)
    look = {"fn": partial(show_rows, root), "inputs": [skip, words, *inputs], "outputs": [rows, total, read]}
    gr.on([moves[-1].click, words.submit, skip.submit], **look).then(**tell)
    places = (
        lambda at, _: max(0, at - SHOWN_ROWS),
        lambda at, total: at + SHOWN_ROWS if at + SHOWN_ROWS < total else at,
        lambda _, total: random.randrange(max(1, total - SHOWN_ROWS + 1)),
    )
    for button, move in zip(moves, places):
        button.click(move, [skip, total], skip, **QUIET).then(**look).then(**tell)
    follow = look | {"fn": partial(show_rows, root, quiet=True)}
    gr.on([made[name].change for name in form.SHOWN_BY], **follow, trigger_mode="always_last").then(**tell)
    for button, tool in zip(tools, (forecast, check_rows)):
        button.click(partial(tool, root), inputs, found)
    save.click(partial(save_form, root), [file, *inputs], saved)
    load.click(partial(load_form, root), file, inputs)
    lists = [made[name] for name in ("model_local_path", "data_path", "eval_data_path")]
    told = [message, start, asked]
    return SimpleNamespace(inputs=inputs, lists=lists, start=start, asked=asked, told=told, restored=restored)


def field(name: str, choices: list | None = None, **options) -> gr.components.Component:
    """The input of a flag, made from its dataclass field."""
    flag, value, kinds = FIELDS[name], form.default(name), form.kinds_of(name)
    options |= {"label": name.replace("_", " "), "info": shortened(flag.metadata["help"]), "elem_id": name}
    if isinstance(value, bool):
        return gr.Checkbox(value=value, **options)
    if value == []:
        return gr.Dropdown([], value=[], multiselect=True, allow_custom_value=True, **options)
    if enum := next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)), None):
        choices = [member.value for member in enum]
    elif bool in kinds:
        choices = [("by default", ""), "True", "False"]
    if choices is not None:
        return gr.Dropdown(choices, value=value, **options)
    return gr.Textbox(value, max_lines=1, **options)


def shortened(help: str, most: int = 140) -> str:
    """Whole sentences, at least the first."""
    first, *others = re.split(r"(?<=\.) ", help.replace("%%", "%"))
    for sentence in others:
        if len(first) + len(sentence) > most:
            break
        first += f" {sentence}"
    return first


def strategy(component: str) -> gr.Radio:
    ways = STRATEGIES[component]
    info = " ".join(FIELDS[name].metadata["help"] for name in dict.fromkeys(n for way in ways.values() for n in way))
    return gr.Radio(list(ways), value=next(iter(ways)), label=component, info=info, elem_id=component.replace(" ", "_"))


# ---- what the form says ----


def explain(root: str, infos: dict, restored: bool, read: tuple | None, wrong: str | None, *inputs) -> list:
    """The command of a form, and what is wrong with it: in the bar, and at its field. Keeps the form."""
    if not restored:
        return [gr.skip()] * (6 + len(NAMES))
    values, command, folder, at = dict(zip(NAMES, inputs)), "", "", None
    form.keep(values, root)
    missing = [what for name, what in NEEDED.items() if not values[name]]
    text, (seen, fault) = "The flags are right. Reading rows of the data …", read or (None, None)
    try:
        words = form.words_of(values)
        command = runs.command_line(words, root, values[DEVICES])
        folder = runs.check(words, root)
        if seen == [values[name] for name in form.SHOWN_BY]:
            text = "Ready to start: the data were read."
            if fault:
                raise ValueError(fault)
    except ValueError as error:
        text = re.sub(r"^Argument (--\w+)[^:]*: (.*); see `.*`\.$", r"\1: \2", str(error))
        at = next(filter(None, map(form.INPUT_OF.get, re.findall(r"--(\w+)", text))), "")
        if missing and re.search(r"--(model_id|data_path|output_dir) is missing", text):
            text, at = f"Still needed: {', '.join(missing)}.", None
    changes = {name: gr.update(info=infos[name], elem_classes=[]) for name in {wrong} & {*NAMES}}
    if at:
        changes[at] = gr.update(info=text.removeprefix(f"--{at}: "), elem_classes=["wrong"])
    label = f"Start over in {folder} …" if folder and results(folder) else "Start"
    shown = [command, notice(text, is_error=at is not None), gr.update(value=label), None, at, form.preset_of(values)]
    return [*shown, *(changes.get(name, gr.skip()) for name in NAMES)]


def model_of(typed: str | None, path: str | None) -> tuple:
    """Id and local path of what was typed as a model: a Hub path and a folder are taken too.

    The id that was found for a path leaves the path.
    """
    try:
        found = form.model_of(typed or "")
        return found if found[1] or not path or form.model_of(path)[0] != typed else (typed, path)
    except ValueError as error:
        gr.Warning(str(error))
        return gr.skip(), gr.skip()


def preset_values(preset: str) -> list:
    return [form.preset(preset)[name] for name in form.OF_PRESETS]


@or_notice
def save_form(root: str, path: str, *inputs) -> str:
    form.save(dict(zip(NAMES, inputs)), path, root)
    return notice(f"Saved: python train.py {path}")


def load_form(root: str, path: str) -> list:
    try:
        return [*form.values_of(yaml_to_flags(check_inside(path, root, "the YAML file"))).values()]
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def same_again(root: str, run: str | None) -> list:
    """The form with the settings of a run and a new output folder, and the tab to look at."""
    try:
        values = form.values_of(runs.words_of_run(runs.check_folder(run or "", root, "the run")))
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
    stem, number = re.sub(r"-\d+$", "", run), 2
    while os.path.lexists(f"{stem}-{number}"):
        number += 1
    return [*(values | {"output_dir": f"{stem}-{number}"}).values(), gr.Tabs(selected="tune")]


# ---- data ----


def take_files(root: str, files: list[str], paths: list[str]) -> tuple[None, dict]:
    """Copy dropped files into a new folder of the root; those of data, or the folder, are data paths."""
    folder = os.path.join(UPLOADED, time.strftime("%Y-%m-%d-%H%M%S"))
    os.makedirs(check_inside(folder, root, "the folder of dropped files"))
    copies = [shutil.copy(file, folder) for file in files]
    data = [path for path in copies if path.lower().endswith(ENDINGS)] or [folder]
    return None, gr.update(choices=runs.find(root).data, value=[*paths, *data])


def show_columns(root: str, paths: list[str]) -> list:
    """The first row of the data, and the menus of its fields, with a proposal where it needs one."""
    row = {}
    try:
        if paths and not runs.is_on_hub(paths[0]):
            runs.check_data(paths[0], root, "--data_path")
            row = form.first_row(paths[0])
    except ValueError:  # which the message says
        pass
    columns = form.columns_for(row)
    proposed = form.values_of(["--columns", *columns] if columns else [])
    menus = [gr.update(choices=["", *row], value=proposed[name]) for name in MENUS]
    ignored = gr.update(choices=[f"{name}=" for name in row], value=proposed["columns"])
    shown = render("webui_first_row.html", row={name: str(value)[:200] for name, value in row.items()})
    return [shown if row else "", *menus, ignored]


def show_rows(root: str, skip: int, search: str, *inputs, quiet: bool = False) -> tuple:
    """Rows as preview.py shows them, how many there are, and what was read with which fault.

    Args:
        quiet: whether a fault is left to the message.
    """
    values = dict(zip(NAMES, inputs))
    seen = [values[name] for name in form.SHOWN_BY]
    selection = [f"--num_rows={SHOWN_ROWS}", f"--skip_rows={skip or 0}", *([f"--search={search}"] if search else [])]
    try:
        page, said = runs.page_of("preview.py", form.words_of(values), root, *selection)
    except ValueError as error:
        return "" if quiet else notice(str(error), is_error=True), 0, (seen, str(error))
    return framed(page, "rows"), int(re.search(r"of (\d+) rows", said)[1]), (seen, None)


@or_notice
def forecast(root: str, *inputs) -> str:
    values = dict(zip(NAMES, inputs))
    runs.check_flags(words := form.words_of(values), root)
    return log_box(runs.tool("estimate.py", [*words, "--num_devices", str(values[DEVICES])], root))


@or_notice
def check_rows(root: str, *inputs) -> str:
    return framed(runs.page_of("preview.py", form.words_of(dict(zip(NAMES, inputs))), root, "--check")[0], "check")


# ---- start ----


def start(root: str, asked: str | None, *inputs) -> list:
    """Start a run, over another only when asked twice: message, button, what was asked, tab, run."""
    values = dict(zip(NAMES, inputs))
    try:
        words = form.words_of(values)
        folder = runs.check(words, root)
        if results(folder) and asked != folder:
            text = f"{folder} holds a run. Press again to rename that one and start, or name another folder."
            return [notice(text), gr.update(value="Rename it and start"), folder, gr.skip(), gr.skip()]
        words += ["--overwrite_output_dir", "True"] if results(folder) else []
        folder = os.path.relpath(os.path.realpath(runs.start(words, root, devices=values[DEVICES])), root)
    except ValueError as error:
        return [notice(str(error), is_error=True), *[gr.skip()] * 4]
    shown = gr.update(choices=runs.find(root).runs, value=folder)
    return [notice(f"{folder} is started."), gr.update(), None, gr.Tabs(selected="runs"), shown]
