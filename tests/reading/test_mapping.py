"""Fields by other names, constants, and forms of other tools: each equals the same data as `messages`."""

import argparse
import json
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import train
from reading.dataset import MultimodalDataset, shared_rows
from reading.rows import media_in
from reading.sources import names_of

IMAGE = {"type": "image", "path": "red.png"}
ASKED = [
    {"role": "user", "content": [IMAGE, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": "A square"},
]


def said(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def with_system(text: str, messages: list[dict]) -> list[dict]:
    return [{"role": "system", "content": text}, *messages]


# Row, --columns, other arguments -> the same as `messages`.
MAPPED = {
    "other names": ({"query": "What?", "label": "A square", "jpg": "red.png"}, "question=query answer=label image=jpg"),
    "one name is another's": (
        {"answer": "What?", "question": "A square", "image": "red.png"},
        "question=answer answer=question",
    ),
    "nested": (
        {"q": {"text": "What?"}, "as": [{"text": "A square"}], "m": {"f": [{"p": "red.png"}]}},
        "question=q.text answer=as[0].text images=m.f[].p",
    ),
    "a name with a dot": ({"q.text": "What?", "a": "A square", "image": "red.png"}, "question=q.text answer=a"),
    "turns": (
        {
            "chat": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A square"}],
            "image": "red.png",
        },
        "conversations=chat",
    ),
    "turns as JSON in a text": (
        {"chat": json.dumps([{"role": "user", "content": "<image>What?"}, ASKED[1]]), "image": "red.png"},
        "messages=chat",
    ),
    "a part of the field of its own name": (
        {"question": ["What?", "Why?"], "answer": ["A square", "So", "So"], "image": {"file": "red.png"}},
        "question=question[0] answer=answer[0] image=image.file",
    ),
    "beside what is ignored": (
        {"question": "No", "query": "What?", "answer": "A square", "image": "red.png"},
        "question= question=query",
    ),
}


@pytest.mark.parametrize("kind", MAPPED)
def test_a_field_by_another_name_is_that_field(write_rows, media_folder, kind):
    row, columns = MAPPED[kind]
    columns = columns.split()
    as_messages = MultimodalDataset(write_rows([{"messages": ASKED}])).rows[0]["messages"]
    paths = [write_rows([row])]
    if kind != "turns":  # Arrow wants one type in each list
        pq.write_table(pa.Table.from_pylist([row]), media_folder / f"{kind}.parquet")
        paths.append(str(media_folder / f"{kind}.parquet"))
    for path in paths:
        dataset = MultimodalDataset(path, columns=columns)
        assert dataset.rows[0]["messages"] == as_messages and dataset.notes() == []


def test_a_table_has_other_names_too(media_folder):
    (media_folder / "named.csv").write_text("Picture,Label\nred.png | red.png,A square\n")
    dataset = MultimodalDataset(
        str(media_folder / "named.csv"),
        columns=["image=Picture", "answer=Label"],
        prompt="What?",
        system_prompt="Be brief.",
    )
    messages = with_system(
        "Be brief.", [{"role": "user", "content": [IMAGE, IMAGE, {"type": "text", "text": "What?"}]}, ASKED[1]]
    )
    (media_folder / "same.json").write_text(json.dumps([{"messages": messages}]))
    assert dataset.rows[0]["messages"] == MultimodalDataset(str(media_folder / "same.json")).rows[0]["messages"]


def test_turns_as_json_are_read_from_tables_too(media_folder, write_rows):
    path = media_folder / "turns.csv"
    text = json.dumps([{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A square"}])
    cells = '"' + text.replace('"', '""') + '"'
    as_messages = MultimodalDataset(write_rows([{"messages": ASKED}])).rows[0]["messages"]
    for name, columns in (("conversations", None), ("Chat", ["messages=chat"])):
        path.write_text(f"image,{name}\nred.png,{cells}\n")
        assert MultimodalDataset(str(path), columns=columns).rows[0]["messages"] == as_messages
    with pytest.raises(ValueError, match="try --columns messages=chat$"):
        MultimodalDataset(str(path))
    with pytest.raises(ValueError, match="write a list of turns, or that list as JSON text"):  # as pandas writes a list
        MultimodalDataset(write_rows([{"messages": str(ASKED)}]))


def test_bytes_have_other_names_too(media_folder):
    data = (media_folder / "red.png").read_bytes()
    rows = [{"jpg": {"bytes": data, "path": None}, "text": "A square"}]
    pq.write_table(pa.Table.from_pylist(rows), media_folder / "bytes.parquet")
    dataset = MultimodalDataset(
        str(media_folder / "bytes.parquet"), columns=["image=jpg", "answer=text"], prompt="What?"
    )
    assert dataset.rows[0]["messages"][0]["content"][0] == {"type": "image", "image": data}
    rows = [{"jpgs": [row["jpg"]] * count, "question": "What?", "answer": "A"} for row in rows for count in (2, 0, 3)]
    pq.write_table(pa.Table.from_pylist(rows), media_folder / "lists.parquet")  # of paths that are null in all
    dataset = MultimodalDataset(str(media_folder / "lists.parquet"), columns=["images=jpgs"])
    assert [[medium for _, medium, _ in media_in(row["messages"])] for row in dataset.rows] == [
        [data] * 2,
        [],
        [data] * 3,
    ]


def test_a_class_has_the_name_that_the_file_knows(media_folder):
    kind = {"names": ["circle", "square"], "_type": "ClassLabel"}
    features = {
        "label": kind,
        "labels": {"feature": kind, "_type": "Sequence"},
        "more": [kind],
        "inside": {"of": {"names": {"_type": "Value"}, "kind": kind}},
        "parts": {"feature": {"kind": kind}, "_type": "List"},
        "image": {"_type": "Value"},
    }
    lists = {"labels": [[1, 0]] * 3, "more": [[0]] * 3}
    lists |= {"inside": [{"of": {"names": "x", "kind": 1}}] * 3, "parts": [[{"kind": 1}, {"kind": 0}]] * 3}
    table = pa.table({"label": [1, 0, None], "image": ["red.png"] * 3} | lists)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, media_folder / "classes.parquet")
    dataset = MultimodalDataset(
        str(media_folder / "classes.parquet"), columns=["answer=label"], prompt="Which?", check=False
    )
    assert [dataset.rows[i]["messages"][1]["content"][0]["text"] for i in (0, 1)] == ["square", "circle"]
    assert list(dataset.errors) == [2]
    inside = (("inside.of.kind", "square"), ("parts[1].kind", "circle"))
    for source, name in (("labels[0]", "square"), ("more[0]", "circle"), *inside):
        dataset = MultimodalDataset(
            str(media_folder / "classes.parquet"), columns=[f"answer={source}"], prompt="Which?"
        )
        assert dataset.rows[0]["messages"][1]["content"][0]["text"] == name


# Row -> the same as `messages`.
FORMS = {
    "query": ({"query": "What?", "response": "A square", "images": ["red.png"]}, ASKED),
    "query with a place": (
        {"query": "A <image> B", "response": "C", "images": ["red.png"]},
        [
            {"role": "user", "content": [{"type": "text", "text": "A "}, IMAGE, {"type": "text", "text": " B"}]},
            *said("", "C")[1:],
        ],
    ),
    "instruction": (
        {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "Be exact."},
        with_system("Be exact.", said("Add.\n1 and 2", "3")),
    ),
    "instruction without input": (
        {"instruction": "Add 1 and 2.", "input": "", "output": "3"},
        said("Add 1 and 2.", "3"),
    ),
    "a number": ({"question": "How many?", "answer": 3}, said("How many?", "3")),
    "history": ({"history": [["A", "B"], ["C", "D"]], "query": "E", "response": "F"}, said(*"ABCDEF")),
    "places in strings": ({"messages": said("<image>What?", "A square"), "images": ["red.png"]}, ASKED),
    "places in parts": (
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "<image>\nWhat?"}]}, ASKED[1]],
            "image": "red.png",
        },
        ASKED,
    ),
    "no place": ({"messages": said("What?", "A square"), "images": ["red.png"]}, ASKED),
    "roles in conversations": ({"conversations": said("<image>\nWhat?", "A square"), "image": "red.png"}, ASKED),
    "senders in messages": (
        {"messages": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A square"}], "image": "red.png"},
        ASKED,
    ),
    "parts by value": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "value": "red.png"}, {"type": "text", "value": "What?"}],
                },
                ASKED[1],
            ]
        },
        ASKED,
    ),
    "image_url by value": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "value": "red.png"}, {"type": "text", "value": "What?"}],
                },
                ASKED[1],
            ]
        },
        ASKED,
    ),
    "turns by their roles": (
        {"conversations": [{"system": "S", "human": "A", "assistant": "B"}, {"gpt": "D", "user": "C"}]},
        with_system("S", said(*"ABCD")),
    ),
    "a thought and calls as parts": (
        {
            "messages": [
                *said("A")[:1],
                {
                    "role": "assistant",
                    "content": [
                        {"type": "reasoning", "value": "Hm."},
                        {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                        {"type": "tool_call", "value": '{"name": "g", "arguments": {}}'},
                    ],
                },
                {"role": "tool", "content": [{"type": "text", "value": "1"}]},
                {
                    "role": "assistant",
                    "content": [{"type": "reasoning", "value": "So."}, {"type": "text", "value": "B"}],
                },
            ]
        },
        [
            *said("A")[:1],
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Hm.",
                "tool_calls": [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}],
            },
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "B", "reasoning_content": "So."},
        ],
    ),
    "places in a result": (
        {
            "messages": [
                {"role": "user", "content": "<image>A"},
                {"role": "tool_call", "content": '{"name": "f"}'},
                {"role": "tool_response", "content": "It is <image>"},
                *said("", "B")[1:],
            ],
            "images": ["red.png", "blue.png"],
        },
        [
            {"role": "user", "content": [IMAGE, {"type": "text", "text": "A"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
            {"role": "tool", "content": [{"type": "text", "text": "It is "}, IMAGE | {"path": "blue.png"}]},
            *said("", "B")[1:],
        ],
    ),
    "weights of the loss": (
        {
            "messages": [
                {"role": "user", "content": "A", "loss_weight": 0.0},
                {"role": "assistant", "content": "B", "loss_weight": 1.0},
            ]
        },
        [{"role": "user", "content": "A", "train": False}, *said("A", "B")[1:]],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_another_tool_equals_messages(write_rows, form):
    row, messages = FORMS[form]
    assert (
        MultimodalDataset(write_rows([row])).rows[0]["messages"]
        == MultimodalDataset(write_rows([{"messages": messages}])).rows[0]["messages"]
    )


def test_a_typed_place_without_media_is_text(write_rows):
    row = {"messages": said("What is <image> in HTML?", "Nothing")}
    assert MultimodalDataset(write_rows([row])).rows[0]["messages"][0]["content"] == [
        {"type": "text", "text": "What is <image> in HTML?"}
    ]


# Rows, arguments -> what the error must name.
FAULTS = {
    "a column that is not there": (
        {"question": "a", "answer": "b"},
        {"columns": ["image=jpgg"]},
        "no row of .* has a field `jpgg`",
    ),
    "a name of two fields": (
        {"question": "a", "query": "b", "answer": "c"},
        {"columns": ["question=query"]},
        "--columns question=",
    ),
    "a question of its own": ({"question": "a", "answer": "b"}, {"prompt": "c"}, "`question`.*--prompt"),
    "turns of its own": ({"messages": said("a", "b")}, {"prompt": "c"}, "`messages`.*--prompt"),
    "two answers": (
        {"answer": "a", "output": "b"},
        {"prompt": "c"},
        "`output`; keep one .--columns output=",
    ),
    "a system prompt of its own": (
        {"question": "a", "answer": "b", "system": "c"},
        {"system_prompt": "d"},
        "`system`.*--system_prompt",
    ),
    "two forms": ({"question": "a", "query": "b", "answer": "c"}, {}, "`question` and `query`.*--columns query="),
    "a list of questions": ({"question": ["a", "b"], "answer": "c"}, {}, r"--columns 'question=question\[0\]'"),
    "lists of questions and answers": (
        {"question": ["a", "b"], "answer": ["c", "d"]},
        {},
        r"--columns 'question=question\[0\]' 'answer=answer\[0\]'",
    ),
    "the same by other names": (
        {"questions": ["a", "b"], "answers": ["c", "d"], "pic": "red.png"},
        {},
        r"--columns 'question=questions\[0\]' 'answer=answers\[0\]' image=pic",
    ),
    "a truth": ({"question": "a", "answer": True}, {}, 'answer must be text, not bool: write "True"'),
    "a measure": ({"messages": [*said("a"), {"role": "assistant", "content": 0.5}]}, {}, 'not float: write "0.5"'),
    "an answer that is no text": ({"question": "a", "answer": ["b", 3]}, {}, r"answer\[1\] must be text, not int"),
    "other names": (
        {"text": "a", "caption": "b", "jpg": "red.png"},
        {},
        "--columns question=text answer=caption image=jpg",
    ),
    "no question": (
        {"meta": {"label": "b"}, "file": "clip.mp4"},
        {},
        r"--columns answer=meta.label video=file --prompt",
    ),
    "turns by another name": ({"dialog": said("a", "b")}, {}, "--columns messages=dialog"),
    "two pictures of other names": (
        {"q": "a", "label": "b", "pages": [{"file": "red.png"}], "url": "blue.png"},
        {},
        r"--columns question=q answer=label 'images=pages\[\].file' url=",
    ),
    "several answers": (
        {"q": "a", "answers": ["b", "c"], "pic": "red.png"},
        {},
        "--columns question=q answer=answers image=pic",
    ),
    "several answers, as objects": ({"q": "a", "as": [{"answer": "b"}]}, {}, r"question=q 'answer=as\[\].answer'"),
    "questions with their answers": (
        {"qa": [{"q": "a", "a": "b"}, {"q": "c", "a": "d"}], "pic": "red.png"},
        {},
        "--columns messages=qa image=pic --user_key q --assistant_key a",
    ),
    "turns by their roles": ({"system": "a", "texts": [{"user": "b", "gpt": "c"}]}, {}, "--columns messages=texts"),
    "ids": (
        {"id": "7", "imageId": "8", "frage": "Was ist das?", "question_id": "9", "antwort": "b"},
        {},
        "--columns question=frage answer=antwort",
    ),
    "a question by its name": (
        {"topic": "a b", "query": "b", "label": "c"},
        {},
        "--columns question=query answer=label",
    ),
    "a system prompt": ({"system": "a", "text": "b", "label": "c"}, {}, "--columns question=text answer=label"),
    "a thought twice": (
        {
            "messages": [
                *said("a")[:1],
                {"role": "assistant", "content": [{"type": "reasoning", "value": "b"}], "reasoning_content": "c"},
            ]
        },
        {},
        r"messages\[1\].content has a part that repeats `reasoning_content` of the message",
    ),
    "a class without a name": ({"image": "red.png", "label": 3}, {}, "try --columns answer=label --prompt"),
    "an answer of another name": (
        {"query": "a", "label": "b"},
        {},
        "no `response`: try --columns question=query answer=label",
    ),
    "an answer of another name alone": (
        {"question": "a", "label": "b"},
        {},
        "no `answer`: try --columns answer=label$",
    ),
    "a question without any other text": ({"question": "a", "image": "red.png"}, {}, "no `answer`$"),
    "a list at a source": (
        {"qs": [{"t": "a"}], "a": "b"},
        {"columns": ["question=qs[].t", "answer=a"]},
        r"'question=qs\[0\].t'",
    ),
    "a place for an empty field": (
        {"question": "<image>a", "answer": "b", "image": ""},
        {},
        "1 <image> .* 0 in its `image`",
    ),
    "a history that is no list": ({"history": 7, "query": "b", "response": "c"}, {}, r"history\[0\] is 7"),
    "half a history": ({"history": [["a"]], "query": "b", "response": "c"}, {}, r"history\[0\]"),
    "two texts of a part": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "value": "b"}]}, *said("a", "b")[1:]]},
        {},
        "both `text` and `value`",
    ),
    "an input of a question": ({"question": "a", "input": "b", "answer": "c", "train": False}, {}, "train"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_meant_is_refused_with_the_fix(write_rows, fault):
    row, arguments, named = FAULTS[fault]
    with pytest.raises(ValueError, match=named):
        MultimodalDataset(write_rows([row]), **arguments)


def test_of_several_answers_the_most_frequent_is_the_reply_and_all_are_references(write_rows):
    """A list of texts, or of objects as VQA-v2 has it; a training row with that reply says the same."""
    rows = [
        {"question": "a", "answers": ["b", "c", "d", "c"]},
        {"question": "a", "answers": ["b", "c"]},
        {"question": "a", "answers": ["b"]},
    ]
    objects = [row | {"answers": [{"answer": text, "id": 1} for text in row["answers"]]} for row in rows]
    for found, source in ((rows, "answers"), (objects, "answers[].answer")):
        dataset = MultimodalDataset(write_rows(found), columns=[f"answer={source}"])
        replies = [row["messages"][-1] for row in dataset.rows]
        assert [reply["content"][0]["text"] for reply in replies] == ["c", "b", "b"]
        assert [reply.get("references") for reply in replies] == [["b", "c", "d", "c"], ["b", "c"], None]
        assert any("2 rows have several answers: the reply is the most frequent one" in n for n in dataset.notes())
        trained = MultimodalDataset(write_rows([{"question": "a", "answer": "c"}]))
        assert shared_rows(trained, dataset) == [(0, 0)]


def test_paths_have_short_names_of_their_own():
    for paths, names in (
        (["data/val.json[:10%]", "hub/charts:test", "scans/"], ["val", "charts", "scans"]),
        (["a/test.v2.jsonl", "b/test.csv"], ["test.v2", "test"]),
        (["a/test.json", "b/test.json"], ["a_test", "b_test"]),
        (["a.json[:5]", "a.json[5:]"], ["a.json[:5]", "a.json[5:]"]),
        (["data/blind.json", "data/val.json"], ["data_blind", "data_val"]),
        (["charts/*.parquet", "shards/val-*.json"], ["charts", "val-"]),
        (["data/dataset_info.json:mine[:9]", "data/dataset_info.json:yours:2"], ["mine", "yours"]),
    ):
        assert names_of(paths) == names


PROPOSED = {
    "other names": ({"text": "a", "caption": "b", "jpg": "red.png"}, "a", ["b"]),
    "several answers": ({"q": "a", "answers": ["c", "b", "b"], "jpg": "red.png"}, "a", ["b"]),
    "several questions": ({"qs": ["a", "b"], "label": "b", "jpg": "red.png"}, "a", ["b"]),
    "pairs": ({"qa": [{"q": "a", "a": "b"}, {"q": "c", "a": "d"}], "jpg": "red.png"}, "a", ["b", "d"]),
    "turns by their roles": ({"texts": [{"user": "a", "gpt": "b", "page": 3}], "jpg": "red.png"}, "a", ["b"]),
}


@pytest.mark.parametrize("kind", PROPOSED)
def test_what_is_proposed_reads_the_row(write_rows, kind):
    row, question, answers = PROPOSED[kind]
    with pytest.raises(ValueError) as error:
        MultimodalDataset(write_rows([row]))
    parser = argparse.ArgumentParser()
    parser.add_argument("--columns", nargs="*")
    parser.add_argument("--user_key", default="human")
    parser.add_argument("--assistant_key", default="gpt")
    flags = parser.parse_args(shlex.split(str(error.value).split(": try ")[1]))
    dataset = MultimodalDataset(write_rows([row]), **vars(flags))
    first, *others = dataset.rows[0]["messages"]
    assert [part["type"] for part in first["content"]] == ["image", "text"] and first["content"][1]["text"] == question
    assert [m["content"][0]["text"] for m in others if m["role"] == "assistant"] == answers


def test_the_media_of_several_fields_are_in_the_order_of_the_flag(write_rows):
    rows = [{"left": "red.png", "right": ["blue.png", "red.png"], "question": "a", "answer": "b"}]
    rows.append({"left": "red.png", "question": "a", "answer": "b"})
    dataset = MultimodalDataset(write_rows(rows), columns=["images=right", "images=left"])
    found = [[Path(medium).stem for _, medium, _ in media_in(row["messages"])] for row in dataset.rows]
    assert found == [["blue", "red", "red"], ["red"]]


@pytest.mark.parametrize(
    "columns, named",
    [
        (["question"], "NAME=FIELD"),
        (["picture=jpg"], "`picture` is not a known name; use one of messages, "),
        (["question=a", "question=b"], "names question twice"),
        (["question=a", "answer=a"], "names a twice"),
    ],
)
def test_a_flag_that_cannot_be_meant_is_refused_before_the_data_are_read(columns, named):
    flags = ["--model_id", "qwen2-vl-2b-instruct", "--data_path", "none.json", "--output_dir", "none"]
    with pytest.raises(ValueError, match=named):
        train.main([*flags, "--columns", *columns])


INFO = {
    "pictures": {
        "file_name": "chats.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "tags": {
        "file_name": "deep/tags.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "chat", "images": "pics", "system": "rules", "tools": "functions"},
        "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "it"},
    },
    "plain": {"file_name": "plain.json"},
    "named": {
        "file_name": "named.json",
        "columns": {"prompt": "q", "query": "more", "response": "a", "history": "old"},
    },
    "few": {"file_name": "several.json", "num_samples": 2},
    "ranked": {"file_name": "plain.json", "ranking": True},
    "judged": {"file_name": "plain.json", "columns": {"kto_tag": "label"}},
    "elsewhere": {"script_url": "a_script"},
}
INFO_FILES = {
    "chats.json": [{"messages": said("<image>What?", "A square"), "images": ["red.png"]}],
    "deep/tags.jsonl": [
        {
            "chat": [{"who": "me", "says": "<image>What?"}, {"who": "it", "says": "A square"}],
            "pics": ["red.png"],
            "rules": "Be brief.",
            "functions": '[{"name": "look"}]',
        }
    ],
    "plain.json": [{"instruction": "Add.", "input": "1 and 2", "output": "3"}],
    "several.json": [{"instruction": str(i), "output": "3"} for i in range(4)],
    "named.json": [{"q": "Add.", "more": "1 and 2", "a": "3", "old": [["A", "B"]]}],
}
SAME = {
    "pictures": ASKED,
    "tags": with_system("Be brief.", ASKED),
    "plain": said("Add.\n1 and 2", "3"),
    "named": said("A", "B", "Add.\n1 and 2", "3"),
}


@pytest.fixture
def info(media_folder):
    (media_folder / "deep").mkdir(exist_ok=True)
    (media_folder / "dataset_info.json").write_text(json.dumps(INFO))
    for name, rows in INFO_FILES.items():
        text = "\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows)
        (media_folder / name).write_text(text)
    return media_folder / "dataset_info.json"


@pytest.mark.parametrize("name", SAME)
def test_a_data_set_of_dataset_info_equals_messages(info, write_rows, name):
    dataset = MultimodalDataset(f"{info}:{name}[0:1]:2")
    tools = {"tools": [{"name": "look"}]} if name == "tags" else {}
    same = MultimodalDataset(write_rows([{"messages": SAME[name]} | tools]))
    assert dataset.rows[0]["messages"] == same.rows[0]["messages"]
    assert dataset.notes() == same.notes() or "text" in dataset.notes()[0]
    assert dataset.epoch_size == 2


def test_the_number_of_rows_of_dataset_info_is_taken(info):
    assert len(MultimodalDataset(f"{info}:few")) == 2 and len(MultimodalDataset(f"{info}:few[1:4]")) == 3


@pytest.mark.parametrize(
    "name, named",
    [
        ("", "add the name of one of its data sets, such as .*:pictures"),
        (":none", "name of one of"),
        (":ranked", "ranked answers"),
        (":judged", "ranked answers"),
        (":elsewhere", "needs a file_name or an hf_hub_url, but has only script_url"),
    ],
)
def test_a_data_set_of_dataset_info_that_cannot_be_read_is_refused(info, name, named):
    with pytest.raises(ValueError, match=named):
        MultimodalDataset(f"{info}{name}")
