"""Thoughts and tools: the tokens are those of the checkpoint's own template, and the replies, whole, are trained."""

import json
from itertools import chain

import numpy as np
import pytest
from conftest import run, turns
from transformers import AutoModelForImageTextToText, AutoProcessor

import predict
import preview
from collators import COLLATORS
from collators.base import IGNORE_INDEX
from collators.template_check import check_template, outlines
from evaluation.answers import questions
from loaders import LOADERS
from reading.dataset import MultimodalDataset, cost_of_replies
from reading.rows import RESERVED_CHARACTER
from tiny_checkpoints.qwen3_vl import QWEN3_THINKING_TEMPLATE

# Writes thoughts, drops those before the last question, and writes an empty one where it is told not to think.
TEMPLATE = """
{%- set ns = namespace(question=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.question = loop.index0 %}{% endif %}{% endfor %}
{%- if tools %}{{ '<|im_start|>system\n' }}
    {%- for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
    {%- set text = m.content if m.content is string else m.content | map(attribute='text') | join %}
    {%- if m.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>' + m.content + '</tool_response><|im_end|>\n' }}
    {%- else %}{{ '<|im_start|>' + m.role + '\n' }}
        {%- if m.role == 'assistant' and loop.index0 > ns.question %}
            {{- '<think>\n' + (m.reasoning_content or '') | trim + '\n</think>\n\n' }}
        {%- endif %}
        {{- text | trim }}
        {%- for call in m.tool_calls or [] %}
            {{- '<tool_call>' + call.function.name + ' ' + call.function.arguments | tojson + '</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}
    {%- if enable_thinking is false %}{{ '\n</think>\n\n' }}{% endif %}
{%- endif %}"""
THINKING = {"enable_thinking": True}
VISION = "<|vision_start|><|image_pad|><|vision_end|>"
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {}}}]
BEFORE = "<think>\n"  # of each prompt


def said(role: str, text: str = "", thought: str = "", **fields) -> dict:
    fields |= {"reasoning_content": thought} if thought else {}
    return {"role": role, "content": [{"type": "text", "text": text}] if text else [], **fields}


def call(**arguments) -> dict:
    return {"type": "function", "function": {"name": "look", "arguments": arguments}}


def collator_of(family: str, path: str, template: str = "", **kwargs):
    loader = LOADERS.get(family)(path)
    processor = loader.load_processor()
    processor.chat_template = template or processor.chat_template
    stop_tokens = loader.stop_tokens(processor.tokenizer)
    return COLLATORS.get(family)(processor, stop_tokens=stop_tokens, **kwargs)


def trained(collator, messages: list[dict]) -> list[str]:
    """The trained texts of a conversation, each with its end."""
    found, tokenizer = [[]], collator.processor.tokenizer
    for label in collator.encode({"messages": messages}).inputs["labels"][0].tolist():
        if label != IGNORE_INDEX:
            found[-1].append(label)
        elif found[-1]:
            found.append([])
    return [tokenizer.decode(ids) for ids in found if ids]


ASKED = said("user", "Which?")
ROME = 'Rome <tool_call>look {"a": "Rome", "b": [1, null]}</tool_call><|im_end|>'
# Conversation -> what is trained of it.
CONVERSATIONS = {
    "a thought": ([ASKED, said("assistant", "Red", " Hm.\n")], ["Hm.\n</think>\n\nRed<|im_end|>"]),
    "two thoughts": (
        [said("system", "S"), ASKED, said("assistant", "Red", "Hm."), ASKED, said("assistant", "Blue", "Well")],
        ["Well\n</think>\n\nBlue<|im_end|>"],
    ),
    "a thought and none": (
        [ASKED, said("assistant", "Red", "Hm."), ASKED, said("assistant", "Blue")],
        ["Blue<|im_end|>"],
    ),
    "tools": ([ASKED | {"tools": TOOLS}, said("assistant", "Red")], ["Red<|im_end|>"]),
    "a thought, a call, a result, a thought": (
        [
            *(ASKED | {"tools": TOOLS}, said("assistant", "Rome ", "Hm.", tool_calls=[call(a="Rome", b=[1, None])])),
            *(said("tool", "1"), said("tool", "2"), said("assistant", "Red", "Well")),
        ],
        ["Hm.\n</think>\n\n" + ROME.replace("Rome <", "Rome<", 1), "Well\n</think>\n\nRed<|im_end|>"],
    ),
    "calls alone": (
        [ASKED | {"tools": TOOLS}, said("assistant", tool_calls=[call(), call(b=1)])],
        ['<tool_call>look {}</tool_call><tool_call>look {"b": 1}</tool_call><|im_end|>'],
    ),
}


