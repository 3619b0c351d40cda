"""Rows on disk -> canonical samples, against messages written by hand."""

import base64
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import outline, turns
from PIL import Image

from reading.dataset import MultimodalDataset, cost_of_replies, shared_rows
from reading.options import MediaOptions
from reading.rows import content_parts


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def image(name: str) -> dict:
    return {"type": "image", "image": name}


def video(name: str) -> dict:
    return {"type": "video", "video": name}


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def reply(*parts) -> dict:
    return {"role": "assistant", "content": list(parts)}


def messages_of(dataset: MultimodalDataset, index: int = 0) -> list[dict]:
    """The messages of a row, media by file name."""
    return [
        {
            **m,
            "content": [p if "text" in p else {**p, p["type"]: Path(p[p["type"]]).name} for p in m["content"]],
        }
        for m in dataset.rows[index]["messages"]
    ]


# What a user's text becomes, with two images and two videos at hand.
PLACEHOLDERS = {
    "<image>\nWhat?": [image("red.png"), text("What?")],
    "What?\n<image>": [text("What?"), image("red.png")],
    "<image>What?": [image("red.png"), text("What?")],
    "<image>": [image("red.png")],
    "<image>\n<image>\nSame?": [image("red.png"), image("blue.png"), text("Same?")],
    "Is <image> like <image> ?": [text("Is "), image("red.png"), text(" like "), image("blue.png"), text(" ?")],
    "What?\r\n<image>\r\nA\r\nB": [text("What?"), image("red.png"), text("A\r\nB")],
    "<image>\n\nA\n": [image("red.png"), text("\nA\n")],
    "<video>\n<image>\nSame?": [video("clip.mp4"), image("red.png"), text("Same?")],
    "A <Image> <image > < image>": [text("A <Image> <image > < image>")],
}


@pytest.mark.parametrize("value", PLACEHOLDERS)
def test_placeholders_become_media_where_they_stand(write_rows, value):
    media_fields = {
        "image": ["red.png", "blue.png"][: value.count("<image>")],
        "video": ["clip.mp4"][: value.count("<video>")],
    }
    dataset = MultimodalDataset(write_rows([{**media_fields, "conversations": turns(value, "Yes")}]))
    assert messages_of(dataset) == [user(*PLACEHOLDERS[value]), reply(text("Yes"))]


def parts(*content: dict) -> dict:
    return {"messages": [{"role": "user", "content": [*content]}, {"role": "assistant", "content": "Red"}]}


ASKED = [user(image("red.png"), text("What?")), reply(text("Red"))]
# (row, its messages): every form that a row may have.
FORMS = [
    ({"image": "red.png", "conversations": turns("<image>\nWhat?", "Red")}, ASKED),
    (
        {"image": ["red.png"], "video": None, "system_prompt": None, "conversations": turns("<image>What?", "Red")},
        ASKED,
    ),
    ({"id": 7, "image": "./red.png", "conversations": turns("<image>What?", "Red")}, ASKED),
    ({"image": None, "conversations": turns("Hi", "Hello")}, [user(text("Hi")), reply(text("Hello"))]),
    (
        {"image": ["red.png", "blue.png"], "conversations": turns("<image>a", "b", "<image>c", "d")},
        [user(image("red.png"), text("a")), reply(text("b")), user(image("blue.png"), text("c")), reply(text("d"))],
    ),
    (
        {"system_prompt": "Be <image> brief.", "conversations": turns("Hi", "It is <image> or <video>.")},
        [
            {"role": "system", "content": [text("Be <image> brief.")]},
            user(text("Hi")),
            reply(text("It is <image> or <video>.")),
        ],
    ),
    (
        {"conversations": [{"from": "system", "value": "<image>"}, *turns("Hi", "Hello")]},
        [{"role": "system", "content": [text("<image>")]}, user(text("Hi")), reply(text("Hello"))],
    ),
    (
        {"messages": [{"role": "user", "content": "<image>\nHi"}, {"role": "assistant", "content": "Hello"}]},
        [user(text("<image>\nHi")), reply(text("Hello"))],
    ),
    (
        {
            "image": None,
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "Brief."}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "<image>\n", "path": None},
                        {"type": "image", "path": "red.png", "text": None},
                        {"type": "video", "path": "clip.mp4"},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "Red"}]},
            ],
        },
        [
            {"role": "system", "content": [text("Brief.")]},
            user(text("<image>\n"), image("red.png"), video("clip.mp4")),
            reply(text("Red")),
        ],
    ),
    (
        {
            "prompt": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ],
            "completion": "d",
        },
        [user(text("a")), reply(text("b")) | {"train": False}, user(text("c")), reply(text("d"))],
    ),
]


