"""The "Tune" tab: model, data, method and start, with rows of the data next to them and the command at the bottom."""

import contextlib
import os
import re
import shutil
import time
from enum import Enum
from functools import partial
from types import SimpleNamespace

import gradio as gr
import yaml

from arguments import yaml_to_flags
from reading.first_row import columns_for, first_row
from reading.sources import ENDINGS
from reports.html_page import TEMPLATES
from training.run_folder import results
from web import form, runs
from web.form import DATA, DEVICES, ENGINE, ENGINES, FOLDED, FURTHER, INPUTS, MENUS, MODEL, NUMBERS, STRATEGIES
from web.parts import framed, log_box, notice, or_error, or_notice, part, text
from web.runs import DECLARED, check_inside
from web.scripts import tool

UPLOADED = "uploaded"  # folder in the root: dropped files are copied into it
SHOWN_ROWS = 5
NEEDED = ("model_id", "data_path", "output_dir")
QUIET = {"show_progress": "hidden", "concurrency_limit": None}
ACCESSIBLE = (TEMPLATES / "webui.js").read_text(encoding="utf-8")


def tune_tab(root: str) -> SimpleNamespace:
    """Return the tab's components. `inputs` has the order of INPUTS. `restored` is true once the form is restored."""
    made = {}

    def fields(*names: str) -> None:
        made.update({name: field(name) for name in names})

    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            gr.Markdown(f"## {text('step_model')}")
            with gr.Group():
                search = gr.Textbox(label=text("search"), info=text("search_help"), max_lines=1, elem_id="search")
                fields(*MODEL)
            gr.Markdown(f"## {text('step_data')}")
            with gr.Group():
                fields("data_path")
                label = text("drop", folder=UPLOADED)
                drop = gr.File(label=label, file_count="multiple", height=150, elem_id="drop")
                row = gr.HTML(elem_classes="first-row")
                with gr.Row(elem_classes="fields"):
                    fields(*MENUS, *DATA[1:])
            gr.Markdown(f"## {text('step_how')}")
            preset = gr.Radio([(text(name), name) for name in form.PRESETS], label=text("preset"), elem_id="preset")
            with gr.Group():
                fields(*STRATEGIES)
            with gr.Group(), gr.Row(elem_classes="fields"):
                fields(*NUMBERS)
            for title, names in FOLDED.items():
                with gr.Accordion(text(title), open=False), gr.Row(elem_classes="fields"):
                    fields(*names)
            with gr.Accordion(text("further"), open=False):
                fields(DEVICES, ENGINE, FURTHER)
            gr.Markdown(f"## {text('step_start')}")
            with gr.Group():
                fields("output_dir")
            with gr.Row():
                tools = [gr.Button(text(name)) for name in ("forecast", "check")]
            found = gr.HTML(elem_classes="live")
            with gr.Accordion(text("settings"), open=False):
                file = gr.Textbox(label=text("yaml"), info=text("yaml_help"), elem_id="yaml")
                with gr.Row():
                    save, load = (gr.Button(text(name)) for name in ("save", "load"))
                saved = gr.HTML(elem_classes="live")
        with gr.Column(scale=2, min_width=320, elem_classes="beside"):
            gr.Markdown(f"## {text('rows')}")
            with gr.Row():
                words = gr.Textbox(label=text("search_rows"), max_lines=1, elem_id="search_rows")
                skip = gr.Number(0, label=text("from_row"), precision=0, minimum=0, elem_id="from_row")
            with gr.Row():
                moves = [gr.Button(text(name), size="sm", min_width=80) for name in ("previous", "next")]
            rows = gr.HTML(notice(text("no_rows")))
    with gr.Row(elem_classes="bar"):
        with gr.Column(scale=3, min_width=250):
            message = gr.HTML(elem_id="message", elem_classes="live")
            command = gr.Textbox(label=text("command"), lines=3, max_lines=3, interactive=False, buttons=["copy"])
        start = gr.Button(text("start"), variant="primary", scale=0, min_width=180, elem_id="start")
    inputs = [made[name] for name in INPUTS]
    read, wanted, wrong, asked = (gr.State() for _ in range(4))
    total, restored = gr.State(0), gr.State(False)
    tell = {"fn": partial(explain, root), "inputs": [restored, read, wrong, *inputs]} | QUIET
    tell["outputs"] = [command, message, start, asked, wrong, preset, wanted, *inputs]
    gr.on([restored.change, *(component.change for component in inputs)], **tell, trigger_mode="always_last")
    search.change(lambda words: gr.update(choices=form.choices_of_models(words)), search, made["model_id"], **QUIET)
    named = [made[name] for name in MODEL]
    made["model_id"].input(find_id, named, named, **QUIET)
    of_presets = [made[name] for name in form.OF_PRESETS]
    preset.input(lambda name: [form.preset(name)[key] for key in form.OF_PRESETS], preset, of_presets, **QUIET)
    # Evaluation data are either files or a split of the training data, so a choice of files clears the split.
    made["eval_data_path"].input(lambda paths: "" if paths else gr.skip(), made["eval_data_path"], made["eval_split"])
    columns = [row, *(made[name] for name in (*MENUS, "columns"))]
    row_of = {"fn": partial(show_columns, root), "inputs": made["data_path"], "outputs": columns} | QUIET
    made["data_path"].input(**row_of)
    dropped = drop.upload(partial(take_files, root), [drop, made["data_path"]], [drop, made["data_path"]])
    dropped.then(**row_of).then(None, js=ACCESSIBLE)
    look = {"fn": partial(show_rows, root), "inputs": [skip, words, *inputs], "outputs": [rows, total, read]}
    look |= {"concurrency_limit": 1, "concurrency_id": "rows"}  # one request at a time, so that the last one is shown
    gr.on([words.submit, skip.submit], **look).then(**tell)
    for button, by in zip(moves, (-SHOWN_ROWS, SHOWN_ROWS)):
        move = button.click(lambda at, of, by=by: max(0, at + by) if at + by < of else at, [skip, total], skip, **QUIET)
        move.then(**look).then(**tell)
    follow = look | {"fn": partial(show_rows, root, quiet=True)}
    wanted.change(**follow, trigger_mode="always_last").then(**tell)  # one refresh if several fields change together
    for button, look_ahead in zip(tools, (forecast, check_all_rows)):
        button.click(partial(look_ahead, root), inputs, found)
    save.click(partial(save_form, root), [file, *inputs], saved)
    load.click(partial(load_form, root), file, inputs)
    lists = [made[name] for name in ("model_local_path", "data_path", "eval_data_path")]
    return SimpleNamespace(inputs=inputs, lists=lists, start=start, asked=asked, message=message, restored=restored)


