"""Rewrite the parts of the documentation that are generated from the code.

    python docs/generate.py
    python docs/generate.py --matrix      # first run the tests that write the two matrices

These parts are between `<!-- NAME -->` and `<!-- /NAME -->`. A test compares each part with a fresh rendering.
"""

import argparse
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from PIL import Image  # noqa: E402

import preview  # noqa: E402
from arguments import DataArguments, LoraArguments, ModelArguments, parse_arguments  # noqa: E402
from benchmarks import tables  # noqa: E402
from collators import COLLATORS  # noqa: E402
from collators.template import ChatFormat  # noqa: E402
from loaders import LOADERS  # noqa: E402
from loaders.base import COMPONENTS  # noqa: E402
from merging.servers import SERVERS, outcome  # noqa: E402
from reading.rows import RESERVED_CHARACTER  # noqa: E402
from supported_models import AUTO, MODELS, families, media_of  # noqa: E402
from training import trainable  # noqa: E402

MATRIX = REPO / "docs" / "support_matrix.json"
STRATEGIES = REPO / "docs" / "strategy_matrix.json"
FLAG_GROUPS = {"Model": ModelArguments, "Data": DataArguments, "LoRA": LoraArguments}


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


PHOTO = {"type": "image", "image": Image.new("RGB", (64, 64))}
EXAMPLE = [
    {"role": "user", "content": [text_part("Here is a photo."), PHOTO, text_part("What is it?")]},
    {"role": "assistant", "content": [text_part("A cat.")]},
    {"role": "user", "content": [text_part("Its colour?")]},
    {"role": "assistant", "content": [text_part("Grey.")]},
]
EXCHANGE = [{"role": "user", "content": EXAMPLE[0]["content"][1:]}, EXAMPLE[1]]  # for a family that refuses the example
WHERE = {"everywhere": "everywhere", "end": "end of a conversation", "history": "before the last exchange"}
WHERE |= {"moved": "everywhere"}


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |\n" for row in lines)


def code(text: str) -> str:
    return f"`{text}`"


def visible(text: str) -> str:
    """Return a piece of a template as code, with line breaks written as \\n."""
    text = text.replace(RESERVED_CHARACTER, "")
    return code(text.replace("\n", "\\n")) if text.strip() else code(repr(text))


def as_markdown(text: str) -> str:
    """Return plain text with its control strings as code, because Markdown would read them as HTML."""
    return re.sub(r"`[^`]*`|<[^ <>]+>", lambda match: match[0] if match[0][0] == "`" else code(match[0]), text)


def notes_of(part) -> str:
    """The docstring of a loader's or collator's module, as one paragraph."""
    return as_markdown(" ".join(sys.modules[type(part).__module__].__doc__.split()))


def models_of(family: str) -> dict[str, str]:
    return {model_id: model.hub_path for model_id, model in MODELS.items() if model.family == family}


def model_table(collators: dict) -> str:
    """One row per family. Of four or more models, only the first and the last are listed."""
    rows = []
    for family in collators:
        ids = [*models_of(family)]
        links = [f"[`{id}`](https://huggingface.co/{MODELS[id].hub_path})" for id in ids]
        named = ", ".join(links) if len(ids) < 4 else f"{links[0]} to {links[-1]} ({len(ids)})"
        rows.append([family, named, media_of(family)])
    return table(["family", "`--model_id` (number)", "media"], rows)


def fact_sheet(family: str, loader) -> str:
    """The docstring of the loader, and the media, requirements, modules and models of a family."""
    facts = [f"Accepts {media_of(family)} ([training text](chat_formats.md#{slug(family)}))."]
    needs = [f"`pip install {' '.join(loader.packages)}`"] if loader.packages else []
    needs += ["`--trust_remote_code True` ([checkpoints.md](checkpoints.md#remote-code))"] if loader.remote_code else []
    if needs:
        facts.append(f"Requires {' and '.join(needs)}.")
    refused, why = "`--use_flash_attn True` is refused", "([memory.md](memory.md#precision-and-memory))"
    if isinstance(type(loader).bidirectional, property):  # it depends on the checkpoint
        facts.append(f"{refused} for some checkpoints {why}: {type(loader).bidirectional.__doc__}")
    elif refuses_flash_attention(loader):
        facts.append(f"{refused} {why}.")
    modules = {component: getattr(loader, component) for component in COMPONENTS}
    modules |= {"experts": loader.experts, "routers": loader.routers, "in no component": loader.other}
    rows = [[name, ", ".join(map(code, paths))] for name, paths in modules.items() if paths]
    parts = [f"{text}\n" for text in (f"## {family}", notes_of(loader), " ".join(facts))]
    parts += [table(["component", "modules"], rows)]
    parts += [table(["model id", "Hub path"], [[code(k), code(v)] for k, v in models_of(family).items()])]
    return "\n".join(parts)