@pytest.mark.parametrize("row, expected", FORMS)
def test_every_form_becomes_the_same_canonical_messages(write_rows, row, expected):
    dataset = MultimodalDataset(write_rows([row]))
    assert messages_of(dataset) == expected
    assert dataset.rows[0]["index"] == 0 and dataset.rows[0]["source"].endswith("rows.json, sample 0")


def test_keys_of_conversations_can_be_renamed(write_rows):
    row = {"conversations": [{"from": "user", "value": "Hi"}, {"from": "bot", "value": "Hello"}]}
    dataset = MultimodalDataset(write_rows([row]), user_key="user", assistant_key="bot")
    assert messages_of(dataset) == [user(text("Hi")), reply(text("Hello"))]


def test_relative_paths_start_at_their_folder_and_absolute_ones_stand(write_rows, media_folder, tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "own.png")
    conversations = turns("<image><image><video>", "Yes")
    row = {"image": ["own.png", str(media_folder / "red.png")], "video": "clip.mp4", "conversations": conversations}
    monkeypatch.chdir(tmp_path)
    dataset = MultimodalDataset(write_rows([row]), image_folder="pictures", video_folder=str(media_folder))
    parts = dataset.rows[0]["messages"][0]["content"]
    assert [part[part["type"]] for part in parts] == [
        str(tmp_path / "pictures" / "own.png"),
        str(media_folder / "red.png"),
        str(media_folder / "clip.mp4"),
    ]


def test_messages_may_stand_in_any_field(write_rows):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for name in ("dialogue", "conversations", "prompt"):
        dataset = MultimodalDataset(write_rows([{name: messages}]), field_messages=name)
        assert messages_of(dataset) == [user(text("Hi")), reply(text("Hello"))]
    dataset = MultimodalDataset(write_rows([{"prompt": "of whatever", "messages": messages}]))
    assert messages_of(dataset) == [user(text("Hi")), reply(text("Hello"))]


def test_media_outside_the_folders_of_the_data_are_named_with_their_numbers(tmp_path):
    """By whole components of their names, links resolved."""
    for folder in ("data/deep", "data-2", "far/a"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "far" / "a" / "a.png")
    (tmp_path / "data" / "links").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "near").symlink_to(tmp_path / "data" / "deep")
    places = ["deep/a.png", "near/a.png", str(tmp_path / "data/deep/a.png")]
    rows = [{"image": path, "conversations": turns("<image>", "b")} for path in places]
    path = tmp_path / "data" / "rows.json"
    path.write_text(json.dumps(rows))
    assert MultimodalDataset(str(path)).notes() == []
    away = [str(tmp_path / "data-2/a.png"), "link.png", "links/a/a.png", "link.png"]
    path.write_text(json.dumps(rows + [row | {"image": path} for row, path in zip(rows * 2, away)]))
    (note,) = MultimodalDataset(str(path)).notes()
    assert note.endswith(f": media outside of the data folders: {tmp_path}/far/a (3), {tmp_path}/data-2 (1)")
    path.write_text(json.dumps([rows[0] | {"image": "a/a.png"}]))
    assert MultimodalDataset(str(path), image_folder=str(tmp_path / "far")).notes() == []  # it is named


