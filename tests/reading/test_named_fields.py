"""The spellings of thoughts, tools, calls and results: each gives the same canonical messages."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reading.dataset import MultimodalDataset
from reading.rows import RowForm

FORM = RowForm({"image": "/", "video": "/"})
TOOL = {"name": "look", "description": "Looks.", "parameters": {"b": 1, "a": 2}}
ARGUMENTS = {"b": 1, "a": [None, "ä"]}
CALL = {"name": "look", "arguments": ARGUMENTS}
IN_TEXT = json.dumps(CALL)
ASK, ANSWER = {"role": "user", "content": "Which?"}, {"role": "assistant", "content": "Red"}
RESULT = {"role": "tool", "content": "found"}


def text(said: str) -> list[dict]:
    return [{"type": "text", "text": said}] if said else []


def read(row: dict) -> list[dict]:
    return FORM.messages(FORM.named(row))


CALLED = [
    {"role": "user", "content": text("Which?"), "tools": [{"type": "function", "function": TOOL}]},
    {"role": "assistant", "content": [], "tool_calls": [{"id": "call00001", "type": "function", "function": CALL}]},
    {"role": "tool", "content": text("found"), "tool_call_id": "call00001"},
    {"role": "assistant", "content": text("Red")},
]
SPELLINGS = {
    "OpenAI's": {
        "tools": [{"type": "function", "function": TOOL}],
        "messages": [
            *(ASK, {"role": "assistant", "content": None, "tool_calls": [
                {"type": "function", "function": {"name": "look", "arguments": json.dumps(ARGUMENTS)}}]}),
            *(RESULT, ANSWER),
        ],
    },
    "TRL's": {
        "tools": [TOOL],
        "messages": [ASK, {"role": "assistant", "tool_calls": [{"function": CALL}]}, RESULT, ANSWER],
    },
    "LLaMA-Factory's": {
        "tools": json.dumps([TOOL]),
        "conversations": [
            *({"from": "human", "value": "Which?"}, {"from": "function_call", "value": IN_TEXT}),
            *({"from": "observation", "value": "found"}, {"from": "gpt", "value": "Red"}),
        ],
    },
    "ms-swift's": {
        "tools": json.dumps([TOOL]),
        "messages": [
            *(ASK, {"role": "tool_call", "content": IN_TEXT}),
            *({"role": "tool_response", "content": "found"}, ANSWER),
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_of_tools_gives_the_canonical_messages(name):
    messages = read(SPELLINGS[name])
    assert messages == CALLED
    assert [*messages[1]["tool_calls"][0]["function"]["arguments"]] == ["b", "a"]  # in their order


NOT_SAID = dict.fromkeys(("refusal", "annotations", "audio", "function_call"))  # as the library `openai` writes them


def turns(**texts) -> list[dict]:
    return [{"from": sender.rstrip("_"), "value": value} for sender, value in texts.items()]


# Two of each spelling that say the same as the canonical ones, or another call.
OTHERS = {
    "OpenAI's own objects": (
        {"tools": [{"type": "function", "function": TOOL}], "messages": [
            *(ASK | {"name": None}, NOT_SAID | {"role": "assistant", "content": None, "tool_calls": [
                {"index": 0, "id": "call00001", "type": "function",
                 "function": {"name": "look", "arguments": json.dumps(ARGUMENTS)}}]}),
            *(RESULT | {"tool_call_id": "call00001"}, NOT_SAID | ANSWER | {"tool_calls": None, "reasoning": " "})]},
        ARGUMENTS,
    ),
    "OpenAI's, nothing to say": (
        {"tools": [TOOL], "messages": [ASK, {"role": "assistant", "content": "", "reasoning_content": None,
         "tool_calls": [{"id": None, "function": {"name": "look", "arguments": ""}}]}, RESULT, ANSWER]},
        {},
    ),
    "LLaMA-Factory's, a list of one and an empty system text": (
        {"system": "", "tools": json.dumps([TOOL]), "conversations": turns(
            human="Which?", function_call=json.dumps([CALL]), observation="found", gpt="Red")},
        ARGUMENTS,
    ),
    "LLaMA-Factory's, an empty thought": (
        {"tools": json.dumps([TOOL]), "conversations": turns(
            human="Which?", function_call="<think>\n\n</think>\n\n" + IN_TEXT, observation="found", gpt="Red")},
        ARGUMENTS,
    ),
    "ms-swift's, arguments as JSON in JSON": (
        {"tools": [json.dumps(TOOL)], "messages": [
            *(ASK, {"role": "tool_call", "content": json.dumps({"name": "look", "arguments": json.dumps(ARGUMENTS)})}),
            *({"role": "tool_response", "content": "found"}, ANSWER)]},
        ARGUMENTS,
    ),
    "ms-swift's, an object": (
        {"tools": json.dumps([TOOL]), "messages": [
            *(ASK, {"role": "tool_call", "content": CALL, "loss": None}),
            *(RESULT | {"loss": False}, ANSWER | {"loss": True})]},
        ARGUMENTS,
    ),
    "TRL's, a call in the completion": (
        {"tools": [TOOL], "prompt": [ASK], "completion": [
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
            *(RESULT, ANSWER)]},
        ARGUMENTS,
    ),
    "TRL's, without arguments": (
        {"tools": [TOOL], "prompt": [ASK], "completion": [
            {"role": "assistant", "tool_calls": [{"function": {"name": "look"}}]}, RESULT, ANSWER]},
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_row_of_a_spelling_gives_them_too(name):
    row, arguments = OTHERS[name]
    expected, messages = json.loads(json.dumps(CALLED)), read(row)
    expected[1]["tool_calls"][0]["function"] = {"name": "look", "arguments": arguments}
    for message in messages:
        message.pop("typed_thought", None), message.pop("train", None)
        message["content"] = [part for part in message["content"] if part["text"]]
    assert messages == expected


def test_parquet_gives_no_call_the_arguments_of_another(tmp_path):
    """It gives each object the fields of all: they are null where a row does not have them."""
    names = {"look": {"b": 1, "a": [1]}, "find": {"word": {"in": "x"}, "b": 2}, "stop": {}}
    rows = []
    for name, arguments in names.items():
        made = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": name, "arguments": arguments}}],
        }
        schema = {"type": "object", "properties": {key: {"type": "string", key: "x"} for key in arguments}}
        rows.append({"tools": [{"name": name, "parameters": schema}], "messages": [ASK, made]})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    same, read_rows = (MultimodalDataset(str(tmp_path / f"rows.{end}")).rows for end in ("json", "parquet"))
    assert [row["messages"] for row in read_rows] == [row["messages"] for row in same]
    assert [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in read_rows] == [*names.values()]


def test_calls_in_a_row_are_one_message_and_keep_the_text_before():
    calls = [{"role": "tool_call", "content": json.dumps({"name": name})} for name in "ab"]
    more = {"role": "tool_call", "content": json.dumps([{"name": "c"}, {"name": "d"}])}
    messages = read({"messages": [ASK, ANSWER, *calls, RESULT, RESULT, more, RESULT, ANSWER]})
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool", "assistant", "tool", "assistant"]
    assert messages[1]["content"] == text("Red") and messages[4]["content"] == []
    names = [[c["function"]["name"] for c in messages[i]["tool_calls"]] for i in (1, 4)]
    assert names == [["a", "b"], ["c", "d"]]


def test_ids_and_names_of_results_are_kept():
    call = {"id": "c1", "function": {"name": "look"}}
    result = RESULT | {"tool_call_id": "c1", "name": "look"}
    messages = read({"messages": [{"role": "developer", "content": "S"}, ASK, {**ANSWER, "tool_calls": [call]}, result]
                     + [ANSWER]})  # fmt: skip
    assert messages[0]["role"] == "system" and messages[2]["tool_calls"][0]["id"] == "c1"
    assert (messages[3]["tool_call_id"], messages[3]["name"]) == ("c1", "look")


def test_a_thought_may_head_the_message_of_a_call():
    called = {"from": "function_call", "value": f"<think>\nHm.\n</think>\n\n{IN_TEXT}"}
    more = [{"from": "observation", "value": "found"}, {"from": "gpt", "value": "Red"}]
    _, message, *_ = read({"conversations": [{"from": "human", "value": "Which?"}, called, *more]})
    assert message["reasoning_content"] == "Hm." and message["tool_calls"][0]["function"] == CALL
    assert not "".join(part["text"] for part in message["content"])


def test_images_of_results_are_where_their_text_says():
    call = {"role": "tool_call", "content": IN_TEXT}
    asked, found = {"role": "user", "content": "<image>Which?"}, {"role": "tool_response", "content": "<image>A map"}
    image = lambda name: {"type": "image", "image": f"/{name}.png"}  # noqa: E731
    for question, images, placed in (
        (asked, "ab", [[image("a"), *text("Which?")], [image("b"), *text("A map")]]),
        (ASK, "a", [text("Which?"), [image("a"), *text("A map")]]),
        (asked, "a", [[image("a"), *text("Which?")], text("<image>A map")]),  # which the tool wrote
    ):
        row = {"messages": [question, call, found, ANSWER], "images": [f"{name}.png" for name in images]}
        assert [read(row)[i]["content"] for i in (0, 2)] == placed
    with pytest.raises(ValueError, match="has 2 <image> .* but 3 in its `images` field"):
        read({"messages": [asked, call, found, ANSWER], "images": ["a.png"] * 3})


def test_calls_and_results_without_an_id_get_one_in_their_order():
    made = [{"id": "c1", "name": "a"}, {"name": "b"}, {"name": "c"}]
    called, again = ({"role": "assistant", "tool_calls": calls} for calls in (made, made[2:]))
    results = [RESULT | {"name": "b"}, RESULT, RESULT]
    messages = read({"messages": [ASK, called, *results, ANSWER, ASK, again, RESULT, ANSWER]})
    ids = [[c["id"] for c in m["tool_calls"]] if "tool_calls" in m else m.get("tool_call_id") for m in messages]
    assert ids[1:5] == [["c1", "call00002", "call00003"], "call00002", "c1", "call00003"]
    assert ids[7:9] == [["call00004"], "call00004"]


THOUGHT = {"role": "assistant", "content": text("Red"), "reasoning_content": "Hm"}
THOUGHTS = {
    "a field": (ANSWER | {"reasoning_content": "Hm"}, THOUGHT),
    "its short name": (ANSWER | {"reasoning": "Hm", "reasoning_content": ""}, THOUGHT),
    "both alike": (ANSWER | {"reasoning": "Hm", "reasoning_content": "Hm"}, THOUGHT),
    "the head of a text": (
        ANSWER | {"content": "<think>\nHm\n</think>\n\nRed"},
        THOUGHT | {"typed_thought": "<think>\nHm\n</think>\n\n"},
    ),
    "an empty one": (
        ANSWER | {"content": "<think>\n\n</think>\n\nRed"},
        {"role": "assistant", "content": text("Red"), "typed_thought": "<think>\n\n</think>\n\n"},
    ),
    "in the middle": (ANSWER | {"content": "A <think>Hm</think>"}, ANSWER | {"content": text("A <think>Hm</think>")}),
    "not closed": (ANSWER | {"content": "<think>Hm"}, ANSWER | {"content": text("<think>Hm")}),
    "white space alone": (ANSWER | {"reasoning": " \n"}, ANSWER | {"content": text("Red")}),
}


@pytest.mark.parametrize("name", THOUGHTS)
def test_a_spelling_of_a_thought(name):
    given, canonical = THOUGHTS[name]
    assert read({"messages": [ASK, given]})[1] == canonical
    if "reasoning" not in {*given}:
        assert read({"prompt": "Which?", "completion": [given]})[1] == canonical


def test_two_questions_in_a_row_may_come_before_a_call():
    messages = [ASK, ASK, ANSWER | {"tool_calls": [CALL]}, RESULT, ANSWER]
    assert [message["role"] for message in read({"messages": messages})] == [m["role"] for m in messages]


FAULTS = {
    "two thoughts": ([ASK, ANSWER | {"reasoning": "a", "reasoning_content": "b"}], {}, "both `reasoning_content`"),
    "a thought twice": (
        [ASK, ANSWER | {"reasoning": "a", "content": "<think>a</think>b"}],
        {},
        r"messages\[1\].*keep one",
    ),
    "a thought that is no text": ([ASK, ANSWER | {"reasoning": ["a"]}], {}, r"messages\[1\].reasoning must be text"),
    "a thought of a user": ([ASK | {"reasoning": "a"}, ANSWER], {}, "only a reply may have this field"),
    "a reserved character": ([ASK, ANSWER | {"reasoning": "a\ufdd0"}], {}, r"U\+FDD0 in a thought"),
    "a call that is no JSON": ([ASK, {"role": "tool_call", "content": "look()"}], {}, "not valid JSON"),
    "a call without a name": ([ASK, ANSWER | {"tool_calls": [{"arguments": {}}]}], {}, r"tool_calls\[0\] must be"),
    "arguments in a list": ([ASK, ANSWER | {"tool_calls": [{"name": "a", "arguments": "[1]"}]}], {}, "JSON object"),
    "a result without a call": ([ASK, RESULT, ANSWER], {}, "tool results after each message with calls"),
    "a call without a result": ([ASK, ANSWER | {"tool_calls": [CALL]}, ASK, ANSWER], {}, "results after each message"),
    "a result at the end": ([ASK, ANSWER | {"tool_calls": [CALL]}, RESULT], {}, "at the end"),
    "tools that are no JSON": ([ASK, ANSWER], {"tools": "a hammer"}, "`tools` is not valid JSON.*--columns tools="),
    "tools that are no schemas": ([ASK, ANSWER], {"tools": ["look"]}, "`tools\\[0\\]` is not valid JSON"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_meant_is_refused_by_name(name):
    messages, more, told = FAULTS[name]
    with pytest.raises(ValueError, match=told):
        read({"messages": messages} | more)
