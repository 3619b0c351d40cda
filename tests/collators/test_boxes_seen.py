"""Boxes on their way out: drawn by preview and report, in pixels of the original from answers, in the metrics."""

import base64
import io
import re
from copy import copy
from pathlib import Path

import numpy as np
import pytest
from conftest import MODEL_ID, make_loader
from PIL import Image, ImageColor, ImageDraw

import predict
import preview
from collators import COLLATORS
from collators.boxes import BOX_FORMATS
from collators.template_check import check_template
from evaluation import answers, metrics
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions
from reports import run_report
from reports.html_page import ANSWERED, RIGHT

BOX = [250, 40, 350, 140]  # of 400x300, as a person sees it
ASKED = {"question": "<image>Where is the <ref-object>?", "answer": "<ref-object><bbox>"}
ROW = ASKED | {"image": "seen.jpg", "objects": {"ref": ["square", "square"], "bbox": [BOX]}}


@pytest.fixture(scope="module")
def collator(tiny):
    loader = make_loader("qwen2.5-vl", tiny("qwen2.5-vl"))
    processor = loader.load_processor()
    return COLLATORS.get("qwen2.5-vl")(processor, stop_tokens=loader.stop_tokens(processor.tokenizer))


@pytest.fixture
def photo(media_folder):
    """A red square on a picture that lies on its side."""
    picture, exif = Image.new("RGB", (400, 300), "white"), Image.Exif()
    ImageDraw.Draw(picture).rectangle((250, 40, 349, 139), fill="red")
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(media_folder / "seen.jpg", exif=exif, quality=95)
    yield
    (media_folder / "seen.jpg").unlink()


def corners(picture: Image.Image, colour: str, tolerance: int = 80) -> np.ndarray:
    """Of what has this colour, as shares of the sides."""
    away = np.abs(np.asarray(picture.convert("RGB")).astype(int) - ImageColor.getrgb(colour)).max(axis=2)
    y, x = np.nonzero(away < tolerance)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / (picture.size * 2)


