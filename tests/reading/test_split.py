"""--eval_split: which rows stay together, compared with groups made by hand, and the same rows held out everywhere."""

import base64
import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import check_each, run, turns

import preview
from arguments import DataArguments
from reading import references
from reading.dataset import MultimodalDataset
from reading.split import hold_out, linked, make_datasets


def row(*images, answer: str = "Red", **fields) -> dict:
    return {"image": [*images], "conversations": turns("<image>" * len(images) + "What?", answer)} | fields


def text(answer: str = "Red") -> dict:
    return {"conversations": turns("What?", answer)}


@pytest.fixture
def pictures(media_folder, tmp_path):
    """`pictures(name=content)`: files of equal size in pixels and bytes, of which those of one content are equal."""
    names = []

    def make(**contents: str) -> list[str]:
        for name, content in contents.items():
            names.append(media_folder / f"{tmp_path.name}-{name}.png")
            names[-1].write_bytes((media_folder / "red.png").read_bytes() + content.encode())  # behind the picture
        return [name.name for name in names[-len(contents) :]]

    yield make
    for name in names:
        name.unlink()


def groups_of(*paths: str) -> list[int]:
    return linked(MultimodalDataset([*paths], check=False)).tolist()


def test_rows_are_linked_by_the_bytes_of_their_media(write_rows, media_folder, pictures, tmp_path):
    a, copy_of_a, b, c, copy_of_c, d = pictures(a="1", copy_of_a="1", b="2", c="3", copy_of_c="3", d="4")
    encoded = base64.b64encode((media_folder / a).read_bytes()).decode()
    shutil.copy(media_folder / "clip.mp4", tmp_path / "clip.mp4")
    clip = {"conversations": turns("<video>What?", "Grey")}
    rows = [
        row(a),  # 0
        row("missing.png", a),  # cannot be used, and links nothing
        row(copy_of_a),  # 0
        row(f"data:image/png;base64,{encoded}"),  # 0
        row(b),  # as large as a
        row(c),  # 5, which the next but one links with d
        row(d, answer="No"),  # 5
        row(copy_of_c, d),  # 5
        text(),
        text(),  # an equal text is no link
        clip | {"video": "clip.mp4"},  # 10
        clip | {"video": [[a, b]]},
        clip | {"video": [[copy_of_a, b]]},  # 11
        clip | {"video": [[b, a]]},
        clip | {"video": str(tmp_path / "clip.mp4")},  # 10
        row("red.png"),  # of fewer bytes
    ]
    expected = [0, 1, 0, 0, 4, 5, 5, 5, 8, 9, 10, 11, 11, 13, 10, 15]
    path = write_rows(rows)
    assert groups_of(path) == expected
    stored = [{"bytes": (media_folder / name).read_bytes(), "path": None} for name in (d, "red.png", copy_of_a)]
    table = pa.Table.from_pylist([row(one) for one in stored])
    pq.write_table(table, tmp_path / "rows.parquet")
    assert groups_of(path, str(tmp_path / "rows.parquet")) == [*expected, 5, 15, 0]


def test_groups_are_what_is_left_when_sets_of_pictures_are_merged(write_rows, pictures):
    draw = random.Random(0)
    names = {f"n{i}": str(i % 25) for i in range(50)}
    files = dict(zip(pictures(**names), names.values()))
    for _ in range(8):
        of_rows = [draw.sample([*files], draw.choice((0, 1, 1, 1, 2, 3))) for _ in range(30)]
        merged = []
        for number, chosen in enumerate(of_rows):
            rows, contents = {number}, {files[name] for name in chosen}
            for other in [other for other in merged if other[1] & contents]:
                rows, contents = rows | other[0], contents | other[1]
                merged.remove(other)
            merged.append((rows, contents))
        found = groups_of(write_rows([row(*chosen) for chosen in of_rows]))
        assert found == [min(next(rows for rows, _ in merged if i in rows)) for i in range(30)]


def test_a_file_is_read_only_where_another_has_its_size(write_rows, media_folder, pictures, monkeypatch):
    one, another = pictures(one="1", another="2")
    read = []
    monkeypatch.setattr("reading.split.digest", lambda name: read.append(name) or references.digest(name))
    path = write_rows([row("red.png"), row("red.png"), row("blue.png"), row("tall.jpg"), row(one), text()])
    assert groups_of(path) == [0, 0, 2, 3, 4, 5] and read == []
    assert groups_of(path, write_rows([row(another)])) == [0, 0, 2, 3, 4, 5, 6]
    assert sorted(read) == [str(media_folder / name) for name in sorted((one, another))]


def sides(dataset: MultimodalDataset, wanted: float, seed: int = 0) -> list[list[int]]:
    """The places of the rows in their file, of training and held out."""
    return [[side.locate(i)[1] for i in range(len(side))] for side in hold_out(dataset, wanted, seed)]


