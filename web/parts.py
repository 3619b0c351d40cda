"""Code shared by all tabs of the page: texts in two languages, small pieces of HTML, and the display of errors."""

from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import gradio as gr
import yaml
from markupsafe import Markup

from reports.html_page import render

TABLE = yaml.safe_load(Path(__file__).with_name("strings.yaml").read_text(encoding="utf-8"))
LANGUAGES = ("en", "zh")
language = "en"  # webui.py sets it


def text(key: str, **values) -> str:
    return TABLE["page"][key][language].format(**values)


def part(name: str, **values) -> Markup:
    """Render a template of the page. The template can call `text`."""
    return render(f"webui_{name}.html", text=text, **values)


def notice(message: str, is_error: bool = False) -> str:
    return Markup('<p class="message{}">{}</p>').format(" error-message" if is_error else "", message)


def framed(html: str, title: str) -> str:
    """Return an iframe with a page. This page can run no script and cannot access the page around the iframe."""
    frame = Markup('<iframe class="page" sandbox title="{}" srcdoc="{}"></iframe>')
    return frame.format(title, str(html))  # str, because Markup would not be escaped


def log_box(log: str) -> str:
    return Markup('<div class="log" tabindex="0" role="log"><pre>{}</pre></div>').format(log) if log else ""


def or_notice(function):
    """Decorator for a function that returns HTML. If the function fails, its error is shown instead."""

    @wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            return notice(str(error), is_error=True)

    return call


@contextmanager
def or_error():
    """Decorator for a function. If the function fails, gradio shows its error in a corner of the page."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from error
