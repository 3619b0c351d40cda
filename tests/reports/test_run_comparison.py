"""Two runs side by side: all that differs is said, and nothing else."""

import json
import re

import pytest
from matplotlib.figure import Figure

import compare_runs
from evaluation.answers import write_answers
from loaders.output_folder import write_arguments
from reports import run_comparison
from reports.run_report import fill_axes, plots_of

COMMON = {"model_id": "qwen2-vl-2b-instruct", "num_train_epochs": 3, "data_path": ["train.json"]}


@pytest.fixture
def runs(tmp_path, monkeypatch) -> list[str]:
    """The folders of two runs: of another learning rate and number of rows; the second still writes its log."""
    monkeypatch.chdir(tmp_path)
    for name, rate, samples, losses, said in (
        ("slow", 1e-5, 70, (2.0, 1.0), ["5", "red", "7", "1"]),
        ("fast", 1e-4, 80, (2.0, 0.1), ["5", "Blue", "8", "2"]),
    ):
        write_arguments(name, COMMON | {"learning_rate": rate, "output_dir": name})
        record = {"flags": {}, "processes": 1, "samples": samples, "texts": name, "media": []}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
        lines = [{"step": i, "max_steps": 2, "loss": loss} for i, loss in enumerate(losses, 1)]
        lines.append({"step": 2, "max_steps": 2, "eval_exact_match": 0.5, "eval_loss": losses[-1]})
        lines.append({"step": 2, "max_steps": 2, "state": "finished", "verdict": f"learned ({name})"})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "log.jsonl").write_text(text if name == "slow" else text[:-5])
        places = zip(("Reading?", "Lamp?", "Reading?", "Reading?"), said, ("5", "Blue", "7", "3"))
        answers = [
            {"index": i, "turn": 0, "question": q, "prediction": p, "reference": r, "exact_match": p == r}
            for i, (q, p, r) in enumerate(places)
        ]
        write_answers(name, 2, answers)
    return ["slow", "fast"]


def test_what_differs_is_said(runs, capsys):
    found = {table.title: table.rows for table in run_comparison.tables(*map(run_comparison.read_run, runs))}
    assert found["Results"] == [
        ["verdict", "finished: learned (slow)", "not over"],
        ["training loss", "1", "0.1"],
        ["evaluation loss", "1", "0.1"],
    ]
    assert found["Settings"] == [["--learning_rate", "1e-05", "0.0001"]]
    assert found["Data and processes"] == [["--data_path has 80 usable samples, but had 70"]]
    answers = [["Lamp?", "Blue", "red", "Blue"], ["Reading?", "7", "7", "8"]]
    assert found["Answers that only one run got right: 2 of 4"] == answers and len(found) == 4

    compare_runs.main([*runs, "--html", "page.html"])
    shown = capsys.readouterr().out
    page = run_comparison.page(*map(run_comparison.read_run, runs))
    for text in (shown, page):
        assert "learned (slow)" in text and "0.0001" in text and "Lamp?" in text and "num_train_epochs" not in text
    assert re.findall("<figcaption>(.*?)</figcaption>", page) == ["loss, log scale", "exact match"]
    assert all(f">{name}, {line}<" in page for name in runs for line in ("training", "evaluation"))


def test_equal_runs_and_no_run(runs, capsys):
    compare_runs.main(["slow", "slow/"])
    assert capsys.readouterr().out == "Results, settings, data and answers are equal.\n"
    with pytest.raises(ValueError, match="none has no log.jsonl. Pass the --output_dir of a run"):
        compare_runs.main(["slow", "none"])


def test_a_loss_over_decades_has_a_log_scale():
    steep = {"training": [(1, 3.0), (2, 0.5)], "evaluation": [(2, 0.2)]}
    curves = {"loss": steep, "learning_rate": steep, "texts_loss": {"training": [(1, 3.0), (2, 0.4)]}}
    assert [title for title, _ in plots_of(curves)] == ["loss, log scale", "learning rate", "texts loss"]
    for lowest, is_labelled in ((0.01, False), (0.9, True)):  # so many labels would lie on each other
        axes = Figure().subplots()
        fill_axes(axes, {"training": [(0, 7.0), (1, 7 * lowest)]}, {"training": "red"}, log_scale=True)
        assert any(label.get_text() for label in axes.get_yticklabels(minor=True)) is is_labelled
