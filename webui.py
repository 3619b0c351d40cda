"""Tune a model in the browser: choose, preview, start, watch, stop, resume, and chat with the result.

    python webui.py                                    # http://127.0.0.1:7860, files of the current folder
    python webui.py --root /data/project --port 8000
    FINELMM_WEBUI_PASSWORD=... python webui.py --host 0.0.0.0

It runs train.py as a process of its own, which goes on when the page is closed or this program ends.
"""

if __name__ == "__main__":
    import entry

    entry.begin(__file__)  # answers --help: the imports below take seconds

import argparse
import asyncio
import hmac
import ipaddress
import os
import re
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator
from enum import Enum
from functools import partial
from typing import NamedTuple, get_args
from urllib.parse import urlsplit

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: its makers get no reports

import gradio as gr
import pandas as pd
from markupsafe import Markup
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from tqdm import tqdm

from command_line import FlagParser
from entry import cli
from loaders.output_folder import ARGUMENTS
from reports.html_page import render
from supported_models import AUTO, MODELS
from training.progress import SPEED
from web import runs
from web.chat_page import FAILED, THOUGHT, Chat, turns_of
from web.runs import FIELDS, HERE, PASSWORD, check_folder

# Which flags have a field, and where. Labels, help and defaults are those of arguments.py.
MODEL = ("model_id", "model_local_path")
DATA = ("data_path", "eval_data_path", "output_dir")
NUMBERS = (
    *("num_train_epochs", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("model_max_length", "logging_steps", "eval_split"),
)
FOLDED = {
    "Evaluation": ("eval_strategy", "eval_steps", "eval_generate", "eval_max_new_tokens", "early_stopping_patience"),
    "Checkpoints": ("save_strategy", "save_steps", "save_total_limit"),
    "Schedule": ("max_steps", "warmup_steps", "lr_scheduler_type", "weight_decay", "seed"),
    "LoRA": ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
    "Learning rates of the vision parts": ("vision_encoder_lr", "vision_projector_lr"),
    "Images and videos": ("image_size", "max_pixels", "num_frames", "fps", "max_frames", "video_max_pixels"),
    "Precision and memory": ("bf16", "use_cpu", "activation_checkpointing", "packing", "optim", "attn_implementation"),
}
LARGEST_UPLOAD = "500mb"
# Those that change what the rows look like.
SHOWN_BY = (*MODEL, "data_path", "model_max_length", *FOLDED["Images and videos"])
# How each component trains -> the flags that are True.
STRATEGIES = {
    "vision encoder": {
        "frozen": (),
        "full": ("train_vision_encoder",),
        "LoRA": ("train_vision_encoder", "use_vision_lora"),
    },
    "vision projector": {"frozen": (), "full": ("train_vision_projector",)},
    "language model": {
        "full": (),
        "LoRA": ("use_lora",),
        "Q-LoRA": ("use_lora", "q_lora"),
        "8-bit LoRA": ("use_lora", "load_in_8bit"),
    },
}


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    check(args)
    os.environ.pop(PASSWORD, None)  # no run and no library has to know it
    os.chdir(args.root)
    for number in (signal.SIGTERM, signal.SIGHUP):  # by themselves they would end it before the uploads are removed
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="finelmm-webui-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # its default is one folder for all users of the machine
        serve(make_page(args.root, uploads), args)


def serve(page: gr.Blocks, args: argparse.Namespace) -> None:
    hosts = ["localhost", "127.0.0.1", "[::1]", args.host] if is_loopback(args.host) else ["*"]
    print(f"http://{args.host}:{args.port} shows {args.root}", flush=True)
    page.queue(default_concurrency_limit=4).launch(
        server_name=args.host,
        server_port=args.port,
        share=False,
        auth=Door(args.password).admit if args.password else None,
        auth_message="Any user name, and the password that webui.py was started with.",
        # A page of the web whose name is made to lead to this machine gets nothing.
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(OwnPageOnly)]},
        max_file_size=LARGEST_UPLOAD,
        allowed_paths=[],
        ssr_mode=False,
        run_history=False,
        quiet=True,
        footer_links=[],
        theme=gr.themes.Default(
            primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css_paths=os.path.join(HERE, "reports", "templates", "webui.css"),
    )


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = FlagParser(description=__doc__)
    parser.add_argument("--root", default=".", help="Folder that all files lie in. Default: the current one.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to bind to. Default: this machine alone.")
    parser.add_argument("--port", type=int, default=7860, help="Port to bind to. Default: 7860.")
    parser.add_argument(
        "--password",
        help=f"Asked of every visitor. Better set {PASSWORD}, which other users of the machine cannot see.",
    )
    args = parser.parse_args(words)
    args.password = args.password or os.environ.get(PASSWORD)
    args.root = os.path.realpath(args.root)
    return args


