"""What nobody reads is refused where it would change what is trained, and else named once."""

import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MODEL_ID, turns

import predict
import preview
import train
from reading.dataset import MultimodalDataset

HI = turns("Hi", "Ho")
SEEN = {"image": "red.png", "conversations": turns("<image>What?", "Red")}
ASKED = {"image": "red.png", "video": "clip.mp4", "question": "What?", "answer": "Grey"}
CLIP = {"video": "clip.mp4", "conversations": turns("<video>What?", "Grey")}
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
SAMPLE = {"role": "user", "content": [{"type": "video", "path": "clip.mp4"}]}


def with_key(message: int, **keys) -> dict:
    return {"messages": [turn | (keys if i == message else {}) for i, turn in enumerate(CHAT)]}


def with_part(kind: str, **keys) -> dict:
    part = {"type": kind, "path": {"image": "red.png", "video": "clip.mp4"}[kind], **keys}
    return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}, CHAT[1]]}


def red(folder) -> bytes:
    return (folder / "red.png").read_bytes()


REFUSED = {
    # media under other names
    "a path": ({"image_path": "red.png", "conversations": HI}, "image_path"),
    "a path that is missing": ({"img": "x/7.JPG", "conversations": HI}, "img"),
    "a file without an ending": ({"blob": "noending", "conversations": HI}, "blob"),
    "a clip": ({"movie": "clip.mp4", "messages": CHAT}, "movie"),
    "a list": ({"pictures": ["red.png", "blue.png"], "question": "Hi?", "answer": "Ho"}, "pictures"),
    "deep in an object": ({"meta": {"photos": [{"file": "red.png"}]}, "conversations": HI}, "meta"),
    "a URL": ({"picture_url": "https://a.b/c.webp?size=1", "conversations": HI}, "picture_url"),
    "a data URL": ({"shot": "data:image/png;base64,iVBORw0KGgo=", "conversations": HI}, "shot"),
    "another medium of the same name": (SEEN | {"depth": "deep/red.png"}, "depth"),
    "beside another image": (SEEN | {"target": "blue.png"}, "target"),
    "in a message": (with_key(0, photo="red.png"), "messages[0].photo"),
    "in a turn": ({"conversations": [HI[0] | {"pic": "red.png"}, HI[1]]}, "conversations[0].pic"),
    "sound": ({"audios": ["a.wav"], "conversations": HI}, "audios"),
    "sound as numbers": ({"audio": {"array": [0.5, 0.25], "sampling_rate": 8}, "messages": CHAT}, "audio"),
    # media in a text
    "Qwen-VL": ({"conversations": turns("Picture 1: <img>red.png</img>What?", "Red")}, "red.png"),
    "Qwen-VL, missing": ({"conversations": turns("<img>no/such.jpg</img>What?", "Red")}, "no/such.jpg"),
    "Markdown": ({"question": "![a view](red.png) What?", "answer": "Red"}, "red.png"),
    "HTML": ({"question": 'What is <img src="blue.png">?', "answer": "Blue"}, "blue.png"),
    "a forum's tags": ({"question": "[img]red.png[/img] What?", "answer": "Red"}, "red.png"),
    "a name alone": ({"conversations": turns("Picture 1: deep/red.png\nWhat?", "Red")}, "deep/red.png"),
    "a name beside another image": ({"image": "red.png", "question": "As (blue.png)?", "answer": "No"}, "blue.png"),
    # masks
    "a mask of the row": ({"loss_mask": [0, 1], "conversations": HI}, "loss_mask"),
    "a row that is not to be trained": ({"train": False, "messages": CHAT}, "train"),
    "a mask of a message": (with_key(1, masked=True), "messages[1].masked"),
    "a scale of the loss": (with_key(1, loss_scale=0.5), "messages[1].loss_scale"),
    "a mask of a turn": ({"conversations": [HI[0], HI[1] | {"trainable": False}]}, "conversations[1].trainable"),
    # system prompts, tools, history, thoughts
    "a system message": ({"system_message": "Be brief.", "conversations": HI}, "system_message"),
    "a system instruction": ({"systemInstruction": {"text": "Be brief."}, "messages": CHAT}, "systemInstruction"),
    "functions": ({"functions": '[{"name": "add"}]', "conversations": HI}, "functions"),
    "a thought": (with_key(1, thinking="Well."), "messages[1].thinking"),
    "a call of another name": (with_key(1, function_call={"name": "add"}), "messages[1].function_call"),
    "earlier turns": ({"previous_messages": CHAT, "messages": CHAT}, "previous_messages"),
    "a chain of thought": ({"chain_of_thought": "Well.", "question": "Hi?", "answer": "Ho"}, "chain_of_thought"),
    "history": ({"history": [["a", "b"]], "messages": CHAT}, "history"),
    # times and sizes
    "columns of times": (CLIP | {"begin": 1, "stop": 2.5}, "begin"),
    "a span": (CLIP | {"segment": [1, 2]}, "segment"),
    "a clock": (CLIP | {"timestamps": {"from": "00:01", "to": "00:07"}}, "timestamps"),
    "a time of a part": (with_part("video", t_start=1.0), "messages[0].content[0].t_start"),
    "an offset of a part": (with_part("video", offset_s=1.5), "messages[0].content[0].offset_s"),
    "ends of a part": (with_part("video", **{"from": 1, "to": 2}), "messages[0].content[0].from"),
    "a rate of a part": (with_part("video", sample_fps=2), "messages[0].content[0].sample_fps"),
    "a size of a part": (with_part("image", max_pixels=50176), "messages[0].content[0].max_pixels"),
    "a size beside an image": (ASKED | {"max_pixels": 50176}, "max_pixels"),
    "a size in a list": (SEEN | {"image": [{"path": "red.png", "resized_height": 8}]}, "image[0].resized_height"),
    "a size beside bytes": (SEEN | {"image": {"path": "red.png", "resized_height": 8}}, "image.resized_height"),
}
HARMLESS = {
    "numbers": SEEN | {"image_id": 17, "width": 640, "score": 0.5},
    "empty": SEEN | {"tools": [], "history": None, "system_message": "", "loss_mask": [], "audio": {"path": None}},
    "names of the medium": SEEN | {"file_name": "red.png", "coco_url": "http://x.org/val/red.png?a=1"},
    "times without a video": SEEN | {"start": 3, "duration": 2.5},
    "dates": CLIP | {"timestamp": "2024-01-02T10:00:00Z"},
    "ids of a video": CLIP | {"clip_id": 17, "video_id": "a7"},
    "words that say something else": {"operating_system": "linux", "weight_kg": 3, "train_id": 5, "messages": CHAT},
    "nothing masked": {"train": True, "loss": 1, "loss_scale": 1.0, "messages": CHAT},
    "another file": {"source": "notes.txt", "license": "MIT", "messages": CHAT},
    "a text with tags": {"question": "What does <b>a</b> and <file>no.png</file> mean?", "answer": "![](red.png)"},
    "a text that names its medium": {"image": "red.png", "question": "Is red.png red? And no.png?", "answer": "Yes"},
    "words that are no times": CLIP | {"from": "web", "source_to": 3, "previous_id": 7, "prior_art": "x"},
    "detail": with_part("image", detail="low"),
}


