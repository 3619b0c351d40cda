"""Rewrite the parts of the documentation that follow from the code.

    python docs/generate.py
    python docs/generate.py --matrix      # first run the matrices: of data and families, of strategies and engines

These are docs/supported_models.md, docs/chat_formats.md, and in other pages what stands between
`<!-- NAME -->` and `<!-- /NAME -->`. A test compares each with a fresh rendering.
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
from supported_models import AUTO, MODELS, families  # noqa: E402
from training import trainable  # noqa: E402

MATRIX = REPO / "docs" / "support_matrix.json"
STRATEGIES = REPO / "docs" / "strategy_matrix.json"
FLAG_GROUPS = {"Model": ModelArguments, "Data": DataArguments, "LoRA": LoraArguments}
NOTE = "<!-- Written by `python docs/generate.py`: change the code, not this file. -->\n"


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


IMAGE = {"type": "image", "image": Image.new("RGB", (64, 64))}
EXAMPLE = [
    {"role": "user", "content": [text_part("Here is a photo."), IMAGE, text_part("What is it?")]},
    {"role": "assistant", "content": [text_part("A cat.")]},
    {"role": "user", "content": [text_part("Its colour?")]},
    {"role": "assistant", "content": [text_part("Grey.")]},
]
EXCHANGE = [  # for a family that refuses the example
    {"role": "user", "content": [IMAGE, text_part("What is it?")]},
    {"role": "assistant", "content": [text_part("A cat.")]},
]
PLACES = {"everywhere": "everywhere", "end": "end of a conversation", "history": "before the last exchange"}
PLACES |= {"moved": "everywhere"}


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |\n" for row in lines)


def code(text: str) -> str:
    return f"`{text}`"


def visible(text: str) -> str:
    """A piece of a template as code, line breaks written out."""
    text = text.replace(RESERVED_CHARACTER, "")
    return code(text.replace("\n", "\\n")) if text.strip() else code(repr(text))


def as_markdown(text: str) -> str:
    """Plain text whose control strings Markdown would take for HTML."""
    return re.sub(r"`[^`]*`|<[^ <>]+>", lambda match: match[0] if match[0][0] == "`" else code(match[0]), text)


def notes_of(part) -> str:
    """What the module of a loader or collator says of itself, in one paragraph."""
    return as_markdown(" ".join(sys.modules[type(part).__module__].__doc__.split()))


def media_of(collator) -> str:
    return "images" + (", videos" if collator.template.takes_videos else "")


def models_of(family: str) -> dict[str, str]:
    return {model_id: model.hub_path for model_id, model in MODELS.items() if model.family == family}


def model_table(collators: dict) -> str:
    """A row a family; of many models, the first and the last."""
    rows = []
    for family, collator in collators.items():
        ids = [*models_of(family)]
        links = [f"[`{id}`](https://huggingface.co/{MODELS[id].hub_path})" for id in ids]
        named = ", ".join(links) if len(ids) < 4 else f"{links[0]} to {links[-1]} ({len(ids)})"
        rows.append([family, named, media_of(collator)])
    return table(["family", "`--model_id` (number)", "media"], rows)


def supported_models(loaders: dict, collators: dict) -> str:
    parts = [
        "# Supported models\n",
        NOTE,
        "`--model_id` takes an id or a Hub path of this page; `python supported_models.py` prints the same list. "
        "`--model_local_path` loads any other checkpoint of the same architecture instead, such as a finetuned one.\n",
        "Any other image-text-to-text checkpoint of transformers that has a chat template: "
        "`--model_id auto --model_local_path ORG/NAME-or-folder` ([below](#auto)).\n",
        "A family's modules say what `--train_vision_encoder`, `--train_vision_projector` and `--use_lora` reach. A "
        "parameter inside the vision projector belongs to it alone, also where the projector lies inside the encoder. "
        "The experts and routers of a mixture, given by the ends of their names, are part of the language model "
        "([lora.md](lora.md#mixtures-of-experts)). Modules in no component are never trained and never "
        "quantized.\n",
        "## What was tested\n",
        "Each cell is a test on a tiny checkpoint, written down as it came out (`python docs/generate.py --matrix`). A "
        "kind of row: the labels decode to the replies and their end token, the loss of a batch equals that of its "
        "rows one by one, the gradient reaches every component and nothing unused. A way of training: two steps, save, "
        "reload, merge; equal logits, and the key names, shapes and precisions of the base. An empty cell was not run: "
        "mostly, because the family cannot have it.\n",
        support_matrix([*collators, AUTO]),
    ]
    for family, collator in collators.items():
        parts += [f"## {family}\n", fact_sheet(family, loaders[family], collator)]
    parts += [
        "## auto\n",
        "`--model_id auto` takes the checkpoint that `--model_local_path` names without a file of its own. Its vision "
        "encoder, language model and head are what the model's accessors name; the vision projector is what lies "
        "beside them, so a projector inside the encoder counts as encoder; an audio encoder stays frozen. The training "
        "text is the checkpoint's own: [chat_formats.md](chat_formats.md#auto). Experts are not known: "
        "`--lora_experts` and `--lora_router` are refused.\n",
        "Before it trains, a run sends some probes through the loaded model: each alone, padded to one batch, and "
        "concatenated. Where the padded losses are not those of each alone, the model is refused; where the "
        "concatenated ones are not, samples are padded, in one line that says so. With several processes, a backward "
        "pass of the probes shows what gets no gradient, which DDP then looks for in each step. Under DeepSpeed and "
        "FSDP, which shard the model, samples are padded without that test.\n\n"
        "[auto_types.md](auto_types.md): what it came to with every type of the library.\n",
    ]
    return "\n".join(parts)


def fact_sheet(family: str, loader, collator) -> str:
    """What loader and collator say of themselves, what the family takes and needs, its modules, its models."""
    facts = [f"Takes {media_of(collator)}. Training text: [chat_formats.md](chat_formats.md#{slug(family)})."]
    needs = [f"`pip install {' '.join(loader.packages)}`"] if loader.packages else []
    needs += ["`--trust_remote_code True` ([checkpoints.md](checkpoints.md#remote-code))"] if loader.remote_code else []
    if needs:
        facts.append(f"Needs {' and '.join(needs)}.")
    refused, why = "`--use_flash_attn True` is refused", "([memory.md](memory.md#precision-and-memory))"
    if isinstance(type(loader).bidirectional, property):  # it depends on the checkpoint
        facts.append(f"{refused} for some {why}: {type(loader).bidirectional.__doc__}")
    elif refuses_flash_attention(loader):
        facts.append(f"{refused} {why}.")
    modules = {component: getattr(loader, component) for component in COMPONENTS}
    modules |= {"experts": loader.experts, "routers": loader.routers, "in no component": loader.other}
    rows = [[name, ", ".join(map(code, paths))] for name, paths in modules.items() if paths]
    return "\n".join(
        [
            f"{notes_of(loader)}\n",
            f"{notes_of(collator)}\n",
            " ".join(facts) + "\n",
            table(["component", "modules"], rows),
            table(["model id", "Hub path"], [[code(k), code(v)] for k, v in models_of(family).items()]),
        ]
    )


def refuses_flash_attention(loader) -> bool:
    try:
        type(loader)(loader.model_path, loader.remote_code, attn_implementation="flash_attention_2")
    except ValueError:
        return True
    return False


def support_matrix(listed: list[str]) -> str:
    """The outcomes that the tests wrote, as a table; an empty cell was not run."""
    date, outcomes = json.loads(MATRIX.read_text(encoding="utf-8")).values()
    fullest_first = sorted(outcomes.values(), key=len, reverse=True)
    columns = list(dict.fromkeys(column for cells in fullest_first for column in cells))
    marks = {"passed": "✓", "failed": "✗", "skipped": "skipped", None: ""}
    rows = []
    for family in listed:
        cells = outcomes.get(family, {})
        rows.append([f"[{family}](#{slug(family)})", *(marks[cells.get(column)] for column in columns)])
    return f"All of it was last run on {date}.\n\n" + table(["family", *columns], rows)


def strategy_matrix() -> str:
    """Ways of training by engines: a tick where every family passed; a refusal, with its reason below the table."""
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
    notes = "".join(f"{number}. {reason}\n" for number, reason in enumerate(refusals, 1))
    return f"All of it was last run on {date}, on these families: {', '.join(outcomes)}.\n\n{text}" + (
        f"\n{notes}" if notes else ""
    )


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def chat_formats(collators: dict) -> str:
    parts = [
        "# Chat formats\n",
        NOTE,
        "The training text of one conversation, family by family. `⟦ ⟧` enclose what is trained (they are not part of "
        "the text): each reply and the token that ends it. A medium stands as one placeholder; the processor expands "
        "it to as many tokens as its pixels need.\n",
        "Two rules hold for every family:\n",
        "1. The text before a reply is what the checkpoint's own chat template gives at inference for that history.\n"
        "2. Every reply is followed by the token that stops generation, and that token is trained.\n",
        "Where a checkpoint's template breaks one of them, the training text differs from it. Each such exception is "
        "listed with its place and its reason. At its start, `train.py` compares the training text with the template "
        "of the checkpoint that it loads; where they differ in anything else that the data meets, it ends "
        "([below](#a-template-of-your-own)).\n",
        "Some families have several formats. The one nearest to the template of the checkpoint at hand is taken. Of "
        "all but the first, a BOS that the tokenizer writes is left out below.\n",
    ]
    for family, collator in collators.items():
        parts += [f"## {family}\n", f"{notes_of(collator)}\n", *family_formats(collator)]
    parts += [
        "## auto\n",
        "With `--model_id auto` the checkpoint's own template is rendered message by message: a reply begins where the "
        "prompt for it ends, and ends with the first stop token of `generation_config.json` that follows. Where the "
        "template writes none, the stop token takes the place of the white space behind the reply. A template whose "
        "prompt is not the beginning of the whole text (it drops earlier thoughts, say) is refused.\n",
        "## A template of your own\n",
        "`--chat_template FILE.jinja` replaces the template of any family but paligemma, phi3-v and qwen-vl, whose "
        "format is code; in training and, since it is saved with the model, in answers. With `{% generation %}` tags "
        "it is used as it is; without them the replies are found as for `auto`. A message's content is a list of "
        "parts, or a string for the roles where the template needs one.\n",
        "Where a checkpoint's template is not its family's (an older, an edited or a thinking one), a run whose data "
        "holds conversations that differ ends at its start with both texts. Roles, media, system prompt and turns of "
        "all rows count; of more than 1,000 shapes, the shortest. `--chat_template checkpoint` trains on the "
        "checkpoint's own, as `auto` does; `--chat_template family` on the family's, which is saved with the model and "
        "writes the prompts of answers too.\n",
    ]
    return "\n".join(parts)


def family_formats(collator) -> list[str]:
    """Each format of a family, with the example and its exceptions; then what the templates are given."""
    own = ChatFormat(type(collator).chat_template, type(collator).template_exceptions)
    exceptions = {}  # checkpoints may train on one text and differ in their own template
    for format in (own, *collator.other_formats):
        exceptions.setdefault(format.template, []).extend(format.exceptions)
    taken, parts = collator.template.text, []
    for number, (template, found) in enumerate(exceptions.items(), 1):
        if len(exceptions) > 1:
            parts.append(f"Format {number} of {len(exceptions)}:\n")
        rows = [[visible(e.official), visible(e.ours), PLACES[e.where], as_markdown(e.reason)] for e in found]
        parts += [
            f"```text\n{marked(collator, template, with_bos=template == taken)}\n```\n",
            table(["the checkpoint's template", "trained", "where", "reason"], rows)
            if rows
            else "No exception: the training text is the template's.\n"
            if collator.processor.chat_template not in (None, own.template)
            else "The checkpoint has no chat template: its code writes the format.\n",
        ]
    if given := collator.template.kwargs:
        fixed = type(collator).template_kwargs
        values = (f"`{k}={v!r}`" if v == fixed[k] else f"`{k}`, read from the checkpoint" for k, v in given.items())
        parts.append(f"Given to the template: {', '.join(values)}.\n")
    return parts


def marked(collator, template: str, with_bos: bool) -> str:
    """The example's training text with its trained spans in brackets; `with_bos`: and the tokenizer's BOS."""
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
        rows = [
            [code(f"--{field.name}"), "" if field.default is None else code(field.default), field.metadata["help"]]
            for field in fields(group)
        ]
        parts.append(f"**{title}**\n\n" + table(["flag", "default", "meaning"], rows))
    return "\n".join(parts)


def server_table() -> str:
    kinds = [(server, kind) for server, known in SERVERS.items() for kind in ("merged", "adapter") if known[kind]]
    head = [f"{server} {SERVERS[server]['version']} ({SERVERS[server]['date']}): {kind}" for server, kind in kinds]
    rows = [[family, *[outcome(*column, family) for column in kinds]] for family in families()]
    return table(["family", *head], [["" if cell == "not known" else cell for cell in row] for row in rows])


def summary(checkpoint: str) -> str:
    """What train.py prints before its first step."""
    flags = "--model_id qwen2-vl-2b-instruct --data_path train.json --use_lora True --train_vision_projector True"
    arguments = parse_arguments([*flags.split(), "--use_cpu", "True", "--model_local_path", checkpoint])
    loader = LOADERS.get("qwen2-vl")(checkpoint)
    model = trainable.make_trainable(loader.load_model(), loader, arguments)
    return f"```text\n{trainable.format_summary(trainable.summarize(model, loader, arguments))}\n```\n"


def preview_example(checkpoint: str) -> str:
    """What preview.py prints for the first row of the example data."""
    data_path = str(REPO / "example_data/sample.json")
    words = ["--model_id", "llava-1.5-7b", "--model_local_path", checkpoint, "--data_path", data_path]
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        preview.main([*words, "--num_rows", "1"])
    return f"```text\n{output.getvalue().strip()}\n```\n"


def fill(path: Path, **parts: str) -> str:
    """The text of a file with what stands between `<!-- name -->` and `<!-- /name -->` replaced, for each name."""
    text = path.read_text(encoding="utf-8")
    for name, content in parts.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n{content}<!-- /{name} -->{rest.partition(f'<!-- /{name} -->')[2]}"
    return text


def pages_of_families(checkpoint_of) -> dict[Path, str]:
    """Path -> text of each file with what every family's loader and collator say of themselves.

    Args:
        checkpoint_of: family -> folder of a tiny checkpoint of it.
    """
    loaders = {}
    for family in families():
        loader = LOADERS.get(family)
        loaders[family] = loader(checkpoint_of(family), trust_remote_code=loader.remote_code)
    collators = {family: COLLATORS.get(family)(loader.load_processor()) for family, loader in loaders.items()}
    return {
        REPO / "README.md": fill(REPO / "README.md", models=model_table(collators), correctness=tables.summary()),
        REPO / "docs/supported_models.md": supported_models(loaders, collators),
        REPO / "docs/chat_formats.md": chat_formats(collators),
    }


def pages_of_flags(checkpoint_of) -> dict[Path, str]:
    """The same of each other file."""
    return {
        REPO / "docs/correctness.md": fill(
            REPO / "docs/correctness.md",
            **{part: getattr(tables, part)() for part in ("correctness", "faults", "equality")},
        ),
        REPO / "docs/check_data.md": fill(
            REPO / "docs/check_data.md", preview=preview_example(checkpoint_of("llava-1.5"))
        ),
        REPO / "docs/serving.md": fill(REPO / "docs/serving.md", servers=server_table()),
        REPO / "docs/flags.md": fill(REPO / "docs/flags.md", flags=flag_tables()),
        REPO / "docs/training.md": fill(REPO / "docs/training.md", summary=summary(checkpoint_of("qwen2-vl"))),
        REPO / "docs/several_gpus.md": fill(REPO / "docs/several_gpus.md", strategies=strategy_matrix()),
    }


def main() -> None:
    from tiny_models import make_tiny_checkpoint

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
