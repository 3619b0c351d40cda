"""Lengths counted without opening a medium are those of the encoded samples, and are found once."""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from conftest import FAMILIES, TAKES_VIDEO, collator_of, make_loader, outline, turns
from facts import FACTS
from PIL import Image
from torch.utils.data import BatchSampler
from transformers import AddedToken

from collators import COLLATORS, cached_counts
from collators.budget import Budget
from reading import media
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions
from reading.row_index import DAYS_KEPT
from training.sampling import SAMPLERS

# White space, control strings and characters of several bytes beside media and at the edges of texts.
TEXTS = ["Why?", "\n\nsee\n", " a  b ", "<image>", "</s><|im_end|>\n", "é日本🙂", "1 234\t56", "<|image_1|> x", "."]


def hostile_rows(family: str, count: int = 12) -> list[dict]:
    """Rows in the form `messages`, where a control string that is typed is text."""
    rng = np.random.default_rng(0)
    words = lambda: "".join(rng.choice(TEXTS, rng.integers(1, 5)))  # noqa: E731
    rows = []
    for _ in range(count):
        images = [{"type": "image", "path": name} for name in rng.choice(["red.png", "blue.png", "tall.jpg"], 2)]
        texts = [{"type": "text", "text": words()} for _ in range(2)]
        if FACTS[family].multi_turn:
            first = [images[0], texts[0], images[1], texts[1]][rng.integers(0, 2) : rng.integers(3, 5)]
            users = [first, [texts[0]] if rng.integers(2) else [texts[1], images[0]]]
        else:
            users = [[*images[: rng.integers(1, 3)], texts[0]]]
        messages = []
        for content in users:
            reply = {"role": "assistant", "content": rng.choice(["", "\n", " "]) + words()}
            messages += [{"role": "user", "content": content}, reply]
        if FACTS[family].multi_turn and rng.integers(2):
            messages.insert(0, {"role": "system", "content": words()})
        rows.append({"messages": messages})
    return rows


def encoded_lengths(collator, dataset) -> list[int]:
    return [collator.encode(dataset[i]).inputs["input_ids"].shape[1] for i in range(len(dataset))]


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
def test_texts_and_images_are_counted_to_the_token(tiny, write_rows, family):
    dataset = MultimodalDataset(write_rows(hostile_rows(family)))
    collator = collator_of(family, tiny)
    counted = collator.budget.token_lengths(dataset)
    assert counted.dtype == np.int32
    assert counted.tolist() == encoded_lengths(collator, dataset)


# Their processors write the times of frames into the text.
TIMED = (
    *("qwen3-vl", "qwen3-vl-moe", "qwen3.5", "qwen3.5-moe"),
    *("gemma-4", "gemma-4-unified", "glm-4.1v", "glm-4.6v", "glm-ocr", "smolvlm2"),
)


@pytest.mark.parametrize("family", TAKES_VIDEO)
def test_videos_are_counted_to_the_token_or_to_the_longest_time(tiny, write_rows, family):
    rows = [{"video": "clip.mp4", "conversations": turns("See <video> this\n", "Grey")}]
    if FACTS[family].mixes_media:
        rows.append({"video": "clip.mp4", "image": "red.png", "conversations": turns("<image>\n<video>?", "Red")})
    collator = collator_of(family, tiny)
    for options in (MediaOptions(num_frames=4), MediaOptions(fps=3.0), MediaOptions(fps=0.1)):  # the last: one frame
        dataset = MultimodalDataset(write_rows(rows), media=options)
        counted, true = collator.budget.token_lengths(dataset), encoded_lengths(collator, dataset)
        if family not in TIMED:
            assert counted.tolist() == true
        for i, (most, number) in enumerate(zip(counted.tolist(), true)):
            frames = next(size[0] for (kind, _), size in outline(dataset, i)[1].items() if kind == "video")
            assert number <= most <= number + 3 * max(frames, 2)


