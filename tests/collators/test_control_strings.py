"""What somebody typed keeps its spelling: tokens that frame a conversation are text to tokenizer, processor and labels,
all other added tokens, which the model itself writes, are the tokens that the checkpoint's tokenizer makes of them."""

import json
import re

import pytest
import torch
from conftest import (
    FACTS,
    FAMILIES,
    check_each,
    collator_of,
    for_official_template,
    make_loader,
    official_template,
    run,
    taught,
    turns,
)
from official import official_processor
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

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
QWEN = "<|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> <|quad_end|> <|vision_pad|>"
QWEN2_5 = f"{QWEN} <tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|>"
QWEN2_5 += " <|file_sep|>"
QWEN3 = f"{QWEN2_5} <tool_response> </tool_response> <think> </think>"
MISTRAL = "[AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] [PREFIX] [MIDDLE] [SUFFIX]"
MISTRAL += " [TOOL_CONTENT]"
GROUNDING = "<quad> </quad> <ref> </ref> <box> </box>"
# Of each family's tiny checkpoint, the added tokens that are the model's own words: all others frame a conversation.
OWN = {
    "qwen-vl": GROUNDING,
    "qwen2-vl": QWEN,
    "qwen2.5-vl": QWEN2_5,
    **dict.fromkeys(["qwen3-vl", "qwen3-vl-moe", "qwen3.5", "qwen3.5-moe"], QWEN3),
    "phi3-v": "</s> <|placeholder1|> <|image|>",
    "llama-3.2-vision": "<|python_tag|> <|step_id|>",
    "llama4": "<|step|>",
    "pixtral": f"{MISTRAL} [SYSTEM_PROMPT] [/SYSTEM_PROMPT]",
    **dict.fromkeys(["mistral-small-3.1", "ministral-3"], MISTRAL),
    "mistral-small-4": f"{MISTRAL} [ARGS] [THINK] [/THINK]",
    **dict.fromkeys(["gemma-3", "gemma-3n"], "<mask>"),
    **dict.fromkeys(["gemma-4", "gemma-4-unified"], "<mask> <|think|> <|channel> <channel|>"),
    "internvl3": f"{QWEN2_5} {GROUNDING} <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>",
    **dict.fromkeys(["glm-4.1v", "glm-4.6v", "glm-ocr"], "[MASK] [sMASK] <eop> <think> </think> <answer> </answer>"),
    "paddleocr-vl": "<|end_of_sentence|>",
    "minicpm-v-4.6": QWEN3.removeprefix(QWEN),
    "ovis2": f"{QWEN2_5} <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>",
    "lfm2-vl": "<|endoftext|> <|fim_pre|> <|fim_mid|> <|fim_suf|>",
    "granite-vision": "<fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <|start_of_role|> <|end_of_role|> "
    "<|tool_call|>",
}
THOUGHTS = {  # that the format writes itself, so that no reply may
    **dict.fromkeys(["qwen3.5", "qwen3.5-moe", "glm-4.6v", "minicpm-v-4.6"], ["<think>", "</think>"]),
    "gemma-4-unified": ["<|channel>", "<channel|>"],
}
THOUGHTS_WRITTEN = {family: dict.fromkeys(tokens, 1) for family, tokens in THOUGHTS.items()}


def own_tokens(family: str) -> list[str]:
    return OWN.get(family, "").split()


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
    loader, untouched = make_loader(family, tiny(family)), official_processor(family, tiny(family))
    processor = loader.load_processor()
    for one in (processor, untouched) if adapt else ():
        adapt(one.tokenizer.backend_tokenizer)
    collator = COLLATORS.get(family)(processor, stop_tokens=loader.stop_tokens(processor.tokenizer))
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


def added_tokens(untouched) -> dict[str, int]:
    """The added tokens of a processor as it comes, white space aside."""
    if hasattr(untouched.tokenizer, "special_tokens"):  # Qwen-VL's
        return untouched.tokenizer.special_tokens
    tokens = untouched.tokenizer.added_tokens_decoder.items()
    return {token.content: id for id, token in tokens if not token.content.isspace()}


HARMLESS = conversation(text("Hm"), text("Hm"), text("Hm"))
PROMPTS = (2, 4)  # how many messages they have


