"""Every kind of file and folder: the rows that it has are those of the same data as `messages`."""

import datetime
import errno
import gzip
import io
import json
import os
import shutil
import sys
import tarfile
import tracemalloc
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reading import row_index
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions
from reading.sources import names_of


def asked(media: str | list[str], question: str, answer: str) -> dict:
    """A row as `messages`; media by their paths."""
    media = [media] if isinstance(media, str) else media
    parts = [{"type": "video" if name.endswith("mp4") else "image", "path": name} for name in media]
    content = [*parts, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def samples(dataset: MultimodalDataset) -> list[list[dict]]:
    return [dataset.rows[i]["messages"] for i in range(len(dataset))]


def as_messages(folder: Path, *rows: dict) -> list[list[dict]]:
    """The canonical messages of rows whose media are in a folder."""
    file = folder.parent / "messages.json"
    file.write_text(json.dumps(rows))
    return samples(MultimodalDataset(str(file), image_folder=str(folder), video_folder=str(folder)))


@pytest.fixture
def fill(tmp_path, media_folder):
    """`fill({"cat/1.jpg": None, "1.txt": "A cat"})`: a folder of these files; of a picture or clip, any one."""

    def make(files: dict[str, str | None], name: str = "set") -> Path:
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                shutil.copy(media_folder / ("clip.mp4" if path.suffix == ".mp4" else "red.png"), path)
            else:
                path.write_text(text, encoding="utf-8")
        return tmp_path / name

    return make


# ---- folders of pictures and clips ----


def test_the_folder_of_a_picture_is_its_answer(fill):
    folder = fill(dict.fromkeys(["dog house/2.jpg", "cat/10.png", "cat/9.JPG", "fox/a.mp4", ".cache/3.jpg"]))
    (folder / "labels.txt").write_text("about the classes")
    expected = [("cat/10.png", "cat"), ("cat/9.JPG", "cat"), ("dog house/2.jpg", "dog house"), ("fox/a.mp4", "fox")]
    dataset = MultimodalDataset(f"{folder}/", prompt="Which?")
    assert samples(dataset) == as_messages(folder, *(asked(name, "Which?", answer) for name, answer in expected))
    assert dataset.rows[2]["source"] == "set, sample 2" and dataset.notes() == []
    assert len(MultimodalDataset(f"{folder}[1:3]:2", prompt="Which?")) == 2


def test_a_single_class_is_said(fill):
    folder = fill(dict.fromkeys(["cat/1.jpg", "cat/2.mp4", "cat/3.jpg", "dog/4.jpg"]))
    other = fill(dict.fromkeys(["dog/1.jpg", "dog/2.jpg"]), "other")
    cats = f"{folder}[:3]"
    for paths, only in (([folder], ""), ([cats], "cat"), ([other], "dog"), ([cats, other], "")):
        notes = "".join(MultimodalDataset([*map(str, paths)], prompt="Which?").notes())
        assert (f"is {only!r}, so the model would learn this reply" in notes) == bool(only), (paths, notes)
        assert ("every reply" in notes) == bool(only)


def test_folders_of_splits_are_no_classes_but_one_alone_is(fill):
    folder = fill(dict.fromkeys(["train/cat/1.jpg", "test/cat/2.jpg", "test/dog/3.jpg"]))
    with pytest.raises(ValueError, match="has the splits train, test: name one of them"):
        MultimodalDataset(str(folder), prompt="Which?")
    found = samples(MultimodalDataset(f"{folder}:test", prompt="Which?"))
    assert found == as_messages(
        folder / "test", asked("cat/2.jpg", "Which?", "cat"), asked("dog/3.jpg", "Which?", "dog")
    )
    vehicles = fill(dict.fromkeys(["train/1.jpg", "bus/2.jpg"]), "vehicles")
    found = samples(MultimodalDataset(str(vehicles), prompt="Which?"))
    assert [answer["content"][0]["text"] for _, answer in found] == ["bus", "train"]


def test_a_text_next_to_a_picture_is_its_caption(fill):
    texts = {"b.txt": "\ufeffA dog. \n", "a.txt": "A cat,\nasleep.", "more/1.TXT": "A clip"}
    folder = fill({"b.jpg": None, "a.png": None, "more/1.mp4": None} | texts)
    expected = [
        asked("a.png", "Say.", "A cat,\nasleep."),
        asked("b.jpg", "Say.", "A dog."),
        asked("more/1.mp4", "Say.", "A clip"),
    ]
    assert samples(MultimodalDataset(str(folder), prompt="Say.")) == as_messages(folder, *expected)
    (folder / "b.txt").write_text("A cow.")  # the folder itself stays as it was
    assert samples(MultimodalDataset(str(folder), prompt="Say."))[1][1]["content"][0]["text"] == "A cow."
    (folder / "more" / "2.jpg").write_bytes((folder / "b.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"files without a partner: more/2.jpg \(1 in all\)"):
        MultimodalDataset(str(folder), prompt="Say.")


FOLDER_FAULTS = {
    "classes without a question": (["cat/1.jpg"], None, '--prompt "What is in the picture?"'),
    "captions without a question": (["1.mp4", "1.txt"], None, '--prompt "Describe the picture."'),
    "texts in a folder of their own": (
        ["images/1.jpg", "images/2.jpg", "labels/1.txt", "labels/2.txt"],
        "What?",
        "labels/1.txt, labels/2.txt (4 in all). Each image NAME.jpg needs a caption NAME.txt",
    ),
    "a picture without a caption": (
        ["1.jpg", "1.txt", "2.jpg"],
        "Say.",
        "partner: 2.jpg (1 in all). Each image NAME.jpg needs a caption NAME.txt",
    ),
    "a caption without a picture": (["1.jpg", "1.txt", "README.txt"], "Say.", "partner: README.txt (1 in all)"),
    "a class too deep": (["cat/1.jpg", "cat/more/2.jpg"], "Say.", "cat/more/2.jpg has no caption, and is not directly"),
    "neither": (["1.jpg"], "Say.", "1.jpg has no caption, and is not directly"),
    "an empty caption": (["1.jpg", "1.txt", "2.jpg", "2.txt="], "Say.", "sample 1: has an empty reply"),
    "beside unnamed data": (["images/1.jpg", "rows/a.json"], "Say.", "no .json, .jsonl,"),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_a_folder_that_cannot_be_meant_is_refused_by_name(fill, fault):
    files, prompt, named = FOLDER_FAULTS[fault]
    texts = (".txt", ".json")
    folder = fill(
        {name.rstrip("="): "" if name[-1] == "=" else "x" if name.endswith(texts) else None for name in files}
    )
    with pytest.raises(ValueError) as error:
        MultimodalDataset(str(folder), prompt=prompt)
    assert named in str(error.value)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_metadata_name_the_pictures_of_their_folder(fill, ending):
    rows = [{"file_name": name, "text": text} for name, text in (("1.jpg", "A"), ("sub/2.jpg", "B"), ("3.mp4", "C"))]
    folder = fill({row["file_name"]: None for row in rows})
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    else:
        lines = (
            map(json.dumps, rows) if ending == "jsonl" else ["file_name,text", *(",".join(r.values()) for r in rows)]
        )
        (folder / f"metadata.{ending}").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"try --columns answer=text .*--prompt"):
        MultimodalDataset(str(folder))
    expected = as_messages(folder, *(asked(row["file_name"], "Say.", row["text"]) for row in rows))
    of_pictures = MultimodalDataset(f"{folder}[:2]", columns=["answer=text", "image=file_name"], prompt="Say.")
    assert samples(of_pictures) == expected[:2]
    assert samples(MultimodalDataset(str(folder), columns=["answer=text"], prompt="Say.")) == expected
    if ending == "jsonl":
        several = {"file_names": ["sub/2.jpg", "1.jpg"], "question": "Say.", "answer": "B"}
        (folder / "metadata.jsonl").write_text(json.dumps(several))
        found = samples(MultimodalDataset(str(folder)))
        assert found == as_messages(folder, asked(several["file_names"], "Say.", "B"))


# ---- Arrow, and what Dataset.save_to_disk writes ----

CLASSES = {"_type": "ClassLabel", "names": ["circle", "square"]}
FEATURES = {"image": {"_type": "Image"}, "label": CLASSES, "names": {"names": {"_type": "Value"}}}
FEATURES |= {"several": {"_type": "LargeList", "feature": CLASSES}}


def arrow_table(pictures: list[bytes], labels: list[int]) -> pa.Table:
    """As the library `datasets` has it in memory; its features are in the metadata of the schema."""
    columns = {
        "image": pa.array([{"bytes": data, "path": None} for data in pictures]),
        "label": pa.array(labels, pa.int64()),
        "names": pa.array([{"names": "x"}] * len(labels)),
        "several": pa.array([[label] for label in labels], pa.large_list(pa.int64())),
    }
    about = json.dumps({"info": {"features": FEATURES}})
    return pa.table(columns).replace_schema_metadata({"huggingface": about})


def write_arrow(path: Path, table: pa.Table, new=pa.ipc.new_stream) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return str(path)


def save_to_disk(folder: Path, tables: dict[str, pa.Table]) -> Path:
    """As the library does; the shards are listed in the order of `tables`."""
    for name, table in tables.items():
        write_arrow(folder / name, table)
    state = {"_data_files": [{"filename": name} for name in tables], "_fingerprint": "0", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    return folder


@pytest.fixture
def pictures(media_folder) -> list[bytes]:
    return [(media_folder / name).read_bytes() for name in ("red.png", "blue.png", "tall.jpg")]


def of_bytes(pictures: list[bytes], answers: list[str]) -> list[list[dict]]:
    """The canonical messages, by hand."""
    text = {"type": "text", "text": "Which?"}
    return [
        [
            {"role": "user", "content": [{"type": "image", "image": data}, text]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        for data, answer in zip(pictures, answers)
    ]


MAPPED = {"columns": ["answer=label", "several=", "names="], "prompt": "Which?"}


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file], ids=["stream", "file"])
def test_an_arrow_file_has_its_rows_and_the_names_of_its_classes(tmp_path, pictures, new):
    labels = [i % 2 for i in range(250)]  # batches of 100, of which the copy makes others
    data = [pictures[i % 3] for i in range(250)]
    dataset = MultimodalDataset(write_arrow(tmp_path / "a.arrow", arrow_table(data, labels), new), **MAPPED)
    assert samples(dataset) == of_bytes(data, [CLASSES["names"][label] for label in labels])
    assert dataset[249]["messages"][0]["content"][0]["image"].size == (64, 64)
    nested = MAPPED | {"columns": ["answer=several[0]", "label=", "names="]}
    assert samples(MultimodalDataset(str(tmp_path / "a.arrow"), **nested)) == samples(dataset)


TIMES = {  # the text -> what it is of; in UTC, it is another hour than in Berlin
    "2026-01-05": pa.array([datetime.date(2026, 1, 5)]),
    "2026-01-05 00:00:00": pa.array([datetime.datetime(2026, 1, 5)], pa.timestamp("ns")),
    "2026-01-05 07:00:00": pa.array([datetime.datetime(2026, 1, 5, 7)], pa.timestamp("us", "Europe/Berlin")),
    "1970-01-01 00:00:01.000000001": pa.array([1_000_000_001], pa.timestamp("ns")),
    "07:30:00": pa.array([datetime.time(7, 30)]),
}


@pytest.mark.parametrize("text, answers", TIMES.items())
def test_a_date_is_the_text_that_a_person_reads(tmp_path, text, answers):
    pq.write_table(pa.table({"question": ["When?"], "answer": answers}), tmp_path / "a.parquet")
    (found,) = samples(MultimodalDataset(str(tmp_path / "a.parquet")))
    assert found[1]["content"] == [{"type": "text", "text": text}]


def test_a_saved_data_set_has_the_shards_that_it_lists(tmp_path, pictures):
    tables = {f"data-0000{i}-of-00002.arrow": arrow_table([pictures[i]], [i]) for i in (1, 0)}
    folder = save_to_disk(tmp_path / "saved", tables)
    write_arrow(folder / "data-00002-of-00003.arrow", arrow_table([pictures[2]], [0]))  # left over from before
    assert samples(MultimodalDataset(str(folder), **MAPPED)) == of_bytes(
        [pictures[1], pictures[0]], ["square", "circle"]
    )
    (folder / "data-00000-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match="data-00000-of-00002.arrow does not exist"):
        MultimodalDataset(str(folder), **MAPPED)


def test_of_several_saved_splits_one_has_to_be_named(tmp_path, pictures):
    for number, split in enumerate(("matched", "train")):
        save_to_disk(
            tmp_path / "saved" / split, {"data-00000-of-00001.arrow": arrow_table([pictures[number]], [number])}
        )
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["matched", "train"]}')
    with pytest.raises(ValueError, match="has the splits matched, train: name one of them, such as .*saved:matched"):
        MultimodalDataset(str(tmp_path / "saved"), **MAPPED)
    assert samples(MultimodalDataset(f"{tmp_path / 'saved'}:train", **MAPPED)) == of_bytes([pictures[1]], ["square"])


def test_a_damaged_arrow_file_is_refused_by_name(tmp_path, pictures):
    path = Path(write_arrow(tmp_path / "a.arrow", arrow_table(pictures, [0, 1, 0])))
    for data in (path.read_bytes()[:-400], b"no Arrow file", b"ARROW1 neither"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="a.arrow is not a readable Arrow file: "):
            MultimodalDataset(str(path), **MAPPED)
    save_to_disk(tmp_path / "old", {"data-00000-of-00001.arrow": arrow_table(pictures, [0, 1, 0])})
    (tmp_path / "old" / "state.json").write_text('{"_data_files": [], "_indices_data_files": [{"filename": "x"}]}')
    with pytest.raises(ValueError, match="state.json: an old release of `datasets` stored the row order separately"):
        MultimodalDataset(str(tmp_path / "old"), **MAPPED)


# ---- WebDataset shards ----


def write_tar(path: Path, members: list[tuple[str, bytes | str]], format: int = tarfile.PAX_FORMAT) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info, data = tarfile.TarInfo(name), data.encode() if isinstance(data, str) else data
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_the_members_of_one_name_are_a_row(tmp_path, pictures, format):
    """Long names, which have headers of their own, and those of other alphabets; hidden members and folders."""
    stems = ["a/1", f"{'long' * 40}/ü", "b/1"]
    members = [("./._1.jpg", b"of a Mac")]
    for stem, data, text in zip(stems, pictures, ("A\n", " B ", "C")):
        members += [(f"{stem}.PNG" if data[1:4] == b"PNG" else f"{stem}.jpg", data), (f"{stem}.txt", text)]
    dataset = MultimodalDataset(write_tar(tmp_path / "a.tar", members, format), prompt="Which?")
    assert samples(dataset) == of_bytes(pictures, ["A", "B", "C"]) and dataset.notes() == []
    assert samples(MultimodalDataset(f"{tmp_path}/*.tar[1:]", prompt="Which?")) == samples(dataset)[1:]


TEXT = {"type": "text", "text": "Which?"}
CONVERSATION = [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "square"}]
# Members besides a picture, --columns, --prompt; each the same row.
MEMBERS = {
    "a class": ({"cls": "square"}, [], "Which?"),
    "a class and a text": ({"cls": "4", "txt": "square"}, [], "Which?"),
    "the name of a column": ({"txt": "square"}, ["image=png", "answer=txt"], "Which?"),
    "fields of json": ({"json": {"conversations": CONVERSATION, "id": 7}}, [], None),
    "json that is a list": ({"json": CONVERSATION}, ["conversations=json"], None),
    "several texts": ({"q.txt": "Which?", "a.txt": "square"}, ["question=q.txt", "answer=a.txt"], None),
    "a mask that is ignored": ({"seg.png": b"\x89PNG mask", "txt": "square"}, ["seg.png="], "Which?"),
    "numbers": ({"npy": b"\x93NUMPY", "txt": "square"}, [], "Which?"),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_what_a_member_holds_is_a_field(tmp_path, pictures, kind):
    fields, columns, prompt = MEMBERS[kind]
    dumped = {name: value if isinstance(value, (str, bytes)) else json.dumps(value) for name, value in fields.items()}
    members = sorted({f"1.{name}": data for name, data in (dumped | {"png": pictures[0]}).items()}.items())
    dataset = MultimodalDataset(write_tar(tmp_path / "a.tar", members), columns=columns, prompt=prompt)
    assert samples(dataset) == of_bytes(pictures[:1], ["square"])


ROWS_OF_A_TAR = [("1.png", b"\x89PNG"), ("1.txt", "A")]
# Members, and what the error says of them.
TAR_FAULTS = {
    "apart": (
        [("1.jpg", b"x"), ("2.jpg", b"x"), ("1.txt", "A"), ("2.txt", "A")],
        "sample 2 has the name of an earlier sample",
    ),
    "no ending": ([*ROWS_OF_A_TAR, ("README", "x")], "sample 1: has a member README that has no extension"),
    "two pictures": ([("1.jpg", b"\xff\xd8\xff"), ("1.png", b"\x89PNG"), ("1.txt", "A")], "png contains media"),
    "a mask": ([("1.seg.png", b"\x89PNG"), *ROWS_OF_A_TAR], "seg.png contains media"),
    "broken json": ([("a/1.json", "{")], "has a member a/1.json that is not valid JSON"),
    "twice": ([*ROWS_OF_A_TAR, ("1.json", '{"txt": "B"}')], "1.json that gives the field `txt` a second time"),
    "other bytes than UTF-8": ([("1.txt", b"\xff\xfe")], "1.txt that is not UTF-8 text"),
    "no picture": ([("1.png", b"no picture"), ("1.txt", "A")], "sample 0: image of 10 bytes cannot be decoded"),
}


@pytest.mark.parametrize("fault", TAR_FAULTS)
def test_a_shard_that_cannot_be_meant_is_refused_by_name(tmp_path, fault):
    members, named = TAR_FAULTS[fault]
    with pytest.raises(ValueError) as error:
        MultimodalDataset(write_tar(tmp_path / "a.tar", members), prompt="Which?")
    assert named in str(error.value) and "a.tar" in str(error.value)


def test_no_row_of_a_broken_shard_is_lost_in_silence(tmp_path, pictures):
    path = Path(
        write_tar(
            tmp_path / "a.tar", [(f"{i}.{e}", d) for i in range(9) for e, d in (("png", pictures[0]), ("txt", "A"))]
        )
    )
    data, header = path.read_bytes(), 512
    (start,) = (data.index(b"5.png" + b"\0" * 95),)
    broken = [
        data[: start + 100],
        data[: start + header + 9],
        data + data,
        data[:start] + b"x" * header + data[start + header :],
    ]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.tar is not a readable tar file: "):
            MultimodalDataset(str(path), prompt="Which?")
    path.write_bytes(data[: data.index(b"8.png" + b"\0" * 95)])  # between two members, without an end
    assert len(MultimodalDataset(str(path), prompt="Which?")) == 8
    for name in ("a.tar.gz", "a.tgz", "rows.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(data))
        with pytest.raises(ValueError, match=f"{name} is a compressed archive: unpack it"):
            MultimodalDataset(str(tmp_path / name), prompt="Which?")


def test_a_link_in_a_shard_is_refused(tmp_path):
    os.symlink("/etc/passwd", tmp_path / "1.txt")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "1.txt", "1.txt")
    with pytest.raises(ValueError, match="a member 1.txt that is a link"):
        MultimodalDataset(str(tmp_path / "a.tar"), prompt="Which?")


def test_a_shard_that_was_written_again_is_noticed(tmp_path, pictures):
    path = tmp_path / "a.tar"
    dataset = MultimodalDataset(write_tar(path, [("1.png", pictures[0]), ("1.txt", "A")]), prompt="Which?")
    write_tar(path, [("1.png", pictures[1]), ("1.txt", "B")])
    os.utime(path, (1, 1))
    with pytest.raises(ValueError, match="a.tar changed while in use"):
        dataset.rows[0]
    assert samples(MultimodalDataset(str(path), prompt="Which?")) == of_bytes(pictures[1:], ["B"])


@pytest.mark.parametrize("ending", ["arrow", "tar"])
def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch, ending):
    """Python's own while a file is indexed: the index has numbers of each row, and nothing holds a member."""
    monkeypatch.setattr(row_index, "BATCH", 100)
    peaks = []
    for count in (200, 600):
        path = tmp_path / f"{count}.{ending}"
        if ending == "tar":
            write_tar(path, [(f"{i}.{e}", "A") for i in range(count) for e in ("q.txt", "a.txt")])
        else:
            write_arrow(path, pa.table({"q.txt": ["A"] * count, "a.txt": ["A"] * count}))
        tracemalloc.start()
        MultimodalDataset(str(path), columns=["question=q.txt", "answer=a.txt"])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 400 < 600, peaks  # bytes of a row; a header alone is 512 as text, an object 1,500


# ---- Excel ----


def write_sheets(path: Path, **sheets: list[list]) -> str:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return str(path)


def test_a_sheet_is_a_table(fill):
    """Numbers, dates and empty cells, next to a sheet without rows."""
    folder = fill(dict.fromkeys(["1.jpg", "2.jpg"]))
    rows = [
        ["Image", "Question", "Label", None],
        ["1.jpg", " Q\n", 7.0],
        [],
        [None, "Q", 0.1],
        ["1.jpg | 2.jpg", "Q", True],
    ]
    rows += [[None, "Q", datetime.date(2026, 1, 5), None, None], ["1.jpg", "007", "A"]]
    path = write_sheets(folder / "a.xlsx", Rows=rows, Empty=[])
    expected = [asked("1.jpg", " Q\n", "7"), asked([], "Q", "0.1"), asked(["1.jpg", "2.jpg"], "Q", "True")]
    expected += [asked([], "Q", "2026-01-05 00:00:00"), asked("1.jpg", "007", "A")]
    assert samples(MultimodalDataset(path, columns=["answer=Label"])) == as_messages(folder, *expected)
    assert len(MultimodalDataset(f"{folder}[1:3]", columns=["answer=Label"])) == 2  # the only file that has rows


SHEETS = {
    "several": ({"a": [["question", "answer"], ["Q", "A"]], "b": [["x"]]}, "has 2 sheets with rows, expected exactly"),
    "none": ({"a": []}, "has 0 sheets"),
    "other columns": ({"a": [["frage", "antwort"], ["Q", "A"]]}, "but it needs `question` and `answer`"),
    "a cell too many": ({"a": [["question", "answer"], ["Q", "A", "B"]]}, "the cell 'B' is in a column without a name"),
}


@pytest.mark.parametrize("fault", SHEETS)
def test_a_sheet_that_cannot_be_meant_is_refused_by_name(tmp_path, fault):
    sheets, named = SHEETS[fault]
    with pytest.raises(ValueError) as error:
        MultimodalDataset(write_sheets(tmp_path / "a.xlsx", **sheets))
    assert named in str(error.value) and "a.xlsx" in str(error.value)


def test_excel_without_its_package_or_broken_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "a.xlsx").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="a.xlsx is not a readable Excel file"):
        MultimodalDataset(str(tmp_path / "a.xlsx"))
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ValueError, match="a.xlsx needs openpyxl: pip install openpyxl"):
        MultimodalDataset(str(tmp_path / "a.xlsx"))


