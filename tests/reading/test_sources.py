"""`--data_path`: files, folders, globs, Hub data sets, slices and weights, and the index that they are read through."""

import csv
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from functools import partial
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPO, run, turns
from PIL import Image
from torch.utils.data import DataLoader

from reading.dataset import MultimodalDataset
from reading.options import MediaOptions


def rows_named(name: str, count: int) -> list[dict]:
    return [{"conversations": turns(f"{name}{i}", f"reply {i}")} for i in range(count)]


def write(path: Path, count: int, name: str | None = None) -> str:
    """A file of rows that say their file's name and their place: a0, a1, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = rows_named(name or path.name.split(".")[0], count)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{', '.join(lines)}]")
    return str(path)


@pytest.fixture
def read(tmp_path):
    return partial(MultimodalDataset, media=MediaOptions(cache_folder=str(tmp_path / "cache")))


def names(dataset: MultimodalDataset) -> list[str]:
    return [dataset.rows[i]["messages"][0]["content"][0]["text"] for i in range(len(dataset))]


def named(name: str, indices) -> list[str]:
    return [f"{name}{i}" for i in indices]


# ---- what a path names ----


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet", "JSONL", "Parquet"])
def test_a_file_by_its_ending(tmp_path, read, ending):
    path = tmp_path / f"a.{ending}"
    Path(write(tmp_path / f"a.{ending.lower()}", 10)).rename(path)
    dataset = read(str(path))
    assert names(dataset) == named("a", range(10))
    assert [(row["index"], row["source"]) for row in (dataset.rows[0], dataset.rows[9])] == [
        (0, f"a.{ending}, sample 0"),
        (9, f"a.{ending}, sample 9"),
    ]
    assert dataset.raw(9) == rows_named("a", 10)[9]


FOLDER = {
    "b.jsonl": 2,
    "a.json": 3,
    "c.parquet": 2,
    "notes.txt": 0,
    "d.csv": 0,
    "sub/e.json": 1,
    "data/train-00000-of-00002.parquet": 2,
    "data/train-00001-of-00002.parquet": 1,
    "data/train_extra.jsonl": 1,
    "data/training.jsonl": 1,
    "data/test.jsonl": 2,
    "validation/f.jsonl": 2,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, count in FOLDER.items():
        write(tmp_path / "set" / name, count, Path(name).stem + "-")
    return tmp_path / "set"


def stems(dataset) -> dict[str, int]:
    """Rows of each file, in the order of the data set."""
    return dict(Counter(name.rsplit("-", 1)[0] for name in names(dataset)))


ROOT = {"a": 3, "b": 2, "c": 2}
TRAIN = {"train-00000-of-00002": 2, "train-00001-of-00002": 1, "train_extra": 1}
# spec, after the folder -> the files that it takes, in order
PLACES = {
    "/a.json": {"a": 3},
    "/*.json*": {"a": 3, "b": 2},
    "/[bc].*": {"b": 2, "c": 2},
    "/?.parquet": {"c": 2},
    "/data/train-*": {"train-00000-of-00002": 2, "train-00001-of-00002": 1},
    "/data/train*": TRAIN | {"training": 1},
    "/sub": {"e": 1},
    "/sub/": {"e": 1},
    ":train": TRAIN,
    ":test": {"test": 2},
    "/data:test": {"test": 2},
    ":validation": {"f": 2},
    ":train[1:3]": {"train-00000-of-00002": 1, "train-00001-of-00002": 1},
    ":train[:50%]": {"train-00000-of-00002": 2},
    "/*.json*[2:4]": {"a": 1, "b": 1},
    ":test:0.5": {"test": 2},
    ":train[-1:]:2": {"train_extra": 1},
}


@pytest.mark.parametrize("spec", PLACES)
def test_a_place_names_its_files_in_order(folder, read, spec):
    assert list(stems(read(f"{folder}{spec}")).items()) == list(PLACES[spec].items())


def test_a_folder_has_its_own_files_and_those_of_data(folder, read):
    (folder / "data" / "test.jsonl").unlink()
    found = stems(read(str(folder)))
    assert found == ROOT | TRAIN | {"training": 1}
    assert [name for name in found if name in ROOT] == ["a", "b", "c"]


def test_rows_of_several_files_say_where_they_stand(tmp_path, read):
    paths = [write(tmp_path / "a.json", 5), write(tmp_path / "b.jsonl", 3), write(tmp_path / "c.parquet", 9)]
    dataset = read([paths[0] + "[3:]", paths[1], paths[2] + "[-2:]"])
    assert names(dataset) == named("a", [3, 4]) + named("b", range(3)) + named("c", [7, 8])
    assert [dataset.rows[i]["index"] for i in range(7)] == [3, 4, 0, 1, 2, 7, 8]
    assert dataset.rows[1]["source"].endswith("a.json, sample 4")
    assert dataset.rows[6]["source"].endswith("c.parquet, sample 8")
    assert dataset.raw(5) == rows_named("c", 9)[7]


def test_media_start_at_the_folder_of_their_own_file(media_folder, tmp_path, read):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "red.png").write_bytes((media_folder / "red.png").read_bytes())
        row = {"image": "red.png", "conversations": turns("<image>What?", "Red")}
        (tmp_path / name / "rows.json").write_text(json.dumps([row]))
    dataset = read([str(tmp_path / "one" / "rows.json"), str(tmp_path / "two" / "rows.json")])
    assert [dataset.rows[i]["messages"][0]["content"][0]["image"] for i in (0, 1)] == [
        str(tmp_path / "one" / "red.png"),
        str(tmp_path / "two" / "red.png"),
    ]


def test_a_faulty_row_outside_of_the_slice_is_no_fault(tmp_path, read):
    rows = rows_named("a", 4)
    rows[3] = {"conversations": []}
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert names(read(str(tmp_path / "a.json") + "[:3]")) == named("a", range(3))
    with pytest.raises(ValueError, match="a.json, sample 3: .*no turn"):
        read(str(tmp_path / "a.json") + "[2:]")


# ---- slices ----

# of ten rows
SLICES = {
    "[2:5]": [2, 3, 4],
    "[:3]": [0, 1, 2],
    "[8:]": [8, 9],
    "[:]": range(10),
    "[-2:]": [8, 9],
    "[:-8]": [0, 1],
    "[-5:-3]": [5, 6],
    "[2:10]": range(2, 10),
    "[:50%]": range(5),
    "[10%:20%]": [1],
    "[-10%:]": [9],
    "[:100%]": range(10),
    "[:14%]": [0],
    "[:16%]": [0, 1],
    "[96%:]": None,
    "[5:5]": None,
    "[5:2]": None,
    "[:1%]": None,
    "[10:]": None,
    "[100:200]": None,
    "[5:11]": None,
    "[-11:]": None,
    "[:101%]": None,
    "[-101%:]": None,
}


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
@pytest.mark.parametrize("text", SLICES)
def test_a_slice_takes_its_rows(tmp_path, read, text, ending):
    spec = write(tmp_path / f"a.{ending}", 10) + text
    if SLICES[text] is None:
        with pytest.raises(ValueError) as caught:
            read(spec)
        assert text in str(caught.value) and "10" in str(caught.value)
    else:
        assert names(read(spec)) == named("a", SLICES[text])


# What stands behind the path of a file or folder -> how the error names it.
WRONG = ["[1]", "[1:2:3]", "[a:b]", "[1.5:2]", "[1:2", "[]", ":train", ":0", ":-1", ":nan", ":inf", "[1:2]x", "[:%]"]


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_spec_is_an_error_that_names_it(tmp_path, read, text):
    spec = write(tmp_path / "a.json", 10) + text
    with pytest.raises(ValueError) as caught:
        read(spec)
    assert spec in str(caught.value)


@pytest.mark.parametrize(
    "spec", [":nothing", ":", "/none.json", "/*.none", "/notes.txt", "/d.csv", "/[xyz].json", "/missing", "[0:1]:train"]
)
def test_a_place_without_rows_is_an_error_that_names_it(folder, read, spec):
    with pytest.raises(ValueError) as caught:
        read(f"{folder}{spec}")
    assert f"{folder}{spec}" in str(caught.value)


def test_a_folder_without_data_files_is_an_error_that_says_which_count(tmp_path, read):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.txt").write_text("a,b")
    with pytest.raises(ValueError, match=r"set.*\.json.*\.parquet"):
        read(str(tmp_path / "set"))


def test_max_samples_takes_the_first(tmp_path, read):
    path = write(tmp_path / "a.jsonl", 10)
    assert names(read(path, max_samples=3)) == named("a", range(3))
    assert names(read(path + "[4:]", max_samples=3)) == named("a", [4, 5, 6])
    assert len(read(path, max_samples=100)) == 10


# ---- weights: which rows an epoch has ----


def seen(dataset, epochs, seed: int = 0) -> Counter:
    """How often each row comes in these epochs."""
    name = names(dataset)
    return Counter(name[position] for epoch in epochs for position in dataset.epoch_rows(seed, epoch))


def test_without_weights_an_epoch_has_every_row_once(tmp_path, read):
    dataset = read([write(tmp_path / "a.json", 30), write(tmp_path / "b.jsonl", 20)])
    for seed, epoch in ((0, 0), (0, 1), (7, 100)):
        assert sorted(map(int, dataset.epoch_rows(seed=seed, epoch=epoch))) == list(range(50))


def test_epoch_rows_is_a_pure_function(tmp_path, read):
    specs = [write(tmp_path / "a.json", 20) + ":0.5", write(tmp_path / "b.jsonl", 11) + ":1.5"]
    in_order = [list(map(int, read(specs).epoch_rows(7, e))) for e in range(4)]
    dataset = read(specs)
    assert [list(map(int, dataset.epoch_rows(7, e))) for e in (3, 1, 3, 0)] == [in_order[e] for e in (3, 1, 3, 0)]


# weight, rows, epochs -> how often each row is seen in them
@pytest.mark.parametrize(
    "weight, rows, epochs, times",
    [("0.5", 10, 2, 1), ("0.25", 8, 4, 1), ("2", 5, 1, 2), ("1.5", 6, 2, 3), ("1", 5, 1, 1)]
    + [("3.0", 4, 1, 3), ("0.1", 20, 10, 1), ("0.3", 10, 10, 3), ("2.5", 4, 2, 5), (".5", 4, 2, 1)],
)
def test_counts_follow_the_weight(tmp_path, read, weight, rows, epochs, times):
    dataset = read([write(tmp_path / "a.json", rows) + f":{weight}", write(tmp_path / "b.jsonl", 3)])
    for start in (0, epochs, 5 * epochs):
        counts = seen(dataset, range(start, start + epochs))
        assert counts == dict.fromkeys(named("a", range(rows)), times) | dict.fromkeys(named("b", range(3)), epochs)
    share = float(weight) * rows
    for epoch in range(4):  # evenly over the epochs
        assert abs(sum(n for name, n in seen(dataset, [epoch]).items() if name[0] == "a") - share) < 1


@pytest.mark.parametrize("weight, rows, share", [("0.5", 7, 4), ("2.5", 3, 8), ("0.01", 5, 1)])
def test_a_share_is_rounded_and_no_row_comes_before_its_turn(tmp_path, read, weight, rows, share):
    """Every epoch has the same number of samples, as the Trainer needs it."""
    dataset = read([write(tmp_path / "a.json", rows) + f":{weight}"])
    for epochs in range(1, 8):
        counts = seen(dataset, range(epochs))
        assert sum(counts.values()) == epochs * share
        times = [counts[name] for name in named("a", range(rows))]
        assert max(times) - min(times) <= 1


def test_a_weight_holds_for_the_slice_before_it(tmp_path, read):
    path = write(tmp_path / "a.json", 10)
    dataset = read([path + "[:4]:0.5", path + "[8:]:2"])
    assert len(dataset) == 6
    assert seen(dataset, [0, 1]) == dict.fromkeys(named("a", range(4)), 1) | dict.fromkeys(named("a", [8, 9]), 4)


def test_halves_are_not_always_the_same(tmp_path, read):
    dataset = read([write(tmp_path / "a.json", 40) + ":0.5"])
    halves = {seed: frozenset(seen(dataset, [0], seed)) for seed in range(4)}
    assert len(set(halves.values())) == 4
    assert frozenset(seen(dataset, [2])) != halves[0]  # a new cut after each round


def test_a_negative_part_is_counted_from_the_end(tmp_path, read):
    path = write(tmp_path / "a.json", 40)
    assert names(read(path + "[-10%:]")) == named("a", range(36, 40))
    assert names(read(path + "[:-10%]")) == named("a", range(36))
    with pytest.raises(ValueError, match="slice is empty"):
        read(path + "[-1%:]")


def test_the_digest_knows_weights_and_order(tmp_path, read):
    a, b = write(tmp_path / "a.json", 6), write(tmp_path / "b.json", 6)
    digests = [read(paths).digest for paths in ([a], [a + ":0.5"], [a + ":2"], [a, b], [b, a], [a + "[:5]"], [a])]
    assert len(set(digests)) == 6 and digests[0] == digests[-1]


# ---- the index ----


def test_an_index_of_which_a_file_is_missing_is_made_anew(tmp_path, read):
    for ending in ("json", "parquet"):
        path = write(tmp_path / f"a.{ending}", 5)
        for gone in ("*.arrow", "offsets.npy", "index.json"):
            read(path)
            for file in (tmp_path / "cache").rglob(gone):
                file.unlink()
            assert names(read(path)) == named("a", range(5))


def test_a_parquet_file_that_is_written_again_leaves_a_running_data_set_whole(tmp_path, read):
    path = write(tmp_path / "a.parquet", 5)
    running = read(path)
    write(tmp_path / "a.parquet", 7, "b")
    assert names(read(path)) == named("b", range(7))
    assert names(running) == named("a", range(5))


def test_columns_that_no_form_reads_may_be_of_any_type(tmp_path, read):
    rows = rows_named("a", 6)
    columns = {
        "conversations": [row["conversations"] for row in rows],
        "at": pa.array([1] * 6, pa.timestamp("ns")),
        "kind": pa.array(list("xyxyxz")).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    assert names(read(str(tmp_path / "a.parquet"))) == named("a", range(6))


# ---- tables ----

CELLS = [
    "a, b; c\td",
    'say "hi"',
    "two\nlines",
    "007",
    "NA",
    "null",
    " blank ",
    "=1+1",
    "größe",
    "a | b",
    "'",
    "x\r\ny",
]


def table(path: Path, rows: list[list[str]], **dialect) -> str:
    with open(path, "w", encoding=dialect.pop("encoding", "utf-8"), newline="") as file:
        csv.writer(file, **dialect).writerows(rows)
    return str(path)


def pairs(dataset: MultimodalDataset) -> list[list[str]]:
    messages = [dataset.rows[i]["messages"] for i in range(len(dataset))]
    return [[message["content"][-1]["text"] for message in row] for row in messages]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("separator", ",;\t")
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_cells_are_read_to_the_letter(tmp_path, read, ending, separator, quoting):
    rows = [[question, answer] for question in CELLS for answer in CELLS]
    path = table(tmp_path / f"a.{ending}", [["question", "answer"], *rows], delimiter=separator, quoting=quoting)
    dataset = read(path)
    assert pairs(dataset) == rows
    assert dataset.rows[100]["source"] == f"a.{ending}, sample 100"
    assert pairs(read(f"{path}[7:9]:2")) == rows[7:9]


def test_a_table_as_it_was_typed(tmp_path, read, media_folder):
    """Without the module csv on either side: Excel's mark, semicolons, CRLF; empty rows and an unread column."""
    lines = [
        b"\xef\xbb\xbfNr;Image;Question;Answer",
        b'1;red.png;"What ""colour"";\r\nplease?";Red',
        b";;;",
        b"",
        b"2;;Hello, you;Hi",
        b"3; red.png | blue.png ;Which is blue?;The second",
    ]
    (tmp_path / "a.csv").write_bytes(b"\r\n".join(lines))
    dataset = read(str(tmp_path / "a.csv"), image_folder=str(media_folder))
    red, blue = (str(media_folder / name) for name in ("red.png", "blue.png"))
    assert [row["messages"][0]["content"] for row in map(dataset.rows.__getitem__, range(3))] == [
        [{"type": "image", "image": red}, {"type": "text", "text": 'What "colour";\r\nplease?'}],
        [{"type": "text", "text": "Hello, you"}],
        [{"type": "image", "image": path} for path in (red, blue)] + [{"type": "text", "text": "Which is blue?"}],
    ]
    assert [answer for *_, answer in pairs(dataset)] == ["Red", "Hi", "The second"]