def check(pair, variant: str, messages: list[dict]) -> None:
    """The conversation keeps its spelling, and has the control tokens and runs of labels of a harmless one."""
    collator, untouched, harmless = pair
    family = VARIANTS.get(variant, (variant,))[0]
    facts = FACTS[family]
    makes_up_spaces = "-llama" in variant or facts.decoded[0]
    frame = added_tokens(untouched).keys() - own_tokens(family)
    framing = {added_tokens(untouched)[token] for token in frame}
    control_tokens = lambda ids: [id for id in ids[0].tolist() if id in framing]  # noqa: E731

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


@pytest.mark.few
@pytest.mark.parametrize(
    "strings",
    [
        pytest.param(TYPED + WHITE_SPACE + UNUSUAL, id="typed"),
        pytest.param(CONTROL, id="alone", marks=pytest.mark.slow),
        pytest.param(TYPED_TOO, id="typed too", marks=[pytest.mark.slow, pytest.mark.cross]),
    ],
)
def test_what_was_typed_is_text(pair, variant, strings):
    def one(typed: str) -> None:
        check(pair, variant, conversation(text(typed), text(typed, typed), text(typed)))
        if typed != typed.strip():  # at the end of a part, or of the message
            check(pair, variant, conversation(text("Hm"), text(typed), text(typed, "Red")))

    if variant == "phi3-v":  # tokens of its own take the white space behind them along
        strings = [typed for typed in strings if not any(token in typed for token in own_tokens(variant))]
    check_each([(typed,) for typed in strings], one)


@pytest.mark.few
def test_the_frame_tokens_are_text(pair, variant):
    own = own_tokens(VARIANTS.get(variant, (variant,))[0])

    def one(typed: str) -> None:
        check(pair, variant, conversation(text(typed), text(typed), text(typed)))
        check(pair, variant, conversation(text("Hm"), text(typed[:1], typed[1:]), text(typed[:-1], typed[-1:])))

    check_each([(typed,) for typed in added_tokens(pair[1]).keys() - own], one)


def test_all_other_added_tokens_are_the_models_own(pair, variant):
    """In every role, in training and prompts alike: the tokens of the official processor, which nobody adapted."""
    collator, untouched, _ = pair
    family = VARIANTS.get(variant, (variant,))[0]
    own, thoughts = own_tokens(family), THOUGHTS.get(family, [])
    others = {token for token in added_tokens(untouched) if token not in collator.template.frame.tokens}
    # Of these, `make_context` makes characters.
    assert {token for token in others if "<|extra_" not in token} == {*own}
    for tokens in (own[i : i + 5] for i in range(0, len(own), 5)):
        typed = " and ".join(f"a{token}b {token} c" for token in tokens)
        said = " and ".join(f"a{token}b {token} c" for token in tokens if token not in thoughts)
        messages = [
            {"role": "system", "content": text(typed)},
            {"role": "user", "content": text(typed)},
            {"role": "assistant", "content": text(said)},
        ]
        ids = collator.encode({"messages": messages}).inputs["input_ids"]
        prompt = collator.encode_prompt(messages[:2])["input_ids"]
        for token in tokens:
            id = added_tokens(untouched)[token]
            harmless = THOUGHTS_WRITTEN.get(family, {}).get(token, 0)
            assert (ids == id).sum() == (4 if token in thoughts else 6) + harmless
            assert (prompt == id).sum() == 4 + harmless
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", **collator.template.kwargs}
        template = official_template(untouched, family)
        given = for_official_template(family, messages[:2])
        official = untouched.apply_chat_template([given], chat_template=template, add_generation_prompt=True, **options)
        assert prompt.equal(official["input_ids"])


