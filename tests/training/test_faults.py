"""Samples that fail while training, replies that are left out, and conversations that begin with a reply."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import FAMILIES, MODEL_ID, REPO, collator_of, make_loader, run, trained_runs, turns
from launch import here, launch
from torch.utils.data import DataLoader

from collators import COLLATORS
from reading.dataset import IGNORE_INDEX, EncodedDataset, MultimodalDataset
from training.trainer import FinetuneTrainer

HALF = "half.png"


@pytest.fixture(scope="module")
def half(media_folder):
    """A picture whose header is whole and whose pixels are not."""
    (media_folder / HALF).write_bytes((media_folder / "red.png").read_bytes()[:60])


def rows_with(broken: set[int], number: int = 8) -> list[dict]:
    """Rows that name themselves; those of `broken` hold half a picture."""
    return [
        {"image": HALF if i in broken else "red.png", "conversations": turns("<image>\nWhich?", f"row {i}")}
        for i in range(number)
    ]


def encoded(path: str, tiny, is_training: bool = True, skip: bool = True, limit: int = 100, workers: int = 0):
    loader = make_loader("llava-1.5", tiny("llava-1.5"))
    collator = COLLATORS.get("llava-1.5")(loader.load_processor())
    dataset = MultimodalDataset(path, max_bad_samples=limit if skip else None)
    return EncodedDataset(dataset, collator, workers, is_training)


def taught_rows(dataset: EncodedDataset, workers: int = 0) -> list[str]:
    tokenizer = dataset.collator.processor.tokenizer
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    return ["".join(trained_runs(tokenizer, item["labels"][0])).strip().removesuffix("</s>") for item in loader]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bad_sample_is_replaced_counted_and_named(write_rows, half, tiny, capfd, workers):
    path = write_rows(rows_with({2, 5}))
    dataset = encoded(path, tiny, workers=workers)
    found = taught_rows(dataset, workers)
    good = [f"row {i}" for i in range(8) if i not in (2, 5)]
    assert [row for i, row in enumerate(found) if i not in (2, 5)] == good
    assert found[2] in good and found[5] in good
    assert taught_rows(dataset, workers) == found == taught_rows(encoded(path, tiny, workers=0))  # by position alone
    assert dataset.failed.nonzero()[:, 0].tolist() == [2, 5]
    shown = capfd.readouterr().err
    assert all(re.search(rf"Skipped: .*sample {i}: image .*{HALF} cannot be decoded", shown) for i in (2, 5))


def test_without_the_flag_a_bad_sample_is_an_error(write_rows, half, tiny):
    with pytest.raises(ValueError, match="sample 2: image .*half.png cannot be decoded"):
        taught_rows(encoded(write_rows(rows_with({2})), tiny, skip=False))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_too_many_bad_samples_end_the_run(write_rows, half, tiny, workers):
    dataset = encoded(write_rows(rows_with({1, 3, 6})), tiny, limit=2, workers=workers)
    with pytest.raises(ValueError, match="3 samples cannot be used, more than --max_bad_samples 2; .*sample "):
        taught_rows(dataset, workers)


def test_when_every_sample_is_bad_the_run_ends(write_rows, half, tiny):
    with pytest.raises(ValueError, match="half.png cannot be decoded"):
        taught_rows(encoded(write_rows(rows_with(set(range(8)))), tiny))


def test_what_replaces_a_sample_of_evaluation_has_no_label(write_rows, half, tiny):
    dataset = encoded(write_rows(rows_with({4})), tiny, is_training=False)
    assert [bool((dataset[i]["labels"] != IGNORE_INDEX).any()) for i in range(8)] == [i != 4 for i in range(8)]


def test_samples_left_out_at_the_start_count_too(write_rows, tiny, capsys):
    path = write_rows([{"conversations": turns("Hi", "Hello")}] * 4 + [{"photo": "red.png"}])
    given = SimpleNamespace(train_dataset=encoded(path, tiny), eval_dataset=None, args=SimpleNamespace(device="cpu"))
    given.accelerator = SimpleNamespace(reduce=lambda failed: failed)
    FinetuneTrainer.report_skipped(given)
    assert "1 of 5 training samples were skipped" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_skips_and_says_how_many(write_rows, half, tiny, tmp_path, capfd):
    path = write_rows(rows_with({2, 5}))
    flags = ["--on_bad_sample", "skip", "--eval_data_path", path, "--max_steps", 8]
    run(tiny, "llava-1.5", path, tmp_path / "out", *flags)
    assert "2 of 8 training samples were skipped" in (shown := capfd.readouterr().out)
    assert "2 of 8 evaluation samples were skipped" in shown
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    run(
        tiny,
        "llava-1.5",
        path,
        tmp_path / "good",
        *flags[:2],
        "--max_steps",
        8,
        "--eval_data_path",
        write_rows([row for i, row in enumerate(rows_with({2, 5})) if i not in (2, 5)]),
    )
    good = json.loads((tmp_path / "good" / "all_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(good["eval_loss"], rel=1e-6)  # as though they were not there
    with pytest.raises(ValueError, match="sample [25]: image .*half.png cannot be decoded"):
        run(tiny, "llava-1.5", path, tmp_path / "again", "--max_steps", 8)


def test_what_is_found_before_training_is_left_out_alike(write_rows, half, tiny, tmp_path, capfd):
    """A row without a picture, and one whose broken picture is opened to see whether it fits."""
    rows = rows_with({2}) + [{"image": "none.png", "conversations": turns("<image>\nWhich?", "row 8")}]
    rows[2]["conversations"][1]["value"] = "row 2 " * 20
    path = write_rows(rows)
    collator = COLLATORS.get("llava-1.5")(make_loader("llava-1.5", tiny("llava-1.5")).load_processor(), 40)
    dataset = MultimodalDataset(path, max_bad_samples=2)
    assert collator.budget.fit(dataset, collator.encode, drop_overlong=True)[1] == 0
    assert [row["index"] for row in dataset.rows] == [0, 1, 3, 4, 5, 6, 7] and dataset.num_bad == 2
    shown = capfd.readouterr().out
    assert re.search("left out 1 of 9 samples:\n.*sample 8: .*none.png does not exist", shown)
    assert re.search("left out 1 of 8 samples:\n.*sample 2: .*half.png cannot be decoded", shown)
    with pytest.raises(ValueError, match="1 samples .*more than --max_bad_samples 0:\n.*sample 8: "):
        MultimodalDataset(path, max_bad_samples=0)
    with pytest.raises(ValueError, match="2 samples .*more than --max_bad_samples 1:\n.*sample 2: "):
        collator.budget.fit(MultimodalDataset(path, max_bad_samples=1), collator.encode, drop_overlong=True)
    with pytest.raises(ValueError, match="1 of 9 samples .* cannot be used:\n.*sample 8: "):
        MultimodalDataset(path)


@pytest.mark.slow
def test_a_worker_names_what_is_wrong_in_a_line(write_rows, half, tiny, tmp_path):
    path = write_rows(rows_with({2}))
    with pytest.raises(ValueError, match=r"\A\S*rows.json, sample 2: image .*half.png cannot be decoded"):
        run(tiny, "llava-1.5", path, tmp_path / "out", "--dataloader_num_workers", 1, "--max_steps", 8)


def test_what_a_family_refuses_is_left_out_alike(write_rows, tiny, capfd):
    clip = {"video": "clip.mp4", "conversations": turns("<video>\nWhat?", "Grey")}
    path = write_rows([*rows_with(set(), 2), clip, *rows_with(set(), 1), clip])
    collator = collator_of("llava-1.5", tiny, model_max_length=1024)
    with pytest.raises(ValueError, match="sample 2: .* not support videos"):
        collator.budget.fit(MultimodalDataset(path), collator.encode, drop_overlong=False)
    dataset = MultimodalDataset(path, max_bad_samples=2)
    assert collator.budget.fit(dataset, collator.encode, drop_overlong=False) == (0, 0)
    assert [row["index"] for row in dataset.rows] == [0, 1, 3]
    assert re.search(
        "sample 2: .* not support videos.* .1 more like this, such as .* sample 4.", capfd.readouterr().out
    )


def test_a_file_that_changes_in_use_ends_the_run_also_where_bad_samples_are_skipped(write_rows, tiny):
    path = write_rows(rows_with(set()))
    dataset = encoded(path, tiny)
    assert dataset[3]["labels"].shape[0] == 1
    text = Path(path).read_text()
    Path(path).write_text(text.replace("row 3", "ROW 3"))
    os.utime(path, ns=(0, 0))
    with pytest.raises(ValueError, match="rows.json changed while in use; start again"):
        dataset[3]


@pytest.mark.slow
def test_evaluation_skips_alike_on_two_processes(write_rows, half, tiny, tmp_path):
    path, clean = write_rows(rows_with({2, 5})), write_rows(rows_with(set(), 8))
    words = ["--model_id", MODEL_ID["llava-1.5"], "--model_local_path", tiny("llava-1.5"), "--use_cpu", True]
    words += ["--data_path", clean, "--eval_data_path", path, "--on_bad_sample", "skip", "--max_steps", 1]
    words += ["--per_device_eval_batch_size", 2, "--per_device_train_batch_size", 1, "--learning_rate", 1e-30]
    losses = []
    for name, start in {"one": here, "two": partial(launch, processes=2)}.items():
        start([*words, "--output_dir", tmp_path / name])
        losses.append(json.loads((tmp_path / name / "all_results.json").read_text())["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


KILLED_OVER = """
import os, sys
sys.argv = ["train.py"]
import train
from reading.dataset import MultimodalDataset
open_sample = MultimodalDataset.__getitem__
def dying(self, position):
    if position == 5:
        os.kill(os.getpid(), {signal})
    return open_sample(self, position)
