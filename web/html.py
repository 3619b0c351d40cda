"""Small pieces of HTML that all tabs of the page show."""

from functools import wraps

from markupsafe import Markup


def notice(text: str, is_error: bool = False) -> str:
    return Markup('<p class="message{}">{}</p>').format(" error-message" if is_error else "", text)


def framed(html: str, title: str) -> str:
    """A page of its own in ours: it may run no script and does not see ours."""
    frame = Markup('<iframe class="page" sandbox title="{}" srcdoc="{}"></iframe>')
    return frame.format(title, str(html))  # as text: Markup would not be escaped


def log_box(text: str) -> str:
    return Markup('<div class="log" tabindex="0" role="log"><pre>{}</pre></div>').format(text) if text else ""


def or_notice(function):
    """A function that makes HTML, and says in its place what was wrong."""

    @wraps(function)
    def call(*args) -> str:
        try:
            return function(*args)
        except (ValueError, OSError) as error:
            return notice(str(error), is_error=True)

    return call