@pytest.fixture(scope="module")
def thinking(tiny):
    return collator_of("qwen3.5", tiny("qwen3.5"), TEMPLATE, template_kwargs=THINKING)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_tokens_are_the_checkpoints_and_replies_are_trained(tiny, thinking, name):
    messages, expected = CONVERSATIONS[name]
    assert trained(thinking, messages) == expected
    own = LOADERS.get("qwen3.5")(tiny("qwen3.5")).load_processor()
    as_text = [m | {"content": m["content"][0]["text"]} if m["role"] == "tool" else m for m in messages]
    official = own.apply_chat_template(
        [as_text], chat_template=TEMPLATE, tools=messages[0].get("tools"), tokenize=True, return_dict=True, **THINKING
    )["input_ids"][0]
    assert thinking.encode({"messages": messages}).inputs["input_ids"][0].tolist() == list(official)


# Mistral's and Gemma 4's: a call has an id, and a result the name of its call.
CALL_OF = "(messages[1].tool_calls | selectattr('id', 'eq', m.tool_call_id) | first)"
IDS = TEMPLATE.replace("call.function.name + ' '", "call.function.name + call.id[-9:]").replace(
    "+ m.content +", f"+ {CALL_OF}.function.name + m.content +"
)
# Llama's: a question is a text.
TEXT = TEMPLATE.replace(" if m.content is string else m.content | map(attribute='text') | join", " | string")


def test_a_row_of_any_spelling_is_written_by_a_template_that_needs_ids(tiny, write_rows):
    calls = [{"role": "tool_call", "content": json.dumps({"name": name})} for name in ("look", "find")]
    results = [{"role": "tool_response", "content": text} for text in ("1", "2")]
    asked, answer = {"role": "user", "content": "Which?"}, {"role": "assistant", "content": "Red"}
    path = write_rows([{"tools": TOOLS, "messages": [asked, *calls, *results, answer]}])
    text = collator_of("qwen3.5", tiny("qwen3.5"), IDS).encode(MultimodalDataset(path)[0]).text
    assert "<tool_call>lookcall00001{}</tool_call><tool_call>findcall00002{}</tool_call>" in text
    assert "<tool_response>look1</tool_response>" in text and "<tool_response>find2</tool_response>" in text


def test_images_stay_where_the_template_takes_them(tiny, write_rows):
    parts = [{"type": "image"}, {"type": "text", "text": "A map."}]
    made = {"role": "assistant", "tool_calls": [call()]}
    messages = [{"role": "user", "content": "Which?"}, made, {"role": "tool", "content": parts}]
    messages += [{"role": "assistant", "content": "Red"}]
    path = write_rows([{"tools": TOOLS, "images": ["red.png"], "messages": messages}])
    sample = MultimodalDataset(path)[0]
    taking = TEMPLATE.replace("+ m.content +", "+ ('<|image_pad|>' if m.content is sequence else '') + text +")
    encoded = collator_of("qwen3.5", tiny("qwen3.5"), taking.replace("<|image_pad|>", VISION)).encode(sample)
    assert f"<tool_response>{VISION}A map." in encoded.text and "pixel_values" in encoded.inputs
    with pytest.raises(ValueError, match="rows.json, sample 0: contains an image in a tool result, .* not support"):
        collator_of("qwen3.5", tiny("qwen3.5"), TEMPLATE).encode(sample)
    asked = MultimodalDataset(write_rows([{"tools": TOOLS, "image": "red.png", "question": "?", "answer": "Red"}]))[0]
    with pytest.raises(ValueError, match="sample 0: contains an image in the first question next to `tools`"):
        collator_of("qwen3.5", tiny("qwen3.5"), TEXT).encode(asked)


