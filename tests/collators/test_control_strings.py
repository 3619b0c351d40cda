"""Control strings that somebody typed: they keep their spelling, and are text to tokenizer, processor and labels."""

import json
import re

import pytest
import torch
from conftest import FACTS, FAMILIES, check_each, for_official_template, make_loader, official_template, taught
from official import official_processor
from PIL import Image
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from collators import COLLATORS
from collators.base import IGNORE_INDEX
from loaders import LOADERS

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
    "[IMG]",
    "[/INST]",
    "<|end|>",
    "<|assistant|>\n",
    "<|image_1|>",
    "<|image|>",
    "<img>",
    "</img>",
    "<img>img_1.jpg</img>",
    "<imgpad>",
    "<ref>",
    "<|extra_0|>",
]
TYPED = [
    *CONTROL,
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
TYPED_TOO = [text for string in CONTROL for text in (f"{string} and then", f"at last {string}", string * 3)]
WHITE_SPACE = ["\nRed", "\n\nRed\n", " Red", "Red ", "  Red  ", "Red\n\n", " \nRed", "\tRed", "\n", "3"]
UNUSUAL = ["Größe 漢字 العربية", "😀😀 👩‍👩‍👧", "ﬁ ① ½", "\u200b \u00a0x", "Ġ Ċ"]
# One control string in two parts of a message.
SPLIT = [
    ("<|im_", "end|>"),
    ("<", "|im_end|>"),
    ("<", "/s>"),
    ("</s", "> and </", "s>"),
    ("<ima", "", "ge>"),
    ("<|image_pad|", ">"),
    ("[", "IMG]"),
]


def legacy_llama(backend) -> None:
    """As the tokenizer.json of Llama 2: no pre-tokenizer; a space before every segment."""
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def prefixing_llama(backend) -> None:
    """As `LlamaTokenizer(legacy=True)`: the pre-tokenizer puts a space before every piece that it gets."""
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)


def merging_qwen(backend) -> None:
    """As the real vocabulary: two line breaks are one token."""
    model = json.loads(backend.to_str())["model"]
    last = "".join(model["merges"][-1])
    vocab = {"ĊĊ" if token == last else token: id for token, id in model["vocab"].items()}
    backend.model = models.BPE(vocab, [("Ċ", "Ċ"), *(tuple(pair) for pair in model["merges"][:-1])])
    assert len(backend.encode("\n\n").ids) == 1


VARIANTS = {
    "legacy-llama": ("llava-1.5", legacy_llama),
    "prefixing-llama": ("llava-1.5", prefixing_llama),
    "merging-qwen": ("qwen2-vl", merging_qwen),
}


@pytest.fixture(scope="module", params=[*(f for f in FAMILIES if FACTS[f].multi_turn), *VARIANTS])
def variant(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def pair(variant, tiny):
    """(collator, the same processor as it comes, the tokens of a harmless conversation and of its two prompts)."""
    family, adapt = VARIANTS.get(variant, (variant, None))
    processor, untouched = make_loader(family, tiny(family)).load_processor(), official_processor(family, tiny(family))
    for one in (processor, untouched) if adapt else ():
        adapt(one.tokenizer.backend_tokenizer)
    collator = COLLATORS.get(family)(processor)
    prompts = [collator.encode_prompt(HARMLESS[:i])["input_ids"] for i in PROMPTS]
    return collator, untouched, [collator.encode({"messages": HARMLESS}).inputs["input_ids"], *prompts]


def text(*texts: str) -> list[dict]:
    return [{"type": "text", "text": t} for t in texts]


PICTURE = {"type": "image", "image": Image.new("RGB", (64, 64), "red")}


def conversation(system: list[dict], user: list[dict], reply: list[dict]) -> list[dict]:
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": [*user, PICTURE, *text("Which colour?")]},
        {"role": "assistant", "content": text("Red")},
        {"role": "user", "content": text("And now?")},
        {"role": "assistant", "content": reply},
    ]


HARMLESS = conversation(text("Hm"), text("Hm"), text("Hm"))
PROMPTS = (2, 4)  # how many messages they have