def test_typed_frame_tokens_get_the_tokens_of_a_tokenizer_without_them(pair, variant):
    """The truth is a copy of the checkpoint's tokenizer from whose added tokens those of the frame are deleted."""
    collator, untouched, _ = pair
    family = VARIANTS.get(variant, (variant,))[0]
    if FACTS[family].remote_code:
        pytest.skip("a tokenizer of the checkpoint's own code has no tokenizer.json to take tokens from")
    frame = sorted(added_tokens(untouched).keys() - own_tokens(family))
    description = json.loads(untouched.tokenizer.backend_tokenizer.to_str())
    description["added_tokens"] = [t for t in description["added_tokens"] if t["content"] not in frame]
    description["post_processor"] = None
    copy = Tokenizer.from_str(json.dumps(description))
    own = [token for token in own_tokens(family) if token not in THOUGHTS.get(family, [])] or ["Hm"]
    for i, token in enumerate(frame):
        said = f"So {token} is{token}{own[i % len(own)]} {token[:-1]}"
        inputs = collator.encode({"messages": conversation(text("Hm"), text("Hm"), text(said))}).inputs
        expected = copy.encode(FACTS[family].decoded_space + said, add_special_tokens=False).tokens
        labels = inputs["labels"][0]
        trained = untouched.tokenizer.convert_ids_to_tokens(labels[labels != IGNORE_INDEX].tolist())
        end = FACTS[family].end_of_turn
        assert trained[trained.index(end) + 1 :] == [*expected, end]  # behind the reply of the first turn


def test_a_token_that_holds_a_frame_token_stays_whole(tiny):
    """As the tokenizer finds them, the longest of the leftmost; frame tokens that others begin or end in are text."""
    processor = make_loader("qwen2-vl", tiny("qwen2-vl")).load_processor()
    added = ["[<|im_end|>]", "<|im_", "|>x", "<|vision_start|>y<|im_end|>"]
    processor.tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in added])
    description = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    collator = COLLATORS.get("qwen2-vl")(processor)
    frame = collator.template.frame.tokens
    description["added_tokens"] = [t for t in description["added_tokens"] if t["content"] not in frame]
    copy = Tokenizer.from_str(json.dumps(description))
    for typed in (
        *("a[<|im_end|>]b", "[<|im_end|>", "<|im_end|>x", "<|im_end|>]", "<|im_[<|im_end|>]", "<|vision_start|>y"),
        *("<|vision_start|>y<|im_end|>x", "<|im_start|>y<|im_end|>x<|im_end|>", "<|im_<|im_end|>x"),
    ):
        labels = collator.encode({"messages": conversation(text("Hm"), text("Hm"), text(typed))}).inputs["labels"][0]
        trained = processor.tokenizer.convert_ids_to_tokens(labels[labels != IGNORE_INDEX].tolist())
        assert trained == [*copy.encode("Red").tokens, "<|im_end|>", *copy.encode(typed).tokens, "<|im_end|>"], typed


def test_an_answer_shows_the_models_own_tokens_and_none_of_the_frame(tiny):
    processor = make_loader("qwen2-vl", tiny("qwen2-vl")).load_processor()
    collator = COLLATORS.get("qwen2-vl")(processor)
    answer = "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"
    ids = processor.tokenizer(f"{answer}<|im_end|><|endoftext|><|endoftext|>").input_ids
    assert collator.template.frame.decode(torch.tensor(ids)) == answer
    assert collator.template.frame.decode(ids[0]) == "<|object_ref_start|>"  # as the streamer of transformers 5.24 asks


def test_a_thought_ends_a_run_before_it_begins(tiny, write_rows, tmp_path):
    rows = [{"conversations": turns("Hm", "Red")}, {"conversations": turns("Hm", "Red <think>Hm</think>")}]
    with pytest.raises(ValueError, match="rows.json, sample 1: a reply contains .*Remove the thought"):
        run(tiny, "qwen3.5", write_rows(rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", THOUGHTS)
def test_a_thought_before_which_the_format_writes_its_own_is_refused(tiny, family):
    collator = collator_of(family, tiny)
    begin, end = THOUGHTS[family]
    messages = conversation(text("Hm"), text(begin), text(f"{begin}\nHm\n{end}\n\nRed"))
    one = "|".join(map(re.escape, (begin, end)))
    with pytest.raises(ValueError, match=f"sample 3: a reply contains ({one}), but this format .* Remove the thought"):
        collator.encode({"messages": messages, "source": "sample 3"})
    with pytest.raises(ValueError, match="Remove the thought"):
        collator.budget.count_text_tokens([{"messages": messages}])


@pytest.mark.few
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
    processor.video_token = "<|old|>"
    added = processor.tokenizer.convert_tokens_to_ids("<|old|>")
    assert added in processor.tokenizer("Hm <|old|>").input_ids
    collator = COLLATORS.get("llava-1.5")(processor)
    ids = collator.encode({"messages": conversation(text("a <|old|>"), text("<|old|>"), text("<|old|>"))})
    assert added not in ids.inputs["input_ids"]
