"""The example scripts: what a newcomer runs first."""

import json
import os
import runpy
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from conftest import REPO, VISION_FLAGS, run
from PIL import Image

import predict
from evaluation.metrics import METRICS


def last_table(script: str, tmp_path) -> dict[str, list[float]]:
    """Runs an example script; {question: [number, exact match, blind baseline]} of the table near its end."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OUTPUT_DIR": str(tmp_path / "out"), "HF_HUB_OFFLINE": "1"}
    environment |= {"MAX_STEPS": "300"}  # half of the image example's, where it has begun to read
    command = ["bash", f"example_scripts/{script}"]
    result = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = result.stdout.rpartition("blind baseline\n")[2].partition("\n\n")[0].splitlines()
    return {row[:32].strip(): [float(number) for number in row[32:].split()] for row in rows}


# The notebook trains on the same clips.
VIDEO = pytest.param("example_video.sh", 150, 0.9, marks=pytest.mark.cross)


@pytest.mark.slow
@pytest.mark.parametrize("script, questions, least", [("example_image.sh", 300, 0.5), VIDEO])
def test_example_learns_what_a_blind_guess_does_not_know(script, questions, least, tmp_path):
    number, exact_match, blind_baseline = last_table(script, tmp_path)["all"]
    assert number >= questions
    assert exact_match >= least
    assert blind_baseline < 0.35


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder of all drawn pictures and rows."""
    folder = tmp_path_factory.mktemp("drawn")
    for kind in ("--pairs", "--texts"):
        with mock.patch("sys.argv", ["draw.py", kind, "--output_dir", str(folder)]):
            runpy.run_path(str(REPO / "example_data/draw.py"), run_name="__main__")
    return folder


def conversations(path) -> list[tuple]:
    """Of each row, its images and {question: answer}."""
    rows = json.loads(path.read_text())
    texts = [[turn["value"].split(">\n")[-1] for turn in row["conversations"]] for row in rows]
    return [(row.get("image"), dict(zip(said[::2], said[1::2]))) for row, said in zip(rows, texts)]


def test_a_box_holds_its_shape_and_nothing_else(tmp_path):
    box_rows = runpy.run_path(str(REPO / "example_data/draw.py"))["box_rows"]
    for row in box_rows("test", tmp_path):
        pixels = np.asarray(Image.open(tmp_path / row["image"])).astype(int)
        drawn = (np.abs(pixels - pixels[0, 0]).max(axis=2) > 0).nonzero()
        (box,) = row["objects"]["bbox"]
        edges = [drawn[1].min(), drawn[0].min(), drawn[1].max() + 1, drawn[0].max() + 1]
        assert np.abs(np.subtract(box, edges)).max() <= 1  # the faintest edge depends on the paper


@pytest.mark.slow
@pytest.mark.cross
def test_a_tiny_model_learns_where_a_shape_is(tiny, tmp_path):
    """On held-out combinations; one box for all would be right in 0.16 of them."""
    with mock.patch("sys.argv", ["draw.py", "--boxes", "--output_dir", str(tmp_path)]):
        runpy.run_path(str(REPO / "example_data/draw.py"), run_name="__main__")
    flags = ["--max_steps", 600, "--per_device_train_batch_size", 32, "--learning_rate", 3e-3, "--adam_beta2", 0.95]
    flags += ["--warmup_steps", 60, "--lr_scheduler_type", "cosine", "--box_format", "pixels", "--logging_steps", 100]
    run(tiny, "llava-1.5", str(tmp_path / "box_train.json"), tmp_path / "out", *VISION_FLAGS, *flags)
    words = ["--model_path", str(tmp_path / "out"), "--data_path", str(tmp_path / "box_test.json"), "--metric"]
    words += ["box_accuracy", "--batch_size", "50", "--max_new_tokens", "24"]
    predict.main([*words, "--output_path", str(tmp_path / "answers.jsonl")])
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert METRICS["box_accuracy"].measure(*zip(*((a["prediction"], [a["reference"]]) for a in answers))) >= 0.7


@pytest.mark.slow
def test_no_held_out_image_is_trained_on(drawn):
    """Of the drawn files, by their bytes."""
    images = {part: [p.read_bytes() for p in (drawn / "images" / part).iterdir()] for part in ("train", "test")}
    assert len(images["train"]) > 1000 and len(images["test"]) > 100
    assert not set(images["train"]) & set(images["test"])


@pytest.mark.slow
def test_the_answers_about_pairs_are_those_about_their_pictures(drawn):
    for part in ("train", "test"):
        single, pairs = dict(conversations(drawn / f"{part}.json")), conversations(drawn / f"pair_{part}.json")
        for images, answers in pairs:
            readings = [int(single[image]["What does the gauge read?"]) for image in images]
            (more, colour), (_, asked) = answers.values(), answers
            assert (more == "Second") == (readings[1] > readings[0]) and readings[0] != readings[1]
            assert colour == single[images["second" in asked]]["What colour is the rim?"]
        seconds = sum(answers["Which gauge reads more?"] == "Second" for _, answers in pairs)
        assert 0.4 < seconds / len(pairs) < 0.6


@pytest.mark.slow
def test_no_held_out_order_of_colours_is_trained_on(drawn):
    texts = {
        part: dict(turn for _, row in conversations(drawn / f"text_{part}.json") for turn in row.items())
        for part in ("train", "test")
    }
    assert len(texts["train"]) == 100 and len(texts["test"]) == 20 and not set(texts["train"]) & set(texts["test"])
    for question, answer in (texts["train"] | texts["test"]).items():
        assert answer == ", ".join(sorted(question.split(": ")[1].split(", ")))
