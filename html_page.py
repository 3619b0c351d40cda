"""HTML pages of the tools: one file each, which loads nothing and runs no script.

The templates are in `templates/`; `page.html` holds the style of all pages, light and dark.
"""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

# What a terminal would obey and a page swallow -> its picture in Unicode; a line break has its own.
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
TEMPLATES = Path(__file__).resolve().parent / "templates"


def html_page(title: str, body: str) -> str:
    """A complete, self-contained page.

    What the style knows beside plain elements (h1 to h3, p, ul, table, figure, details, code, pre):

    - `<dl class="stats"><div><dt>rows</dt><dd>1,000</dd></div>...</dl>`: a row of numbers; a bad one in
      `<div class="error">`
    - `<section class="card">`, `card warning`, `card error`: a box with a heading
    - `<div class="scroll"><table>...`: a table that may be wider than a phone; `class="number"` on th and td of numbers
    - `<div class="gallery"><figure>...`: pictures or small plots side by side
    - `<figure><svg viewBox=...>...</svg><figcaption>...`: a plot, as wide as there is room, up to 24rem high
    - for the colours of a plot, `var(--trained)`, `--context`, `--image`, `--video`, `--cut`, `--line`, `--text`,
      `--muted`

    Args:
        title: plain text; escaped here.
        body: markup, such as `render` gives; what comes from a user must be escaped already.
    """
    return render("page.html", title=title, body=Markup(body))


def render(template: str, **values) -> Markup:
    """A template of `templates/` with these variables; every value that is no Markup is escaped."""
    return Markup(environment().get_template(template).render(**values))


def legible(text: str) -> str:
    """Text with its control characters shown by their pictures, line breaks left."""
    return text.translate(CONTROL_PICTURES)


def visible_breaks(text: str) -> Markup:
    """Escaped text whose line breaks can be seen; the sign is added by the style, so that it is not copied."""
    return escape(legible(text)).replace("\n", Markup('<i class="break"></i>\n'))


@cache
def environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"thousands": "{:,}".format, "visible_breaks": visible_breaks}
    return environment