TABLES = {
    "other names": (
        "file;frage;antwort\na.png;b;c",
        "has the columns file, frage, antwort, but it needs `question` and",
    ),
    "one of a pair": ("prompt,answer\na,b", "has the columns prompt, answer, but"),
    "no header": ("red.png,What is it?,Red", "has the columns red.png, what is it\\?, red, but"),
    "empty": ("", "is empty"),
    "only a header": ("question,answer\n", "contains no samples"),
    "twice": ("question,answer,Answer\na,b,c", "has two columns named answer"),
    "media unread": ("question,answer,file\na,b,\na,b,in/x.JPG", "sample 1: file contains media .in/x.JPG"),
    "videos unread": ("question,answer,clip\na,b,x.mp4", "name it `image` or `video`"),
    "an open quote": ('question,answer\na,b\n"a,b\nc,d\n', "line 3: unexpected end of data.*in\\s+quotes"),
    "a stray quote": ('question,answer\n"a" b,c', "line 2: ',' expected after"),
    "too many cells": ('question,answer\n"a\n",b\nyes, it is,c', "line 4: it has 3 cells, but the first line has 2"),
    "too few cells": ("question,answer\na", "line 2: it has 1 cells"),
    "Windows-1252": ("question,answer\nHöhe?,b".encode("cp1252"), "is not UTF-8 text.*Save it as CSV UTF-8"),
    "UTF-16": ("question,answer\na,b".encode("utf-16"), "is not UTF-8 text"),
    "no answer": ("question,answer\na,b\na,", "sample 1: has `question` but no `answer`"),
    "no image": ("image,question,answer\nnone.png,a,b", "sample 0: .*none.png.* does not exist"),
}