def test_one_frame_is_two_alike_where_a_patch_is_made_of_two(tiny):
    collator = collator_of("qwen3-vl", tiny)
    frame = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3)).astype(np.uint8)

    def encoded(frames: np.ndarray) -> dict:
        told = {"fps": 8.0, "duration": 0.125, "total_num_frames": 1, "frames_indices": [0] * len(frames)}
        question = [{"type": "video", "video": frames, "metadata": told}, {"type": "text", "text": "Hm"}]
        reply = [{"type": "text", "text": "Red"}]
        sample = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        return collator.encode({"messages": sample}).inputs

    one, two = encoded(frame), encoded(frame[[0, 0]])
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("family", TIMED)
@pytest.mark.parametrize("minutes", [99, 239])
def test_the_times_of_long_videos_are_within_the_bound(tiny, family, minutes):
    collator = collator_of(family, tiny)
    seconds, text = 60 * minutes, [{"type": "text", "text": "Hm"}]
    metadata = {"fps": 1.0, "duration": float(seconds), "total_num_frames": seconds}
    metadata["frames_indices"] = [0, 1, seconds - 2, seconds - 1]
    opened = {"type": "video", "video": np.zeros((4, 32, 32, 3), np.uint8), "metadata": metadata}
    row, sample = (
        {"messages": [{"role": "user", "content": [part, *text]}, {"role": "assistant", "content": text}]}
        for part in ({"type": "video", "video": 0}, opened)
    )
    known = {("video", 0): (4, 32, 32)}
    counted = collator.budget.count_text_tokens([row])[0] + collator.budget.count_media_tokens(row, known)
    counted += collator.budget.count_frame_text_tokens(row, known)
    assert collator.encode(sample).inputs["input_ids"].shape[1] <= counted


# ---- what is kept ----


def text_rows(count: int) -> list[dict]:
    return [{"conversations": turns(f"Question {i}?", "word " * (i % 50 + 1))} for i in range(count)]


@pytest.fixture
def counted(monkeypatch):
    """The positions whose texts are counted."""
    found, count = [], Budget.count_text_tokens

    def note(self, rows):
        found.extend(row["index"] for row in rows)
        return count(self, rows)

    monkeypatch.setattr(Budget, "count_text_tokens", note)
    return found


def test_a_text_is_counted_once(tiny, write_rows, counted):
    path, collator = write_rows(text_rows(100)), collator_of("llava-1.5", tiny)
    some = collator.budget.text_tokens(MultimodalDataset(path), np.array([3, 70]))[0]
    assert counted == [3, 70]
    whole = collator.budget.token_lengths(MultimodalDataset(path))
    assert sorted(counted) == list(range(100)) and whole[[3, 70]].tolist() == some.tolist()
    again = collator_of("llava-1.5", tiny).budget.token_lengths(
        MultimodalDataset(path, media=MediaOptions(max_pixels=900))
    )
    assert again.tolist() == whole.tolist() == encoded_lengths(collator, MultimodalDataset(path))
    assert len(counted) == 100


@pytest.mark.parametrize("change", ["tokenizer", "template", "file"])
def test_it_is_counted_again_when_what_it_depends_on_changes(tiny, write_rows, change):
    path, collator = write_rows(text_rows(20)), collator_of("llava-1.5", tiny)
    before = collator.budget.token_lengths(MultimodalDataset(path))
    if change == "file":
        rows = json.loads(Path(path).read_text())
        rows[0]["conversations"][1]["value"] += " and more"
        Path(path).write_text(json.dumps(rows))
    elif change == "template":
        collator = collator_of("llava-1.5", tiny, chat_template=collator.template.text.replace("USER", "USER of USER"))
    else:
        processor = make_loader("llava-1.5", tiny("llava-1.5")).load_processor()
        processor.tokenizer.add_tokens([AddedToken("uesti", normalized=False)])
        collator = COLLATORS.get("llava-1.5")(processor)
    dataset = MultimodalDataset(path)
    after = collator.budget.token_lengths(dataset)
    assert after.tolist() != before.tolist() and after.tolist() == encoded_lengths(collator, dataset)


def test_numbers_that_nobody_used_for_days_are_deleted(tiny, write_rows):
    path, collator = write_rows(text_rows(5)), collator_of("llava-1.5", tiny)
    dataset = MultimodalDataset(path)
    collator.budget.token_lengths(dataset)
    folder = Path(dataset.files[0].folder).parent
    (old,) = folder.glob("*.numbers")
    fresh = folder / "other.numbers"
    fresh.touch()
    days = time.time() - (DAYS_KEPT + 1) * 86_400
    os.utime(old, (days, days))
    collator.budget.fingerprint += "x"
    collator.budget.token_lengths(MultimodalDataset(path))
    assert not old.exists() and fresh.exists() and len(list(folder.glob("*.numbers"))) == 2