HI = turns("Hi", "Hello")
# What is wrong with a row -> what the message must name.
BAD_ROWS = [
    ({"image": "red.png", "conversations": HI}, "0 <image> .* 1 in its `image` field"),
    ({"conversations": turns("<image>", "b")}, "1 <image> .* 0 in its `image` field"),
    ({"image": ["red.png", "red.png"], "conversations": turns("<image>", "b")}, "1 <image> .* 2 in"),
    ({"video": "clip.mp4", "conversations": turns("<image>", "b")}, "0 <video> .* 1 in"),
    ({"video": "clip.mp4", "conversations": HI}, "0 <video> .* 1 in its `video` field"),
    ({"image": "red.png", "conversations": turns("Hi", "<image>")}, "0 <image> .* 1 in"),
    ({"conversations": []}, "no turns in its `conversations`"),
    ({"conversations": "Hi"}, "no turns in its `conversations`"),
    ({"messages": []}, "no turns in its `messages`"),
    ({"conversations": turns("Hi")}, "roles user; expected"),
    ({"conversations": turns("a", "b", "c")}, "roles user, assistant, user; expected"),
    ({"conversations": turns("Hi", "Hello")[::-1]}, "roles assistant, user; expected"),
    ({"conversations": [*HI, *HI[1:]]}, "roles user, assistant, assistant; expected"),
    ({"system_prompt": "a", "conversations": [{"from": "system", "value": "b"}, *HI]}, "roles system, system, user"),
    ({"conversations": [{"from": "system", "value": "b"}]}, "roles system; expected"),
    (
        {"conversations": [{"from": "person", "value": "Hi"}, HI[1]]},
        r"conversations\[0\].from is 'person'.*'human'.*--user_key",
    ),
    ({"conversations": [{"from": ["human"], "value": "Hi"}, HI[1]]}, r"conversations\[0\].from is \['human'\]"),
    ({"conversations": [HI[0], {"from": "gpt", "value": None}]}, r"conversations\[1\].value is missing"),
    ({"conversations": [HI[0], {"from": "gpt", "value": 3}]}, r"conversations\[1\].value must be text, not int"),
    ({"conversations": [HI[0], "Hello"]}, r"conversations\[1\] must be an object"),
    ({"system_prompt": ["a"], "conversations": HI}, "system_prompt must be text, not list"),
    ({"image": {"a": 1}, "conversations": turns("<image>", "b")}, "`image` must be a path or a list of paths"),
    ({"image": [None], "conversations": turns("<image>", "b")}, r"`image\[0\]` must be a path or a list of paths"),
    ({"text": "Hi"}, "none of `conversations`, `messages`, .* are `text`: try --columns answer=text --prompt"),
    (["Hi"], "must be a JSON object, not list"),
    ({"messages": [{"role": "person", "content": "Hi"}]}, r"messages\[0\].role is 'person'.*'user'"),
    ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content is missing"),
    ({"messages": [{"role": "user", "content": ["Hi"]}]}, r"content\[0\] must be an object, not str"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, r"content\[0\] has type 'image_url'"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"content\[0\] has type 'image' but no `path`"),
    (
        {
            "images": ["red.png", "blue.png"],
            "messages": [
                {"role": "user", "content": [{"type": "image", "index": 0.0}, {"type": "image", "index": 0}]},
                {"role": "assistant", "content": "b"},
            ],
        },
        r"messages\[0\].content\[1\].index is 0, as in an earlier part",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": [{"type": "image", "path": "red.png"}]},
            ]
        },
        "image content in role 'assistant'",
    ),
    (
        {
            "messages": [{"role": "user", "content": "<image><image> a"}, {"role": "assistant", "content": "b"}],
            "image": "red.png",
        },
        "2 <image> .* 1 in its `image` field",
    ),
    ({"conversations": turns("a \ufdd0", "b")}, r"U\+FDD0"),
    ({"conversations": turns("a", "cut \ud83d")}, r"U\+D83D"),
    ({"conversations": turns("a", "")}, "empty reply in its `conversations`.*--allow_empty_answers"),
    ({"conversations": turns("a", "b", "c", " \n\t\u3000")}, "empty reply"),
    ({"conversations": turns("a", "", "c", "d")}, "empty reply"),
    ({"prompt": "a", "completion": ""}, "empty reply in its `completion`"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": []}]}, "empty reply"),
    ({"image": "none.png", "conversations": turns("<image>", "b")}, "image .*none.png does not exist"),
    ({"video": "none.mp4", "conversations": turns("<video>", "b")}, "video .*none.mp4 does not exist"),
    ({"image": "none.png", "conversations": turns("<image>", "b")}, "none.png does not exist; .*--image_folder"),
    ({"video": "none.mp4", "conversations": turns("<video>", "b")}, "none.mp4 does not exist; .*--video_folder"),
    ({"image": "", "conversations": turns("<image>", "b")}, "has 1 <image> in its user turns but 0 in its `image`"),
    ({"images": ["red.png", " "], "conversations": turns("<image><image>", "b")}, r"images\[1\] is empty; write a"),
    ({"video": {"path": "", "bytes": None}, "conversations": turns("<video>", "b")}, "video is empty"),
    ({"first": "a", "last": "b"}, "fields are `first`, `last`: try --columns question=first answer=last"),
    (
        {"image": "red.png", "chat": [{"role": "user", "content": "a"}]},
        "fields are `image`, `chat`: try --columns messages=chat",
    ),
    ({}, r"its fields are \(none\): add a field with text"),
    ({"image": "clip.mp4", "conversations": turns("<image>", "b")}, "image .*clip.mp4 cannot be decoded"),
]


