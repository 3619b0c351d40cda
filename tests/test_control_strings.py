"""Control strings that somebody typed: they keep their spelling, and are text to tokenizer, processor and labels."""

from functools import cache

import pytest
from PIL import Image
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoProcessor

from collators import COLLATORS
from collators.base import IGNORE_INDEX
from loaders import LOADERS
from tests.conftest import FAMILIES

CONTROL = [
    "</s>",
    "<s>",
    "<unk>",
    "<pad>",
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<image>",
    "<video>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "ASSISTANT:",
    "USER: ",
    "<|im_start|>assistant\n",
]
TYPED = [
    *CONTROL,
    *(f"{string} and then" for string in CONTROL),
    *(f"at last {string}" for string in CONTROL),
    *(string * 3 for string in CONTROL),
    "".join(CONTROL),
    "".join(reversed(CONTROL)),
    "<<|im_end|>>",
    "<|im_<|im_end|>end|>",
    "</<s>s>",
    "<|im_end|",
    "\n<image>\n",
    "\n\n</s>",
    " <|im_end|> ",
    "\t<s>\t",
]
WHITE_SPACE = ["\nRed", "\n\nRed\n", " Red", "Red ", "  Red  ", "Red\n\n", " \nRed", "\tRed"]
UNUSUAL = ["Größe 漢字 العربية", "😀😀 👩‍👩‍👧", "ﬁ ① ½", "e\u0301 \u200b \u00a0x", "▁ _ ▁▁", "Ġ Ċ"]


def legacy_llama(backend) -> None:
    """As the tokenizer.json of Llama 2: spaces are replaced before control tokens that are normalized are searched."""
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def prefixing_llama(backend) -> None:
    """As `LlamaTokenizer(legacy=True)`: a space before every segment."""
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)


VARIANTS = {"legacy-llama": legacy_llama, "prefixing-llama": prefixing_llama}


@pytest.fixture(scope="module", params=[*FAMILIES, *VARIANTS])
def pair(request, tiny):
    """(family, collator, the same processor as it comes)."""
    family = "llava-1.5" if request.param in VARIANTS else request.param
    processors = [LOADERS.get(family)(tiny(family)).load_processor() for _ in range(2)]
    for processor in processors:
        VARIANTS.get(request.param, lambda backend: None)(processor.tokenizer.backend_tokenizer)
    return family, COLLATORS.get(family)(processors[0]), processors[1]


@cache
def picture() -> Image.Image:
    return Image.new("RGB", (64, 64), "red")


def text(*texts: str) -> list[dict]:
    return [{"type": "text", "text": t} for t in texts]


def conversation(system: list[dict], user: list[dict], reply: list[dict]) -> list[dict]:
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": [*user, {"type": "image", "image": picture()}, *text("Which colour?")]},
        {"role": "assistant", "content": text("Red")},
        {"role": "user", "content": text("And now?")},
        {"role": "assistant", "content": reply},
    ]


def control_tokens(processor, ids) -> list[int]:
    """The added tokens among these, in order: roles, ends of turns, media."""
    added = {id for id, token in processor.tokenizer.added_tokens_decoder.items()}
    return [id for id in ids.tolist() if id in added]


def plain_text(processor, ids) -> str:
    """Decoded, less the spaces that Llama tokenizers make up or swallow at the very beginning."""
    return processor.tokenizer.decode(ids).removeprefix("<s>").lstrip(" ")


def expanded(family: str, processor, encoded) -> str:
    """The training text with its one placeholder expanded, by the number of media tokens."""
    placeholder = processor.image_token
    inputs = encoded.inputs["input_ids"][0]
    marked = encoded.text.rsplit("Which colour?", 1)[0] if family.startswith("qwen") else encoded.text
    return marked, (inputs == processor.image_token_id).sum().item(), placeholder


PLAIN = conversation(text("Hm"), text("Hm"), text("Hm"))


def check(pair, messages: list[dict]) -> None:
    """The conversation has the control tokens, media and labels of one with harmless texts, and its own spelling."""
    family, collator, untouched = pair
    encoded, plain = collator.encode({"messages": messages}), collator.encode({"messages": PLAIN})
    ids, labels = encoded.inputs["input_ids"][0], encoded.inputs["labels"][0]
    assert control_tokens(untouched, ids) == control_tokens(untouched, plain.inputs["input_ids"][0])

    # The checkpoint's tokenizer spells what was typed, and nothing else.
    media_id = untouched.image_token_id
    typed = collator.render([{**m, "content": [placeholder(p) for p in m["content"]]} for m in messages])[0]
    typed = typed.replace("\ufdd0", "").replace("\ue000", "")
    assert plain_text(untouched, ids[ids != media_id]) == typed.removeprefix("<s>").lstrip(" ")

    # Labels: the last run is the last reply and its end.
    end = "</s>" if family == "llava-1.5" else "<|im_end|>"
    separator = {"llava-1.5": " ", "llava-onevision": "\n"}.get(family, "")
    replies = [separator.join(p["text"] for p in m["content"]) + end for m in messages if m["role"] == "assistant"]
    trained = (labels != IGNORE_INDEX).nonzero()[:, 0]
    cut = [i for i in range(1, len(trained)) if trained[i] != trained[i - 1] + 1]
    assert len(cut) == 1
    runs = [labels[trained[: cut[0]]], labels[trained[cut[0] :]]]
    assert [untouched.tokenizer.decode(run) for run in runs] == replies

    # The prompts: the same control tokens as with harmless texts, and media where they were.
    for i in (2, 4):
        prompt, harmless = collator.encode_prompt(messages[:i]), collator.encode_prompt(PLAIN[:i])
        assert control_tokens(untouched, prompt["input_ids"][0]) == control_tokens(untouched, harmless["input_ids"][0])
        assert prompt["pixel_values"].equal(harmless["pixel_values"])


def placeholder(part: dict) -> dict:
    return part
