"""Write the tables of docs/correctness.md and README.md from docs/correctness.json and docs/equality.json."""

import json
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
# A property -> what a "yes" in its row means.
PROPERTIES = {
    "text": "the token ids are those of the checkpoint's own template; the labels are the replies and their end tokens",
    "several turns": "the same as `text`, for a conversation with an image and two replies",
    "system": "the same as `text`, for a conversation with a system prompt",
    "several images": "the same as `text`, for a message with words around two images",
    "video": "the same as `text`, for a video; the number of frames may differ",
    "thoughts": "the same as `text`, for a reply with a thought before the answer",
    "tool calls": "the same as `text`, for a conversation with tools, a tool call and its result",
    "own tokens": "the same as `text`, for a reply with the family's own tokens for boxes",
    "typed control strings": "`<|im_end|>` in a user's message becomes plain text, not the control token",
    "batch size": "a step of 4 samples has the same gradients as one batch and as 4 accumulated batches",
    "processes": "a step of 4 samples has the same gradients with one process and with two",
    "texts on one of two": "the same as `processes`, if one process gets a text and the other an image",
    "packed samples": "the hidden states of a sample do not depend on the other samples of its pack",
    "cut samples": "a sample over the limit is not cut in the middle of an image",
    "over-long row": "a text over the limit is refused or reported, not dropped silently",
    "broken image": "an image file of which the second half is missing is refused or reported",
    "empty reply": "a row with nothing to train is refused or reported",
    "unread field": "a field of a row that the tool does not read is refused or reported",
    "adapters that train nothing": "adapters in the vision encoder are refused or reported if no row has an image",
    "merged equals adapter": "the merged checkpoint has the same logits as the base model with the adapter",
    "resume": "a run resumed from its third step has the same final weights as the uninterrupted run",
}
SHOWN = {"yes": "yes", "error": "error", "n/a": "–"}


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in row] for row in [head, ["---"] * len(head), *rows]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def read(name: str) -> dict:
    return json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8"))


def shown(cell: list[str] | None) -> str:
    verdict, why = cell or ("n/a", "")
    return SHOWN.get(verdict) or f"**no**: {why}"


def correctness() -> str:
    """Return a table with a row per property and a column per tool, and below it the versions of the tools."""
    found = read("correctness")
    of_tools = {name: tool for name, tool in found["tools"].items() if ", " not in name}
    rows = [
        [name, *(shown(tool["cells"].get(name)) for tool in of_tools.values()), PROPERTIES[name]] for name in PROPERTIES
    ]
    versions = "".join(f"- {name}: {tool['versions']}; run with {tool['flags']}\n" for name, tool in of_tools.items())
    return f"{table(['', *of_tools, 'yes means'], rows)}\nMeasured on {found['date']}:\n\n{versions}"


def faults() -> str:
    """Return a table of the planted faults and of the cells of finelmm that they change."""
    tools, rows = read("correctness")["tools"], []
    for name, tool in tools.items():
        plain, _, fault = name.partition(", ")
        for column, cell in tool["cells"].items() if fault else ():
            rows.append([fault, column, shown(tools[plain]["cells"][column]), shown(cell)])
    return table(["fault", "property", "without", "with"], rows) if rows else ""


def summary(holds="holds", error="ends in an error", does_not="does not hold", unseen="not measured") -> str:
    """Count the properties that hold for each tool. Omit tools for which less than half was measured."""
    found, rows = read("correctness"), []
    for name, tool in found["tools"].items():
        if ", " not in name:
            verdicts = [tool["cells"].get(column, ["n/a"])[0] for column in PROPERTIES]
            counts = [verdicts.count(verdict) for verdict in ("yes", "error", "no", "n/a")]
            if counts[-1] < len(PROPERTIES) / 2:
                rows.append([name, *map(str, counts)])
    return table([found["date"], holds, error, does_not, unseen], rows)


def equality() -> str:
    """Return the two tables: packed samples against single ones, then two processes against one (if measured)."""
    found = read("equality")
    kinds = [f"{dtype} {what}" for dtype in ("float32", "bfloat16") for what in ("loss", "gradients", "vision")]
    kinds += ["rounding", "rounding vision"]
    rows = [[family, *(f"{cells[kind]:.0e}" for kind in kinds)] for family, cells in found["packed"].items()]
    return f"{table(['family', *kinds], rows)}\n{engines(found)}{found['date']}, {found['versions']}.\n"


def engines(found: dict) -> str:
    names = [
        (engine, what) for cells in found["engines"].values() for engine in cells for what in ("losses", "weights")
    ]
    names = [*dict.fromkeys(names)]
    rows = [
        [family, *(f"{cells[engine][what]:.0e}" for engine, what in names), f"{found['rounding alone'][family]:.1%}"]
        for family, cells in found["engines"].items()
    ]
    return table(["two processes", *map(": ".join, names), "rounding alone"], rows) + "\n" if rows else ""