@pytest.mark.parametrize("row, named", BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_bad_row_is_an_error_that_names_file_sample_and_field(write_rows, row, named):
    path = write_rows([{"conversations": HI}, row])
    with pytest.raises(
        ValueError, match=f"1 of 2 samples of {path} cannot be used:\n  .*rows.json, sample 1: .*{named}"
    ):
        MultimodalDataset(path)
    dataset = MultimodalDataset(path, check=False)
    assert dataset.rows[1] is None and messages_of(dataset) == [user(text("Hi")), reply(text("Hello"))]
    with pytest.raises(ValueError, match=f"rows.json, sample 1: .*{named}"):
        dataset[1]


def test_an_empty_text_is_an_absent_medium(write_rows):
    dataset = MultimodalDataset(write_rows([{"image": "", "videos": "", "conversations": HI}]))
    assert messages_of(dataset) == [user(text("Hi")), reply(text("Hello"))]


def test_faults_that_are_alike_are_one_line_with_a_count(write_rows):
    rows = [{"conversations": HI}, *[{"first": "a"}] * 12]
    rows += [{"image": f"{i}.png", "conversations": turns("<image>", "b")} for i in range(3)]
    rows += [{"messages": [{"role": role, "content": "a"}]} for role in ("bot", "robot")]
    with pytest.raises(ValueError, match="17 of 18 samples") as caught:
        MultimodalDataset(write_rows(rows))
    first, second, third = str(caught.value).splitlines()[1:]
    assert "sample 1: has none of" in first and re.search(r"\(11 more like this, such as \S+, sample 2\)$", first)
    assert "sample 13: image" in second and re.search(r"0.png does not exist; .* \(2 more like this, such as", second)
    assert "'bot'" in third and re.search(r"\(1 more like this, such as \S+, sample 17\)$", third)


def test_empty_replies_pass_where_they_are_masked_or_allowed_and_are_counted(write_rows):
    empty = {"conversations": turns("a", "", "b", "c")}
    masked = {
        "conversations": [turn | ({"loss": False} if not turn["value"] else {}) for turn in turns("a", "", "b", "c")]
    }
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "b"}]
    untrained = [masked, {"prompt": prompt, "completion": "c"}]
    assert "empty reply" not in "".join(MultimodalDataset(write_rows(untrained)).notes())
    dataset = MultimodalDataset(write_rows([empty, *untrained, empty]), allow_empty_answers=True)
    assert messages_of(dataset)[1] == reply(text("")) and "2 rows have an empty reply" in dataset.notes()[0]