def test_a_question_next_to_tools_is_a_text_where_it_can_be(tiny):
    """Llama's writes the first question as it is given, and a list of parts as Python would."""
    collator = collator_of("qwen3.5", tiny("qwen3.5"), TEXT)
    text, _ = collator.template.render([ASKED | {"tools": TOOLS}, said("assistant", "Red")])
    assert "user\nWhich?<" in text and "'type'" in text  # the reply, whose role takes parts


def test_the_answer_alone(tiny):
    collator = collator_of("qwen3.5", tiny("qwen3.5"), TEMPLATE, template_kwargs=THINKING, train_thoughts=False)
    for messages, expected in CONVERSATIONS.values():
        assert trained(collator, messages) == [text.rpartition("</think>\n\n")[2] for text in expected]


def test_a_turn_without_a_thought_has_the_empty_one_in_the_history_too(tiny):
    """As in conversations without tools: each reply after the prompt of a model that does not think."""
    collator = collator_of("qwen3.5", tiny("qwen3.5"), TEMPLATE)
    replies = [said("assistant", tool_calls=[call()]), said("tool", "1"), said("assistant", "Red")]
    messages = [ASKED | {"tools": TOOLS}, *replies, ASKED, said("assistant", "Blue")]
    text, spans = collator.template.render(messages)
    assert len(spans) == 3
    for start, _ in spans:
        assert text[:start].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert text[: spans[0][0]] == collator.template.render_prompt(messages[:1])


def test_the_prompt_is_that_of_the_variables(tiny, thinking):
    told = collator_of("qwen3.5", tiny("qwen3.5"), TEMPLATE)
    assert thinking.template.render_prompt([ASKED]).endswith("assistant\n<think>\n")
    assert told.template.render_prompt([ASKED]).endswith("<think>\n\n</think>\n\n")
    plain = [ASKED, said("assistant", "Red")]  # the same text with and without thinking
    assert thinking.template.render(plain) == told.template.render(plain)
    assert "empty" not in told.template.render(plain)[0]


TYPED = "a </think> b <tool_call> c <|im_end|> d <think>"


def test_typed_control_strings_are_text_in_thoughts_tools_and_calls(thinking):
    def conversation(typed: str) -> list[dict]:
        tools = [
            {"type": "function", "function": {"name": typed, "description": typed, "parameters": {typed: [typed]}}}
        ]
        reply = said("assistant", typed, typed, tool_calls=[call(**{typed: {"a": typed}})])
        return [said("user", typed, tools=tools), reply, said("tool", typed), said("assistant", typed, typed)]

    tokenizer = thinking.processor.tokenizer
    control = {*tokenizer.convert_tokens_to_ids("<think> </think> <tool_call> </tool_call> <|im_end|>".split())}

    def frame(typed: str) -> list[int]:
        encoded = thinking.encode({"messages": conversation(typed)}).inputs["input_ids"][0].tolist()
        return [id for id in encoded if id in control]

    assert frame(TYPED) == frame("harmless")
    texts = trained(thinking, conversation(TYPED))
    assert len(texts) == 2 and texts[1] == f"{TYPED}\n</think>\n\n{TYPED}<|im_end|>"


# Family -> its variables, and what is trained of a thought and an answer.
OWN_FORMS = {
    "qwen3.5": (THINKING, "Hm.\n</think>\n\n", "Red<|im_end|>"),
    "qwen3.5-moe": (THINKING, "Hm.\n</think>\n\n", "Red<|im_end|>"),
    "glm-4.1v": ({}, "<think>Hm.</think>", "Red<|user|>"),  # here and below, no template writes the thought
    "gemma-4": (THINKING, "<|channel>thought\nHm.\n<channel|>", "Red<turn|>"),
    "gemma-4-unified": (THINKING, "<|channel>thought\nHm.\n<channel|>", "Red<turn|>"),
}


