"""Every form of a row in every kind of file: those that docs/data_files.md lists equal the same data as `messages`."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import REPO, make_loader, run
from test_file_kinds import save_to_disk, write_arrow, write_sheets, write_tar

import preview
from collators import COLLATORS
from reading.dataset import MultimodalDataset

ASKED = "What is in the picture?"
ROWS = [("red.png", "a square"), ("tall.jpg", "a wall, of stone")]  # picture, answer


def messages(picture, question: str, answer: str) -> dict:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    reply = [{"type": "text", "text": answer}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]
    return {"messages": turns, "image": picture}


def conversations(picture, question: str, answer: str) -> dict:
    turns = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, "image": picture}


FORMS = {
    "`messages`": messages,
    "`conversations`": conversations,
    "`prompt`, `completion`": lambda picture, q, a: {"image": picture, "prompt": q, "completion": a},
    "`question`, `answer`": lambda picture, q, a: {"image": picture, "question": q, "answer": a},
    "`answer`, `--prompt`": lambda picture, q, a: {"image": picture, "answer": a},
}
FLAT, ANSWERS = [*FORMS][2:], [*FORMS][4:]


def by_path(rows: list[dict], folder: Path) -> list[dict]:
    for picture, _ in ROWS:
        shutil.copy(folder.parent / picture, folder)
    return rows


def with_bytes(rows: list[dict], folder: Path) -> pa.Table:
    return pa.Table.from_pylist(
        [r | {"image": {"bytes": (folder.parent / r["image"]).read_bytes(), "path": None}} for r in rows]
    )


def as_json(rows: list[dict], folder: Path, name: str = "rows.json") -> Path:
    text = (
        json.dumps(by_path(rows, folder)) if name == "rows.json" else "\n".join(map(json.dumps, by_path(rows, folder)))
    )
    (folder / name).write_text(text)
    return folder / name


def as_table(rows: list[dict], folder: Path, name: str) -> Path:
    with open(folder / name, "w", newline="") as file:
        csv.writer(file).writerows([[*rows[0]], *(row.values() for row in by_path(rows, folder))])
    return folder / name


def as_sheet(rows: list[dict], folder: Path) -> Path:
    return Path(
        write_sheets(folder / "rows.xlsx", rows=[[*rows[0]], *([*row.values()] for row in by_path(rows, folder))])
    )


def as_parquet(rows: list[dict], folder: Path) -> Path:
    pq.write_table(with_bytes(rows, folder), folder / "rows.parquet")
    return folder / "rows.parquet"


def as_shard(rows: list[dict], folder: Path) -> Path:
    members = []
    for i, row in enumerate(rows):
        data = (folder.parent / row["image"]).read_bytes()
        others = {name: value for name, value in row.items() if name != "image"}
        members += [(f"{i}{Path(row['image']).suffix}", data), (f"{i}.json", json.dumps(others))]
    return Path(write_tar(folder / "rows.tar", members))


def as_metadata(rows: list[dict], folder: Path, name: str) -> Path:
    rows = [
        {"file_name" if key == "image" else key: value for key, value in row.items()} for row in by_path(rows, folder)
    ]
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    elif name.endswith("csv"):
        lines = [[*rows[0]], *(row.values() for row in rows)]
        (folder / name).write_text("\n".join(",".join(f'"{cell}"' for cell in line) for line in lines))
    else:
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return folder


def as_classes(rows: list[dict], folder: Path) -> Path:
    for row in rows:
        (folder / row["answer"]).mkdir()
        shutil.copy(folder.parent / row["image"], folder / row["answer"])
    return folder


def as_captions(rows: list[dict], folder: Path) -> Path:
    for row in by_path(rows, folder):
        (folder / row["image"]).with_suffix(".txt").write_text(f"{row['answer']}\n")
    return folder


# Kind of file -> (the forms that it can hold, how rows become one in a folder).
KINDS = {
    "`.json`": (FORMS, as_json),
    "`.jsonl`": (FORMS, lambda rows, folder: as_json(rows, folder, "rows.jsonl")),
    "`.parquet`": (FORMS, as_parquet),
    "`.arrow`": (FORMS, lambda rows, folder: Path(write_arrow(folder / "rows.arrow", with_bytes(rows, folder)))),
    "`save_to_disk`": (FORMS, lambda rows, folder: save_to_disk(folder, {"data-0.arrow": with_bytes(rows, folder)})),
    "`.tar` of WebDataset": (FORMS, as_shard),
    "`.csv`": (FLAT, lambda rows, folder: as_table(rows, folder, "rows.csv")),
    "`.tsv`": (FLAT, lambda rows, folder: as_table(rows, folder, "rows.tsv")),
    "`.xlsx`": (FLAT, as_sheet),
    "`metadata.jsonl`": (FORMS, lambda rows, folder: as_metadata(rows, folder, "metadata.jsonl")),
    "`metadata.parquet`": (FORMS, lambda rows, folder: as_metadata(rows, folder, "metadata.parquet")),
    "`metadata.csv`": (FLAT, lambda rows, folder: as_metadata(rows, folder, "metadata.csv")),
    "folders of classes": (ANSWERS, as_classes),
    "`.txt` captions": (ANSWERS, as_captions),
}


@pytest.fixture(scope="module")
def made(media_folder, tmp_path_factory) -> dict[tuple[str, str], str]:
    """(kind of file, form) -> path, of all that there are."""
    root, found = tmp_path_factory.mktemp("kinds"), {}
    for picture, _ in ROWS:
        shutil.copy(media_folder / picture, root)
    for kind, (forms, write) in KINDS.items():
        for form in forms:
            folder = root / str(len(found))
            folder.mkdir()
            rows = [FORMS[form](picture, ASKED, answer) for picture, answer in ROWS]
            found[kind, form] = str(write(rows, folder))
    return found


def given(form: str) -> dict:
    return {"prompt": ASKED} if form in ANSWERS else {}


def canonical(dataset: MultimodalDataset) -> list[list[dict]]:
    """The messages, with the bytes of pictures in the place of their paths."""

    def whole(part: dict) -> dict:
        return {**part, "image": Path(part["image"]).read_bytes()} if isinstance(part.get("image"), str) else part

    rows = [dataset.rows[i]["messages"] for i in range(len(dataset))]
    return [[{**m, "content": [*map(whole, m["content"])]} for m in row] for row in rows]


def by_hand(folder: Path) -> list[list[dict]]:
    def said(role: str, *parts: dict) -> dict:
        return {"role": role, "content": list(parts)}

    def text(value: str) -> dict:
        return {"type": "text", "text": value}

    return [
        [
            said("user", {"type": "image", "image": (folder / picture).read_bytes()}, text(ASKED)),
            said("assistant", text(answer)),
        ]
        for picture, answer in ROWS
    ]


def table(equal: set[tuple[str, str]]) -> str:
    """What docs/data_files.md shows."""
    lines = [f"| | {' | '.join(FORMS)} |", f"| --- |{' --- |' * len(FORMS)}"]
    for kind in KINDS:
        lines.append(f"| {kind} | {' | '.join('yes' if (kind, form) in equal else '-' for form in FORMS)} |")
    return "\n".join(lines)


def test_every_form_in_every_kind_of_file_equals_messages(made, media_folder):
    expected, equal = by_hand(media_folder), set()
    for (kind, form), path in made.items():
        dataset = MultimodalDataset(path, **given(form))
        assert dataset.notes() == [], (kind, form)
        if sorted(canonical(dataset), key=repr) == sorted(expected, key=repr):
            equal.add((kind, form))
    assert equal == made.keys()
    page = (REPO / "docs/data_files.md").read_text(encoding="utf-8")
    assert table(equal) in page, f"docs/data_files.md has to show\n{table(equal)}"


FEW = ["`.arrow`", "`.tar` of WebDataset", "`.xlsx`", "`.txt` captions"]


def test_the_tokens_of_a_few_are_those_of_messages(made, tiny):
    collator = COLLATORS.get("llava-1.5")(make_loader("llava-1.5", tiny("llava-1.5")).load_processor())

    def batch(path: str, **flags) -> dict:
        dataset = MultimodalDataset(path, **flags)
        return collator([dataset[i] for i in range(len(dataset))])

    expected = batch(made["`.json`", "`messages`"])
    for kind in FEW:
        form = ANSWERS[0]
        found = batch(made[kind, form], **given(form))
        for name in ("input_ids", "labels", "pixel_values"):
            assert torch.equal(found[name], expected[name]), (kind, name)


@pytest.mark.slow
def test_every_form_in_every_kind_of_file_is_checked_and_trained(made, tiny, tmp_path, monkeypatch, capsys):
    """In a run with --prompt, and one without; the pages of preview.py --check count the rows of all."""
    monkeypatch.setenv("FINELMM_CACHE", str(tmp_path / "cache"))
    for prompt in (False, True):
        paths = [path for (_, form), path in made.items() if (form in ANSWERS) == prompt]
        flags = ["--data_path", *paths, *(["--prompt", ASKED] if prompt else [])]
        words = ["--model_id", "llava-1.5-7b", "--model_local_path", tiny("llava-1.5"), *flags, "--use_cpu", "True"]
        monkeypatch.setattr(sys, "argv", ["preview.py", *words, "--check"])
        with pytest.raises(SystemExit) as ended:
            preview.main([*words, "--check"])
        assert not ended.value.code
        told = capsys.readouterr().out
        assert re.search(rf"rows +{2 * len(paths)}\n", told) and "ready" in told
        assert re.search(rf"duplicate +{2 * len(paths) - 2} ", told)  # the others are those of the first file
        steps = run(tiny, "llava-1.5", paths[0], tmp_path / f"out{prompt}", *flags, "--per_device_train_batch_size", 8)
        assert all(step["loss"] > 0 for step in steps)