def test_a_name_of_a_picture_may_be_an_answer(tmp_path, read):
    (tmp_path / "a.csv").write_text("question,answer,id\nWhich file?,red.png,7.x\n")
    assert pairs(read(str(tmp_path / "a.csv"))) == [["Which file?", "red.png"]]


@pytest.mark.parametrize("name", TABLES)
def test_a_bad_table_is_an_error_that_names_the_cure(tmp_path, read, name):
    content, named = TABLES[name]
    (tmp_path / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"(?s)a.csv.*{named}"):
        read(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("names", [("a_train2017.json", "a_val2017.json"), ("training.json", "x-testing.json")])
def test_a_split_is_a_word_of_the_name(tmp_path, read, names):
    for name in (*names, "constraint.json", "latest.json"):
        write(tmp_path / name, 2)
    with pytest.raises(ValueError, match="has the splits train(ing)?, (val|testing): name one"):
        read(str(tmp_path))


@pytest.mark.parametrize("names", [("train-0.jsonl", "test-0.jsonl"), ("sub/val/a.json", "sub/train/b.json")])
def test_several_splits_in_one_path_are_refused(tmp_path, read, names):
    """Trained on together, the evaluation would be of rows that were trained."""
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, 2)
    pattern = f"{tmp_path}/**/*.json*"
    with pytest.raises(ValueError, match="has the splits train, .*: narrow the pattern to one"):
        read(pattern)
    if "sub" not in names[0]:
        with pytest.raises(ValueError, match=f"name one of them, such as {tmp_path}:train "):
            read(str(tmp_path))
        assert len(read([f"{tmp_path}:train", f"{tmp_path}:test"])) == 4
    else:
        with pytest.raises(
            ValueError, match=f"has the splits train, val: name one of them, such as {tmp_path}/sub:train"
        ):
            read(f"{tmp_path}/sub")
        assert len(read([f"{tmp_path}/sub:train", f"{tmp_path}/sub:val"])) == 4
    assert len(read([str(tmp_path / name) for name in names])) == 4


