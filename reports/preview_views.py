"""The views of `preview.py`: plain text, a terminal with rich, and one HTML page."""

import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from markupsafe import Markup
from PIL import Image, ImageOps

from collators.base import ChatCollator
from reports.html_page import embedded, html_page, legible, pictures, render, visible_breaks
from reports.preview_rows import (
    Preview,
    count,
    cut_runs,
    decode,
    inline_difference,
    row_difference,
    run_differences,
    with_pieces,
)

# Of a picture in a terminal: characters.
TERMINAL_WIDTH = {"image": 24, "video": 16}
STYLES = {"trained": "bold underline green", "context": "", "image": "cyan", "video": "magenta", "cut": "strike red"}
DIFFERENT = "The training text differs from the checkpoint's own chat template."
TOKEN = Markup('<span class="{}" data-token="{}">{}</span>')


def summary(row: dict) -> list[str]:
    """The numbers of tokens: `73 tokens`, `11 trained`, and what else there is."""
    counts = [f"{row['num_tokens']} tokens", f"{row['num_trained']} trained"]
    counts += [f"{row[f'num_{kind}_tokens']} {kind}" for kind in ("image", "video") if row[f"num_{kind}_tokens"]]
    return counts + ([f"{row['cut']} cut"] if row["cut"] else [])


def print_plain(previews: Iterable[Preview], collator: ChatCollator, file: TextIO) -> None:
    """Trained text between >> and <<, cut text between ~~ and ~~, media folded to `[image: 576 tokens]`."""
    print("Trained text is between >> and <<.\n", file=file)
    for preview in previews:
        row = preview.row
        if "error" in row:
            print(f"--- row {row['index']} cannot be used\n{row['error']}\n", file=file, flush=True)
            continue
        text = cut = ""
        for run in preview.runs:
            shown = decode(collator, run.ids) if run.is_text else run.folded
            text += f">>{shown}<<" if run.kind == "trained" else shown
        for run in cut_runs(collator, preview):
            cut += decode(collator, run.ids) if run.is_text else run.folded
        counts = ", ".join(summary(row)) + (" (between ~~ and ~~)" if cut else "")
        print(f"--- row {row['index']}: {counts}\n{text}{f'~~{cut}~~' if cut else ''}\n", file=file, flush=True)


def documented(collator: ChatCollator) -> list[str]:
    """What is known of the family: where no replacement can undo an exception, it is among the differences."""
    return [f"Documented: {exception.reason}" for exception in collator.template.exceptions]


# ---- a terminal ----