MultimodalDataset.__getitem__ = dying
from entry import cli
cli(lambda: train.main({words}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSEGV, marks=pytest.mark.cross)])
def test_a_worker_that_dies_names_its_sample(write_rows, tiny, tmp_path, number):
    words = ["--model_id", MODEL_ID["llava-1.5"], "--model_local_path", tiny("llava-1.5"), "--use_cpu", "True"]
    words += ["--data_path", write_rows(rows_with(set())), "--output_dir", str(tmp_path / "out")]
    words += ["--dataloader_num_workers", "2", "--max_steps", "20", "--per_device_train_batch_size", "1"]
    script = KILLED_OVER.format(signal=int(number), words=words)
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, timeout=300, env=os.environ
    )
    assert result.returncode == 1
    assert re.search(r"Error: .*rows.json, sample 5: the data loader's worker died on this sample", result.stderr)


def test_a_dead_worker_is_named_where_its_broken_pipe_comes_first(write_rows, tiny):
    """torch names the worker in a signal handler, which may run only while the error is being handled."""
    dataset = encoded(write_rows(rows_with(set())), tiny, workers=2)
    dataset.at_work[1] = torch.tensor([4321, 5])
    given = SimpleNamespace(train_dataset=dataset, eval_dataset=None, args=SimpleNamespace(output_dir="."))

    def name_worker(*_):
        raise RuntimeError("DataLoader worker (pid 4321) is killed by signal: Killed.")

    handler = signal.signal(signal.SIGALRM, name_worker)
    try:
        for broken in (ConnectionResetError, EOFError):
            with pytest.raises(ValueError, match="rows.json, sample 5: the data loader's worker died on this sample"):
                with FinetuneTrainer.naming_samples(given):
                    signal.setitimer(signal.ITIMER_REAL, 0.05)
                    raise broken
    finally:
        signal.signal(signal.SIGALRM, handler)


