"""The converters of example_data/convert.py, each on a small file of the real layout; and the errors that name them."""

import base64
import json
import pickle
import runpy
from dataclasses import replace
from unittest import mock

import pytest
from conftest import REPO

from reading.dataset import MultimodalDataset
from reading.rows import RowForm

CONVERT = str(REPO / "example_data" / "convert.py")
COCO = {
    "info": {"year": 2017},
    "licenses": [{"id": 1}],
    "images": [{"id": 9, "file_name": "red.png", "width": 64}, {"id": 4, "file_name": "blue.png", "width": 100}],
}
INSTANCES = COCO | {
    "annotations": [
        {"id": 71, "image_id": 4, "category_id": 3, "bbox": [1.0, 2.0, 3.0, 4.0], "iscrowd": 0},
        {"id": 72, "image_id": 4, "category_id": 1, "bbox": [5.0, 2.0, 3.0, 4.0], "iscrowd": 0},
        {"id": 73, "image_id": 4, "category_id": 3, "bbox": [6.0, 2.0, 3.0, 4.0], "iscrowd": 1},
        {"id": 74, "image_id": 4, "category_id": 3, "bbox": [7.0, 2.5, 3.0, 4.0], "iscrowd": 0},
        {"id": 75, "image_id": 4, "category_id": 1, "bbox": [8.0, 2.0, 0.0, 4.0], "iscrowd": 0},
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}, {"id": 3, "name": "dog"}],
}
CAPTIONS = COCO | {
    "annotations": [
        {"id": 1, "image_id": 4, "caption": "A blue wall. "},
        {"id": 2, "image_id": 9, "caption": "Red."},
        {"id": 3, "image_id": 4, "caption": "Blau überall."},
    ]
}
VQA = {"info": {}, "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
QUESTIONS = VQA | {"questions": [{"image_id": 42, "question": "What colour?", "question_id": 42001}]}
ANSWERS = VQA | {
    "annotations": [
        {"question_id": 42000, "image_id": 42, "multiple_choice_answer": "no", "answers": []},
        {
            "question_id": 42001,
            "image_id": 42,
            "multiple_choice_answer": "red",
            "answers": [
                {"answer": text, "answer_confidence": "yes", "answer_id": i}
                for i, text in enumerate(["dark red", "red", "red"])
            ],
        },
    ]
}


def ref(split: str, image: int, category: int, *said: str) -> dict:
    sentences = [
        {"sent": text, "raw": text.upper(), "tokens": text.split(), "sent_id": i} for i, text in enumerate(said)
    ]
    about = {"ref_id": 1, "ann_id": 71, "image_id": image, "category_id": category, "split": split}
    return about | {"file_name": f"COCO_train2014_{image:012d}_71.jpg", "sentences": sentences}


REFS = [ref("train", 4, 3, "the left dog", "dog"), ref("testA", 9, 1, "boy")]
ASKED = [{"id": 4, "qas": [{"qa_id": 7, "image_id": 4, "question": "What is blue?", "answer": "The wall."}]}]
PICTURES = [{"image_id": 4, "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/4.jpg", "width": 100}]


def result(kind: str, name: str, value: dict) -> dict:
    return {"type": kind, "from_name": name, "to_name": "img", "value": value}


CHOICE = result("choices", "Is it broken?", {"choices": ["Yes", "Badly"]})
REGION = result("rectanglelabels", "tag", {"x": 1, "y": 2, "width": 3, "height": 4, "rectanglelabels": ["Hinge"]})
TEXT = result("textarea", "caption", {"text": ["A door."]})
TASKS = [
    {"id": 1, "data": {"image": "/data/upload/83/a1-red.png"}, "annotations": [{"result": [CHOICE, REGION]}]},
    {"id": 2, "data": {"image": "/data/local-files/?d=set%201/blue.png"}, "annotations": [{"result": [TEXT]}]},
    {"id": 3, "data": {"image": "https://a.org/b.png?x=1"}, "annotations": [{"result": [TEXT]}]},
    {"id": 4, "data": {"image": "/data/upload/83/no.png"}, "annotations": [{"was_cancelled": True, "result": [TEXT]}]},
]
META = {
    "a": {"root": "pictures", "annotation": "a.jsonl", "data_augment": False, "repeat_time": 2, "length": 1},
    "b": {"root": "pictures", "annotation": "b.jsonl", "data_augment": False, "repeat_time": 0.5, "length": 3},
}


def said(question: str) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "Red."}]


def row(image: str, question: str, answer: str | list[str]) -> dict:
    return {"image": image, "question": question, "answer": answer}


# Script -> what it is given, and the rows that it makes.
SCRIPTS = {
    "coco_captions": (
        [CAPTIONS],
        [
            row(image, "Describe the image in one sentence.", answer)
            for image, answer in (("blue.png", "A blue wall."), ("red.png", "Red."), ("blue.png", "Blau überall."))
        ],
    ),
    "coco_instances": (
        [INSTANCES],
        [
            row("blue.png", "Where is each object in the image?", "<ref-object><bbox>, <ref-object><bbox><bbox>")
            | {"objects": {"ref": ["person", "dog"], "bbox": [[5, 2, 8, 6], [1, 2, 4, 6], [7, 2.5, 10, 6.5]]}}
        ],
    ),
    "vqa_v2": (
        [QUESTIONS, ANSWERS],
        [row("COCO_val2014_000000000042.jpg", "What colour?", ["dark red", "red", "red"])],
    ),
    "refcoco": (
        [REFS, INSTANCES, "train"],
        [
            row("blue.png", "Where is <ref-object>?", "<ref-object><bbox>")
            | {"objects": {"ref": [text, text], "bbox": [[1, 2, 4, 6]]}}
            for text in ("the left dog", "dog")
        ],
    ),
    "visual_genome": ([ASKED, PICTURES], [row("VG_100K_2/4.jpg", "What is blue?", "The wall.")]),
    "label_studio": (
        [TASKS],
        [
            row("83/a1-red.png", "Is it broken?", "Yes, Badly"),
            row("set 1/blue.png", "caption", "A door."),
            row("https://a.org/b.png?x=1", "caption", "A door."),
        ],
    ),
    "internvl_meta": (
        [META],
        [{"image": ["{here}/pictures/x/1.png"], "conversations": said("<image>\nWhat?")}] * 2
        + [{"conversations": said("Hi")}],
    ),
}


