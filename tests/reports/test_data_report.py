"""`data_report.py`: what the check of a data set counts and says, against rows whose truth is known by hand."""

import io
import json
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from conftest import CONSENT, MODEL_ID, turns
from rich.table import Table
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

import preview
from arguments import DataArguments
from reading import split
from reading.dataset import MultimodalDataset
from reading.split import make_datasets
from reports import data_report, data_report_views
from reports.terminal import terminal


class LoggedDataset(MultimodalDataset):
    """Notes each row that is opened in a file, and does harm on rows that say so."""

    def __getitem__(self, position: int) -> dict:
        with open(self.log, "a") as file:
            file.write(f"{position}\n")
        harm = str(self.rows[position])
        if "KILL" in harm:
            os.kill(os.getpid(), signal.SIGKILL)
        if "EXIT" in harm:
            os._exit(1)
        if "FAIL" in harm:
            raise KeyError("a fault of ours")
        return super().__getitem__(position)


def rows_here(rows, number) -> DataLoader:
    """As `data_report.workers`, in this process."""
    return DataLoader(rows, batch_size=None)


HERE = {"workers": rows_here, "get_worker_info": lambda: SimpleNamespace(id=0)}


def main(words: list[str], log: str) -> int:
    """preview.py with a `LoggedDataset`, in this process unless a number of workers is given; returns its exit code."""
    make = split.make_dataset

    def make_logged(*args, **kwargs):
        if dataset := make(*args, **kwargs):
            dataset.__class__, dataset.log = LoggedDataset, log
        return dataset

    here = {"workers": data_report.workers} if "--dataloader_num_workers" in words else HERE
    with mock.patch.object(split, "make_dataset", make_logged), mock.patch.multiple(data_report, **here):
        with pytest.raises(SystemExit) as end:
            preview.main(words)
    return end.value.code


@pytest.fixture
def words(tiny, tmp_path):
    """`words(family, path, *flags)`: the command line of a check."""

    def make(family: str, path: str, *flags) -> list[str]:
        made = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", path]
        made += [*CONSENT[family], "--data_cache", str(tmp_path / "cache"), "--check"]
        return [*made, *map(str, flags)]

    return make


@pytest.fixture
def check(words, tmp_path, capsys):
    """`check(family, path, *flags)`: exit code, report, and the rows that were opened, in order."""

    def call(family: str, path: str, *flags) -> tuple[int, dict, list[int]]:
        log = tmp_path / "opened"
        log.write_text("")
        command = [*words(family, path, *flags), "--json"]
        capsys.readouterr()  # what making the checkpoint printed
        code = main(command, str(log))
        return code, json.loads(capsys.readouterr().out), sorted(map(int, log.read_text().split()))

    return call


def faults(report: dict) -> dict[str, int]:
    return {fault: found["rows"] for fault, found in report["data"]["train"]["faults"].items()}


def row(*texts: str, **media) -> dict:
    return {"conversations": turns(*texts), **media}


# ---- what is counted ----


