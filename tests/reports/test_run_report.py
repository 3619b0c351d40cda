"""What a run leaves for people: the report, the plot of the loss, the model card."""

import base64
import io
import json
import re
import runpy
import signal
import time
from html.parser import HTMLParser

import pytest
import yaml
from conftest import MODEL_ID, VISION_FLAGS, lines_of, logs_of, rows_for, run
from launch import Launch
from PIL import Image
from transformers import TrainerState

import merge_lora_weights
from arguments import parse_arguments
from evaluation.answers import write_answers
from evaluation.verdict import Verdict
from reading.dataset import make_dataset
from reports import run_report
from reports.model_card import write_merged_card
from training.progress import LogFile
from training.trainable import ComponentSummary

FAMILY = "qwen2-vl"


class Page(HTMLParser):
    """The texts of a page, its tags, what they refer to, and the cells of its tables."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.references, self.rows, self.text = set(), [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_the_report_of_a_run(tiny, write_rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(LogFile, "seconds", 3725.0)  # of all parts of a resumed run
    path, out = write_rows(rows_for(FAMILY)), tmp_path / "out"
    flags = ["--use_lora", True, "--train_vision_projector", True, "--eval_data_path", f"{path}[:3]"]
    flags += ["--eval_generate", 3, "--eval_max_new_tokens", 3, "--hub_token", "hf_secret"]
    run(tiny, FAMILY, path, out, *flags, draws_plots=True)
    page = Page(out / "report.html")
    assert capsys.readouterr().out.splitlines()[-1].startswith("finished: too few steps to tell (")
    assert "1:02:05" in page.text
    assert json.loads((out / "all_results.json").read_text())["train_steps_per_second"] == round(2 / 3725, 3)
    assert "script" not in page.tags
    assert all(reference.startswith("data:") for reference in page.references)  # it needs no other file
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(reference.split("base64,")[1]))).size
        for reference in page.references
        if reference.startswith("data:image")
    ]
    assert sizes == [(64, 64), (64, 64), (100, 50), (100, 50), (60, 140)]  # of the media of its three rows

    assert "finished: too few steps to tell (" in page.text and "step 2 of 2" in page.text
    log = logs_of(out)
    losses = [logs["loss"] for logs in log if "loss" in logs]
    assert f"{losses[-1]:.3g}" in page.text
    assert f"{[logs['eval_loss'] for logs in log if 'eval_loss' in logs][-1]:.3g}" in page.text
    cells = {row[0]: row[1:] for row in page.rows if row}
    assert cells["vision encoder"][:1] + cells["vision encoder"][2:3] == ["frozen", "0"]
    assert cells["language model"][0] == "lora r=8"
    assert cells["training"][0] == "7" and "several images: 2" in cells["training"][1]
    before, after = (lines_of(out / f"eval_answers/step-{step}.jsonl") for step in (0, 2))
    shown = [row for row in page.rows if len(row) == 4 and "row " in row[0]]
    assert [re.sub(r"row \d+$", "", row[0]) for row in shown] == [
        *("What colour is it?", "Which is blue?", "Is  like  ?", "Why?"),
    ]
    assert [row[1] for row in shown] == ["Red", "The second", "No", "The colour"]
    assert len(before) == len(after) == len(shown)
    assert "hf_secret" not in (out / "report.html").read_text()
    assert cells["--use_lora"] == ["True"] and "train.py" in page.text and "transformers 5." in page.text
    with Image.open(out / "loss.png") as plot:
        assert plot.width > 500


def card_of(folder) -> tuple[dict, str]:
    _, metadata, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(metadata), text


@pytest.mark.parametrize(
    "flags", [["--use_lora", True], pytest.param(VISION_FLAGS, marks=pytest.mark.slow)], ids=["adapter", "full"]
)
def test_the_model_card(tiny, write_rows, tmp_path, flags):
    path, out = write_rows(rows_for(FAMILY)), tmp_path / "out"
    saves = ["--save_strategy", "steps", "--save_steps", 1, "--learning_rate", 2e-3]
    run(tiny, FAMILY, path, out, *flags, *saves, draws_plots=True)
    loss = [log["loss"] for log in logs_of(out) if "loss" in log]
    metadata, text = card_of(out)
    assert metadata["library_name"] == ("peft" if "--use_lora" in flags else "transformers")
    assert metadata["pipeline_tag"] == "image-text-to-text"
    assert "base_model" not in metadata  # a folder of this machine is nobody's base
    assert f"| training loss | {loss[-1]:.3g} |" in text
    kinds = re.search(r"\| training \| 7 \| (.*?) \|", text)[1].split(", ")
    assert set(kinds) == {"image 2", "several images 2", "text 1", "video 1", "mixed 1"}
    assert yaml.safe_load(re.search(r"(?s)```yaml\n(.*?)```", text)[1])["learning_rate"] == 2e-3
    assert str(tmp_path) not in text and tiny(FAMILY) not in text
    assert "finished: too few steps to tell (" in text and "finished" not in card_of(out / "checkpoint-1")[1]
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (out / target).is_file(), target
    code = re.search(r"(?s)```python\n(.*?)```", text)[1].replace("FOLDER_OF_THIS_CARD", str(out))
    (tmp_path / "code.py").write_text(code.replace('"qwen2-vl"', repr(tiny(FAMILY))))
    runpy.run_path(str(tmp_path / "code.py"))
    assert "| steps | 1 of 2 |" in card_of(out / "checkpoint-1")[1]
    if "--use_lora" in flags:
        merge_lora_weights.main(["--model_path", str(out), "--model_save_path", str(tmp_path / "merged")])
        metadata, merged = card_of(tmp_path / "merged")
        assert metadata["library_name"] == "transformers" and metadata["tags"] == ["finelmm"]
        assert "PeftModel" not in merged and "Merged weights of" in merged
        assert (
            merged.partition("## Results")[2].partition("## Use")[0]
            == text.partition("## Results")[2].partition("## Use")[0]
        )
        assert merged.rpartition("```")[2] == text.rpartition("```")[2]
        assert (tmp_path / "merged/loss.png").is_file()


@pytest.mark.parametrize("text", [None, "---\ntags: [other]\n---\n# Mine\n", "---\n{: no YAML\n---\n# Mine\n"])
def test_a_card_of_somebody_else_is_not_taken_for_the_merged_models(tmp_path, text):
    for name in ("adapter", "merged"):
        (tmp_path / name).mkdir()
    if text:
        (tmp_path / "adapter/README.md").write_text(text)
    write_merged_card(str(tmp_path / "adapter"), str(tmp_path / "merged"))
    assert not (tmp_path / "merged/README.md").exists()


def test_the_card_of_a_model_of_the_hub_names_its_base(tmp_path):
    words = ["--model_id", "qwen2-vl-2b-instruct", "--data_path", "none.json", "--output_dir", str(tmp_path)]
    facts = run_report.RunFacts(parse_arguments(words), [], None, None, {})
    assert facts.command == "python train.py " + " ".join(words)
    assert facts.base == "Qwen/Qwen2-VL-2B-Instruct"


def test_the_card_says_what_a_server_and_plain_transformers_do_otherwise(write_rows, tmp_path):
    words = ["--model_id", "llama-3.2-11b-vision-instruct", "--data_path", write_rows(rows_for(FAMILY)[:1])]
    arguments = parse_arguments([*words, "--output_dir", str(tmp_path)])
    dataset = make_dataset(arguments.data, "data_path", arguments.data.data_path)
    trained = [ComponentSummary("language model", "lora", 1, 1, 1e-4, "float32", {}, [], {}, [])]
    facts = run_report.RunFacts(arguments, trained, dataset, None, {"add_special_tokens": True})
    run_report.write_card(facts, str(tmp_path), TrainerState())
    text = card_of(tmp_path)[1]
    assert "`extra_body={'add_special_tokens': True}`" in text and "first image attended to no image" in text
    run_report.write_card(facts._replace(request={}), str(tmp_path), TrainerState())
    assert "extra_body" not in card_of(tmp_path)[1]


def test_the_report_counts_closed_answers_of_each_file(write_rows, tmp_path):
    """Two files: of one, each answer is cat or dog; of the other, whose name begins as blind guesses do, a sentence."""
    said = {
        "blind_pets": ["Cat", "dog", "cat", "dog", "cat"],
        "texts": [f"line {i}" for i in range(5)],
    }
    folder, paths = tmp_path / "data", []
    folder.mkdir()
    for name, replies in said.items():
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps([{"question": "What?", "answer": reply} for reply in replies]))
    words = ["--model_id", "qwen2-vl-2b-instruct", "--data_path", str(paths[0]), "--eval_data_path", *map(str, paths)]
    arguments = parse_arguments([*words, "--output_dir", str(tmp_path), "--eval_generate", "5", "--use_cpu", "True"])
    held_out = make_dataset(arguments.data, "eval_data_path", arguments.data.eval_data_path)
    found = ["cat", "cat.", "a horse", "Dog", "cat", *["?"] * 5]
    lines = [
        {"index": i, "turn": 0, "question": "What?", "prediction": p, "reference": r, "exact_match": False}
        for i, (p, r) in enumerate(zip(found, [*said["blind_pets"], *said["texts"]]))
    ]
    write_answers(str(tmp_path), 3, lines)
    logs = {"step": 3, "eval_loss": 2.0, "eval_exact_match": 0.25, "eval_blind_exact_match": 0.125, "eval_answers": 10}
    logs |= {"eval_blind_pets_exact_match": 0.0625, "eval_texts_loss": 4.0, "eval_texts_answers": 5}
    trained = [ComponentSummary("language model", "lora", 1, 1, 1e-4, "float32", {}, [], {}, [])]
    facts = run_report.RunFacts(arguments, trained, held_out, held_out, {})
    run_report.write_report(str(tmp_path), facts, TrainerState(log_history=[logs], max_steps=3), Verdict("finished"))
    page = Page(tmp_path / "report.html")
    begin = page.rows.index(["reference", "cat", "dog", "anything else"])
    assert [row[:3] for row in page.rows[begin + 1 : begin + 3]] == [["cat", "2", ""], ["dog", "1", "1"]]
    assert page.rows[begin + 1][3] == "1"
    assert page.text.count("How often each class was answered") == 1 and "was answered: blind_pets" in page.text
    assert run_report.metrics_of(logs) == {"exact_match": 0.25, "blind_pets_exact_match": 0.0625, "texts_loss": 4.0}


@pytest.mark.slow
def test_a_stopped_run_leaves_a_report(tiny, write_rows, tmp_path):
    path, out = write_rows(rows_for(FAMILY)), tmp_path / "out"
    words = ["--model_id", MODEL_ID[FAMILY], "--model_local_path", tiny(FAMILY), "--data_path", path, "--use_cpu", True]
    words += ["--output_dir", out, "--logging_steps", 1, "--max_steps", 1000, "--use_lora", True]
    for number, code, ended in ((signal.SIGTERM, 143, "by SIGTERM"), (signal.SIGINT, 130, "by Ctrl-C")):
        stopped = Launch(words, environment={"PLOTS": 1})
        (out / "log.jsonl").unlink(missing_ok=True)
        while not (out / "log.jsonl").exists() or len((out / "log.jsonl").read_text().splitlines()) < 2:
            assert stopped.running, stopped.output
            time.sleep(0.05)
        stopped.send(number)
        assert stopped.wait() == [code]
        assert "--resume_from_checkpoint True" in stopped.output and "Traceback" not in stopped.output
        page = Page(out / "report.html")
        sentence = f"{ended}. To continue, add --resume_from_checkpoint True"
        assert f"stopped: {sentence}" in page.text and re.search(r"step \d+ of 1,000", page.text)
        last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
        assert (last["state"], last["verdict"]) == ("stopped", sentence)
        assert (out / "loss.png").is_file() and (out / "args.yaml").is_file()


def test_a_failed_report_does_not_fail_the_run(tiny, write_rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_report, "write_loss", lambda *_: 1 / 0)
    run(tiny, FAMILY, write_rows(rows_for(FAMILY)), tmp_path / "out", draws_plots=True)
    assert "WARNING: the report could not be written: ZeroDivisionError" in capsys.readouterr().out
    assert (tmp_path / "out/all_results.json").is_file()


def test_what_a_failed_run_says_is_in_its_report(tiny, write_rows, tmp_path, monkeypatch):
    from training import trainer

    def fail(*_):
        raise ValueError("the <evaluation> broke")

    monkeypatch.setattr(trainer.FinetuneTrainer, "evaluate_at_end", fail)
    path = write_rows(rows_for(FAMILY))
    with pytest.raises(ValueError, match="broke"):
        run(tiny, FAMILY, path, tmp_path / "out", "--eval_data_path", path)
    page = tmp_path / "out/report.html"
    assert "failed: the <evaluation> broke" in Page(page).text and 'class="card error"' in page.read_text()
    assert json.loads((tmp_path / "out/log.jsonl").read_text().splitlines()[-1])["state"] == "failed"