@pytest.mark.parametrize("family", OWN_FORMS)
def test_a_thought_is_trained_as_the_model_writes_it(tiny, family):
    variables, thought, answer = OWN_FORMS[family]
    collator = collator_of(family, tiny(family), template_kwargs=variables)
    messages = [ASKED, said("assistant", "Blue", "Well"), ASKED, said("assistant", "Red", "Hm.")]
    assert trained(collator, messages) == [thought + answer]
    ids, prompt = (
        x["input_ids"][0]
        for x in (collator.encode({"messages": messages}).inputs, collator.encode_prompt(messages[:3]))
    )
    assert ids[: len(prompt)].equal(prompt)
    collator.template.thoughts_and_tools.train_thoughts = False
    assert trained(collator, messages) == [answer]


SEVERAL = [("Which?", "<think>Hm.</think>Red"), ("So?", "Blue"), ("And?", "<think>Well</think>Green")]


@pytest.mark.parametrize("thinks", [True, False])
def test_each_reply_is_trained_with_the_history_that_a_server_shows(tiny, write_rows, thinks):
    """On the checkpoint's own template, which drops the thoughts of the history, also the empty ones."""
    pairs = [(asked, answer if thinks else answer.rpartition(">")[2]) for asked, answer in SEVERAL]
    path = write_rows([{"conversations": turns(*chain(*pairs))}, {"conversations": turns("Only?", "One")}])
    dataset = MultimodalDataset(path, train_replies="each")
    collator = collator_of("qwen3.5", tiny("qwen3.5"), template_kwargs=THINKING if thinks else None)
    own, messages, expected = LOADERS.get("qwen3.5")(tiny("qwen3.5")).load_processor(), [], []
    for asked, answer in pairs:
        thought, _, text = answer.removeprefix("<think>").rpartition("</think>")
        messages += [{"role": "user", "content": asked}]
        whole = [*messages, {"role": "assistant", "content": text, "reasoning_content": thought}]
        expected.append(
            (
                own.apply_chat_template(whole),
                f"{thought}\n</think>\n\n{text}<|im_end|>" if thought else f"{text}<|im_end|>",
            )
        )
        messages = whole
    lengths = collator.budget.token_lengths(dataset).tolist()
    for i, (text, reply) in enumerate(expected):
        sample = dataset[i]
        encoded = collator.encode(sample)
        assert encoded.text == text and trained(collator, sample["messages"]) == [reply]
        assert encoded.inputs["input_ids"].shape[1] == lengths[i]
        asked = questions(dataset, [i])
        assert [(question.index, question.turn) for question in asked] == [(i, i)]
        prompt = collator.encode_prompt(sample["messages"][: asked[0].message])["input_ids"][0]
        if thinks == ("</think>" in reply):
            assert encoded.inputs["input_ids"][0][: len(prompt)].equal(prompt)
    assert cost_of_replies(dataset, np.array(lengths)).startswith(f"{path}: 4 replies of 2 conversations take ")


def test_the_thoughts_of_the_history_do_not_tell_a_reply_to_think(tiny):
    """As in Gemma 4, where a system turn tells the model to think."""
    told = "{%- if enable_thinking %}{{ '<|im_start|>system\\nThink<|im_end|>\\n' }}{% endif %}"
    collator = collator_of("qwen3.5", tiny("qwen3.5"), told + TEMPLATE, template_kwargs=THINKING)
    for mask in ({"train": False}, {}):  # also one that is not trained because the template drops it
        for thought in ("", "Well"):
            history = [ASKED, said("assistant", "Red", "Hm.", **mask), ASKED]
            text, _ = collator.template.render([*history, said("assistant", "Blue", thought)])
            assert ("Think<" in text) == bool(thought) and "Hm." not in text
    kept = TEMPLATE.replace("loop.index0 > ns.question", "(m.reasoning_content or loop.index0 > ns.question)")
    collator = collator_of("qwen3.5", tiny("qwen3.5"), told + kept, template_kwargs=THINKING)
    text, _ = collator.template.render(
        [ASKED, said("assistant", "Red", "Hm.", train=False), ASKED, said("assistant", "B")]
    )
    assert "Think<" not in text and "Hm." in text


LEFT_OUT = TEMPLATE.replace("loop.index0 > ns.question", "m.reasoning_content")  # an empty thought, at once