def check(args: argparse.Namespace) -> None:
    if not os.path.isdir(args.root):
        raise ValueError(f"--root {args.root} is not a folder.")
    if not is_loopback(args.host) and not args.password:
        raise ValueError(
            f"--host {args.host} lets other machines start runs here: set a password in the environment variable "
            f"{PASSWORD}, or leave --host out."
        )
    try:
        with socket.create_server(
            (args.host, args.port), family=socket.AF_INET6 if ":" in args.host else socket.AF_INET
        ):
            pass
    except OSError as error:
        raise ValueError(f"--host {args.host} --port {args.port} cannot be bound to: {error.strerror}.") from error


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def is_same(given: str, password: str) -> bool:
    return hmac.compare_digest(given.encode(), password.encode())


class Door:
    """Lets in who has the password. One visitor is asked at a time, and a wrong answer takes a second."""

    def __init__(self, password: str):
        self.password, self.lock = password, asyncio.Lock()

    async def admit(self, user: str, password: str) -> bool:
        async with self.lock:
            if is_same(password, self.password):
                return True
            await asyncio.sleep(1)
            return False


class OwnPageOnly:
    """Refuses what the page of another site sends by a visitor's browser, such as uploads."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        app = self.app
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD") and is_foreign(Headers(scope=scope)):
            app = PlainTextResponse("This was sent by the page of another site.", 403)
        await app(scope, receive, send)


def is_foreign(headers: Headers) -> bool:
    if site := headers.get("sec-fetch-site"):  # of newer browsers; it holds also where a server in front renames hosts
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


# ---- the page ----


def make_page(root: str, uploads: str) -> gr.Blocks:
    chat = Chat(root, uploads)
    with gr.Blocks(title="finelmm", analytics_enabled=False, fill_width=True) as page:
        with gr.Tabs() as tabs:
            with gr.Tab("Tune"):
                tune = tune_tab(root)
            with gr.Tab("Runs", id="runs") as runs_tab:
                run = runs_tab_content(root)
            with gr.Tab("Chat") as chat_tab:
                model = chat_tab_content(chat)
        tune.start.click(partial(start, root), tune.inputs, [tune.message, tabs, run])
        gr.on([page.load, runs_tab.select], partial(list_runs, root), run, run, show_progress="hidden")
        gr.on([page.load, chat_tab.select], partial(list_models, root), None, model, show_progress="hidden")
        gr.on([page.load], partial(list_files, root), None, tune.lists, show_progress="hidden")
    return page


def list_runs(root: str, chosen: str | None) -> dict:
    found = runs.find(root).runs
    return gr.update(choices=found, value=chosen if chosen in found else next(iter(found), None))


def list_models(root: str) -> dict:
    return gr.update(choices=runs.find(root).models)


def list_files(root: str) -> list[dict]:
    """Choices of --model_local_path, --data_path and --eval_data_path."""
    found = runs.find(root)
    return [gr.update(choices=choices) for choices in (found.models, found.data, found.data)]


def notice(text: str, is_error: bool = False) -> str:
    return Markup('<p class="message{}">{}</p>').format(" error-message" if is_error else "", text)


def framed(html: str, title: str) -> str:
    """A page of its own in ours: it may run no script and does not see ours."""
    return Markup('<iframe class="page" sandbox title="{}" srcdoc="{}"></iframe>').format(title, html)


# ---- tune ----


class Tune(NamedTuple):
    inputs: list  # of FLAGS, STRATEGIES and the further flags, in this order
    lists: list  # those with choices from the root
    start: gr.Button
    message: gr.HTML


FLAGS = [*MODEL, *DATA, *NUMBERS, *(name for names in FOLDED.values() for name in names)]


def tune_tab(root: str) -> Tune:
    made = {}
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            with gr.Group():
                made["model_id"] = field("model_id", choices=[*MODELS, AUTO])
                made["model_local_path"] = field("model_local_path", choices=[], allow_custom_value=True)
            with gr.Group():
                made |= {name: field(name) for name in DATA}
            with gr.Group():
                strategies = [strategy(component) for component in STRATEGIES]
            with gr.Group(), gr.Row(elem_classes="fields"):
                made |= {name: field(name) for name in NUMBERS}
            for title, names in FOLDED.items():
                with gr.Accordion(title, open=False), gr.Row(elem_classes="fields"):
                    made |= {name: field(name) for name in names}
            more = gr.Textbox(
                label="further flags",
                info="Any other flag of `python train.py --help_all`, as in a shell.",
                max_lines=4,
                elem_id="further_flags",
            )
        with gr.Column(scale=2, min_width=320, elem_classes="beside"):
            command = gr.Code(
                label="command", language="shell", lines=4, interactive=False, wrap_lines=True, show_line_numbers=False
            )
            message = gr.HTML()
            start_button = gr.Button("Start", variant="primary")
            with gr.Group():
                order = gr.Radio(["random", "first"], value="random", label="rows to look at")
                number = gr.Slider(1, 50, value=5, step=1, label="how many")
                show = gr.Button("Show rows as they are trained on")
            rows = gr.HTML()
    inputs = [*(made[name] for name in FLAGS), *strategies, more]
    changes = [component.change for component in inputs]
    gr.on(
        changes,
        partial(explain, root),
        inputs,
        [command, message],
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=None,
    )
    asked = [order, number, *inputs]
    show.click(partial(show_rows, root), asked, rows)
    seen = [component.change for component in (order, *(made[name] for name in SHOWN_BY))]
    gr.on(seen, partial(show_rows, root, quiet=True), asked, rows, trigger_mode="always_last")
    return Tune(inputs, [made[name] for name in ("model_local_path", *DATA[:2])], start_button, message)


def field(name: str, choices: list[str] | None = None, **options) -> gr.components.Component:
    """The input of a flag, made from its dataclass field."""
    flag = FIELDS[name]
    kinds = get_args(flag.type) or (flag.type,)
    options |= {"label": name.replace("_", " "), "info": shortened(flag.metadata["help"]), "elem_id": name}
    if bool in kinds:
        return gr.Checkbox(value=bool(flag.default), **options)
    if list[str] in kinds:
        return gr.Dropdown([], value=[], multiselect=True, allow_custom_value=True, **options)
    if enum := next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)), None):
        choices = [member.value for member in enum]
    if choices is not None:
        return gr.Dropdown(choices, value=flag.default, **options)
    return gr.Textbox("" if flag.default is None else str(flag.default), max_lines=1, **options)


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
    names = dict.fromkeys(name for way in ways.values() for name in way)
    info = " ".join(FIELDS[name].metadata["help"] for name in names)
    return gr.Radio(list(ways), value=next(iter(ways)), label=component, info=info, elem_id=component.replace(" ", "_"))


def words_of(inputs: tuple) -> list[str]:
    """The words of a command line, from the values of `Tune.inputs`."""
    *values, more = inputs
    flags = dict(zip(FLAGS, values))
    for ways, chosen in zip(STRATEGIES.values(), values[len(FLAGS) :]):
        flags |= {name: name in ways[chosen] for way in ways.values() for name in way}
    return runs.words_of(flags, more)


def explain(root: str, *inputs) -> tuple[str, str]:
    """The command of a form, and what is wrong with it."""
    command = ""
    try:
        words = words_of(inputs)
        command = runs.command_line(words, root)
        folder = runs.check(words, root)
    except ValueError as error:
        return command, notice(str(error), is_error=True)
    is_used = os.path.exists(os.path.join(folder, ARGUMENTS))
    return command, notice(f"Ready to start{f', over the run in {folder}' if is_used else ''}.")


def show_rows(root: str, order: str, number: int, *inputs, quiet: bool = False) -> str:
    """Rows as preview.py shows them; quiet: nothing where the form is not complete yet, which its message says."""
    try:
        return framed(runs.preview(words_of(inputs), root, order == "random", int(number)), "rows")
    except ValueError as error:
        return "" if quiet else notice(str(error), is_error=True)


def start(root: str, *inputs) -> tuple:
    """Start a run, and look at it: message, tab, run."""
    try:
        folder = os.path.relpath(os.path.realpath(runs.start(words_of(inputs), root)), root)
    except ValueError as error:
        return notice(str(error), is_error=True), gr.skip(), gr.skip()
    found = runs.find(root).runs
    return notice(f"{folder} is started."), gr.Tabs(selected="runs"), gr.update(choices=found, value=folder)


# ---- runs ----


def runs_tab_content(root: str) -> gr.Dropdown:
    run = gr.Dropdown([], label="run", info="An output folder in the root.", allow_custom_value=True, elem_id="run")
    head = gr.HTML()
    with gr.Row():
        buttons = [
            gr.Button("Stop", variant="stop", visible=False, scale=0, min_width=180),
            gr.Button("Kill: save nothing", variant="stop", visible=False, scale=0, min_width=180),
            gr.Button("Resume", variant="primary", visible=False, scale=0, min_width=180),
        ]
    losses = gr.LinePlot(x="step", y="loss", color="of", color_title=" ", title="Loss", height=280)
    answers = gr.HTML()
    log = gr.HTML()
    with gr.Accordion("Report", open=False):
        report = gr.HTML()
    seen = gr.State()
    outputs = [head, *buttons, losses, answers, log, report, seen]
    quiet = {"show_progress": "hidden", "concurrency_limit": None}
    look = partial(watch, root)
    gr.on([gr.Timer(2).tick, run.change], look, [run, seen], outputs, trigger_mode="always_last", **quiet)
    ask = "run => confirm('Kill this run? What it has learnt since its last checkpoint is lost.') ? run : null"
    for button, action, js in zip(buttons, (runs.stop, runs.kill, partial(runs.resume, root=root)), (None, ask, None)):
        button.click(partial(act, root, action), run, js=js, **quiet).then(look, [run, seen], outputs, **quiet)
    return run


def act(root: str, action, run: str | None) -> None:
    if run is None:  # not confirmed
        return
    try:
        action(check_folder(run, root, "the run"))
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def watch(root: str, run: str | None, seen) -> list:
    """What the page shows of a run; plots, answers and report only where they are new."""
    try:
        folder = check_folder(run, root, "the run") if run else ""
        if not os.path.isdir(folder):
            raise ValueError("No such run." if run else "No run yet: start one.")
    except ValueError as error:
        return [notice(str(error), is_error=bool(run)), *[gr.update(visible=False)] * 3, *[gr.skip()] * 5]
    verdict, record, log = runs.status(folder), runs.read_record(folder) or {}, runs.read_log(folder)
    progress = runs.progress(log, record.get("started", 0))
    head = render(
        "webui_run.html",
        verdict=verdict,
        progress=progress,
        left=progress.seconds_left and verdict.state == "running" and tqdm.format_interval(progress.seconds_left),
        figures=figures(log),
    )
    is_mine, is_stopping = runs.is_alive(record), record.get("stopping", False)
    shown = [
        gr.update(visible=is_mine, interactive=not is_stopping),  # Kill takes not its place
        gr.update(visible=is_mine and is_stopping),
        gr.update(visible=bool(record) and verdict.state not in ("running", "finished")),
    ]
    version = runs.version(folder)
    if version == seen:
        losses = answers = report = gr.skip()
    else:
        losses, answers, report = loss_points(log), answers_table(folder), framed_report(folder)
    return [head, *shown, losses, answers, log_box(folder), report, version]


def loss_points(log: list[dict]) -> pd.DataFrame | None:
    names = {"loss": "training", "eval_loss": "evaluation"}
    rows = runs.curve(log, names)
    # A plot keeps the curves that it was first drawn with (gradio 6.31), so each is there from the first, if empty.
    missing = set(names.values()) - {name for *_, name in rows}
    rows += [(rows[0][0], None, name) for name in missing if rows]
    return pd.DataFrame(rows, columns=["step", "loss", "of"]) if rows else None


# Logged value -> its name on the page and its form; those of evaluations are named by themselves.
FIGURES = {
    "loss": ("loss", "{:.4g}"),
    "learning_rate": ("learning rate", "{:.2e}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "data_wait": ("data wait", "{:.0%}"),
    "peak_memory_gb": ("peak memory", "{:.1f} GB"),
    "mfu": ("MFU", "{:.0%}"),
}
MOST_ANSWERS = 50


def figures(log: list[dict]) -> list[tuple[str, str]]:
    """(name, value) of the newest of each."""
    newest = {name: value for line in log for name, value in line.items()}
    found = [(title, form.format(newest[name])) for name, (title, form) in FIGURES.items() if name in newest]
    measured = [name for name in newest if name.startswith("eval_") and not name.endswith(SPEED)]
    return found + [(name.replace("_", " "), f"{newest[name]:.4g}") for name in measured]


def answers_table(folder: str) -> str:
    found = runs.newest_answers(folder)
    if not found:
        return ""
    step, answers = found
    right = sum(answer["exact_match"] for answer in answers)
    return render("webui_answers.html", step=step, answers=answers, right=right, shown=answers[:MOST_ANSWERS])


def log_box(folder: str) -> str:
    text = runs.log_tail(folder)
    return Markup('<div class="log" tabindex="0" role="log"><pre>{}</pre></div>').format(text) if text else ""


def framed_report(folder: str) -> str:
    path = os.path.join(folder, "report.html")
    if not os.path.isfile(path):
        return notice("train.py writes it at the end of a run, and where one is stopped.")
    with open(path, encoding="utf-8") as file:
        return framed(file.read(), "report")


# ---- chat ----


def chat_tab_content(chat: Chat) -> gr.Dropdown:
    with gr.Row():
        info = "A checkpoint in the root, of a run or any other. One is loaded at a time."
        model = gr.Dropdown([], label="model", info=info, allow_custom_value=True, min_width=300, elem_id="chat_model")
        most = gr.Slider(1, 1024, value=128, step=1, label="longest answer, in tokens", min_width=300)
    gr.ChatInterface(
        partial(answer, chat),
        multimodal=True,
        chatbot=gr.Chatbot(
            height=440, render_markdown=False, label="conversation", buttons=["copy"], allow_file_downloads=False
        ),
        textbox=gr.MultimodalTextbox(
            file_types=["image", "video"], file_count="multiple", placeholder="A question, and a picture if you like"
        ),
        additional_inputs=[model, most],
    )
    gr.Button("Free the memory of the model", size="sm").click(chat.release)
    return model


def answer(chat: Chat, message: dict, history: list[dict], model: str | None, most: int) -> Iterator:
    question = {"role": "user", "content": message["text"], "files": message["files"]}
    try:
        if not model:
            raise ValueError("Choose a model first.")
        for thought, text in chat.answer(model, turns_of([*history, question]), int(most)):
            apart = [{"role": "assistant", "content": thought, "metadata": {"title": THOUGHT}}] if thought else []
            yield [*apart, {"role": "assistant", "content": text}] if apart else text
    except Exception as error:  # of the model, the picture or the memory
        if not isinstance(error, ValueError):
            traceback.print_exc()
        yield {"role": "assistant", "content": str(error), "metadata": {"title": FAILED}}


if __name__ == "__main__":
    cli(main)