def refuses_flash_attention(loader) -> bool:
    try:
        type(loader)(loader.model_path, loader.remote_code, attn_implementation="flash_attention_2")
    except ValueError:
        return True
    return False


def support_matrix(listed: list[str]) -> str:
    """The results that the tests wrote, as a table. An empty cell was not run."""
    date, outcomes = json.loads(MATRIX.read_text(encoding="utf-8")).values()
    fullest_first = sorted(outcomes.values(), key=len, reverse=True)
    columns = list(dict.fromkeys(column for cells in fullest_first for column in cells))
    marks = {"passed": "✓", "failed": "✗", "skipped": "skipped", None: ""}
    rows = []
    for family in listed:
        cells = outcomes.get(family, {})
        rows.append([f"[{family}](#{slug(family)})", *(marks[cells.get(column)] for column in columns)])
    return f"Last run: {date}.\n\n" + table(["family", *columns], rows)


def strategy_matrix() -> str:
    """Ways of training by engines. A tick: every family passed. A refusal: the reason is below the table."""
    date, outcomes = json.loads(STRATEGIES.read_text(encoding="utf-8")).values()
    rows, refusals = {}, []
    for cell in next(iter(outcomes.values())):
        strategy, engine = cell.split(", ")
        found = {cells[cell] for cells in outcomes.values()}
        if found == {"passed"}:
            mark = "✓"
        elif "failed" in found:
            mark = "✗ " + ", ".join(family for family, cells in outcomes.items() if cells[cell] == "failed")
        else:
            (reason,) = found
            refusals += [reason] if reason not in refusals else []
            mark = f"refused ({refusals.index(reason) + 1})"
        rows.setdefault(strategy, {})[engine] = mark
    text = table(["", *next(iter(rows.values()))], [[strategy, *marks.values()] for strategy, marks in rows.items()])
    notes = ["\n"] * bool(refusals) + [f"{number}. {reason}\n" for number, reason in enumerate(refusals, 1)]
    return f"Last run: {date}, with these families: {', '.join(outcomes)}.\n\n{text}{''.join(notes)}"