def test_a_call_without_a_thought_and_the_reply_after_it_have_each_their_own_prompt(tiny, write_rows):
    """Gemma 4: the prompt for a call ends with an empty thought, which the prompt for the next reply does not show."""
    messages = []
    for asked, result, answer in (("Which?", "1", "Red"), ("So?", "2", "Blue")):
        made = {"role": "assistant", "content": "", "tool_calls": [call(a=result)]}
        messages += [{"role": "user", "content": asked}, made]
        messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": answer}]
    own = LOADERS.get("qwen3.5")(tiny("qwen3.5")).load_processor()

    def official(number: int, **options) -> str:
        options |= {"chat_template": LEFT_OUT, "tools": TOOLS, "enable_thinking": False}
        return own.apply_chat_template(messages[:number], **options)

    path, collator = (
        write_rows([{"tools": TOOLS, "messages": messages}]),
        collator_of("qwen3.5", tiny("qwen3.5"), LEFT_OUT),
    )
    dataset = MultimodalDataset(path, train_replies="each")
    for sample, number, length in zip(dataset, (2, 4, 6, 8), collator.budget.token_lengths(dataset), strict=True):
        reply = official(number).rpartition("<|im_start|>assistant\n")[2]
        encoded = collator.encode(sample)
        assert encoded.text == official(number - 1, add_generation_prompt=True) + reply
        assert trained(collator, sample["messages"]) == [reply.rstrip()]
        assert collator.template.thoughts_and_tools.parts_of(reply) == [
            ("answer" if number % 4 == 0 else "call", reply)
        ]
        assert encoded.inputs["input_ids"].shape[1] == length
    for option in ("all", "last"):
        with pytest.raises(ValueError, match="sample 0: has a tool call without a thought.* Add --train_replies each"):
            collator.encode(MultimodalDataset(path, train_replies=option)[0])
    # One of them alone fits; with thoughts there is no empty one, and an exchange stays one sample.
    for place, reply in ((1, official(2)), (3, official(4))):
        masked = [m | {"train": i == place} if m["role"] == "assistant" else m for i, m in enumerate(messages[:4])]
        sample = MultimodalDataset(write_rows([{"tools": TOOLS, "messages": masked}], "masked.json"))[0]
        assert trained(collator, sample["messages"]) == [reply.rpartition("<|im_start|>assistant\n")[2].rstrip()]
    thoughts = [m | {"reasoning_content": "Hm."} if m["role"] == "assistant" else m for m in messages]
    path = write_rows([{"tools": TOOLS, "messages": thoughts}], "thoughts.json")
    thinking = collator_of("qwen3.5", tiny("qwen3.5"), LEFT_OUT, template_kwargs=THINKING)
    assert [len(trained(thinking, row["messages"])) for row in MultimodalDataset(path, train_replies="each").rows] == [
        2,
        2,
    ]


def test_a_server_gets_what_shows_several_turns_as_they_are_trained(tiny, write_rows):
    collator = collator_of("qwen3.5", tiny("qwen3.5"))
    dataset = MultimodalDataset(write_rows([{"conversations": turns("Which?", "Red", "So?", "Blue")}]))
    plain, [row] = outlines(dataset), dataset.rows
    template = collator.template.thoughts_and_tools.server_template(plain)
    assert "generation %" not in template and "the server with server_chat_template.jinja" in check_template(
        collator, dataset
    )
    own = LOADERS.get("qwen3.5")(tiny("qwen3.5")).load_processor()
    prompt = own.apply_chat_template(row["messages"][:3], chat_template=template, add_generation_prompt=True)
    text, spans = collator.template.render(row["messages"])
    assert text[: spans[1][0]] == prompt != own.apply_chat_template(row["messages"][:3], add_generation_prompt=True)

    one = collator.template.thoughts_and_tools
    for conversations in (plain + [CALLED], plain[:0], [row["messages"][:2]]):  # it could not write calls
        assert one.server_template(conversations) is None
    assert "--train_replies each" in one.notes(plain + [CALLED])[0] and not one.notes([row["messages"][:2]])
    with_tools = [row["messages"][0] | {"tools": TOOLS}, *row["messages"][1:]]
    assert "after an empty thought" in one.notes([with_tools])[0] and "train_replies each" in one.notes([with_tools])[0]
    # Where the template can keep them itself.
    condition = "loop.index0 > last.question"
    keeping = own.chat_template.replace(condition, f"preserve_thinking is true or {condition}")
    assert (
        "preserve_thinking"
        in collator_of("qwen3.5", tiny("qwen3.5"), keeping).template.thoughts_and_tools.notes(plain)[0]
    )
    kept = collator_of("qwen3.5", tiny("qwen3.5"), keeping, template_kwargs={"preserve_thinking": True})
    assert [note[:14] for note in kept.template.thoughts_and_tools.notes(plain)] == ["A server needs"]
    assert kept.template.render_prompt(row["messages"][:3]) == prompt
    assert kept.template.request_options() == {
        "chat_template_kwargs": {"enable_thinking": False, "preserve_thinking": True}
    }