def test_a_row_counts_as_the_same_in_any_form_and_file(write_rows, media_folder, tmp_path):
    path, data = str(media_folder / "red.png"), (media_folder / "red.png").read_bytes()
    encoded = {"type": "image", "base64": base64.b64encode(data).decode()}
    asked = [{"role": "user", "content": [{"type": "image"}, text("What?")]}, {"role": "assistant", "content": "Red"}]
    train = [
        {"conversations": HI},
        {"id": 7, "image": "red.png", "conversations": turns("<image>\nWhat?", "Red")},
        parts(encoded, text("What?")),
        {"image": ["red.png", "blue.png"], "conversations": turns("<image><image>", "b")},
    ]
    more = [
        {"prompt": "Who?", "completion": "I"},
        {"video": [["red.png", "red.png"]], "conversations": turns("<video>", "b")},
    ]
    held_out = [
        {"image": "tall.jpg", "conversations": turns("<image>\nWhat?", "Red")},  # another picture
        {"image": f"./{path}", "messages": asked[1:]},  # cannot be used
        {"image": path, "messages": [asked[0], asked[1] | {"train": True}]},
        {"conversations": [*turns("Hi", "Hello", "Who?", "I")]},
        {"image": ["blue.png", "red.png"], "conversations": turns("<image><image>", "b")},  # in another order
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I"}]},
        {"image": f"data:image/png;base64,{encoded['base64']}", "messages": asked},
        {"video": [["red.png"]], "conversations": turns("<video>", "b")},
        {"conversations": turns("Hello", "Hi")},  # the roles the other way round
    ]
    train = MultimodalDataset([write_rows(train), write_rows(more, "b.jsonl")])
    held_out = write_rows(held_out, "c.jsonl")
    assert shared_rows(train, MultimodalDataset(held_out, check=False)) == [(1, 2), (4, 5), (2, 6)]
    assert shared_rows(train, MultimodalDataset([f"{held_out}[:2]", f"{held_out}[5:6]"], check=False)) == [(4, 2)]
    assert shared_rows(MultimodalDataset(train.paths[0]), MultimodalDataset(train.paths[1])) == []


