"""The output of `preview.py`: text, or one HTML page."""

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import TextIO

from rich.text import Text

from collators.base import ChatCollator
from reports.html_page import RIGHT, embedded, html_page, legible, pictures, render
from reports.preview_rows import Preview, count, cut_runs, inline_difference, with_pieces
from reports.terminal import terminal

STYLES = {"trained": "bold underline green", "context": "", "image": "cyan", "video": "magenta", "cut": "strike red"}
PART = "reverse"  # style of the labels [thought], [answer] and [call]
MARKS = {"trained": (">>", "<<"), "cut": ("~~", "~~")}  # used if there are no colours


def summary(row: dict) -> list[str]:
    """Return the token counts: `73 tokens`, `11 trained`, and those of images, videos and cut text if there are any."""
    counts = [f"{row['num_tokens']} tokens", f"{row['num_trained']} trained"]
    counts += [f"{row[f'num_{kind}_tokens']} {kind}" for kind in ("image", "video") if row[f"num_{kind}_tokens"]]
    return counts + ([f"{row['cut']} cut"] if row["cut"] else [])


def print_rows(previews: Iterable[Preview], collator: ChatCollator, file: TextIO) -> None:
    """Print rows as text. Colours or marks show what is trained or cut. Media are printed as `[image: 576 tokens]`."""
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


# ---- a page ----


def write_page(path: str, previews: Iterable[Preview], collator: ChatCollator, title: str, facts: list[str]) -> None:
    """Write the previews as one HTML page.

    Args:
        title: plain text, such as the name of the data.
        facts: lines about the run, under the title.
    """
    rows, cards, totals, tokenizer = [], [], Counter(), collator.processor.tokenizer
    control_ids = tokenizer.added_tokens_decoder.keys()
    # Some exceptions cannot be undone by a replacement. These also appear among the differences.
    documented = [f"Documented: {exception.reason}" for exception in collator.template.exceptions]
    for preview in previews:
        rows.append(preview.row)
        values = {"row": preview.row, "documented": documented}
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
                "runs": with_pieces(collator, runs),
                "is_control": lambda ids: not control_ids.isdisjoint(ids),
                "names": lambda ids: legible(" ".join(map(str, tokenizer.convert_ids_to_tokens(ids)))),
                "differences": [inline_difference(*pair) for pair in differences[:1]],
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
        differences=[inline_difference(*pair) for pair in collator.template.differences()],
        documented=documented,
    )
    Path(path).write_text(html_page(f"Preview of {title}", body), encoding="utf-8")