def test_a_model_that_always_thinks_tells_of_the_thoughts_it_drops(tiny, write_rows):
    """Qwen3-VL Thinking: the prompt begins a thought, which the history leaves out."""
    collator = collator_of("qwen3-vl", tiny("qwen3-vl"), QWEN3_THINKING_TEMPLATE)
    own = LOADERS.get("qwen3-vl")(tiny("qwen3-vl")).load_processor()
    path = write_rows([{"conversations": turns("Which?", "Red", "So?", "Blue")}])
    dataset, each = MultimodalDataset(path), MultimodalDataset(path, train_replies="each")
    assert "the server with server_chat_template.jinja" in check_template(collator, dataset)
    template, [row] = collator.template.thoughts_and_tools.server_template(outlines(dataset)), dataset.rows
    text, spans = collator.template.render(row["messages"])
    prompt = own.apply_chat_template(row["messages"][:3], chat_template=template, add_generation_prompt=True)
    assert text[: spans[1][0]].replace(RESERVED_CHARACTER, "") == prompt.replace(RESERVED_CHARACTER, "")
    shown = own.apply_chat_template(row["messages"], chat_template=QWEN3_THINKING_TEMPLATE)
    assert collator.encode(each[1]).text == shown and "user\nSo?" in shown and shown.count("<think>") == 1
    assert trained(collator, each[1]["messages"]) == ["\n</think>\n\nBlue<|im_end|>"]


THOUGHT = [ASKED, said("assistant", "Red", "Hm.")]
CALLED = [ASKED | {"tools": TOOLS}, said("assistant", tool_calls=[call(a=1)])]


@pytest.mark.parametrize(
    "family, template, messages, told",
    [
        ("qwen2-vl", "", THOUGHT, "a thought .* the chat template does not support"),
        ("qwen2-vl", "", CALLED, "`tools`, which the chat template does not support"),
        ("qwen3.5", TEMPLATE, THOUGHT, "add --template_kwargs '{\"enable_thinking\": true}'"),
        ("qwen3.5", TEMPLATE.replace("m.tool_calls or []", "[]"), CALLED, "a tool call .* not support"),
        ("qwen3.5", TEMPLATE.replace("{{- text | trim }}", "{{- '' if m.tool_calls else text }}"),
         [ASKED, said("assistant", "I look", tool_calls=[call()])], "drops 'I look' from a reply"),
    ],
)  # fmt: skip
def test_what_has_no_place_is_refused_by_name(tiny, family, template, messages, told):
    with pytest.raises(ValueError, match=told):
        collator_of(family, tiny(family), template).encode({"messages": messages, "source": "sample 3"})


def test_a_typed_thought_stays_text_where_there_is_no_place(tiny):
    reply = said("assistant", "Red", "Hm", typed_thought="<think>\nHm</think>\n")
    assert trained(collator_of("qwen2-vl", tiny("qwen2-vl")), [ASKED, reply]) == ["<think>\nHm</think>\nRed<|im_end|>"]


def test_an_unknown_variable_is_refused(tiny):
    with pytest.raises(ValueError, match="no variable 'think'"):
        collator_of("qwen3.5", tiny("qwen3.5"), TEMPLATE, template_kwargs={"think": True})