def test_tokens_are_those_of_the_text_written_by_hand_and_of_the_vision_encoder(check, tiny, write_rows):
    rows = [
        row("Name a colour.", "Blue"),
        row("<image>\nWhat colour is it?", "Red", image="red.png"),
        row("<image>\n<image>\nWhich is blue?", "The second", image=["red.png", "blue.png"]),
    ]
    texts = [
        "USER: Name a colour. ASSISTANT: Blue</s>",
        "USER: <image>\nWhat colour is it? ASSISTANT: Red</s>",
        "USER: <image>\n<image>\nWhich is blue? ASSISTANT: The second</s>",
    ]
    tokenizer = AutoTokenizer.from_pretrained(tiny("llava-1.5"))
    vision = json.loads(Path(tiny("llava-1.5"), "config.json").read_text())["vision_config"]
    of_image = (vision["image_size"] // vision["patch_size"]) ** 2
    tokens = [tokenizer(text).input_ids for text in texts]
    text_tokens = [len(ids) - ids.count(tokenizer.convert_tokens_to_ids("<image>")) for ids in tokens]
    code, report, _ = check("llava-1.5", write_rows(rows))
    train = report["data"]["train"]
    found = {name: (t["sum"], t["p50"], t["max"]) for name, t in train["tokens"].items()}
    assert found["text"] == (sum(text_tokens), sorted(text_tokens)[1], max(text_tokens))
    assert found["image"] == (3 * of_image, of_image, 2 * of_image) and found["video"] == (0, 0, 0)
    assert found["all"][0] == found["text"][0] + found["image"][0] == train["trained_tokens"]
    prompts = [tokenizer(text.split("ASSISTANT:")[0] + "ASSISTANT:").input_ids for text in texts]
    assert train["tokens"]["trained"]["sum"] == sum(map(len, tokens)) - sum(map(len, prompts)) > 0
    assert train["kinds"] == dict(zip(data_report.ROW_KINDS, (1, 1, 1, 0, 0, 0)))
    assert [(c["source"].split(", ")[1], c["image"], c["text"]) for c in train["costly"]] == [
        ("sample 2", 2 * of_image, text_tokens[2]),
        ("sample 1", of_image, text_tokens[1]),
    ]
    assert code == 0 and report["failures"] == []


def test_rows_with_thoughts_and_calls_are_counted_and_told_apart(check, write_rows):
    schema = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
    called = [{"role": "assistant", "tool_calls": [{"name": "look", "arguments": {"at": at}}]} for at in "abb"]
    asked, found = {"role": "user", "content": "Where?"}, {"role": "tool", "content": "Here."}
    answer = {"role": "assistant", "content": "There"}
    rows = [{"tools": [schema], "messages": [asked, call, found, answer]} for call in called]
    rows += [row("Which?", f"<think>{thought}</think>Red") for thought in ("Hm.", "Well.")]
    _, report, _ = check("qwen3.5", write_rows(rows), "--template_kwargs", '{"enable_thinking": true}')
    train = report["data"]["train"]
    assert {name: number for name, number in train["kinds"].items() if number} == {
        **{"text": 5, "with thoughts": 2, "with tools": 3, "with calls": 3, "with results": 3}
    }
    assert train["duplicates"]["rows"] == 1 and "with calls" in str(data_report_views.tables(report, 3))


def test_every_kind_of_row_is_counted(check, write_rows):
    rows = [
        row("Hi", "Hello"),
        row("<video>\nWhat?", "It", video="clip.mp4"),
        row("<video> <image>\nWhat?", "It", video="clip.mp4", image="red.png"),
        row("<video>\n<video>\nWhat?", "It", video=["clip.mp4"] * 2),
        row("Hi"),
    ]
    _, report, _ = check("qwen2.5-vl", write_rows(rows), "--num_frames", 4)
    train = report["data"]["train"]
    assert train["kinds"] == dict(zip(data_report.ROW_KINDS, (1, 0, 0, 2, 1, 1)))
    videos, images = ([costly[kind] for costly in train["costly"]] for kind in ("video", "image"))
    assert videos[0] == 2 * videos[1] == 2 * videos[2] > 0  # two clips, one, and one with an image
    assert sorted(images)[:2] == [0, 0] and max(images) == train["tokens"]["image"]["sum"] > 0


def test_frames_that_come_as_images_count_as_video(check, write_rows):
    _, report, _ = check("smolvlm2", write_rows([row("<video>\nWhat?", "It", video="clip.mp4")]), "--num_frames", 2)
    tokens = report["data"]["train"]["tokens"]
    assert tokens["video"]["sum"] > 0 and tokens["image"]["sum"] == 0


def test_a_row_beyond_the_budget_is_cut_or_an_error_or_dropped(check, tiny, write_rows):
    path = write_rows([row("Hi", "word " * 200), row("word " * 200, "Hi"), row("Hi", "Hello")])
    tokenizer = AutoTokenizer.from_pretrained(tiny("llava-1.5"))
    long = len(tokenizer(f"USER: Hi ASSISTANT: {'word ' * 200}</s>").input_ids)
    code, report, _ = check("llava-1.5", path, "--model_max_length", 100)
    train = report["data"]["train"]
    assert train["cut"] == {"rows": 1, "tokens": long - 100} and train["over_budget"] == {"rows": 2}
    assert train["tokens"]["all"]["max"] >= long and faults(report) == {"overlong": 1}
    assert code == 1 and "1 row of" in report["failures"][0] and "--drop_overlong" in report["failures"][0]
    code, dropped, _ = check("llava-1.5", path, "--model_max_length", 100, "--drop_overlong", True)
    assert code == 0 and any("dropped" in note for note in dropped["notes"])
    assert (
        dropped["epoch"]["rows"] == 2 and dropped["epoch"]["tokens"] == 100 + train["histograms"]["tokens"]["edges"][0]
    )


@pytest.mark.parametrize(
    "rows, flags, expected",
    [
        (7, [], (4, 12)),  # batches of 2, 2, 2, 1
        (7, ["--gradient_accumulation_steps", 3], (2, 6)),
        (7, ["--num_processes", 2], (2, 6)),
        (7, ["--num_processes", 2, "--gradient_accumulation_steps", 2], (1, 3)),
        (7, ["--dataloader_drop_last", True], (3, 9)),
        (7, ["--max_steps", 5], (4, 5)),
        (7, ["--num_train_epochs", 0.5], (4, 2)),
    ],
)
def test_steps_of_an_epoch(check, write_rows, rows, flags, expected):
    path = write_rows([row(f"Hi {i}", "Hello") for i in range(rows)])
    _, report, _ = check("llava-1.5", path, "--per_device_train_batch_size", 2, *flags)
    assert (report["epoch"]["steps"], report["epoch"]["total_steps"]) == expected


def test_duplicates_and_what_stands_in_both_data_sets(check, write_rows, media_folder, tmp_path):
    shutil.copy(media_folder / "red.png", tmp_path / "copy.png")
    copied = str(tmp_path / "copy.png")
    asked = "<image>\nWhat is it?"
    train = [
        row(asked, "Red", image="red.png"),
        row("Hi", "Hello"),
        row(asked, "Red", image=copied),  # the same bytes
        row(asked, "Red", image="blue.png"),
        row("Hi", "Hello"),
        row("Hi", "Hello!"),
    ]
    held_out = [row(asked, "Crimson", image=copied), row(asked, "Red", image="blue.png"), row("Who?", "I")]
    paths = write_rows(train, "train.json"), write_rows(held_out, "eval.json")
    code, report, _ = check("llava-1.5", paths[0], "--eval_data_path", paths[1])
    names = [os.path.basename(path) for path in paths]
    pair = lambda i, j: {"train": f"{names[0]}, sample {i}", "eval": f"{names[1]}, sample {j}"}  # noqa: E731
    same = report["data"]["train"]["duplicates"]
    assert same["rows"] == 2
    assert same["examples"] == [[f"{names[0]}, sample {i}" for i in twins] for twins in ((0, 2), (1, 4))]
    assert report["overlap"] == {
        "content": {"rows": 1, "examples": [pair(3, 1)]},
        "question": {"rows": 1, "examples": [pair(0, 0)]},
    }
    shared = ("also in the training data", "with the same media and questions as training rows")
    assert {f"1 row of {paths[1]} {what}" for what in shared} <= {*report["notes"]}
    table = next(table for table in data_report_views.tables(report, 1) if "Evaluation" in table.title)
    assert list(table.columns)[2] == "first: evaluation = training"
    assert table.rows[0][2] == f"{names[1]}, sample 1 = {names[0]}, sample 3"
    assert report["data"]["eval"]["rows"] == 3 and code == 0


def test_tokens_of_an_epoch_heed_the_weights_of_the_paths(check, tiny, write_rows):
    tokenizer = AutoTokenizer.from_pretrained(tiny("llava-1.5"))
    answers = ["a", "b b", "c c c", "d d d d"], ["word " * 40]
    lengths = [[len(tokenizer(f"USER: Hi ASSISTANT: {text}</s>").input_ids) for text in of_path] for of_path in answers]
    short, long = (
        write_rows([row("Hi", text) for text in of_path], name) for of_path, name in zip(answers, ("a.json", "b.json"))
    )
    _, report, _ = check("llava-1.5", short, "--data_path", f"{short}:0.5", f"{long}:3")
    assert report["epoch"]["rows"] == 2 + 3
    assert report["epoch"]["tokens"] == sum(lengths[0]) / 2 + 3 * lengths[1][0]


# ---- faults, and what training would do ----


def faulty_rows(media_folder, tmp_path) -> list[dict]:
    broken = tmp_path / "broken.png"
    broken.write_bytes((media_folder / "red.png").read_bytes()[:60])
    return [
        row("<image> a", "b", image="none.png"),
        row("<image> a", "b", image=str(broken)),
        row("a"),
        row("<video> a", "b", video="clip.mp4"),
        row("a", "b"),
    ]


@pytest.mark.parametrize(
    "flags, code, named",
    [
        ([], 1, "4 rows of .*cannot be used"),
        (["--on_bad_sample", "skip"], 0, "4 rows of .*skipped"),
        (["--on_bad_sample", "skip", "--max_bad_samples", 4], 0, "4 rows of .*skipped"),
        (["--on_bad_sample", "skip", "--max_bad_samples", 3], 1, "more than --max_bad_samples 3"),
        (["--train_vision_encoder", True], 1, "cannot be used"),
    ],
)
def test_faults_are_told_apart_and_the_flags_decide(check, write_rows, media_folder, tmp_path, flags, code, named):
    found, report, _ = check("llava-1.5", write_rows(faulty_rows(media_folder, tmp_path)), *flags)
    assert faults(report) == {"row": 1, "missing": 1, "broken": 1, "refused": 1}
    reasons = {fault: of["examples"][0] for fault, of in report["data"]["train"]["faults"].items()}
    assert "none.png does not exist" in reasons["missing"] and "broken.png cannot be decoded" in reasons["broken"]
    assert "not support videos" in reasons["refused"] and "roles" in reasons["row"]
    assert all(f"sample {i}" in reasons[fault] for i, fault in enumerate(("missing", "broken", "row", "refused")))
    assert found == code and re.search(named, "\n".join(report["failures"] + report["notes"]))


def test_typed_control_tokens_are_counted(check, write_rows):
    code, report, _ = check("llava-1.5", write_rows([row("a </s> b", "c"), row("a", "b"), row("a", "<image>")]))
    train = report["data"]["train"]
    assert train["typed"] == {"rows": 2} and code == 0
    assert any(note.startswith("2 rows of") and "with a control token" in note for note in report["notes"])


def test_an_epoch_is_of_the_good_rows(check, tiny, write_rows, media_folder, tmp_path):
    _, report, _ = check("llava-1.5", write_rows(faulty_rows(media_folder, tmp_path)), "--on_bad_sample", "skip")
    tokens = len(AutoTokenizer.from_pretrained(tiny("llava-1.5"))("USER: a ASSISTANT: b</s>").input_ids)
    assert (report["epoch"]["rows"], report["epoch"]["tokens"]) == (1, tokens)


def test_what_the_format_has_no_place_for_is_refused(check, write_rows, tmp_path):
    untrained = turns("a", "b", "c", "d")
    untrained[1]["train"] = False
    path = write_rows([{"conversations": untrained}, row("a", "b")])
    _, report, _ = check("llava-1.5", path, "--mask_question_tokens", False)
    assert faults(report) == {"refused": 1}
    reason = report["data"]["train"]["faults"]["refused"]["examples"][0]
    assert "sample 0" in reason and "--mask_question_tokens False" in reason

    template = tmp_path / "texts.jinja"
    template.write_text(
        "{% for m in messages %}{% for p in m.content %}{% if m.role == 'assistant' %}A:{% generation %}{{ p.text }}"
        "<|im_end|>{% endgeneration %}{% elif p.type == 'text' %}U:{{ p.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    path = write_rows([row("a", "b"), row("<image> a", "b", image="red.png")])
    _, report, _ = check("qwen2.5-vl", path, "--chat_template", template)
    assert faults(report) == {"refused": 1}
    reason = report["data"]["train"]["faults"]["refused"]["examples"][0]
    assert "sample 1" in reason and "for 1 image(s)" in reason


def test_references_that_are_not_allowed_are_faults_of_the_row(check, write_rows):
    images = ["https://example.com/a.png", "../x.png", "none.png"]
    path = write_rows([row("<image> a", "b", image=image) for image in images] + [row("a", "b")])
    assert faults(check("llava-1.5", path)[1]) == {"row": 2, "missing": 1}


def test_the_rows_that_training_holds_out_are_the_evaluation_data(check, write_rows):
    rows = [row("a", "b " * 2**i) for i in range(5)]  # any two have a sum of their own
    path = write_rows([*rows[:2], row("<image>a", "b", image="none.png"), *rows[2:]])
    data = DataArguments(data_path=[path], eval_split=2)
    held_out = make_datasets(data, 7, max_bad_samples=1)[1]
    code, report, _ = check("llava-1.5", path, "--eval_split", 2, "--seed", 7)
    assert code == 1 and faults(report) == {"missing": 1}  # training refuses the whole
    assert [report["data"][side]["rows"] for side in ("train", "eval")] == [4, 2]
    alone = check("llava-1.5", write_rows([held_out.raw(i) for i in range(2)]))[1]
    assert report["data"]["eval"]["tokens"] == alone["data"]["train"]["tokens"]


def test_a_url_counts_by_its_name():
    assert data_report.digest("HTTPS://example.com/a.png") != data_report.digest("https://example.com/b.png")


def test_a_row_without_a_label_is_found(check, write_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(data_report, "check_labels", lambda collator: None)  # which refuses a reply without an end
    template = tmp_path / "no_end.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content[0].text }}"
        "{% endgeneration %}{% else %}U:{{ m.content[0].text }}{% endif %}{% endfor %}"
    )
    path = write_rows([row("a", "b"), row("a", "")])
    code, report, _ = check("qwen2.5-vl", path, "--chat_template", template, "--allow_empty_answers", True)
    assert faults(report) == {"no label": 1} and code == 1
    assert (
        "sample 1: none of its tokens would be trained" in report["data"]["train"]["faults"]["no label"]["examples"][0]
    )


def test_flags_without_effect_and_no_usable_row_fail(check, write_rows):
    path = write_rows([row("a", "b")])
    code, report, _ = check("llava-1.5", path, "--train_vision_projector", True)
    assert code == 1 and "--train_vision_projector True has no effect" in report["failures"][0]
    assert report["state"] == "not ready" and "contains only text" in report["notes"][-1]
    code, report, _ = check("llava-1.5", write_rows([row("a")]), "--on_bad_sample", "skip")
    assert code == 1 and "no usable row" in report["failures"][-1]


def test_an_error_that_nobody_foresaw_is_told_and_the_other_rows_checked(check, write_rows):
    path = write_rows([row(text, "Hello") for text in ("Hi", "FAIL", "Ho")])
    code, report, opened = check("llava-1.5", path, "--on_bad_sample", "skip")
    assert faults(report) == {"crash": 1} and report["data"]["train"]["good"] == 2 and code == 1
    assert "sample 1: KeyError" in report["data"]["train"]["faults"]["crash"]["examples"][0]
    assert opened == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["KILL", "EXIT"])
def test_a_row_that_ends_its_process_is_named(words, write_rows, tmp_path, harm):
    path = write_rows([row(harm if i == 3 else f"Hi {i}", "Hello") for i in range(12)])
    with pytest.raises(ValueError, match=r"one of \S*rows\S*, sample 3\. Pass --dataloader_num_workers 1"):
        main(words("llava-1.5", path, "--dataloader_num_workers", 1), str(tmp_path / "log"))


# ---- what a person sees ----


def test_the_page_is_self_contained_and_escaped(check, words, write_rows, media_folder, tmp_path):
    rows = [row("<image>\nWhat?", "Red", image="red.png"), row("<image> a", "b", image="<b>&none.png")]
    path, page = write_rows(rows, "<i>rows.json"), tmp_path / "report.html"
    check("llava-1.5", path, "--html", page, "--model_max_length", 60)
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;none.png does not exist" in text and "<b>&" not in text and "<i>rows" not in text
    assert (
        '<section class="card error">\n<h2>not ready</h2>' in text
        and text.count("<svg") == text.count('viewBox="0 0 ') == 2
    )
    assert not re.search(r"<script|<link(?! rel=\"icon\" href=\"data)|src=|url\((?!#)|#0000", text)
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_terminal_report_fits(words, write_rows, media_folder, tmp_path, monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    path = write_rows(faulty_rows(media_folder, tmp_path) + [row("[red]a[/red]", "b")] * 2)
    command = words("qwen2.5-vl", path)
    capsys.readouterr()
    assert main(command, str(tmp_path / "log")) == 1
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    assert re.search(r"media file is missing +1 +14\.3%", out) and re.search(r"duplicate +1", out)
    assert "\nnot ready:\n- 3 rows of" in out


def test_the_terminal_prints_text_as_it_is():
    name = "hub:train [red]x[/red] :smile:"
    for what in (name, Table(name)):
        file = io.StringIO()
        terminal(file).print(what)
        assert name in file.getvalue()
