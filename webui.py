"""Finetune a model in the browser: choose, preview, start, watch, stop, resume, and chat with the result.

    python webui.py                                    # http://127.0.0.1:7860, files of the current folder
    python webui.py --root /data/project --port 8000
    FINELMM_WEBUI_PASSWORD=... python webui.py --host 0.0.0.0

It runs train.py as a separate process, which continues when the page is closed or this program ends.
"""

if __name__ == "__main__":
    import entry

    entry.begin(__file__)  # answers --help: the imports below take seconds

import argparse
import asyncio
import hmac
import ipaddress
import os
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # disables telemetry; read when gradio is imported

import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from command_line import FlagParser
from entry import HERE, cli
from reading.options import ROOT
from web import form, parts, runs, scripts
from web.chat_page import Chat, chat_tab
from web.parts import text
from web.runs_page import runs_tab
from web.tune_page import ACCESSIBLE, QUIET, same_again, start_run, tune_tab

PASSWORD = "FINELMM_WEBUI_PASSWORD"


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    check_address(args)
    os.environ.pop(PASSWORD, None)  # runs and libraries must not see it
    os.chdir(args.root)
    parts.language = args.language
    os.environ[ROOT] = args.root  # the media of the data must be inside it
    scripts.start_process()
    for number in (signal.SIGTERM, signal.SIGHUP):  # by default, these end it before uploads are removed
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="finelmm-webui-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # gradio's default folder is shared by all users of the machine
        serve(make_page(args.root, uploads), args)


def serve(page: gr.Blocks, args: argparse.Namespace) -> None:
    hosts = ["localhost", "127.0.0.1", "[::1]", args.host] if is_loopback(args.host) else ["*"]
    print(f"Serving {args.root} at http://{args.host}:{args.port}", flush=True)
    page.queue(default_concurrency_limit=4).launch(
        server_name=args.host,
        server_port=args.port,
        share=False,
        auth=door(args.password) if args.password else None,
        auth_message=text("auth"),
        # Refuses requests under host names that an attacker makes resolve to this machine (DNS rebinding).
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(OwnPageOnly)]},
        max_file_size="500mb",
        ssr_mode=False,
        run_history=False,
        quiet=True,
        theme=gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css_paths=HERE / "reports/templates/webui.css",
    )


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = FlagParser(description=__doc__)
    parser.add_argument("--root", default=".", help="Folder of the models, data and runs. Default: the current folder.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to bind to. Default: only this machine.")
    parser.add_argument("--port", type=int, default=7860, help="Port to bind to. Default: 7860.")
    parser.add_argument("--password", help=f"Password for visitors. {PASSWORD} is safer: other users can see flags.")
    parser.add_argument("--language", choices=parts.LANGUAGES, default="en", help="Language of the page.")
    args = parser.parse_args(words)
    args.password = args.password or os.environ.get(PASSWORD)
    args.root = os.path.realpath(args.root)
    return args


def check_address(args: argparse.Namespace) -> None:
    if not os.path.isdir(args.root):
        raise ValueError(f"--root {args.root} is not a folder.")
    if not is_loopback(args.host) and not args.password:
        raise ValueError(
            f"--host {args.host} lets other machines connect: set a password in the environment variable {PASSWORD}."
        )
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    try:
        socket.create_server((args.host, args.port), family=family).close()
    except OSError as error:
        raise ValueError(f"Cannot listen on --host {args.host} --port {args.port}: {error.strerror}.") from error


def is_loopback(host: str) -> bool:
    with suppress(ValueError):  # the host is a name
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    return False


def door(password: str):
    """Return a login check for this password. Passwords are checked one at a time, and a wrong one costs a second."""
    lock = asyncio.Lock()

    async def admit(user: str, given: str) -> bool:
        async with lock:
            if not (is_right := hmac.compare_digest(given.encode(), password.encode())):
                await asyncio.sleep(1)
            return is_right

    return admit


class OwnPageOnly:
    """Middleware that refuses requests, such as uploads, sent by a page of another site through a visitor's browser."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        app = self.app
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD") and is_foreign(Headers(scope=scope)):
            app = PlainTextResponse("This request was sent by the page of another site.", 403)
        await app(scope, receive, send)


def is_foreign(headers: Headers) -> bool:
    if site := headers.get("sec-fetch-site"):  # newer browsers; works behind a proxy that renames hosts
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def make_page(root: str, uploads: str) -> gr.Blocks:
    chat = Chat(root, uploads)
    with gr.Blocks(title="finelmm", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown("# finelmm")
        with gr.Tabs() as tabs:
            with gr.Tab(text("tune"), id="tune"):
                tune = tune_tab(root)
            with gr.Tab(text("runs"), id="runs") as runs_tab_:
                run, again, listed = runs_tab(root, uploads)
            with gr.Tab(text("chat")) as chat_tab_:
                model = chat_tab(chat)
        gr.on([page.load, runs_tab_.select], **listed)
        tune.start.click(
            partial(start_run, root), [tune.asked, *tune.inputs], [tune.message, tune.start, tune.asked, tabs, run]
        ).then(**listed)
        again.click(partial(same_again, root), run, [*tune.inputs, tabs])
        gr.on([page.load, chat_tab_.select], partial(list_files, root), None, [model, *tune.lists], **QUIET)
        page.load(lambda: [True, *form.kept(root).values()], None, [tune.restored, *tune.inputs], **QUIET)
        page.load(None, js=ACCESSIBLE)
    return page


def list_files(root: str) -> list[dict]:
    """Return the choices for the chat's model, --model_local_path, --data_path and --eval_data_path."""
    found = runs.find(root)
    return [gr.update(choices=choices) for choices in (found.models, found.models, found.data, found.data)]


if __name__ == "__main__":
    cli(main)