def test_a_folder_has_its_tables_where_it_has_no_other_files(tmp_path, read):
    for name in ("train", "test"):
        table(tmp_path / f"{name}.csv", [["prompt", "completion"], [name, "x"]])
    assert pairs(read(f"{tmp_path}:train")) == [["train", "x"]]
    (tmp_path / "test.csv").unlink()
    assert pairs(read(str(tmp_path))) == [["train", "x"]]
    write(tmp_path / "c.json", 2)
    assert names(read(str(tmp_path))) == named("c", range(2))


def test_a_table_that_is_not_there_is_no_data_set_of_the_hub(tmp_path, read, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="data/a.csv does not exist"):
        read("data/a.csv")


def test_a_changed_file_is_read_again(tmp_path, read):
    for ending in ("json", "jsonl", "parquet"):
        path = tmp_path / f"a.{ending}"
        assert names(read(write(path, 5))) == named("a", range(5))
        write(path, 5, "b")  # of the same size
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))
        assert names(read(str(path))) == named("b", range(5))
        write(path, 8)
        assert names(read(str(path))) == named("a", range(8))


def test_two_files_of_one_name_have_an_index_each(tmp_path, read):
    paths = [write(tmp_path / folder / "a.json", 4, folder) for folder in ("x", "y")]
    for path in paths:
        os.utime(path, ns=(0, 10**18))
    assert names(read(paths)) == named("x", range(4)) + named("y", range(4))


