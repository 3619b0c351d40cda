"""Show the report of `data_report.py` as tables in the terminal, or as a self-contained HTML page with plots."""

from typing import NamedTuple

from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from evaluation.verdict import Verdict
from reports.html_page import COLOUR, draw, html_page, render

COSTS = ("image", "video", "text")
TONE_STYLES = {"good": "green", "warning": "yellow", "error": "red"}


class Table(NamedTuple):
    title: str
    columns: dict[str, bool]  # name -> whether the column contains numbers
    rows: list[list[str]]


def facts(report: dict) -> dict[str, str]:
    """Return the main numbers of the report."""
    epoch, train = report["epoch"], report["data"]["train"]
    tokens = train["tokens"]
    return {
        "rows": f"{train['rows']:,}",
        "steps per epoch": f"{epoch['steps']:,}",
        "steps in all": f"{epoch['total_steps']:,}",
        "rows per step": f"{epoch['rows_per_step']:,}",
        "tokens per epoch": f"{epoch['tokens']:,}",
        "visual tokens": percent(tokens["image"]["sum"] + tokens["video"]["sum"], tokens["all"]["sum"]),
        "rows over budget": percent(train["over_budget"]["rows"], train["rows"]),
    }


def tables(report: dict, num_costly: int) -> list[Table]:
    found = []
    for of_split in report["data"].values():
        found += split_tables(of_split, report["model_max_length"], num_costly)
    if "overlap" in report:
        meanings = {"content": "the whole row", "question": "media and questions"}
        rows = []
        for name, same in report["overlap"].items():
            first = same["examples"][0] if same["examples"] else None
            rows.append([meanings[name], f"{same['rows']:,}", f"{first['eval']} = {first['train']}" if first else ""])
        columns = {"the same": False, "rows": True, "first: evaluation = training": False}
        found.append(Table("Evaluation rows that are in the training data", columns, rows))
    return found


def split_tables(of_split: dict, budget: int, num_costly: int) -> list[Table]:
    name, number, tokens = of_split["name"], of_split["rows"], of_split["tokens"]
    kinds = [[kind, f"{n:,}", percent(n, number)] for kind, n in of_split["kinds"].items() if n]
    found = [Table(f"{name}: rows", {"kind": False, "rows": True, "share": True}, kinds)]

    rows = []
    for kind, of_kind in tokens.items():
        values = [f"{of_kind[column]:,.0f}" for column in ("mean", "p50", "p90", "p99", "max")]
        rows.append([kind, f"{of_kind['sum']:,}", percent(of_kind["sum"], tokens["all"]["sum"]), *values])
    columns = {"tokens": False} | dict.fromkeys(("sum", "share", "mean", "p50", "p90", "p99", "max"), True)
    found.append(Table(f"{name}: tokens per row", columns, rows))

    rows = [(fault["meaning"], fault["rows"], fault["examples"][0]) for fault in of_split["faults"].values()]
    if of_split["cut"]["rows"]:
        beyond = f"{of_split['cut']['tokens']:,} tokens beyond --model_max_length {budget:,}"
        rows.append(("cut", of_split["cut"]["rows"], beyond))
    if of_split["duplicates"]["rows"]:
        rows.append(("duplicate", of_split["duplicates"]["rows"], " = ".join(of_split["duplicates"]["examples"][0])))
    if rows:
        columns = {"fault": False, "rows": True, "share": True, "first": False}
        rows = [[fault, f"{n:,}", percent(n, number), first] for fault, n, first in rows]
        found.append(Table(f"{name}: what is wrong", columns, rows))

    if of_split["costly"]:
        rows = [[costly["source"], *(f"{costly[kind]:,}" for kind in COSTS)] for costly in of_split["costly"]]
        columns = {"row": False} | dict.fromkeys(COSTS, True)
        found.append(Table(f"{name}: rows with the most visual tokens", columns, rows[:num_costly]))
    return found


def percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "0.0%"


# ---- terminal ----


def show(report: dict, console: Console) -> None:
    """Print the report, with the most important part at the end."""
    print_tables(tables(report, num_costly=3), console)
    for name, value in facts(report).items():
        console.print(Text(f"{name:17} {value}"), soft_wrap=True)
    reasons, verdict = report["failures"] + report["notes"], Verdict(report["state"])
    console.print(Text(f"\n{verdict}{':' if reasons else ''}", style=f"bold {TONE_STYLES[verdict.tone]}"))
    for reason in reasons:
        console.print(Text(f"- {reason}"))


def print_tables(tables: list[Table], console: Console) -> None:
    for title, columns, rows in tables:
        console.print(title, style="bold")
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for column, is_number in columns.items():
            table.add_column(column, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table, "")


# ---- page ----


def page(report: dict) -> str:
    """Return the report as a self-contained HTML page."""
    budget, splits = report["model_max_length"], report["data"].values()
    figures = [(f"{split['name']}: {caption}", svg) for split in splits for caption, svg in plots(split, budget)]
    name = report["data"]["train"]["name"]
    body = render(
        "check.html",
        name=name,
        report=report,
        verdict=Verdict(report["state"]),
        reasons=report["failures"] + report["notes"],
        facts=facts(report),
        figures=figures,
        tables=tables(report, num_costly=10),
    )
    return html_page(f"Data check: {name}", body)


def plots(of_split: dict, budget: int) -> list[tuple[str, Markup]]:
    """Return (caption, SVG) of each plot."""
    tokens, labels = of_split["histograms"]["tokens"], of_split["histograms"]["labels"]
    near = budget < 1.5 * tokens["edges"][-1]  # a line far to the right would squeeze the bars
    caption = f"tokens per row before any cut; --model_max_length is {budget:,}{', the dashed line' if near else ''}"
    return [
        (caption, draw(lambda axes: draw_histogram(axes, tokens, "tokens", "image", budget if near else None))),
        ("trained tokens per row", draw(lambda axes: draw_histogram(axes, labels, "trained tokens", "trained"))),
    ]


def draw_histogram(axes, bars: dict, label: str, colour: str, line: int | None = None) -> None:
    axes.stairs(bars["counts"], bars["edges"], fill=True, color=COLOUR[colour])
    axes.set(xlabel=label, ylabel="rows", xscale=bars["scale"])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    if line:
        axes.axvline(line, color=COLOUR["cut"], linestyle="--", linewidth=2)