def print_rich(previews: Iterable[Preview], collator: ChatCollator, file: TextIO) -> None:
    """A legend, then a panel for each row, with small pictures."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    from reports.terminal import terminal

    console = terminal(file)
    console.print(Text("   ").join(Text(name, style) for name, style in STYLES.items()))
    for pair in run_differences(collator)[:1]:
        console.print(Panel(_difference_text(collator, *pair), border_style="yellow"))
    for preview in previews:
        row = preview.row
        if "error" in row:
            title = Text(f"row {row['index']} cannot be used")
            console.print(Panel(Text(legible(row["error"])), title=title, title_align="left", border_style="red"))
            continue
        text = Text()
        for run, pieces in with_pieces(collator, [*preview.runs, *cut_runs(collator, preview)]):
            shown = "".join(piece.text for piece in pieces) if run.is_text else run.folded
            text.append(legible(shown).replace("\n", "\u21b5\n"), STYLES["cut" if run.is_cut else run.kind])
        parts = [Columns([_small_picture(*shown) for shown in pictures(preview.sample)], padding=(0, 2)), text]
        if pair := row_difference(collator, preview.sample):
            parts += [Text(), _difference_text(collator, *pair)]
        title = Text(f"row {row['index']}: {', '.join(summary(row))}")
        console.print(Panel(Group(*parts), title=title, title_align="left"))


def _difference_text(collator: ChatCollator, ours: str, official: str):
    from rich.text import Text

    styles = {"": "", "ins": "bold underline green", "del": "strike red"}
    heading = "\n".join([DIFFERENT, *documented(collator), ""])
    legend = [("ours alone", styles["ins"]), " ", ("the checkpoint's alone", styles["del"]), "\n"]
    text = Text.assemble((heading, "yellow"), *legend)
    for tag, words in inline_difference(ours, official):
        text.append(legible(words).replace("\n", "\u21b5\n"), styles[tag])
    return text


def _small_picture(kind: str, picture: Image.Image, caption: str):
    """A picture for a terminal, where each line of text shows two lines of pixels."""
    from rich.text import Text

    width = TERMINAL_WIDTH[kind]
    small = ImageOps.contain(picture, (width, width))
    text = Text()
    for y in range(0, small.height - 1, 2):
        for x in range(small.width):
            upper, lower = ("rgb({},{},{})".format(*small.getpixel((x, y + i))) for i in (0, 1))
            text.append("\u2580", f"{upper} on {lower}")
        text.append("\n")
    return text.append(textwrap.fill(caption, width), "bright_black")


# ---- a page ----


def write_page(path: str, previews: Iterable[Preview], collator: ChatCollator, title: str, facts: list[str]) -> None:
    """Write the previews as one page.

    Args:
        title: plain text, such as the name of the data.
        facts: lines about the run, under the title.
    """
    rows, cards, totals = [], [], Counter()
    for preview in previews:
        rows.append(preview.row)
        values = {"row": preview.row, "different": DIFFERENT, "documented": documented(collator)}
        if preview.sample:
            runs = [*preview.runs, *cut_runs(collator, preview)]
            counts = count(runs)
            totals += counts
            values |= {
                "source": preview.sample["source"],
                "summary": summary(preview.row),
                "counts": counts,
                "pictures": [embedded(picture, caption) for _, picture, caption in pictures(preview.sample)],
                "runs": _marked_runs(collator, runs),
                "difference": _marked_difference(row_difference(collator, preview.sample)),
            }
        cards.append(render("preview_row.html", **values))
    body = render(
        "preview.html",
        title=title,
        facts=facts,
        rows=rows,
        cards=cards,
        totals=totals,
        errors=sum("error" in row for row in rows),
        differences=[_marked_difference(pair) for pair in run_differences(collator)],
        different=DIFFERENT,
        documented=documented(collator),
    )
    with open(path, "w", encoding="utf-8") as file:
        file.write(html_page(f"Preview of {title}", body))


def _marked_runs(collator: ChatCollator, runs: list) -> Markup:
    tokenizer, html = collator.processor.tokenizer, []
    control_ids = tokenizer.added_tokens_decoder.keys()
    for run, pieces in with_pieces(collator, runs):
        is_trained = run.kind == "trained"
        fate = ("cut, would be " if run.is_cut else "") + ("trained" if is_trained else "not trained")
        if not run.is_text:
            hint = f"{len(run.ids)} tokens \u00b7 {fate}"
            html.append(TOKEN.format(f"{run.kind} cut" if run.is_cut else run.kind, hint, run.folded))
            continue
        marked = Markup().join(
            TOKEN.format(
                "control" if control_ids & set(piece.ids) else "",
                f"{' '.join(map(str, piece.ids))} \u00b7 {_names(tokenizer, piece.ids)} \u00b7 {fate}",
                visible_breaks(piece.text),
            )
            for piece in pieces
        )
        tag = "s" if run.is_cut else "mark" if is_trained else "span"
        html.append(Markup('<{0} class="{1}">{2}</{0}>').format(tag, "cut" if run.is_cut else run.kind, marked))
    return Markup().join(html)


def _names(tokenizer, ids: list[int]) -> str:
    """Tokens as the vocabulary has them."""
    return legible(" ".join(map(str, tokenizer.convert_ids_to_tokens(ids))))


def _marked_difference(pair: tuple[str, str] | None) -> Markup | None:
    if pair is None:
        return None
    return Markup().join(
        Markup("<{0}>{1}</{0}>").format(tag or "span", visible_breaks(text)) for tag, text in inline_difference(*pair)
    )