def apart(function):
    """What it returns in a process of its own. Raises an EOFError where that died or raised."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function()))
    process.start()
    sender.close()
    try:
        assert receiver.poll(60)
        return receiver.recv()
    finally:
        process.kill()
        process.join()


DAMAGE = {
    "emptied": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_a_damaged_index_does_no_harm(tmp_path, read, ending, damage):
    """A full disk, or a machine that went down while it was written: the rows are right all the same."""
    path = write(tmp_path / f"a.{ending}", 9)
    assert apart(lambda: names(read(path))) == named("a", range(9))
    whole = {file: file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    assert any(whole.values())
    for damaged in [[file] for file in whole if whole[file]] + [list(whole)]:
        for file, content in whole.items():
            file.unlink(missing_ok=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(DAMAGE[damage](content) if file in damaged else content)
        assert apart(lambda: names(read(path))) == named("a", range(9)), [file.name for file in damaged]


def test_a_cache_that_cannot_be_written_is_an_error_that_names_its_flag(tmp_path):
    path = write(tmp_path / "a.json", 3)
    with pytest.raises(ValueError, match="data_cache"):
        MultimodalDataset(path, media=MediaOptions(cache_folder=path + "/cache"))


@pytest.mark.slow
def test_processes_may_index_one_file_at_the_same_time(tmp_path, read):
    path = write(tmp_path / "a.jsonl", 2000)
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(4), context.SimpleQueue()

    def open_it():
        barrier.wait()
        answers.put(hash(tuple(names(read(path)))))

    processes = [context.Process(target=open_it) for _ in range(4)]
    for process in processes:
        process.start()
    found = {answers.get() for _ in processes}
    for process in processes:
        process.join(60)
    assert found == {hash(tuple(named("a", range(2000))))}


def test_copies_read_the_same_rows(tmp_path, read):
    paths = [write(tmp_path / "a.json", 9), write(tmp_path / "b.jsonl", 9), write(tmp_path / "c.parquet", 9)]
    dataset = read(paths)
    expected = names(dataset)
    assert names(pickle.loads(pickle.dumps(dataset))) == expected


@pytest.mark.slow
def test_workers_read_the_same_rows(tmp_path, read):
    dataset = read([write(tmp_path / "a.json", 9), write(tmp_path / "c.parquet", 9)])
    expected = names(dataset)
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert [sample["messages"][0]["content"][0]["text"] for sample in loader] == expected


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_rows(tmp_path, read, ending):
    """Of a data set whose index exists: what is kept, and what it takes to open it."""
    found = []
    for count in (500, 3000):
        path = write(tmp_path / f"{count}.{ending}", count)
        read(path)
        tracemalloc.start()
        dataset = read(path)
        dataset.rows[count - 1]
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        sent = len(pickle.dumps(dataset))  # to a worker, where processes are spawned
        found.append((kept, peak, sent))
    per_row = [(more - less) / 2500 for less, more in zip(*found)]
    assert max(per_row) < 16, per_row  # bytes: at most its number, for a moment twice


# ---- a Hub data set, from a server that answers as the Hub does ----

REVISION = "0123456789abcdef0123456789abcdef01234567"
HUB_ROWS = {"messages": [{"role": "user", "content": "hub0"}, {"role": "assistant", "content": "Yes"}]}
ESCAPING = {"image": "/etc/passwd", "conversations": turns("<image>What?", "Red")}


OF_PICTURE = HUB_ROWS | {"image": "images/red.png"}


def picture_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "png")
    return buffer.getvalue()


def parquet_bytes(rows: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


HUB_FILES = {
    "org/set": {
        "README.md": b"# a set",
        ".gitattributes": b"",
        "loader.py": b"raise SystemExit('code of a data set was run')",
        "data/train-00000-of-00001.parquet": parquet_bytes([HUB_ROWS] * 3),
        "data/test-00000-of-00001.parquet": parquet_bytes([HUB_ROWS]),
        "model.safetensors": b"0" * 1000,
    },
    "org/lines": {"train.jsonl": json.dumps(HUB_ROWS).encode() + b"\n", "extra.json": b"[]"},
    "org/pictures": {"train.json": json.dumps([OF_PICTURE]).encode(), "images/red.png": picture_bytes()},
    "org/escape": {"train.json": json.dumps([ESCAPING]).encode()},
    "org/upwards": {"train.json": json.dumps([ESCAPING | {"image": "../../../../../../../../etc/passwd"}]).encode()},
    "org/none": {"README.md": b"# nothing"},
}


class Hub(BaseHTTPRequestHandler):
    asked: list[str] = []

    def answer(self, body: bytes, status: int = 200, **headers) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        for repo, files in HUB_FILES.items():
            if path == f"/api/datasets/{repo}" or path.startswith(f"/api/datasets/{repo}/revision/"):
                siblings = [{"rfilename": name} for name in files]
                return self.answer(json.dumps({"id": repo, "sha": REVISION, "siblings": siblings}).encode())
            if path.startswith(f"/api/datasets/{repo}/tree/"):
                tree = [
                    {"type": "file", "path": n, "size": len(d), "oid": sha1(d).hexdigest()} for n, d in files.items()
                ]
                return self.answer(json.dumps(tree).encode())
            for name, data in files.items():
                if path.startswith(f"/datasets/{repo}/resolve/") and path.endswith("/" + name):
                    return self.answer(data, ETag=f'"{sha1(data).hexdigest()}"', X_Repo_Commit=REVISION)
        self.answer(b"{}", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


OPEN = """
import json, sys
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions
answers = []
for specs in json.loads(sys.argv[1]):
    try:
        dataset = MultimodalDataset(specs, media=MediaOptions(cache_folder=sys.argv[2]))
        content = dataset[0]["messages"][0]["content"]
        answers.append([len(dataset), content[-1]["text"], [part["image"].size for part in content[:-1]]])
    except ValueError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_a_hub_data_set_by_its_id(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}

    def open_in_child(*specs, **more) -> list:
        result = subprocess.run(
            [sys.executable, "-c", OPEN, json.dumps(specs), str(tmp_path / "cache")],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")]), **more},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout.splitlines()[-1])

    found = open_in_child(
        ["org/set:train", "org/set:test"],
        "org/set:train",
        "org/set:train[:1]",
        ["org/set:test", "org/lines:train"],
        "org/pictures",
        "org/escape",
        "org/upwards",
        "org/none",
        "org/missing",
        "org/set:nothing",
        "org/set",
    )
    server.shutdown()
    assert found[:4] == [[4, "hub0", []], [3, "hub0", []], [1, "hub0", []], [2, "hub0", []]]
    assert found[4] == [1, "hub0", [[64, 64]]]  # beside its file, though the cache of the Hub links to both
    words = ("/etc/passwd", "etc/passwd", "org/none", "org/missing", "nothing")
    assert [word in message for word, message in zip(words, found[5:])] == [True] * 5
    assert "has the splits train, test: name one" in found[10]
    assert "train.json, sample 0" in found[5] and "train.json, sample 0" in found[6]
    fetched = {path.split("?")[0].split("/")[-1] for path in Hub.asked if "/org/set/resolve/" in path}
    assert fetched == {"train-00000-of-00001.parquet", "test-00000-of-00001.parquet"}
    # once there, it is read without a network
    assert open_in_child("org/set:train", HF_HUB_OFFLINE="1") == [[3, "hub0", []]]


def test_a_hub_id_without_a_network_is_an_error_that_says_so(read, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="org/absent"):  # HF_HUB_OFFLINE is set for all tests
        read("org/absent")


def test_a_folder_goes_before_a_hub_id(read, monkeypatch, tmp_path):
    write(tmp_path / "org" / "set" / "a.json", 2)
    monkeypatch.chdir(tmp_path)
    assert names(read("org/set")) == named("a", range(2))


# ---- the flags ----


def test_train_py_takes_several_specs(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FINELMM_CACHE", str(tmp_path / "cache"))
    paths = [write(tmp_path / "a.json", 6) + "[:4]:0.5", write(tmp_path / "b.parquet", 4)]
    evaluation = write(tmp_path / "c.jsonl", 2)
    flags = ["--data_path", *paths, "--eval_data_path", evaluation, "--num_train_epochs", 2, "--max_steps", -1]
    steps = run(tiny, "llava-1.5", paths[0], tmp_path / "out", *flags, "--per_device_train_batch_size", 3)
    assert len(steps) == 4  # two epochs of 2 + 4 rows, three a step