def pictures_in(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.mark.parametrize("flags", [[], ["--image_size", "200x420"], ["--max_pixels", "50000"]], ids=" ".join)
def test_the_preview_draws_the_numbers_of_the_labels_around_what_they_mean(tiny, write_rows, tmp_path, photo, flags):
    page = tmp_path / "page.html"
    words = [
        "--model_id",
        MODEL_ID["qwen2.5-vl"],
        "--model_local_path",
        tiny("qwen2.5-vl"),
        "--html",
        str(page),
        *flags,
    ]
    path = write_rows([ROW, {"question": "<image>?", "answer": "Red", "image": "seen.jpg"}])
    with pytest.raises(SystemExit, match="0"):
        preview.main([*words, "--data_path", path, "--output_dir", str(tmp_path)])
    drawn, plain = pictures_in(page.read_text())
    assert corners(drawn, RIGHT) == pytest.approx(corners(plain, "red"), abs=0.025)
    with pytest.raises(ValueError):  # no such colour
        corners(plain, RIGHT)


def answered(collator, dataset, monkeypatch, *texts: str) -> list[dict]:
    """What `generate_answers` makes of such answers of a model."""
    monkeypatch.setattr(answers, "_generate", lambda *args, **kwargs: [*texts])
    return list(answers.generate_answers(None, collator, dataset))


def test_answers_tell_boxes_in_pixels_of_the_original(collator, write_rows, photo, monkeypatch):
    two = {"question": "<image><image>?", "answer": "<point><bbox>", "image": ["red.png", "seen.jpg"]}
    two["objects"] = {"point": [[16, 48]], "bbox": [BOX], "image_id": [0, 1]}
    rows = [
        ROW,
        two,
        {"question": "<image>?", "answer": "Red", "image": "red.png"},
        {"question": "?", "answer": "[1, 2]"},
    ]
    dataset = MultimodalDataset(write_rows(rows), media=MediaOptions(image_size="140x280"))
    texts = ['[{"bbox_2d": [70, 140, 140, 280]}]', "[14, 28] [70, 0, 140, 280] [7, 14]", "Red", "[1, 2]"]
    one, other, *none = answered(collator, dataset, monkeypatch, *texts)
    assert one["boxes"] == [{"image": 0, "at": [200, 150, 400, 300]}]  # the processor keeps 140x280
    [told] = one["reference_boxes"]
    assert told["image"] == 0 and told["at"] == pytest.approx(BOX, abs=2) and one["question"].endswith("the square?")
    assert one["reference"].startswith("```json\n[") and one["reference"].count("bbox_2d") == 1
    assert [box["image"] for box in other["boxes"]] == [0, 1, 0]
    assert other["boxes"][0]["at"] == pytest.approx([6.4, 6.4]) and other["boxes"][1]["at"] == [200, 0, 400, 300]
    assert other["reference_boxes"][0]["at"] == pytest.approx([16, 48], abs=1)
    assert not any("boxes" in answer for answer in none)


def test_the_report_draws_true_and_answered_boxes(collator, write_rows, tmp_path, photo, monkeypatch):
    dataset = MultimodalDataset(write_rows([ROW]), media=MediaOptions(max_pixels=60_000))
    [answer] = answered(collator, dataset, monkeypatch, "[0, 0, 126, 84]")
    answers.write_answers(str(tmp_path), 5, [answer])
    [shown] = run_report.answers_of(str(tmp_path), dataset, [5])
    [picture] = pictures_in(f'src="{shown["pictures"][0][0]}"')
    [opened] = [part["image"] for part in dataset[0]["messages"][0]["content"] if part["type"] == "image"]
    assert corners(picture, RIGHT) == pytest.approx(corners(opened, "red"), abs=0.025)
    width, height = collator.template.boxes.sides(opened.size)[:2]
    assert corners(picture, ANSWERED) == pytest.approx([0, 0, 126 / width, 84 / height], abs=0.025)


MEASURED = [  # answer, reference -> iou, box_accuracy, point_in_box
    ("[0, 0, 2, 2]", "[1, 1, 3, 3]", 1 / 7, 0, 1),
    ("<box>[[1, 1, 3, 3]]</box>", "<box>[[1, 1, 3, 3]]</box>", 1, 1, 1),
    ("<|box_start|>(0,0),(10,10)<|box_end|>", "<|box_start|>(0,0),(10,20)<|box_end|>", 0.5, 1, 1),
    ("<loc0000><loc0000><loc0010><loc0010> dog", "<loc0500><loc0000><loc0600><loc0010> dog", 0, 0, 0),
    ("[5, 5]", "[0, 0, 10, 10]", 0, 0, 1),
    ("nothing", "[0, 0, 10, 10]", 0, 0, 0),
    ("[0, 0, 10, 10], [50, 50, 60, 60]", "[0, 0, 10, 10]", 0.5, 1, 1),
    ("[0, 0, 10, 10]", "[20, 0, 30, 10], [0, 0, 10, 10]", 0.5, 1, 1),
    ("[10, 10, 0, 0]", "[0, 0, 10, 10]", 0, 0, 1),
]


def test_the_metrics_of_boxes_are_those_worked_out_by_hand():
    names = ["iou", "box_accuracy", "point_in_box"]
    functions = metrics.load_metrics(names)
    for answer, reference, *expected in MEASURED:
        found = metrics.score([{"prediction": answer, "reference": reference}], functions)
        assert [found[name] for name in names] == pytest.approx(expected), (answer, reference)
    mixed = [{"prediction": "[0, 0, 2, 2]", "reference": "[0, 0, 2, 2]"}, {"prediction": "Red", "reference": "Red"}]
    assert metrics.score(mixed, functions)["iou"] == 1  # only of replies with a box
    assert metrics.score(mixed[1:], functions).keys() == {"exact_match", "anls"}  # some eval sets have no boxes


def test_pixels_in_a_text_are_warned_of_where_flags_resize(collator, write_rows):
    own = {"question": "<image>?", "answer": '{"bbox_2d": [1, 2, 30, 40]}', "image": "red.png"}
    told = {"question": "<image>?", "answer": "<bbox>", "image": "red.png", "objects": {"bbox": [[1, 2, 30, 40]]}}
    for rows, options, is_warned in (
        ([told, own], {"max_pixels": 1000}, True),
        ([own], {"image_size": "56"}, True),
        ([own], {}, False),
        ([told], {"image_size": "56"}, False),
    ):
        notes = check_template(collator, MultimodalDataset(write_rows(rows), media=MediaOptions(**options)))
        assert ("Write boxes as `objects`" in notes) == is_warned, (rows, options)
    bounded = copy(collator)  # by --max_pixels, which is then the processor's own
    bounded.image_size = {"longest_edge": 1000}
    assert "Write boxes as `objects`" in check_template(bounded, MultimodalDataset(write_rows([own])))


def test_answers_are_read_in_the_form_of_the_run(tiny, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).symlink_to(Path(tiny("qwen2.5-vl"), name))
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        if (path := Path(tiny("qwen2.5-vl"), name)).exists():
            (tmp_path / name).symlink_to(path)
    (tmp_path / "args.yaml").write_text("model_id: qwen2.5-vl-3b-instruct\nbox_format: relative\n")
    assert predict.load(str(tmp_path))[1].template.boxes.format == BOX_FORMATS["relative"]
    assert predict.load(str(tmp_path), box_format="thousand")[1].template.boxes.format == BOX_FORMATS["thousand"]