def run(name: str, given: list, folder) -> list[dict]:
    words = []
    for i, value in enumerate(given):
        path = folder / f"{i}.json"
        if isinstance(value, str):
            words.append(value)
        elif name == "refcoco" and i == 0:
            path.write_bytes(pickle.dumps(value, protocol=0))  # as Python 2 wrote it
            words.append(str(path))
        else:
            path.write_text(json.dumps(value))
            words.append(str(path))
    output = folder / "rows.jsonl"
    with mock.patch("sys.argv", ["convert.py", name, *words, str(output)]):
        runpy.run_path(CONVERT, run_name="__main__")
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": 0, "image": "x/1.png", "conversations": said("What?")}) + "\n")
    texts = [json.dumps({"conversations": said(text)}) + "\n" for text in ("Hi", "No", "Never")]
    (tmp_path / "b.jsonl").write_text("".join(texts))
    return tmp_path


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_makes_rows_of_a_well_known_file(name, folder, capsys):
    given, wanted = SCRIPTS[name]
    found = [{key: value for key, value in made.items() if key != "id"} for made in run(name, given, folder)]
    assert found == json.loads(json.dumps(wanted).replace("{here}", str(folder)))
    printed = capsys.readouterr().out
    assert f"{len(wanted)} rows" in printed and ("1 results of type rectanglelabels" in printed) == (given == [TASKS])


def test_every_converter_has_a_test():
    assert {rows.__name__ for rows in runpy.run_path(CONVERT)["CONVERTERS"]} == {*SCRIPTS}


def test_its_rows_are_read(folder, media_folder):
    run("coco_captions", [CAPTIONS], folder)
    dataset = MultimodalDataset(str(folder / "rows.jsonl"), image_folder=str(media_folder))
    assert len(dataset) == 3 and not dataset.notes()


def test_files_in_the_wrong_order_are_an_error_that_names_them(folder):
    with pytest.raises(SystemExit, match=r"0\.json \S+1\.json: KeyError: 'annotations'\. See --help for the files"):
        run("vqa_v2", [ANSWERS, QUESTIONS], folder)
    with pytest.raises(SystemExit, match=r"0\.json gives no rows"):
        run("coco_captions", [CAPTIONS | {"annotations": []}], folder)


def test_a_pickle_runs_no_code(folder):
    with pytest.raises(pickle.UnpicklingError, match="print, not only lists"):
        run("refcoco", [[print], INSTANCES, "train"], folder)


def test_the_error_for_a_well_known_file_names_its_script(tmp_path):
    given = {f"{name}{i}": value for name, (values, _) in SCRIPTS.items() for i, value in enumerate(values)}
    for name in ("refcoco0", "refcoco2", "visual_genome1"):
        del given[name]
    for name, value in given.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(value))
        script = "coco_instances" if name == "refcoco1" else name[:-1]
        with pytest.raises(ValueError, match=rf"convert it to rows: python example_data/convert\.py {script} --help"):
            MultimodalDataset(str(path))
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([]))
    with pytest.raises(ValueError, match=r"Convert RefCOCO's .* with example_data/convert\.py refcoco"):
        MultimodalDataset(str(tmp_path / "refs(unc).p"))


def test_addresses_of_files_and_bare_base64_are_media(media_folder, tmp_path):
    held = (media_folder / "red.png").read_bytes()
    (tmp_path / "a b#ä.png").write_bytes(held)
    address = (tmp_path / "a b#ä.png").as_uri()  # encoded: a%20b%23%C3%A4.png
    letters = base64.b64encode(held).decode()
    rows = [row(image, "What?", "Red") for image in (address, "FILE" + address[4:], letters, f"data:;base64,{letters}")]
    rows.append(row(address.replace("a%20b", "none"), "What?", "Red"))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    form = RowForm({"image": str(tmp_path), "video": str(tmp_path)})
    images = [form.messages(form.named(found))[0]["content"][0]["image"] for found in rows]
    assert images[:4] == [str(tmp_path / "a b#ä.png")] * 2 + [held] * 2
    with pytest.raises(ValueError, match=r"sample 4.*none#ä\.png"):
        MultimodalDataset(str(tmp_path / "rows.json"))
    with pytest.raises(ValueError, match="which is outside of"):  # of an author who is not the user
        replace(form, allow_absolute=False).messages(form.named(row(rows[0]["image"] + "/../../x.png", "What?", "Red")))


def test_a_list_and_other_objects_have_no_script(tmp_path):
    (tmp_path / "a.json").write_text('{"images": ["a.png"], "annotations": ["A door."]}')
    with pytest.raises(ValueError, match="not an object with images, annotations: write the rows as a list"):
        MultimodalDataset(str(tmp_path / "a.json"))