# ---- what cannot be read ----


def test_what_the_disk_refuses_is_named(fill, monkeypatch):
    """An input error, as of a broken disk, and a folder without the right to look into it."""
    folder = fill({"a.jpg": None, "deep/b.jpg": None, "deep/b.txt": "B"})
    for name in ("rows.json", "shard.tar", "table.csv"):
        (folder.parent / name).symlink_to("/proc/self/mem")
        with pytest.raises(ValueError, match=f"{name} cannot be read: Input/output error"):
            MultimodalDataset(str(folder.parent / name))
    (folder / "a.txt").symlink_to("/proc/self/mem")
    with pytest.raises(ValueError, match=r"a\.txt cannot be read as UTF-8 text: .*Input/output error"):
        MultimodalDataset(str(folder), prompt="Say.")
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    for path in (folder, folder / "deep"):
        with pytest.raises(ValueError, match="deep cannot be read: Permission denied"):
            MultimodalDataset(str(path), prompt="Say.")


# ---- addresses of files on the Hub ----


@pytest.fixture
def hub(tmp_path, fill, pictures, monkeypatch):
    """In the place of the network: what the Hub has of org/set, and (revision, files) of each request."""
    row = {"image": "red.png", "question": "Which?", "answer": "square"}
    held = fill(
        {"rows/a.jsonl": json.dumps(row), "rows/red.png": None, "classes/cat/1.jpg": None, "README.md": "x"}, "hub"
    )
    for i in range(2):
        pq.write_table(arrow_table([pictures[i]], [i]), held / f"train-{i}.parquet")
    save_to_disk(held / "saved" / "test", {"data-00000-of-00001.arrow": arrow_table(pictures[2:], [1])})
    write_tar(held / "shard.tar", [("1.png", pictures[0]), ("1.cls", "red")])
    names = [str(path.relative_to(held)) for path in held.rglob("*") if path.is_file()]
    asked = []

    def snapshot_download(repo_id, repo_type, revision, allow_patterns, ignore_patterns):
        assert (repo_id, repo_type) == ("org/set", "dataset")
        chosen = [name for name in names if any(fnmatch(name, pattern) for pattern in allow_patterns or ["*"])]
        asked.append((revision, sorted(chosen)))
        folder = tmp_path / f"snapshot {len(asked)}"
        folder.mkdir()
        for name in chosen:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(held / name, folder / name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: names)
    return asked