# ---- what is left out of the loss ----


def conversation_with(*trained: bool) -> list[dict]:
    messages = []
    for i, is_trained in enumerate(trained):
        messages.append({"role": "user", "content": f"question {i}"})
        messages.append({"role": "assistant", "content": f"answer {i}", **({} if is_trained else {"train": False})})
    return messages


@pytest.mark.few
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "paligemma"])
def test_a_reply_with_train_false_has_no_label(write_rows, tiny, family):
    collator = collator_of(family, tiny)
    path = write_rows([{"messages": conversation_with(*trained)} for trained in ([1, 1, 1], [0, 1, 0], [1, 0, 1])])
    dataset = MultimodalDataset(path)
    whole, middle, ends = (collator.encode(dataset[i]).inputs for i in range(3))
    assert torch.equal(whole["input_ids"], middle["input_ids"]) and torch.equal(whole["input_ids"], ends["input_ids"])
    runs = trained_runs(collator.processor.tokenizer, whole["labels"][0])
    assert len(runs) == 3 and all(f"answer {i}" in run for i, run in enumerate(runs))
    assert trained_runs(collator.processor.tokenizer, middle["labels"][0]) == runs[1:2]
    assert trained_runs(collator.processor.tokenizer, ends["labels"][0]) == runs[::2]