def field(name: str) -> gr.components.Component:
    """Make the component for a name in INPUTS. The component of a flag is made from its dataclass field."""
    label = text(name) if name not in DECLARED else name.replace("_", " ")
    options = {"label": label, "info": form.help_of(name), "elem_id": name.replace(" ", "_")}
    if name == DEVICES:
        return gr.Number(1, precision=0, minimum=1, **options)
    if name == FURTHER:
        return gr.Textbox(max_lines=4, **options)
    if ways := STRATEGIES.get(name):
        return gr.Radio([(text(way), way) for way in ways], value=next(iter(ways)), **options)
    if name == ENGINE:
        return gr.Dropdown([(text(way), way) for way in ENGINES], **options)
    if name in (*MENUS, *MODEL):
        choices = form.choices_of_models("") if name == "model_id" else []
        return gr.Dropdown(choices, value="", allow_custom_value=True, **options)
    value, kinds = form.default(name), form.kinds_of(name)
    if isinstance(value, bool):
        return gr.Checkbox(value=value, **options)
    if value == []:
        return gr.Dropdown([], value=[], multiselect=True, allow_custom_value=True, **options)
    if enum := next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)), None):
        return gr.Dropdown([member.value for member in enum], value=value, **options)
    if bool in kinds:
        return gr.Dropdown([(text("by_default"), ""), "True", "False"], value=value, **options)
    return gr.Textbox(value, max_lines=1, **options)


def explain(root: str, restored: bool, read: tuple | None, wrong: str | None, *inputs) -> list:
    """Save the form, and show its command. Show the first error in the bar and at the wrong field."""
    if not restored:
        return [gr.skip()] * (7 + len(INPUTS))
    values, command, folder, at = dict(zip(INPUTS, inputs)), "", "", None
    runs.write_json(check_inside(form.KEPT, root, "the form"), values)
    missing = [text(name) for name in NEEDED if not values[name]]
    wanted = [values[name] for name in form.SHOWN_BY]
    said, (seen, fault) = text("reading"), read or (None, None)
    try:
        words = form.words_of_form(values)
        command = runs.command_line(words, root, values[DEVICES])
        folder = runs.check_start(words, root)
        if seen == wanted:
            said = text("ready")
            if fault:
                raise ValueError(fault)
    except ValueError as error:
        said = re.sub(r"^Argument (--\w+)[^:]*: (.*); see `.*`\.$", r"\1: \2", str(error))
        at = next(filter(None, map(form.INPUT_OF.get, re.findall(r"--(\w+)", said))), "")
        if missing and re.search(r"--(model_id|data_path|output_dir) is missing", said):
            said, at = text("needed", what=text("comma").join(missing)), None
    changes = {name: gr.update(info=form.help_of(name), elem_classes=[]) for name in {wrong} & {*INPUTS}}
    if at:
        changes[at] = gr.update(info=said.removeprefix(f"--{at}: "), elem_classes=["wrong"])
    label = text("start_over", folder=folder) if folder and results(folder) else text("start")
    shown = [command, notice(said, is_error=at is not None), gr.update(value=label)]
    return [*shown, None, at, form.preset_of(values), wanted, *(changes.get(name, gr.skip()) for name in INPUTS)]


