"""Whether thoughts, calls and earlier replies are trained on the ids of a checkpoint's own template.

    python benchmarks/parity.py                      # the templates of the tiny checkpoints
    python benchmarks/parity.py --templates FOLDER   # verbatim ones: FOLDER/<family>/<name>.jinja
    python benchmarks/parity.py --tokenizers FOLDER  # real vocabularies: FOLDER/<family>/tokenizer.json

Each conversation is trained as `--train_replies each` (or all, last) trains it, on the tiny checkpoint of the family
with that template and that vocabulary, to which the family's tokens are added where it lacks them. Its ids are compared
with those of `apply_chat_template`: of the whole; of the prompt for each trained reply and, tokenized apart, what the
model writes then; of the last prompt alone. Those of the whole differ where a template writes a thought in the prompt
alone (Gemma 4) or never (GLM-4.1V), or where the prompt ends with a line break and the reply begins with one (Qwen3-VL
Thinking). What the model writes is what the template writes behind the prompt; a thought that it writes before calls
alone, as there. The end of the last reply counts as equal where the template writes none. What a template has no place
for is refused; `--verbose` prints why, and what differs. A file `<name>.source` beside a template, or
`tokenizer.source`, tells where it is from; the hash of a template is its revision. Needs no network.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
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
from tiny_checkpoints import make_tiny_checkpoint  # noqa: E402

FAMILIES = ["qwen2.5-vl", "qwen3-vl", "qwen3.5", "glm-4.1v", "glm-4.6v", "glm-ocr", "gemma-4"]
FAMILIES += ["gemma-4-unified", "llama-3.2-vision", "llama4", "pixtral", "mistral-small-3.1", "mistral-small-4"]
FAMILIES += ["ministral-3", "lfm2-vl"]
THINKS = THINKING | {"reasoning_effort": "high"}
CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "Its name."}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "How warm.", "parameters": CITY}}

COLUMNS = (
    "family | template | ids of the whole | of prompt and reply | of the prompt | refused | source and revision | "
    "vocabulary"
)
CALLS = [("", "Rome"), ("", "Rome", "Oslo"), ("I look.", "Rome")]


def text(text: str) -> dict:
    return {"type": "text", "text": text}


def call(city: str, **fields) -> dict:
    return fields | {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}


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
        [asked, ("assistant", {"content": "", "tool_calls": [call("Rome", id="a1b2c3d4e")]}),
         ("tool", {"content": "12 degrees", "tool_call_id": "a1b2c3d4e"}), warm],
        [("user", {"content": [{"type": "image"}, text("What is it?")]}), calls[0],
         ("tool", {"content": [{"type": "image"}, text("A map.")]}), warm],
        # Some templates have no place for an image beside tools.
        [why, calls[0], result, warm],
        [system, why, calls[1], result, ("tool", {"content": 'a "frost" of\n-1'}), warm, why, calls[0]],
    ]  # fmt: skip
    found = []
    for turns in [*conversations, *with_tools]:
        messages = [{"role": role} | fields for role, fields in turns]
        tools = {"tools": [WEATHER]} if turns in with_tools else {}
        images = str(messages).count("<image>") + str(messages).count("'image'")
        found.append({"messages": messages, "images": ["cat.png"] * images} | tools)
    return found


def add_tokens(tokenizer: dict, tokens: list[dict]) -> None:
    """Add a family's own tokens to a tokenizer.json that lacks them, behind its vocabulary."""
    known = ids_of(tokenizer)
    free = max(*tokenizer["model"]["vocab"].values(), *known.values()) + 1
    for token in tokens:
        if token["content"] not in known:
            tokenizer["added_tokens"].append(token | {"id": free})
            free += 1


def ids_of(tokenizer: dict, by_id: bool = False) -> dict:
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    return {id: token for token, id in added.items()} if by_id else added


def take_vocabulary(checkpoint: str, folder: Path) -> str:
    """Put a real vocabulary into a tiny checkpoint; returns where it is from."""
    read = lambda path, name: json.loads(Path(path, name).read_text())  # noqa: E731
    real, tiny, ends = read(folder, "tokenizer.json"), read(checkpoint, "tokenizer.json"), "generation_config.json"
    add_tokens(real, tiny["added_tokens"])
    names = {id: token for token, id in tiny["model"]["vocab"].items()} | ids_of(tiny, by_id=True)
    ids = real["model"]["vocab"] | ids_of(real)
    as_real = lambda id: [*map(as_real, id)] if isinstance(id, list) else ids[names[id]]  # noqa: E731
    generation = {k: as_real(v) if k.endswith("token_id") else v for k, v in read(checkpoint, ends).items()}
    Path(checkpoint, ends).write_text(json.dumps(generation))
    Path(checkpoint, "tokenizer.json").write_text(json.dumps(real))
    return (folder / "tokenizer.source").read_text().strip()