def test_train_false_contradicts_training_on_all_text(write_rows, tiny):
    collator = collator_of("llava-1.5", tiny, model_max_length=1024, mask_question_tokens=False)
    dataset = MultimodalDataset(write_rows([{"messages": conversation_with(True, False)}]))
    with pytest.raises(ValueError, match='sample 0.*"train": false .*--mask_question_tokens False'):
        collator.budget.fit(dataset, collator.encode, drop_overlong=False)


GREETED = [{"role": "assistant", "content": "Hello."}, *conversation_with(True)]


# Families whose official template refuses a conversation that begins with a reply, or has one exchange only.
USER_FIRST = ("gemma-3", "gemma-3n", "paligemma")


# Families whose official template refuses two user messages in a row, or has one exchange only.
ONE_QUESTION = ("gemma-3", "gemma-3n", "paligemma")
TWO_QUESTIONS = [
    {"role": "user", "content": "I see."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Red."},
]


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
def test_two_user_messages_in_a_row_are_as_the_template_takes_them(write_rows, tiny, family):
    collator = collator_of(family, tiny, model_max_length=1024)
    dataset = MultimodalDataset(write_rows([{"messages": TWO_QUESTIONS}]))
    if family in ONE_QUESTION:
        with pytest.raises(ValueError, match="sample 0.*(two user messages in a row|supports one exchange per sample)"):
            collator.budget.fit(dataset, collator.encode, drop_overlong=False)
        return
    assert collator.budget.fit(dataset, collator.encode, drop_overlong=False) == (0, 0)
    sample = collator.encode(dataset[0]).inputs
    (run,) = trained_runs(collator.processor.tokenizer, sample["labels"][0])
    assert "Red." in run and "colour" not in run
    # Beyond the header that both have, the prompt is the official one's of both messages.
    messages = dataset[0]["messages"]
    prompts = [collator.template.render_official(messages[:i], add_generation_prompt=True) for i in (1, 2)]
    text = collator.template.render(messages)[0]
    assert prompts[1].startswith(prompts[0].split("I see.")[0] + "I see.") and prompts[1] in text


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_may_begin_with_a_reply_where_the_template_allows_it(write_rows, tiny, family):
    """Where it does, the text is the official template's, and both replies are taught."""
    collator = collator_of(family, tiny, model_max_length=1024)
    dataset = MultimodalDataset(write_rows([{"messages": GREETED}]))
    if family in USER_FIRST:
        with pytest.raises(ValueError, match="sample 0.*(begins with a reply|supports one exchange per sample)"):
            collator.budget.fit(dataset, collator.encode, drop_overlong=False)
        return
    assert collator.budget.fit(dataset, collator.encode, drop_overlong=False) == (0, 0)
    runs = trained_runs(collator.processor.tokenizer, collator.encode(dataset[0]).inputs["labels"][0])
    assert [text in run for text, run in zip(("Hello.", "answer 0"), runs, strict=True)] == [True, True]