@or_error()
def find_id(typed: str | None, path: str | None) -> tuple:
    """Return the id and the local path of a typed model. Keep `path` if the typed id was found for it."""
    found = form.model_of(typed or "")
    return found if found[1] or not path or form.model_of(path)[0] != typed else (typed, path)


@or_notice
def save_form(root: str, path: str, *inputs) -> str:
    """Write the form as a YAML file for train.py."""
    file = check_inside(path, root, "the YAML file")
    if not path.endswith((".yaml", ".yml")) or os.path.lexists(file):
        raise ValueError(text("new_yaml", path=path))
    flags = runs.flags_of(form.words_of_form(dict(zip(INPUTS, inputs))))
    with open(file, "x", encoding="utf-8") as target:
        yaml.safe_dump({n: its[0] if len(its) == 1 else its for n, its in flags}, target, sort_keys=False)
    return notice(text("saved", path=path))


@or_error()
def load_form(root: str, path: str) -> list:
    return [*form.values_of(yaml_to_flags(check_inside(path, root, "the YAML file"))).values()]


@or_error()
def same_again(root: str, run: str | None) -> list:
    """Return the form with the settings of a run and a new output folder, and switch to the "Tune" tab."""
    values = form.values_of(runs.words_of_run(runs.check_folder_inside(run or "", root, "the run")))
    stem, number = re.sub(r"-\d+$", "", run), 2
    while os.path.lexists(f"{stem}-{number}"):
        number += 1
    return [*(values | {"output_dir": f"{stem}-{number}"}).values(), gr.Tabs(selected="tune")]


def take_files(root: str, files: list[str], paths: list[str]) -> tuple[None, dict]:
    """Copy dropped files into a new folder in the root. Add the data files, or else the folder, to `paths`."""
    folder = os.path.join(UPLOADED, time.strftime("%Y-%m-%d-%H%M%S"))
    os.makedirs(check_inside(folder, root, "the folder of dropped files"))
    copies = [shutil.copy(file, folder) for file in files]
    data = [path for path in copies if path.lower().endswith(ENDINGS)] or [folder]
    return None, gr.update(choices=runs.find(root).data, value=[*paths, *data])


def show_columns(root: str, paths: list[str]) -> list:
    """Return the first row of the data, and the column menus, with suggestions if the row needs a mapping."""
    row = {}
    with contextlib.suppress(ValueError):  # the message reports it
        if paths and not runs.is_on_hub(paths[0]):
            runs.check_data_files(paths[0], root, "--data_path")
            row = first_row(paths[0])
    columns = columns_for(row)
    proposed = form.values_of(["--columns", *columns] if columns else [])
    menus = [gr.update(choices=["", *row], value=proposed[name]) for name in MENUS]
    ignored = gr.update(choices=[f"{name}=" for name in row], value=proposed["columns"])
    shown = part("first_row", row={name: str(value)[:200] for name, value in row.items()})
    return [shown if row else "", *menus, ignored]


def show_rows(root: str, skip: int, search: str, *inputs, quiet: bool = False) -> tuple:
    """Return rows as preview.py shows them, their number, and (values read, error). `quiet` hides the error."""
    values = dict(zip(INPUTS, inputs))
    seen = [values[name] for name in form.SHOWN_BY]
    selection = [f"--num_rows={SHOWN_ROWS}", f"--skip_rows={skip or 0}", *([f"--search={search}"] if search else [])]
    try:
        page, refusal = runs.page_of(form.words_of_form(values), root, *selection)
    except ValueError as error:
        told = notice(text("no_rows")) if quiet else notice(str(error), is_error=True)
        return told, 0, (seen, str(error))
    return framed(page, text("rows")), int(re.search(r"of (\d+) rows", page)[1]), (seen, refusal)


@or_notice
def forecast(root: str, *inputs) -> str:
    values = dict(zip(INPUTS, inputs))
    runs.check_command(words := form.words_of_form(values), root)
    return log_box(tool("estimate", *words, "--num_devices", str(values[DEVICES])))


@or_notice
def check_all_rows(root: str, *inputs) -> str:
    return framed(runs.page_of(form.words_of_form(dict(zip(INPUTS, inputs))), root, "--check")[0], text("check"))


def start_run(root: str, asked: str | None, *inputs) -> list:
    """Start a run; to replace one, ask for a second click. Return message, button, asked folder, tab and run."""
    values = dict(zip(INPUTS, inputs))
    try:
        words = form.words_of_form(values)
        folder = runs.check_start(words, root)
        if results(folder) and asked != folder:
            told = [notice(text("holds_run", folder=folder)), gr.update(value=text("rename")), folder]
            return [*told, gr.skip(), gr.skip()]
        words += ["--overwrite_output_dir", "True"] if results(folder) else []
        folder = os.path.relpath(os.path.realpath(runs.start(words, root, devices=values[DEVICES])), root)
    except ValueError as error:
        return [notice(str(error), is_error=True), *[gr.skip()] * 4]
    shown = gr.update(choices=runs.find(root).runs, value=folder)
    return [notice(text("started", folder=folder)), gr.update(), None, gr.Tabs(selected="runs"), shown]