GOOD = json.dumps({"conversations": HI})
FILES = {
    "object.json": (GOOD, "must contain a JSON list of samples, not an object with conversations: .*jsonl"),
    "text.json": ('"Hi"', "must contain a JSON list of samples, not str"),
    "empty.json": ("[]", "contains no samples"),
    "empty.jsonl": ("\n\n", "contains no samples"),
    "nothing.json": ("", "nothing.json is empty"),
    "broken.json": (f"[{GOOD},\n{GOOD},\n{{'a'}}]", "broken.json, line 3: not valid JSON"),
    "broken.jsonl": (f"{GOOD}\n\n{GOOD}\n{{\n", "broken.jsonl, sample 2: is line 4, which is not valid JSON"),
    "lines.json": (f"{GOOD}\n{GOOD}", r"lines.json, line 2: not valid JSON: Extra data \(rename a JSONL file"),
    "list.jsonl": (f"[\n{GOOD}\n]", "list.jsonl begins with a list, .* rename it to .json"),
    "deep.json": ("[" * 100_000, "deep.json, line 1: not valid JSON: it is nested too deeply"),
    "digits.json": ("[" + "1" * 5000 + "]", "digits.json.* not valid JSON: .*digits"),
    "latin.json": (f'[{GOOD}, "caf\xe9"]'.encode("latin-1"), "latin.json is not UTF-8 text"),
    "latin.jsonl": ('"caf\xe9"'.encode("latin-1"), "latin.jsonl, sample 0: is line 1, which is not UTF-8 text"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_an_error_that_names_it(tmp_path, name):
    content, named = FILES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=named):
        MultimodalDataset(str(tmp_path / name))


@pytest.mark.parametrize(
    "path, named",
    [("none.json", "none.json does not exist"), ("", "no .json, .jsonl, .* file or image is in ")],
)
def test_a_missing_file_is_an_error_that_names_it(tmp_path, path, named):
    with pytest.raises(ValueError, match=named):
        MultimodalDataset(str(tmp_path / path))


def test_files_further_down_a_folder_are_named(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/metadata.jsonl").write_text(GOOD)
    with pytest.raises(ValueError, match=r"but there is .*a/b/metadata.jsonl: pass '.*\*\*/\*.jsonl'") as error:
        MultimodalDataset(str(tmp_path))
    assert len(MultimodalDataset(str(error.value).split("'")[1])) == 1


@pytest.mark.parametrize(
    "name, content",
    [("a.jsonl", f"\n{GOOD}\n\n  \n{GOOD}"), ("a.JSONL", GOOD + "\n" + GOOD), ("a.json", f"[{GOOD}, {GOOD}]")],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_blank_lines_and_a_byte_order_mark_are_no_samples(tmp_path, name, content, mark):
    (tmp_path / name).write_bytes(mark + content.encode())
    dataset = MultimodalDataset(str(tmp_path / name))
    assert [row["index"] for row in dataset.rows] == [0, 1]


def all_media(write_rows) -> MultimodalDataset:
    row = {
        "image": ["red.png", "blue.png"],
        "video": "clip.mp4",
        "conversations": turns("<image>a<image>b<video>", "c"),
    }
    return MultimodalDataset(
        write_rows([row, {"conversations": turns("Hi", "Hello " * 40)}]), media=MediaOptions(num_frames=4)
    )


def test_rows_hold_references_and_samples_opened_media(write_rows, media_folder):
    dataset = all_media(write_rows)
    rows = json.dumps(list(dataset.rows))  # only what JSON can hold
    red, _, blue, _, clip = dataset[0]["messages"][0]["content"]
    assert (red["image"].mode, red["image"].size, red["image"].getpixel((0, 0))) == ("RGB", (64, 64), (255, 0, 0))
    assert blue["image"].size == (100, 50)
    assert clip["video"].shape == (4, 64, 64, 3) and clip["metadata"]["frames_indices"] == [0, 5, 10, 15]
    assert json.dumps(list(dataset.rows)) == rows
    assert dataset.media_kinds == {"image", "video"}
    found, sizes = outline(dataset, 0)
    assert [part["type"] for part in content_parts(found)] == ["image", "text", "image", "text", "video", "text"]
    assert sizes == {("image", 0): (64, 64), ("image", 1): (50, 100), ("video", 2): (4, 64, 64)}


def test_a_medium_that_breaks_later_is_an_error_that_names_file_and_sample(write_rows, media_folder):
    data = (media_folder / "red.png").read_bytes()
    (media_folder / "half.png").write_bytes(data[:50])  # its header is whole
    dataset = MultimodalDataset(write_rows([{"image": "half.png", "conversations": turns("<image>", "b")}]))
    with pytest.raises(ValueError, match="rows.json, sample 0: image .*half.png cannot be decoded"):
        dataset[0]


def test_no_row_of_random_json_breaks_the_reader(write_rows):
    """Whatever stands in a row, it becomes a sample or a ValueError."""
    rng = random.Random(0)
    words = [
        "red.png",
        "<image>",
        "human",
        "gpt",
        "user",
        "assistant",
        "system",
        "text",
        "image",
        "",
        None,
        1,
        True,
        -0.5,
    ]
    keys = "conversations messages image video system_prompt from value role content type text path".split()

    def anything(depth: int):
        if depth == 0 or rng.random() < 0.3:
            return rng.choice(words)
        if rng.random() < 0.5:
            return [anything(depth - 1) for _ in range(rng.randrange(4))]
        return {rng.choice(keys): anything(depth - 1) for _ in range(rng.randrange(5))}

    rows = [{rng.choice(keys[:2]): anything(4), rng.choice(keys): anything(3)} for _ in range(3000)]
    dataset = MultimodalDataset(write_rows(rows), check=False)
    assert len(dataset) == 3000 and len(dataset.errors) > 2900


def test_each_reply_is_a_sample_of_its_own(write_rows, media_folder):
    several = turns("<image>\nOne?", "1", "Two?", "2", "<image>\nThree?", "3")
    several[3]["train"] = False
    rows = [
        {"images": ["red.png", "blue.png"], "conversations": several},
        {"conversations": turns("Only?", "4")},
        {"conversations": [{"from": "gpt", "value": "Hello"}, *turns("One?", "5", "Two?", "6")]},
    ]
    path = write_rows(rows)

    def said(**options) -> list[tuple[str, str]]:
        """The texts of each sample, those that are trained in brackets."""
        dataset, found = MultimodalDataset(**{"data_path": path} | options), []
        for i in range(len(dataset)):
            texts = []
            for message in dataset[i]["messages"]:
                text = "".join(part.get("text", "i") for part in message["content"])
                is_trained = message["role"] == "assistant" and message.get("train", True)
                texts.append(f"[{text}]" if is_trained else text)
            found.append((dataset.source(i).partition(", sample ")[2], " ".join(texts)))
            assert len(outline(dataset, i)[1]) == found[-1][1].count("i")
        hashes = dataset.of_rows("hashes").tolist()
        assert len(dataset.num_parts()) == len(hashes) == len({*hashes}) == len(found)
        return found

    last = [("0", "iOne? 1 Two? 2 iThree? [3]"), ("1", "Only? [4]"), ("2", "Hello One? 5 Two? [6]")]
    each = [("0, reply 1", "iOne? [1]"), ("0, reply 2", last[0][1]), ("1, reply 1", last[1][1])]
    each += [("2, reply 1", "Hello One? [5]"), ("2, reply 2", last[2][1])]
    assert said()[0] == ("0", "iOne? [1] Two? 2 iThree? [3]")
    assert said(train_replies="last") == last and said(train_replies="each") == each
    # Slices, numbers and weights are of rows.
    assert said(train_replies="each", data_path=f"{path}[1:]") == each[2:]
    assert said(train_replies="each", data_path=[f"{path}[2:]", f"{path}[:1]"]) == each[3:] + each[:2]
    assert said(train_replies="each", max_samples=2) == each[:3]
    assert MultimodalDataset(f"{path}:2", train_replies="each").epoch_size == 10


def test_a_faulty_row_keeps_its_place_among_samples(write_rows):
    pairs = ("One?", "1", "Two?", "2")
    rows = [{"conversations": turns(*pairs)}, {"conversations": turns("What?")}, {"conversations": turns(*pairs)}]
    dataset = MultimodalDataset(write_rows(rows), check=False, train_replies="each")
    assert [*dataset.errors] == [2] and "sample 1: " in dataset.errors[2]
    assert [row and (row["index"], len(row["messages"])) for row in dataset.rows] == [
        (0, 2),
        (0, 4),
        None,
        (2, 2),
        (2, 4),
    ]


def test_the_price_of_each_reply(write_rows):
    rows = [{"conversations": turns("One?", "1", "Two?", "2")}, {"conversations": turns("Only?", "3")}]
    dataset = MultimodalDataset(write_rows(rows), train_replies="each")
    assert cost_of_replies(dataset, np.array([10, 30, 20])).endswith(
        ": 3 replies of 2 conversations take 1.2 times as many tokens."
    )
    assert cost_of_replies(MultimodalDataset(write_rows(rows)), np.array([30, 20])) == ""