ADDRESSES = {
    "/train-1.parquet": (["square"], [(None, ["train-1.parquet"])]),
    "@v1.0/train-*.parquet[:1]": (["circle"], [("v1.0", ["train-0.parquet", "train-1.parquet"])]),
    "@refs%2Fpr%2F3:train": (["circle", "square"], [("refs/pr/3", ["train-0.parquet", "train-1.parquet"])]),
    "@refs/convert/parquet/train-0.parquet": (["circle"], [("refs/convert/parquet", ["train-0.parquet"])]),
    "/shard.tar": (["red"], [(None, ["shard.tar"])]),
    "/classes": (["cat"], [(None, ["classes/cat/1.jpg"])]),
    "/rows/a.jsonl": (["square"], [(None, ["rows/a.jsonl", "rows/red.png"])]),
    "/saved:test": (
        ["square"],
        [(None, ["saved/test/data-00000-of-00001.arrow", "saved/test/dataset_info.json", "saved/test/state.json"])],
    ),
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_on_the_hub_fetches_what_it_names(hub, address):
    answers, fetched = ADDRESSES[address]
    typed = "parquet" in address or ":" in address
    given = MAPPED if typed else {} if "rows" in address else {"prompt": "Which?"}
    found = samples(MultimodalDataset(f"hf://datasets/org/set{address}", **given))
    assert [reply["content"][0]["text"] for _, reply in found] == answers and hub == fetched


def test_an_address_on_the_hub_has_a_short_name():
    assert names_of(["hf://datasets/org/set/data/val.jsonl[:5]", "hf://datasets/org/set:test"]) == ["val", "set"]


def test_a_medium_on_the_hub_is_fetched_once_by_its_library(tmp_path, fill, monkeypatch):
    held, asked, cached = fill({"a b.jpg": None}), [], set()

    def hf_hub_download(repo_id, filename, repo_type, revision, local_files_only=False):
        asked.append((repo_id, filename, repo_type, revision, local_files_only))
        if not (held / filename).exists() or local_files_only and filename not in cached:
            raise FileNotFoundError(f"no {filename} is there")
        cached.add(filename)
        return str(held / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    addresses = {
        "org/set@refs%2Fpr%2F1/a b.jpg": None,
        "org/set/none.jpg": "org/set/none.jpg cannot be fetched from the Hub: no none.jpg is there",
        "org/set": "org/set is no data set file; it must look like hf://datasets/owner/name/1.jpg",
    }
    rows = [{"image": f"hf://datasets/{name}", "question": "a", "answer": "b"} for name in addresses]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="image is the URL 'hf://datasets/org/set.*: add --allow_urls True"):
        MultimodalDataset(str(tmp_path / "rows.json"))
    allowed = MediaOptions(allow_urls=True)
    dataset = MultimodalDataset(str(tmp_path / "rows.json"), media=allowed, check=False)
    assert dataset[0]["messages"][0]["content"][0]["image"].size == (64, 64)
    assert [dataset.errors[i].partition("hf://datasets/")[2] for i in (1, 2)] == [*addresses.values()][1:]
    once = ("org/set", "a b.jpg", "dataset", "refs/pr/1")
    assert [request for request in asked if request[1] == "a b.jpg"] == [(*once, True), (*once, False), (*once, True)]


def test_an_address_on_the_hub_that_cannot_be_reached_is_named(tmp_path):
    with pytest.raises(ValueError, match="org/absent is neither .* nor a reachable data set of the Hub"):
        MultimodalDataset("hf://datasets/org/absent/a.parquet")  # HF_HUB_OFFLINE is set for all tests