def test_as_many_rows_are_held_out_as_were_asked_for(write_rows):
    dataset = MultimodalDataset(write_rows([text(str(i)) for i in range(40)]))
    for wanted, number in ((1, 1), (7, 7), (39, 39), (0.05, 2), (0.5, 20), (0.001, 1), (0.97, 39)):
        train, held_out = sides(dataset, wanted)
        assert len(held_out) == number
        assert sorted(train + held_out) == [*range(40)] and train == sorted(train) and held_out == sorted(held_out)
    drawn = {seed: tuple(sides(dataset, 7, seed)[1]) for seed in (0, 1, 2, 2**40)}
    assert len({*drawn.values()}) == 4 and drawn[1] == tuple(sides(dataset, 7, 1)[1])
    often = np.bincount([i for seed in range(200) for i in sides(dataset, 20, seed)[1]], minlength=40)
    assert 60 < often.min() and often.max() < 140  # of 100 in the mean, with a deviation of 7


def test_groups_are_held_out_whole_and_no_more_rows_than_asked_for(write_rows):
    rows = [row("red.png")] * 10 + [row("blue.png")] * 4 + [row("tall.jpg")] * 3 + [text()] * 3
    dataset = MultimodalDataset(write_rows(rows))
    for wanted, largest in ((2, 2), (4, 4), (0.3, 6), (19, 19)):
        for seed in range(10):
            held_out = sides(dataset, wanted, seed)[1]
            for group in (range(10), range(10, 14), range(14, 17)):
                assert len({*held_out} & {*group}) in (0, len(group))
            assert 0 < len(held_out) <= largest
    assert sides(MultimodalDataset(write_rows(rows[:17])), 2)[1] == [
        14,
        15,
        16,
    ]  # the smallest, as each is larger


def test_what_cannot_be_split_is_refused_with_the_reason(write_rows):
    check_each(
        [
            ([row("red.png"), row("red.png", "blue.png"), row("blue.png")], 1, "the 3 usable rows .* share"),
            ([text()], 0.5, "the 1 usable rows"),
            ([row("missing.png"), text(), text()], 2, "the 2 usable rows .* would all be held out"),
            ([text()] * 4, 9, "the 4 usable rows .* would all be held out"),
        ],
        lambda rows, wanted, reason: refused(write_rows(rows), wanted, reason),
    )


def refused(path: str, wanted: float, reason: str) -> None:
    with pytest.raises(ValueError, match=f"--eval_split {wanted}: {reason}"):
        hold_out(MultimodalDataset(path, check=False), wanted, 0)


def test_rows_that_cannot_be_used_change_nothing_of_the_split(write_rows):
    """They are left out before it in training, and stay in the training data of previews and checks."""
    rows = [row(name) for name in ("red.png", "blue.png", "red.png", "tall.jpg")] + [text(str(i)) for i in range(8)]
    for place in (0, 2, 5, 9):
        path = write_rows([*rows[:place], row("missing.png"), *rows[place:]])
        data = DataArguments(data_path=[path], eval_split=0.25, max_samples=10)
        trained = make_datasets(data, 3, max_bad_samples=1)
        checked = make_datasets(data, 3, check=False)
        names = [[[side.source(i) for i in range(len(side))] for side in way] for way in (trained, checked)]
        assert names[0][1] == names[1][1] and len(names[0][1]) == 2
        bad = f"{path.rpartition('/')[2]}, sample {place}"
        assert [name for name in names[1][0] if name != bad] == names[0][0]
        assert [checked[0].source(i) for i in checked[0].errors] == [bad]
        assert [side.num_bad for side in trained] == [1, 0] and sum(map(len, names[1])) == 10


def test_held_out_rows_count_once_whatever_the_weight_of_their_path(write_rows):
    paths = [write_rows([text(f"{i}{j}") for j in range(10)]) for i in range(2)]
    data = DataArguments(data_path=[f"{paths[0]}[:5]:3", f"{paths[1]}:0.5"], eval_split=6)
    train, held_out = make_datasets(data, 0)
    assert (len(held_out), held_out.epoch_size, held_out.parts()) == (6, 6, {"": range(6)})
    first = sum(1 for i in range(len(train)) if train.source(i).startswith(paths[0].rpartition("/")[2]))
    assert train.epoch_size == 3 * first + round((9 - first) / 2)
    again, same = make_datasets(data, 0)
    assert (again.digest, same.digest) == (train.digest, held_out.digest)


def test_training_previews_and_checks_hold_out_the_same_rows(tiny, write_rows, tmp_path, capsys):
    path = write_rows([{"conversations": turns("What?", f"It is {i}"), "id": i} for i in range(6)])
    flags = ["--eval_split", "2", "--seed", "5"]
    data = DataArguments(data_path=[path], eval_split=2)
    answers = [[side.raw(i)["id"] for i in range(len(side))] for side in make_datasets(data, 5)]
    steps = run(tiny, "llava-1.5", path, tmp_path / "out", *flags, "--max_steps", -1, "--num_train_epochs", 1)
    said = capsys.readouterr().out
    assert len(steps) == 2 and f"Training data: {path}: 4 samples\n" in said and said.count("not read: id") == 1
    assert f"Evaluation data: {path} (held out): 2 samples\n" in said and "no report" not in said
    card, report = ((tmp_path / "out" / name).read_text() for name in ("README.md", "report.html"))
    assert "(held out)" in card and f"{path} (held out): 2 samples" in report
    words = ["--model_id", "llava-1.5-7b", "--model_local_path", tiny("llava-1.5"), "--data_path", path, *flags]
    with pytest.raises(SystemExit):
        preview.main([*words, "--json"])
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    assert [line["trained"] for line in lines] == [[f"It is {i}</s>"] for i in answers[0]]
