"""Held-out answers in the trackers, read back from what these wrote. Each runs where its package is installed."""

import json
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest
from conftest import lines_of, rows_for, run
from PIL import Image

from evaluation.answers import write_answers
from reading.dataset import MultimodalDataset
from reports import trackers

FAMILY = "qwen2-vl"


def train(tiny, write_rows, tmp_path, tracker: str, name: str = "out") -> list[list]:
    """A run of two steps, answered before and after; (question, reference, answer) of the last answers."""
    path, out = write_rows(rows_for(FAMILY)), tmp_path / name
    flags = ["--use_lora", True, "--eval_data_path", f"{path}[:3]", "--eval_generate", 3, "--eval_max_new_tokens", 3]
    run(tiny, FAMILY, path, out, *flags, "--report_to", tracker)
    answers = lines_of(out / "eval_answers/step-2.jsonl")
    return sorted([answer["question"], answer["reference"], answer["prediction"]] for answer in answers)


@pytest.mark.slow
def test_tensorboard_has_answers_and_pictures(tiny, write_rows, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    answers = train(tiny, write_rows, tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "out/runs/answers"))
    events.Reload()
    before, after = events.Tensors("answers/text_summary")
    table = after.tensor_proto.string_val[0].decode()
    assert (before.step, after.step) == (0, 2) and table.startswith("| row | question | reference | answer | right |")
    assert all(f"| {question} | {reference} |" in table for question, reference, _ in answers)
    assert len(table.splitlines()) == len(answers) + 2
    assert events.Tags()["images"] == ["answers/row 0", "answers/row 1", "answers/row 2"]
    scalars = EventAccumulator(str(next((tmp_path / "out/runs").glob("[!a]*"))))
    scalars.Reload()
    assert {"train/loss", "eval/loss", "eval/exact_match"} <= set(scalars.Tags()["scalars"])


@pytest.mark.slow
def test_wandb_has_answers_and_pictures(tiny, write_rows, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    answers = train(tiny, write_rows, tmp_path, "wandb")
    import wandb

    wandb.finish()
    tables = sorted(tmp_path.glob("wandb/offline-run-*/files/media/table/answers_*.json"))
    table = json.loads(max(tables, key=lambda path: int(path.name.split("_")[1])).read_text())
    assert table["columns"] == trackers.COLUMNS and len(tables) == 2
    assert sorted(row[1:4] for row in table["data"]) == answers
    assert sum(row[-1] is not None for row in table["data"]) == len(answers)


@pytest.mark.slow
def test_trackio_has_answers_and_pictures_in_one_run(tiny, write_rows, tmp_path):
    pytest.importorskip("trackio")
    name = f"run-{uuid4()}"  # trackio has one place for all projects
    answers = train(tiny, write_rows, tmp_path, "trackio", name)
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    trackio.finish()  # as it does where a process ends
    logs = [line for line in SQLiteStorage.get_logs("huggingface", name) if "answers" in line]
    assert [line["train/global_step"] for line in logs] == [0, 2]
    rows = logs[-1]["answers"]["_value"]
    assert sorted([row["question"], row["reference"], row["answer"]] for row in rows) == answers
    assert all(row["media"]["_type"] == "trackio.image" for row in rows)


def test_media_side_by_side():
    red, tall = Image.new("RGB", (320, 160), "red"), Image.new("L", (50, 100))
    strip = np.asarray(trackers.side_by_side([red, tall]))
    assert strip.shape == (160, 400, 3)
    assert (strip[:, :320] == [255, 0, 0]).all() and (strip[:, 320:] == 0).all()
    assert trackers.side_by_side([]) is None


def test_answers_go_to_the_trackers_that_are_named(write_rows, tmp_path, monkeypatch):
    sent = []
    senders = {"trackio": lambda *args: sent.append(args), "wandb": lambda *args: 1 / 0}
    monkeypatch.setattr(trackers, "SENDERS", senders)
    answers = [
        {"index": 0, "turn": 0, "question": "Colour?", "reference": "Red", "prediction": "Red", "exact_match": True},
        {"index": 1, "turn": 0, "question": "Which?", "reference": "One", "prediction": "Two", "exact_match": False},
    ]
    write_answers(str(tmp_path), 7, answers)
    callback = trackers.AnswerTables(MultimodalDataset(write_rows(rows_for(FAMILY))))
    args = SimpleNamespace(report_to=["trackio"], eval_generate=2, output_dir=str(tmp_path))
    for is_first in (True, False):
        callback.on_evaluate(args, SimpleNamespace(global_step=7, is_world_process_zero=is_first), None)
    [(rows, step, _)] = sent
    assert step == 7 and [row[:-1] for row in rows] == [
        [1, "Which?", "One", "Two", False],  # the wrong one first
        [0, "Colour?", "Red", "Red", True],
    ]
    assert [row[-1].size for row in rows] == [(480, 160), (160, 160)]