def slug(heading: str) -> str:
    """Return GitHub's anchor for a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def chat_formats(collators: dict) -> str:
    parts = []
    for family, collator in collators.items():
        parts += [f"## {family}\n", f"{notes_of(collator)}\n", *family_formats(collator)]
    return "\n".join(parts)


def family_formats(collator) -> list[str]:
    """Each format of a family with the example and its exceptions, then the variables of the templates."""
    own = ChatFormat(type(collator).chat_template, type(collator).template_exceptions)
    exceptions = {}  # checkpoints may train on one text and differ in their own template
    for format in (own, *collator.other_formats):
        exceptions.setdefault(format.template, []).extend(format.exceptions)
    taken, parts = collator.template.text, []
    for number, (template, found) in enumerate(exceptions.items(), 1):
        if len(exceptions) > 1:
            parts.append(f"Format {number} of {len(exceptions)}:\n")
        rows = [[visible(e.official), visible(e.ours), WHERE[e.where], as_markdown(e.reason)] for e in found]
        parts.append(f"```text\n{marked(collator, template, with_bos=template == taken)}\n```\n")
        if rows:
            parts.append(table(["the checkpoint's template", "trained", "where", "reason"], rows))
        elif collator.processor.chat_template in (None, own.template):
            parts.append("The checkpoint has no chat template; code defines the format.\n")
        else:
            parts.append("No exceptions.\n")
    if given := collator.template.kwargs:
        fixed = type(collator).template_kwargs
        values = (f"`{k}={v!r}`" if v == fixed[k] else f"`{k}`, read from the checkpoint" for k, v in given.items())
        parts.append(f"Variables for the template: {', '.join(values)}.\n")
    return parts


def marked(collator, template: str, with_bos: bool) -> str:
    """The example's training text with its trained spans in brackets, and the tokenizer's BOS if `with_bos`."""
    collator.template.text = template
    for messages in (EXAMPLE, EXCHANGE):
        with contextlib.suppress(ValueError):
            text = collator.encode({"messages": messages}).text
            break
    bare, spans = collator.template.render(messages)
    bos = text[: len(text) - len(bare.replace(RESERVED_CHARACTER, ""))] if with_bos else ""
    for start, end in reversed(spans):
        bare = f"{bare[:start]}⟦{bare[start:end]}⟧{bare[end:]}"
    return (bos + bare).replace(RESERVED_CHARACTER, "").rstrip("\n")


def flag_tables() -> str:
    parts = []
    for title, group in FLAG_GROUPS.items():
        rows = []
        for field in fields(group):
            default = "" if field.default is None else code(field.default)
            rows.append([code(f"--{field.name}"), default, field.metadata["help"]])
        parts.append(f"**{title}**\n\n" + table(["flag", "default", "meaning"], rows))
    return "\n".join(parts)


def server_table() -> str:
    kinds = [(server, kind) for server, known in SERVERS.items() for kind in ("merged", "adapter") if known[kind]]
    head = [f"{server} {SERVERS[server]['version']} ({SERVERS[server]['date']}): {kind}" for server, kind in kinds]
    rows = [[family, *[outcome(*column, family) for column in kinds]] for family in families()]
    return table(["family", *head], [["" if cell == "not known" else cell for cell in row] for row in rows])


def printed_summary(checkpoint: str) -> str:
    """What train.py prints before its first step."""
    flags = "--model_id qwen2-vl-2b-instruct --data_path train.json --use_lora True --train_vision_projector True"
    arguments = parse_arguments([*flags.split(), "--use_cpu", "True", "--model_local_path", checkpoint])
    loader = LOADERS.get("qwen2-vl")(checkpoint)
    model = trainable.make_trainable(loader.load_model(), loader, arguments)
    return f"```text\n{trainable.format_summary(trainable.summarize(model, loader, arguments))}\n```\n"


def preview_example(checkpoint: str) -> str:
    """Return what preview.py prints for the first row of the example data."""
    data_path = str(REPO / "example_data/sample.json")
    words = ["--model_id", "llava-1.5-7b", "--model_local_path", checkpoint, "--data_path", data_path]
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        preview.main([*words, "--num_rows", "1"])
    return f"```text\n{output.getvalue().strip()}\n```\n"


def pages_of_families(checkpoint_of) -> dict[Path, str]:
    """Return path -> text of the files that contain facts of every family.

    Args:
        checkpoint_of: maps a family to the folder of its tiny checkpoint.
    """
    loaders = {}
    for family in families():
        loader = LOADERS.get(family)
        loaders[family] = loader(checkpoint_of(family), trust_remote_code=loader.remote_code)
    collators = {family: COLLATORS.get(family)(loader.load_processor()) for family, loader in loaders.items()}
    return filled(
        {
            "README.md": {"models": model_table(collators), "correctness": tables.summary()},
            "README_zh.md": {"correctness": tables.summary("成立", "报错退出", "不成立", "未测")},
            "docs/supported_models.md": {
                "matrix": support_matrix([*collators, AUTO]),
                "families": "\n".join(fact_sheet(family, loaders[family]) for family in loaders),
            },
            "docs/chat_formats.md": {"families": chat_formats(collators)},
        }
    )


def pages_of_flags(checkpoint_of) -> dict[Path, str]:
    """Return path -> text of all other generated files."""
    return filled(
        {
            "docs/correctness.md": {part: getattr(tables, part)() for part in ("correctness", "faults", "equality")},
            "docs/check_data.md": {"preview": preview_example(checkpoint_of("llava-1.5"))},
            "docs/serving.md": {"servers": server_table()},
            "docs/flags.md": {"flags": flag_tables()},
            "docs/training.md": {"summary": printed_summary(checkpoint_of("qwen2-vl"))},
            "docs/several_gpus.md": {"strategies": strategy_matrix()},
        }
    )


def filled(pages: dict[str, dict[str, str]]) -> dict[Path, str]:
    """Return path -> text of each file, with the text between `<!-- name -->` and `<!-- /name -->` replaced."""
    found = {}
    for page, parts in pages.items():
        text = (REPO / page).read_text(encoding="utf-8")
        for name, content in parts.items():
            before, _, rest = text.partition(f"<!-- {name} -->\n")
            text = f"{before}<!-- {name} -->\n{content}<!-- /{name} -->{rest.partition(f'<!-- /{name} -->')[2]}"
        found[REPO / page] = text
    return found


def main() -> None:
    from tiny_checkpoints import make_tiny_checkpoint

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrix", action="store_true", help="run the matrices first")
    if parser.parse_args().matrix:
        for tests, file in (("loaders/test_matrix.py", MATRIX), ("training/test_strategies.py", STRATEGIES)):
            words = ["-m", "pytest", "-q", "-n", "0", f"tests/{tests}", "-m", "cell", "--matrix", str(file)]
            if subprocess.run([sys.executable, *words], cwd=REPO).returncode > 1:  # 1: some cells failed
                sys.exit(f"{file.name} was not written: tests/{tests} did not run to its end")
    with tempfile.TemporaryDirectory() as folder:
        made = {family: f"{folder}/{family}" for family in families()}
        for family, checkpoint in made.items():
            make_tiny_checkpoint(family, checkpoint)
        for path, text in (pages_of_families(made.get) | pages_of_flags(made.get)).items():
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(REPO)}")


if __name__ == "__main__":
    main()