def compare(family: str, folder: str, template: str | None, dataset: MultimodalDataset, verbose: bool) -> Counter:
    """How many samples have equal ids and equal prompts, how many there are, and how many more are refused."""
    loader = LOADERS.get(family)(folder)
    collators = {}
    for thinks in (False, True):
        processor = loader.load_processor()
        processor.chat_template = template or processor.chat_template
        variables = {name: value for name, value in THINKS.items() if thinks and name in processor.chat_template}
        stop_tokens = loader.stop_tokens(processor.tokenizer)
        collators[thinks] = COLLATORS.get(family)(processor, stop_tokens=stop_tokens, template_kwargs=variables)
    official, found = loader.load_processor(), Counter()
    for sample in (dataset[i] for i in range(len(dataset))):
        messages = sample["messages"]
        collator = collators[has_thought(messages)]
        try:
            own = collator.template
            if others := own.differences_in(messages):  # at which a run ends
                raise ValueError(f"{sample['source']}: {others[0]}")
            ours = collator.encode(sample).inputs["input_ids"][0].tolist()
        except ValueError as error:
            found["refused"] += 1
            print(f"  {error}" if verbose else "", end="\n" * verbose)
            continue
        given = [as_given(message, own.string_roles) for message in messages]
        last_thinks = has_thought(messages[last_question(messages) :])
        options = {"thinks": last_thinks, "tools": messages[0].get("tools")}
        ids = partial(official_ids, official, own, **options)
        ends = [[], *([id] for id in official.tokenizer.convert_tokens_to_ids(own.stop_tokens))]
        is_equal = any(ours == ids(given) + end for end in ends)
        prompt = ids(given[:-1], add_generation_prompt=True)
        found["equal"] += is_equal
        found["prompts"] += ours[: len(prompt)] == prompt
        # Of the replies that are trained (`all` leaves out those whose thought was dropped), what a server shows and
        # then gets; the last ends the text.
        trained = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("train", True)]
        trained = trained[-len(own.render(messages)[1]) :]
        shown = [shown_ids(official, partial(ids, tokenize=False), ids, given[: i + 1]) for i in trained]
        is_shown = all(ours[: len(one)] == one for one in shown) and any(ours == shown[-1] + end for end in ends)
        found["shown"] += is_shown
        if verbose and not is_shown:
            texts = [official.tokenizer.decode(ids) for ids in (ours, ids(given), prompt)]
            print(f"  {sample['source']}: {[m['role'] for m in messages]}\n", *(f"    {text!r}\n" for text in texts))
        found["all"] += 1
    return found


def official_ids(processor, template, conversation: list[dict], thinks: bool, tools, tokenize=True, **options):
    """The ids, or the text, of the library and the checkpoint's own template."""
    options |= {"chat_template": template.official, "tools": tools, "tokenize": tokenize, "return_dict": tokenize}
    options |= template.prompt_kwargs if thinks else template.kwargs
    found = processor.apply_chat_template([conversation], **options)
    return list(found["input_ids"][0]) if tokenize else found[0]


def shown_ids(processor, written, ids, given: list[dict]) -> list[int]:
    """The ids of the prompt for a reply, and of what the model writes then, tokenized apart."""
    whole, asked, thought = written(given), written(given[:-1], add_generation_prompt=True), ""
    shared = os.path.commonprefix([whole, asked])
    begin = len(re.sub(r"<\|?$", "", shared))  # both may go on with a token: <|channel> and <|tool_call>
    if given[-1].get("reasoning_content", "") not in whole[begin:]:  # written before calls alone (Gemma 4)
        plain = {name: value for name, value in given[-1].items() if name != "reasoning_content"}
        calls = [written([*given[:-1], reply | {"tool_calls": [call("Rome")]}]) for reply in (given[-1], plain)]
        thought = calls[0][begin:].removesuffix(calls[1][begin:])
    reply = processor.tokenizer(thought + whole[begin:], add_special_tokens=False)["input_ids"]
    return ids(given[:-1], add_generation_prompt=True) + reply


def as_given(message: dict, string_roles: tuple[str, ...]) -> dict:
    texts = [part.get("text") for part in message["content"]]
    is_string = message["role"] in string_roles or message["role"] in ("tool", "user") and None not in texts
    return message | ({"content": "".join(texts)} if is_string else {})


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
    parser.add_argument("--tokenizers", help="Folder that has one of a tokenizer for each family.")
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--train_replies", default="each", help="all, last or each.")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        os.environ["FINELMM_CACHE"] = work
        Image.new("RGB", (64, 64), "red").save(os.path.join(work, "cat.png"))
        path = Path(work, "rows.json")
        path.write_text(json.dumps(rows()), encoding="utf-8")
        dataset = MultimodalDataset(str(path), train_replies=args.train_replies)
        print(COLUMNS)
        for family in args.families:
            if chosen := templates(args.templates, family):
                with contextlib.redirect_stdout(sys.stderr):
                    make_tiny_checkpoint(family, folder := os.path.join(work, family))
                vocabulary = "tiny"
                if args.tokenizers and (real := Path(args.tokenizers, family)).is_dir():
                    vocabulary = take_vocabulary(folder, real)
            for name, text, source in chosen:
                found = compare(family, folder, text, dataset, args.verbose)
                counts = " | ".join(f"{found[name]} of {found['all']}" for name in ("equal", "shown", "prompts"))
                counts += f" | {found['refused']}"
                print(f"{family} | {name} | {counts} | {source} | {vocabulary}", flush=True)


if __name__ == "__main__":
    main()
