"""Whether thoughts, calls and earlier replies are trained on the ids of a checkpoint's own template.

    python benchmarks/parity.py                      # the templates of the tiny checkpoints
    python benchmarks/parity.py --templates FOLDER   # verbatim ones: FOLDER/<family>/<name>.jinja

Each conversation is trained as `--train_replies each` trains it, on the tiny checkpoint of the family with that
template. Its ids, and those of the prompt for its last reply, are compared with those of `apply_chat_template`. The ids
of the whole differ where a template writes a thought in the prompt alone (Gemma 4) or never (GLM-4.1V). The end of the
last reply counts as equal where the template writes none. What a template has no place for is refused. A file
`<name>.source` beside a template tells where it is from; its hash is its revision. Needs no network.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from PIL import Image  # noqa: E402

from collators import COLLATORS  # noqa: E402
from collators.thoughts_and_tools import THINKING, has_thought, last_question  # noqa: E402
from loaders import LOADERS  # noqa: E402
from reading.dataset import MultimodalDataset  # noqa: E402
from tiny_models import make_tiny_checkpoint  # noqa: E402

FAMILIES = ["qwen2.5-vl", "qwen3-vl", "qwen3.5", "glm-4.1v", "gemma-4", "gemma-4-unified"]
CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "Its name."}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "How warm.", "parameters": CITY}}

CALLS = [("", "Rome"), ("", "Rome", "Oslo"), ("I look.", "Rome")]


def call(city: str) -> dict:
    return {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}


def rows() -> list[dict]:
    """Rows of a data file: plain, with thoughts, with tools, of one turn and of several."""
    asked, system = ("user", {"content": "<image>What is it?"}), ("system", {"content": "Be brief."})
    why, result = ("user", {"content": "Why?"}), ("tool", {"content": "12 degrees"})
    thought = {"content": "A cat.", "reasoning_content": "It has whiskers."}
    cat, ears, warm = (("assistant", {"content": text}) for text in ("A cat.", "Ears.", "12."))
    calls = [("assistant", {"content": text, "tool_calls": [*map(call, cities)]}) for text, *cities in CALLS]
    conversations = [
        [asked, cat],
        [system, asked, cat, why, ears],
        [asked, ("assistant", thought)],
        [system, asked, ("assistant", thought), why, ("assistant", thought)],
        [asked, ("assistant", thought), why, ears],
    ]
    with_tools = [
        [system, asked, cat],
        [asked, calls[0], result, warm],
        [system, asked, calls[1], result, result, warm],
        [asked, calls[2], result, warm],
        [asked, ("assistant", thought | calls[0][1]), result, ("assistant", thought)],
    ]
    found = []
    for turns in [*conversations, *with_tools]:
        messages = [{"role": role} | fields for role, fields in turns]
        tools = {"tools": [WEATHER]} if turns in with_tools else {}
        found.append({"messages": messages, "images": ["cat.png"]} | tools)
    return found


def compare(family: str, folder: str, template: str | None, dataset: MultimodalDataset) -> Counter:
    """How many samples have equal ids and equal prompts, how many there are, and how many more are refused."""
    loader = LOADERS.get(family)(folder)
    collators = {}
    for thinks in (False, True):
        processor = loader.load_processor()
        processor.chat_template = template or processor.chat_template
        variables = THINKING if thinks and "enable_thinking" in processor.chat_template else None
        stop_tokens = loader.stop_tokens(processor.tokenizer)
        collators[thinks] = COLLATORS.get(family)(processor, stop_tokens=stop_tokens, template_kwargs=variables)
    official, found = loader.load_processor(), Counter()
    for sample in (dataset[i] for i in range(len(dataset))):
        messages = sample["messages"]
        collator = collators[has_thought(messages)]
        try:
            ours = collator.encode(sample).inputs["input_ids"][0].tolist()
        except ValueError:
            found["refused"] += 1
            continue
        own = collator.template
        given = [as_given(message, own.string_roles) for message in messages]
        ids = partial(official_ids, official, own, messages[0].get("tools"))
        last_thinks = has_thought(messages[last_question(messages) :])
        ends = [[], *([id] for id in official.tokenizer.convert_tokens_to_ids(own.stop_tokens))]
        found["equal"] += any(ours == ids(given, last_thinks) + end for end in ends)
        prompt = ids(given[:-1], last_thinks, add_generation_prompt=True)
        found["prompts"] += ours[: len(prompt)] == prompt
        found["all"] += 1
    return found


def official_ids(processor, template, tools, conversation: list[dict], thinks: bool, **options) -> list[int]:
    """The ids of the library and the checkpoint's own template."""
    options |= {"chat_template": template.official, "tools": tools, "tokenize": True, "return_dict": True}
    variables = template.asked if thinks else template.kwargs
    return list(processor.apply_chat_template([conversation], **options, **variables)["input_ids"][0])


def as_given(message: dict, string_roles: tuple[str, ...]) -> dict:
    is_string = message["role"] in (*string_roles, "tool")
    return message | ({"content": "".join(part["text"] for part in message["content"])} if is_string else {})


def templates(folder: str | None, family: str) -> list[tuple[str, str | None, str]]:
    """(name, text, source and revision) of each template of a family."""
    found = []
    for path in sorted(Path(folder, family).glob("*.jinja")) if folder else ():
        text, source = path.read_text(encoding="utf-8"), path.with_suffix(".source")
        where = source.read_text(encoding="utf-8").strip() if source.is_file() else "source not given"
        found.append((path.stem, text, f"{where}, sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]}"))
    return found if folder else [("tiny", None, "the tiny checkpoint's own")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", help="Folder that has one of templates for each family.")
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        os.environ["FINELMM_CACHE"] = work
        Image.new("RGB", (64, 64), "red").save(os.path.join(work, "cat.png"))
        path = Path(work, "rows.json")
        path.write_text(json.dumps(rows()), encoding="utf-8")
        dataset = MultimodalDataset(str(path), train_replies="each")
        print("family | template | ids equal | prompts equal | refused | source and revision")
        for family in args.families:
            if chosen := templates(args.templates, family):
                with contextlib.redirect_stdout(sys.stderr):
                    make_tiny_checkpoint(family, folder := os.path.join(work, family))
            for name, text, source in chosen:
                found = compare(family, folder, text, dataset)
                counts = " | ".join(f"{found[name]} of {found['all']}" for name in ("equal", "prompts"))
                counts += f" | {found['refused']}"
                print(f"{family} | {name} | {counts} | {source}", flush=True)


if __name__ == "__main__":
    main()
