"""Self-contained HTML pages. Each page is one file that loads nothing and runs no script.

The templates are in `templates/`. `page.html` contains the light and dark style of all pages.
"""

import base64
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image, ImageDraw

# Control character -> its visible symbol in Unicode. A terminal would obey the character; a page would hide it.
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
TEMPLATES = Path(__file__).resolve().parent / "templates"
# A PNG above this size is replaced by a JPEG. If the JPEG is too large as well, the picture is halved until it fits.
MAX_PICTURE_BYTES = 300_000
RIGHT, ANSWERED = "#00a36c", "#e0540a"  # colours of boxes on a picture
# Plots are drawn in placeholder colours. `draw` replaces these by the page's CSS variables, which follow dark mode.
VARIABLES = ("text", "muted", "line", "context", "image", "video", "cut", "trained")
COLOUR = {name: f"#0000{i:02x}" for i, name in enumerate(VARIABLES, 1)}


def html_page(title: str, body: str) -> str:
    """Return a complete, self-contained page. The title is plain text; all text in the body is already escaped."""
    return render("page.html", title=title, body=Markup(body))


def render(template: str, **values) -> Markup:
    """Render a template of `templates/` with these variables. Every value that is not Markup is escaped."""
    return Markup(environment().get_template(template).render(**values))


def legible(text: str) -> str:
    """Return the text with control characters, except line breaks and tabs, replaced by visible symbols."""
    return text.translate(CONTROL_PICTURES)


def visible_breaks(text: str) -> Markup:
    """Return escaped text with visible line breaks. CSS adds the line break symbol, so copied text lacks it."""
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


# ---- pictures and plots ----


def pictures(sample: dict, boxes: Mapping[str, list[dict]] = {}) -> Iterator[tuple[str, Image.Image, str]]:
    """Yield (kind, image or frame, caption) for the media of an opened sample, in order, as the collator gets them.

    Args:
        boxes: colour -> boxes and points to draw on the images (`collators.boxes.Boxes.told`).
    """
    numbers = Counter()
    for part in chain.from_iterable(message["content"] for message in sample["messages"]):
        if (kind := part["type"]) == "text":
            continue
        numbers[kind] += 1
        name = f"{kind} {numbers[kind]}"
        if kind == "image":
            place = numbers[kind] - 1
            told = [(colour, one["at"]) for colour, found in boxes.items() for one in found if one["image"] == place]
            picture = with_boxes(part["image"].copy(), told) if told else part["image"]
            yield kind, picture, f"{name}, {picture.width} \u00d7 {picture.height}"
            continue
        height, width = part["video"].shape[1:3]
        for frame, i in zip(part["video"], part["metadata"]["frames_indices"]):
            fps = part["metadata"]["fps"]  # None for frames with unknown times
            at = f"{i / fps:.2f} s" if fps else "at an unknown time"
            yield kind, Image.fromarray(frame), f"{name}, {width} \u00d7 {height}, frame {i}, {at}"


def with_boxes(picture: Image.Image, boxes: list[tuple[str, list[float]]]) -> Image.Image:
    """Draw boxes and points on the picture, each in its colour, and return the picture."""
    canvas, width = ImageDraw.Draw(picture), max(1, round(min(picture.size) / 100))
    for colour, shares in boxes:
        at = [share * side for share, side in zip(shares, picture.size * 2)]
        if len(at) == 2:
            canvas.circle(at, 3 * width, outline=colour, width=width)
        elif at[0] <= at[2] and at[1] <= at[3]:  # an answer may contain an invalid box
            canvas.rectangle(at, outline=colour, width=width)
    return picture


def embedded(picture: Image.Image, caption: str) -> tuple[str, str]:
    """Return the picture as a data URL, lossless if small enough, and the caption, plus the size if it was reduced."""
    for format, options in (("png", {}), ("jpeg", {"quality": 90})):
        file = io.BytesIO()
        picture.save(file, format, **options)
        if file.tell() <= MAX_PICTURE_BYTES:
            return f"data:image/{format};base64,{base64.b64encode(file.getvalue()).decode()}", caption
    small = picture.reduce(2)
    return embedded(small, f"{caption.split(' (')[0]} (here {small.width} \u00d7 {small.height})")


def draw(fill) -> Markup:
    """Return an inline SVG of what `fill(axes)` draws. It is as wide as the page allows."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot, which looks for a display

    style = {"svg.fonttype": "none", "font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
    style |= {"axes.edgecolor": COLOUR["line"], "xtick.color": COLOUR["line"], "ytick.color": COLOUR["line"]}
    style |= dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), COLOUR["muted"])
    with matplotlib.rc_context(style), io.StringIO() as file:
        figure = Figure(figsize=(6.4, 3), layout="constrained")
        fill(figure.subplots())
        figure.savefig(file, format="svg", transparent=True)
        svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(?s)(<svg .*?)width="\S+" height="\S+"', r"\1", svg, count=1)
    return Markup(re.sub("#0000(0[1-8])", lambda match: f"var(--{VARIABLES[int(match[1], 16) - 1]})", svg))