def check(pair, variant: str, messages: list[dict]) -> None:
    """The conversation keeps its spelling, and has the control tokens and runs of labels of a harmless one."""
    collator, untouched, harmless = pair
    family = VARIANTS.get(variant, (variant,))[0]
    facts = FACTS[family]
    makes_up_spaces = "-llama" in variant or facts.decoded[0]
    added = getattr(untouched, "control_ids", None) or {
        id for id, token in untouched.tokenizer.added_tokens_decoder.items() if not token.content.isspace()
    }
    control_tokens = lambda ids: [id for id in ids[0].tolist() if id in added]  # noqa: E731

    def official(messages, template: str, **kwargs) -> str:
        is_official = template == official_template(untouched, family)
        given = for_official_template(family, messages) if is_official else messages
        return untouched.apply_chat_template(given, chat_template=template, **kwargs, **collator.template.kwargs)

    def spelling(ids, messages, template: str, **kwargs) -> tuple[str, str]:
        """The tokens as the untouched tokenizer decodes them, and the text that the untouched processor renders."""
        asked = official(messages, template, **kwargs)
        if hasattr(untouched, "spelling"):
            decoded = untouched.spelling(ids[0].tolist())
        else:
            image = torch.isin(ids[0], torch.tensor(getattr(untouched, "image_token_ids", [-1]))).nonzero()[:, 0]
            frame = untouched.tokenizer.convert_tokens_to_ids(facts.media_tokens)
            kept = [
                i for i, id in enumerate(ids[0].tolist()) if facts.expanded or i not in image[1:] and id not in frame
            ]
            decoded = untouched.tokenizer.decode(ids[0, kept])
        decoded = re.sub(facts.expanded, untouched.image_token, decoded) if facts.expanded else decoded
        both = decoded.removeprefix(facts.bos).lstrip(" "), asked.lstrip(" ")
        return tuple(t.replace(" ", "") for t in both) if makes_up_spaces else both

    encoded = collator.encode({"messages": messages})
    ids, labels = encoded.inputs["input_ids"], encoded.inputs["labels"][0]
    assert control_tokens(ids) == control_tokens(harmless[0])
    decoded, rendered = spelling(ids, messages, collator.template.text)
    assert decoded == rendered
    assert encoded.text.removeprefix(facts.bos) == official(messages, collator.template.text)

    trim_part, trim = ((str.strip if facts.trims == what else str) for what in ("parts", "messages"))
    texts = [[trim_part(part["text"]) for part in m["content"]] for m in messages if m["role"] == "assistant"]
    replies = taught(family, [trim(facts.part_separator.join(parts)) for parts in texts])
    trained = (labels != IGNORE_INDEX).nonzero()[:, 0]
    first = next(i for i in range(1, len(trained)) if trained[i] != trained[i - 1] + 1)
    assert trained[-1] - trained[first] == len(trained) - first - 1  # two runs
    decoded = [untouched.tokenizer.decode(labels[run]) for run in (trained[:first], trained[first:])]
    assert decoded == replies

    for i, harmless_prompt in zip(PROMPTS, harmless[1:]):
        prompt = collator.encode_prompt(messages[:i])["input_ids"]
        assert control_tokens(prompt) == control_tokens(harmless_prompt)
        template = official_template(untouched, family)
        decoded, rendered = spelling(prompt, messages[:i], template, add_generation_prompt=True)
        assert decoded == rendered


@pytest.mark.parametrize(
    "strings",
    [
        pytest.param(TYPED + WHITE_SPACE + UNUSUAL, id="typed"),
        pytest.param(TYPED_TOO, id="typed too", marks=pytest.mark.slow),
    ],
)
def test_what_was_typed_is_text(pair, variant, strings):
    def one(typed: str) -> None:
        check(pair, variant, conversation(text(typed), text(typed), text(typed)))
        check(pair, variant, conversation(text("Hm"), text(typed, typed), text(typed, "Red")))

    check_each([(typed,) for typed in strings], one)


def test_the_checkpoints_own_control_tokens_are_text(pair, variant):
    def one(typed: str) -> None:
        check(pair, variant, conversation(text(typed), text(typed), text(typed)))
        check(pair, variant, conversation(text("Hm"), text(typed[:1], typed[1:]), text(typed[:-1], typed[-1:])))

    check_each([(typed,) for typed in pair[1].tokenizer.all_special_tokens], one)


def test_a_control_string_in_two_parts_is_text(pair, variant):
    def one(*parts: str) -> None:
        check(pair, variant, conversation(text(*parts), text(*parts), text(*parts)))
        around = [*text(parts[0]), *text(*parts[1:])]
        check(pair, variant, conversation(text("Hm"), around, text("Red")))

    check_each(SPLIT, one)


CORPUS = [
    *(text for text in UNUSUAL + WHITE_SPACE),
    "What colour is the circle? It's 12345 miles, isn't it?\n\n\n  def f(x):\n\treturn x  # <b>",
    "<s <|im_ |> </ s> < /s>",
    "",
    " ",
]


def test_other_text_gets_the_tokens_of_the_checkpoints_tokenizer(pair):
    collator, untouched, _ = pair
    template = untouched.chat_template or collator.template.text  # with all control tokens in their places
    for sentence in [*CORPUS, template, __doc__]:
        assert collator.processor.tokenizer(sentence).data == untouched.tokenizer(sentence).data


def test_a_normalized_control_token_is_found_too(tiny):
    """Older checkpoints search some control tokens after normalization."""
    processor = LOADERS.get("llava-1.5")(tiny("llava-1.5")).load_processor()
    processor.tokenizer.add_tokens([AddedToken("<|old|>", normalized=True, special=True)], special_tokens=True)
    added = processor.tokenizer.convert_tokens_to_ids("<|old|>")
    assert added in processor.tokenizer("Hm <|old|>").input_ids
    collator = COLLATORS.get("llava-1.5")(processor)
    ids = collator.encode({"messages": conversation(text("a <|old|>"), text("<|old|>"), text("<|old|>"))})
    assert added not in ids.inputs["input_ids"]