@pytest.fixture(autouse=True)
def more_media(media_folder):
    (media_folder / "deep").mkdir(exist_ok=True)
    (media_folder / "deep" / "red.png").write_bytes((media_folder / "blue.png").read_bytes())
    (media_folder / "noending").write_bytes(red(media_folder))
    (media_folder / "notes.txt").write_text("no medium")


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_the_training_is_refused_by_name(write_rows, name):
    row, field = REFUSED[name]
    (error,) = MultimodalDataset(write_rows([row]), check=False).errors.values()
    assert field in error


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_fields_pass_and_are_named(write_rows, name):
    row = HARMLESS[name]
    dataset = MultimodalDataset(write_rows([row, row, {"conversations": HI}]))
    read = {"conversations", "messages", "image", "video", "question", "answer"}
    listed = {key for key, value in row.items() if key not in read and value not in (None, "", [], {"path": None})}
    listed |= {"messages[].content[].detail"} if name == "detail" else set()
    notes = "\n".join(dataset.notes())
    assert all(f"{key} (2 rows)" in notes for key in listed) and ("not read" in notes) == bool(listed)


@pytest.mark.parametrize(
    "value",
    [red, lambda f: {"bytes": red(f), "path": None}, lambda f: [(f / "clip.mp4").read_bytes()], lambda f: "blue.png"],
)
def test_columns_of_parquet_are_judged_too(media_folder, tmp_path, value):
    rows = [{"jpg": value(media_folder), "question": "What?", "answer": "Red", "id": 1}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    dataset = MultimodalDataset(str(tmp_path / "a.parquet"), image_folder=str(media_folder), check=False)
    assert "jpg" in dataset.errors[0]
    dataset = MultimodalDataset(str(tmp_path / "a.parquet"), image_folder=str(media_folder), columns=["jpg="])
    assert dataset.notes()[0] == f"{tmp_path / 'a.parquet'}: fields that are not read: id (1 rows)"
    assert dataset.raw(0).keys() == {"question", "answer", "id"}


SPOKEN = {"messages": [{"role": "user", "content": "<audio>What?"}, CHAT[1]]}
SOUNDS = {  # a row with a place for sound -> the field to ignore
    "by its name": (SPOKEN | {"audios": ["a.wav"]}, "audios"),
    "by its file": (SPOKEN | {"track": "sub/a.MP3"}, "track"),
    "inside": ({"question": "<audio>What?", "answer": "A bell", "about": {"track": "a.flac"}}, "about.track"),
    "next to a picture": ({"image": "red.png", "conversations": turns("<image><audio>?", "A"), "wav": "x"}, "wav"),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_a_place_for_ignored_sound_is_no_text(media_folder, tmp_path, write_rows, name):
    row, field = SOUNDS[name]
    (fault,) = MultimodalDataset(write_rows([row]), check=False).errors.values()
    assert (
        f"--columns '{field.split('.')[0] if name == 'inside' else field}" in fault and "--on_bad_sample skip" in fault
    )
    silent = json.loads(json.dumps(row).replace("<audio>", ""))
    dataset = MultimodalDataset(write_rows([row, silent]), columns=[f"{field}="], check=False)
    assert (
        "rows.json, sample 0: has <audio> in a text" in dataset.errors[0] and f"{field}= ignores" in dataset.errors[0]
    )
    assert [*dataset.errors] == [0]
    if name == "by its name":  # a copy of Parquet has no column that is ignored
        pq.write_table(pa.Table.from_pylist([row, silent]), tmp_path / "a.parquet")
        assert [*MultimodalDataset(str(tmp_path / "a.parquet"), columns=["audios="], check=False).errors] == [0]


def test_a_place_without_a_medium_is_said(write_rows):
    texts = ("<image>What?", "How does <video> play?", "<audio>", "< image>")
    rows = [{"question": text, "answer": "So"} for text in texts] + [SEEN, ASKED]
    notes = MultimodalDataset(write_rows(rows)).notes()
    assert any("3 rows have <image>, <video> or <audio> in a text but no media" in note for note in notes), notes


def test_what_is_inside_of_a_mapped_field_is_ignored_by_the_name_that_is_read(write_rows):
    row = {"question": "Hi?", "answer": "Ho", "pic": {"path": "red.png", "resized_height": 8}}
    (fault,) = MultimodalDataset(write_rows([row]), columns=["image=pic"], check=False).errors.values()
    fix = fault.split("--columns '")[1].split("'")[0]
    assert not MultimodalDataset(write_rows([row]), columns=["image=pic", fix], check=False).errors


def test_bytes_as_base64_are_judged_too(media_folder, write_rows):
    row = {"b64": base64.b64encode(red(media_folder)).decode(), "conversations": HI}
    assert "b64" in MultimodalDataset(write_rows([row]), check=False).errors[0]


def test_an_unnamed_column_of_a_table_is_judged_too(media_folder, tmp_path):
    (tmp_path / "a.csv").write_text("question,answer,\nWhat?,Red,red.png\n")
    dataset = MultimodalDataset(str(tmp_path / "a.csv"), check=False)
    assert "column 3 contains media (red.png)" in dataset.errors[0]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ignored_on_purpose_passes(write_rows, name):
    row, field = REFUSED[name]
    error = MultimodalDataset(write_rows([row]), check=False).errors[0]
    if "--columns" not in error:  # a text cannot be ignored
        assert "in a text" in error
        return
    fields = []
    while "--columns '" in error:
        fields.append(error.split("--columns '")[1].split("'")[0])
        assert len(fields) == len({*fields}), f"the fix does not help: {error}"
        dataset = MultimodalDataset(write_rows([row]), check=False, columns=fields)
        error = dataset.errors.get(0, "")
    assert not error or "content" in error  # of a call alone
    assert "not read" not in "".join(dataset.notes())


def test_texts_alone_are_said_once(write_rows):
    warned = {
        name: "contains only text" in "".join(MultimodalDataset(write_rows(rows)).notes())
        for name, rows in {"texts": [{"conversations": HI}] * 2, "one image": [{"conversations": HI}, SEEN]}.items()
    }
    assert warned == {"texts": True, "one image": False}


def test_system_is_the_system_prompt(write_rows):
    rows = [{"system": "Be brief.", "conversations": HI}, {"system": "Be brief.", "messages": CHAT}]
    rows += [{"system": "Be brief.", "question": "Hi", "answer": "Ho"}, {"system": "", "conversations": HI}]
    found = [row["messages"] for row in MultimodalDataset(write_rows(rows)).rows]
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    plain = [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in CHAT]
    assert [messages[0] for messages in found[:3]] == [system] * 3
    assert found[0][1:] == found[1][1:] == found[3] == plain
    both = [
        {"system": "a", "system_prompt": "b", "conversations": HI},
        {"system": "a", "messages": [{**CHAT[0], "role": "system"}, *CHAT]},
    ]
    errors = MultimodalDataset(write_rows(both), check=False).errors
    assert "both `system_prompt` and `system`" in errors[0] and "roles system, system" in errors[1]


@pytest.mark.parametrize("name", ["train", "training", "loss", "weight"])
@pytest.mark.parametrize("no", [False, 0])
def test_names_of_the_mask_of_a_message(write_rows, name, no):
    rows = [with_key(1, **{name: value}) for value in (True, None)]
    rows[1]["messages"] = [*rows[1]["messages"], CHAT[0], CHAT[1] | {name: no}]
    trained = [[m.get("train", True) for m in row["messages"]] for row in MultimodalDataset(write_rows(rows)).rows]
    assert trained == [[True, True], [True, True, True, False]]
    wrong = [
        with_key(1, **{name: 0.5}),
        with_key(1, **({name: False} | {"train" if name != "train" else "loss": True})),
    ]
    errors = MultimodalDataset(write_rows(wrong), check=False).errors
    assert f"messages[1].{name} is 0.5" in errors[0] and "which contradict each other" in errors[1]


@pytest.mark.slow
def test_every_door_refuses_and_names(tiny, write_rows, tmp_path, capsys):
    model = ["--model_id", MODEL_ID["qwen2.5-vl"], "--model_local_path", tiny("qwen2.5-vl")]
    for key, value in (("photo", "blue.png"), ("loss_weights", [0, 1])):
        words = [*model, "--data_path", write_rows([SEEN, SEEN | {key: value}])]
        with pytest.raises(ValueError, match=key):
            train.main([*words, "--output_dir", str(tmp_path / "out"), "--use_cpu", "True"])
        with pytest.raises(SystemExit) as end:
            preview.main([*words, "--json"])
        assert end.value.code == 1 and key in capsys.readouterr().out
        with pytest.raises(SystemExit) as end:
            preview.main([*words, "--check", "--json"])
        report = json.loads(capsys.readouterr().out)
        assert end.value.code == 1 and key in str(report["data"]["train"]["faults"]["row"])
        with pytest.raises(ValueError, match=key):
            answers = ["--output_path", str(tmp_path / "a.jsonl"), "--model_path", tiny("qwen2.5-vl")]
            predict.main([*answers, *words[4:]])
    words = [*model, "--data_path", write_rows([SEEN | {"id": 7, "photo": "blue.png"}])]
    with pytest.raises(SystemExit):
        preview.main([*words, "--columns", "photo="])
    assert "fields that are not read: id (1 rows)" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        preview.main([*words, "--columns", "photo=", "--check", "--json"])
    assert end.value.code == 0 and "id (1 rows)" in str(json.loads(capsys.readouterr().out)["notes"])
    with pytest.raises(ValueError, match="no row of .* has a field `query`"):
        preview.main([*words, "--columns", "question=query"])