def test_a_thought_is_split_from_an_answer(tiny, thinking):
    own = thinking.template.thoughts_and_tools
    assert own.split("Hm.\n</think>\n\nRed") == ("Hm.", "Red") and own.split("Red") == ("", "Red")
    assert own.split("Hm.", is_whole=False) == ("Hm.", "") and own.split("Hm.</think>", is_whole=False) == ("Hm.", "")
    gemma = collator_of("gemma-4", tiny("gemma-4"), template_kwargs=THINKING).template.thoughts_and_tools
    assert gemma.split("<|channel>thought\nHm.\n<channel|>Red") == ("Hm.", "Red")
    assert gemma.split("<|channel>", is_whole=False) == ("", "")


def test_a_run_keeps_its_variables(tiny, write_rows, tmp_path, capsys):
    rows = [
        {"conversations": turns("Which?", "<think>Hm.</think>Red", "So?", "Blue")},
        {
            "messages": [
                {"role": "user", "content": "Which?"},
                {"role": "assistant", "content": "Red", "reasoning": "Hm."},
            ]
        },
    ]
    template = tmp_path / "thinks.jinja"
    template.write_text(TEMPLATE)
    path, flags = write_rows(rows), ["--chat_template", str(template)]
    with pytest.raises(ValueError, match="rows.json, sample 0: contains a thought .* add --template_kwargs"):
        run(tiny, "qwen3.5", path, tmp_path / "out", *flags)
    flags += ["--template_kwargs", json.dumps(THINKING)]
    run(tiny, "qwen3.5", path, tmp_path / "out", *flags, "--max_steps", 1, "--use_lora", True)
    told = capsys.readouterr().out
    assert 'chat_template_kwargs={"enable_thinking": true}' in told and "drops the thoughts of earlier replies" in told
    _, collator = predict.load(str(tmp_path / "out"))
    assert collator.template.render_prompt([ASKED]).endswith(BEFORE)
    with pytest.raises(SystemExit):
        words = ["--model_id", "qwen3.5-0.8b", "--model_local_path", tiny("qwen3.5"), "--data_path", path, "--json"]
        preview.main([*words, *flags])
    assert '"trained": ["Hm.\\n</think>\\n\\nRed<|im_end|>"]' in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_learns_to_think_and_to_call(tiny, write_rows, tmp_path):
    """Asked by plain transformers afterwards, with the template that it was saved with."""
    city = {"type": "object", "properties": {"city": {"type": "string", "description": "A city."}}}
    tools = [{"type": "function", "function": {"name": "weather", "description": "Warmth.", "parameters": city}}]
    made = [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]
    rows = [
        {"tools": tools, "messages": [{"role": "user", "content": "How warm is Rome?"},
         {"role": "assistant", "reasoning_content": "Ask for it.", "content": "", "tool_calls": made},
         {"role": "tool", "content": "12"}, {"role": "assistant", "content": "12 degrees"}]},
        {"messages": [{"role": "user", "content": "How many shapes?"},
         {"role": "assistant", "reasoning_content": "A red circle.", "content": "One"},
         {"role": "user", "content": "Which?"},
         {"role": "assistant", "reasoning_content": "Round.", "content": "Circle"}]},
    ]  # fmt: skip
    flags = ["--template_kwargs", json.dumps(THINKING), "--train_replies", "each", "--max_steps", 60]
    flags += ["--learning_rate", 3e-3, "--warmup_steps", 3, "--logging_steps", 20]
    run(tiny, "qwen3.5", write_rows(rows), tmp_path / "out", *flags)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")

    def answer(messages: list[dict], **options) -> str:
        options |= THINKING | {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        inputs = processor.apply_chat_template([messages], return_tensors="pt", **options)
        tokens = model.generate(**inputs, max_new_tokens=60, do_sample=False)
        return processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :])

    asked = [{"role": "user", "content": "How warm is Rome?"}]
    call = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>"
    assert answer(asked, tools=tools) == f"Ask for it.\n</think>\n\n{call}<|im_end|>"
    asked = rows[1]["messages"]
    assert answer(asked[:1]) == "A red circle.\n</think>\n\nOne<|im_end|>"
    assert answer(asked[:3]) == "Round.\n</think>\n\nCircle<|im_end|>"