@pytest.mark.slow
def test_many_rows_are_counted_by_workers(tiny, write_rows, monkeypatch):
    monkeypatch.setattr(cached_counts, "ROWS_PER_WORKER", 50)
    dataset, collator = MultimodalDataset(write_rows(text_rows(130))), collator_of("llava-1.5", tiny)
    assert collator.budget.token_lengths(dataset).tolist() == encoded_lengths(collator, dataset)


def test_one_counts_while_others_wait(tiny, write_rows, counted):
    path, collator = write_rows(text_rows(60)), collator_of("llava-1.5", tiny)
    collator.budget.fingerprint  # noqa: B018  # before the threads
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(collator.budget.token_lengths(MultimodalDataset(path)).tolist()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counted) == 60 and results[0] == results[1] == results[2] and len(results) == 3


def test_no_medium_is_opened(tiny, write_rows, monkeypatch):
    dataset = MultimodalDataset(write_rows(hostile_rows("llava-1.5")))
    for module, name in ((media, "read_header"), (Image, "open"), (MultimodalDataset, "__getitem__")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("opened a medium"))
    assert (collator_of("llava-1.5", tiny).budget.token_lengths(dataset) > 0).all()


def test_a_second_fit_encodes_nothing_again(tiny, write_rows, monkeypatch):
    rows = [{"image": "red.png", "conversations": turns("<image>\nWhich?", "long " * n)} for n in (1, 60, 80)]
    path = write_rows(rows)

    def fit() -> tuple[int, int]:
        collator = collator_of("llava-1.5", tiny, model_max_length=60)
        return collator.budget.fit(MultimodalDataset(path), collator.encode, drop_overlong=False)

    results = [fit()]
    monkeypatch.setattr(MultimodalDataset, "__getitem__", lambda *_: pytest.fail("opened a sample"))
    results.append(fit())
    assert results == [(2, 0), (2, 0)]


def test_a_row_of_many_short_messages_is_looked_at(tiny, write_rows):
    """Each message brings tokens of the template, and hardly a byte of its own."""
    path, collator = write_rows([{"conversations": turns(*"ab" * 20)}]), collator_of("qwen2.5-vl", tiny)
    (length,) = encoded_lengths(collator, MultimodalDataset(path))
    collator.budget.max_length = length - 1
    assert collator.budget.fit(MultimodalDataset(path), collator.encode, drop_overlong=False) == (1, 0)


# ---- the order of samples by length ----


def test_the_batches_of_a_step_are_of_similar_length_on_all_processes(tiny, write_rows, monkeypatch):
    """As accelerate deals them out: a step's spread of lengths over 4 processes is that of neighbours, not of all."""
    monkeypatch.setattr(cached_counts, "ROWS_PER_WORKER", 10_000)  # no worker counts them
    processes, size, rng = 4, 2, np.random.default_rng(0)
    rows = [{"conversations": turns("Q", "w " * int(n))} for n in rng.integers(1, 400, 1000)]
    dataset = MultimodalDataset(write_rows(rows))
    tokens = collator_of("llava-1.5", tiny).budget.token_lengths(dataset)

    def spread(strategy: str) -> float:
        shards = []
        for rank in range(processes):
            sampler = SAMPLERS[strategy](dataset, 3, processes * size, tokens)
            shards.append(list(BatchSamplerShard(BatchSampler(sampler, size, True), processes, rank)))
        steps = [tokens[np.ravel(batches)] for batches in zip(*shards, strict=True)]
        assert sorted(np.ravel(shards)) == list(range(1000))
        return float(np.mean([step.max() - step.min() for step in steps]))

    assert spread("group_by_length") < 0.1 * spread("random")


def test_a_run_groups_by_the_lengths_that_it_trains_on(tiny, write_rows, tmp_path, monkeypatch):
    from conftest import run

    import train

    rows = [{"image": "red.png", "conversations": turns("<image>\nWhich?", "long " * n)} for n in (60, 1, 3, 2)]
    given, make = {}, train.FinetuneTrainer

    def note(**kwargs):
        given.update(kwargs)
        return make(**kwargs)

    monkeypatch.setattr(train, "FinetuneTrainer", note)
    path = write_rows(rows)
    flags = ["--train_sampling_strategy", "group_by_length", "--model_max_length", "60", "--eval_data_path", path]
    run(tiny, "llava-1.5", path, tmp_path / "out", *flags)
    assert "eval_loss" in json.loads((tmp_path / "out" / "all_results.json").read_text())
    dataset = given["train_dataset"]
    assert given["lengths"].tolist() == [dataset[i]["input_ids"].shape[1] for i in range(4)]
    assert given["lengths"][0] == 60
