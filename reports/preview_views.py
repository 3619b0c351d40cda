"""The views of `preview.py`: text, and one HTML page."""

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import TextIO

from markupsafe import Markup
from rich.text import Text

from collators.base import ChatCollator
from reports.html_page import RIGHT, embedded, html_page, legible, pictures, render, visible_breaks
from reports.preview_rows import (
    Preview,
    count,
    cut_runs,
    inline_difference,
    with_pieces,
)
from reports.terminal import terminal

STYLES = {"trained": "bold underline green", "context": "", "image": "cyan", "video": "magenta", "cut": "strike red"}
PART = "reverse"  # of the name of a part of a reply
MARKS = {"trained": (">>", "<<"), "cut": ("~~", "~~")}  # where there are no colours
DIFFERENT = "The training text differs from the checkpoint's own chat template."
PART_NAME = Markup('<i class="part">{}</i>')
TOKEN = Markup('<span class="{}" data-token="{}">{}</span>')


def summary(row: dict) -> list[str]:
    """The numbers of tokens: `73 tokens`, `11 trained`, and what else there is."""
    counts = [f"{row['num_tokens']} tokens", f"{row['num_trained']} trained"]
    counts += [f"{row[f'num_{kind}_tokens']} {kind}" for kind in ("image", "video") if row[f"num_{kind}_tokens"]]
    return counts + ([f"{row['cut']} cut"] if row["cut"] else [])


def print_rows(previews: Iterable[Preview], collator: ChatCollator, file: TextIO) -> None:
    """Rows as text, in colours or with marks around what is trained or cut; media are folded: `[image: 576 tokens]`."""
    console = terminal(file, soft_wrap=True)
    marks = {} if console.color_system else MARKS
    coloured = Text("   ").join(Text(name, style) for name, style in STYLES.items())
    legend = "Trained text is between >> and <<, cut text between ~~ and ~~." if marks else coloured
    console.print(legend, end="\n\n")
    for preview in previews:
        row = preview.row
        if "error" in row:
            console.print(f"--- row {row['index']} cannot be used\n{legible(row['error'])}\n", style="red")
            continue
        console.print(f"--- row {row['index']}: {', '.join(summary(row))}", style="bold")
        text, runs = Text(), [*preview.runs, *cut_runs(collator, preview)]
        shown = with_pieces(collator, runs)
        for style, group in groupby(shown, key=lambda found: found[0].style):
            before, after = marks.get(style, ("", ""))
            text.append(before, STYLES[style])
            for run, pieces in group:
                for part, of_part in groupby(pieces, key=lambda piece: piece.part):
                    text.append(f"[{part}]" * bool(part), PART)
                    text.append(legible("".join(piece.text for piece in of_part)), STYLES[style])
                text.append("" if run.is_text else run.folded, STYLES[style])
            text.append(after, STYLES[style])
        console.print(text, end="\n\n")


def documented(collator: ChatCollator) -> list[str]:
    """What is known of the family: where no replacement can undo an exception, it is among the differences."""
    return [f"Documented: {exception.reason}" for exception in collator.template.exceptions]


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
            counts, differences = count(runs), collator.template.differences_in(preview.sample["messages"])
            totals += counts
            shown = pictures(preview.sample, {RIGHT: preview.boxes})
            values |= {
                "source": preview.sample["source"],
                "summary": summary(preview.row),
                "counts": counts,
                "pictures": [embedded(picture, caption) for _, picture, caption in shown],
                "runs": _marked_runs(collator, runs),
                "difference": _marked_difference(next(iter(differences), None)),
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
        differences=[_marked_difference(pair) for pair in collator.template.differences()],
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
        is_learned = ("cut, would be " if run.is_cut else "") + ("trained" if is_trained else "not trained")
        if not run.is_text:
            hint = f"{len(run.ids)} tokens \u00b7 {is_learned}"
            html.append(TOKEN.format(f"{run.kind} cut" if run.is_cut else run.kind, hint, run.folded))
            continue
        marked = Markup()
        for part, of_part in groupby(pieces, key=lambda piece: piece.part):
            marked += PART_NAME.format(part) if part else ""
            for piece in of_part:
                hint = f"{' '.join(map(str, piece.ids))} \u00b7 {_names(tokenizer, piece.ids)} \u00b7 {is_learned}"
                is_control = control_ids & set(piece.ids)
                marked += TOKEN.format("control" if is_control else "", hint, visible_breaks(piece.text))
        tag = "s" if run.is_cut else "mark" if is_trained else "span"
        html.append(Markup('<{0} class="{1}">{2}</{0}>').format(tag, run.style, marked))
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
