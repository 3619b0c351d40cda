"""Media that are no longer the files that were indexed, by their size in bytes and the time of their last change."""

import json
import os
from types import SimpleNamespace

import pytest
from conftest import turns
from PIL import Image

from reading import replaced
from reading.dataset import EncodedDataset, MultimodalDataset
from reading.options import MediaOptions
from reading.row_index import ChangedFile


@pytest.fixture
def opened(tmp_path):
    """`opened()`: three rows, of a text, of two pictures and of a video of two pictures."""
    for name in ("a", "b", "c", "d"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / f"{name}.png")
    rows = [
        {"conversations": turns("Hi", "Ho")},
        {"image": ["a.png", "b.png"], "conversations": turns("<image><image>", "b")},
        {"video": [["c.png", "d.png"]], "conversations": turns("<video>", "b")},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    media = MediaOptions(cache_folder=str(tmp_path / "cache"), num_frames=2)
    return lambda **options: MultimodalDataset(str(tmp_path / "rows.json"), media=media, **options)


def write_again(path, more: bytes = b"") -> None:
    """In place, so that the time of its folder stays."""
    path.write_bytes(path.read_bytes() + more)
    os.utime(path, (1, 1))


@pytest.mark.parametrize("name, place", [("b", 1), ("c", 2), ("d", 2)])
def test_a_file_of_another_size_is_an_error_and_of_another_time_a_line(opened, tmp_path, name, place):
    path = tmp_path / f"{name}.png"
    assert replaced.check_drawn(opened()) == []
    write_again(path)
    (line,) = replaced.check_drawn(opened())
    assert f"1 of the compared media files was rewritten with the same size (such as rows.json, sample {place}" in line
    size, file = path.stat().st_size, "b.png" if place == 1 else "of 2 images"
    write_again(path, b"more")
    with pytest.raises(ChangedFile, match=rf"rows.json, sample {place}: .*{file} has .* bytes, but had .*start again"):
        replaced.check_drawn(opened())
    assert replaced.check_drawn(opened()) == [] and path.stat().st_size == size + 4  # it is indexed anew


def test_a_drawn_thousand_is_compared_and_texts_are_no_part_of_it(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [{"conversations": turns("Hi", "Ho")}, {"image": "a.png", "conversations": turns("<image>", "b")}] * 1500
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    drawn = replaced.drawn_rows(dataset := MultimodalDataset(str(tmp_path / "rows.jsonl")))
    assert len({*drawn}) == 1000 and all(row % 2 for row in drawn) and drawn == replaced.drawn_rows(dataset)
    assert {(size, time) for _, size, time in replaced.drawn_files(dataset)} == {
        ((state := (tmp_path / "a.png").stat()).st_size, state.st_mtime_ns)
    }


@pytest.mark.parametrize("max_bad_samples", [None, 5])
def test_a_packed_row_takes_no_file_of_another_size(opened, tmp_path, max_bad_samples):
    """Its tokens were counted by the file that was there; it is no bad sample to skip, since others may follow."""
    collator = SimpleNamespace(concatenate_samples=len, encode=lambda sample: SimpleNamespace(inputs=sample))
    packed = EncodedDataset(opened(max_bad_samples=max_bad_samples), collator)
    write_again(tmp_path / "a.png")
    assert packed[0, 1, 2] == 3
    write_again(tmp_path / "a.png", b"more")
    with pytest.raises(ChangedFile, match=r"rows.json, sample 1: image .*a.png has .* bytes, but had"):
        packed[0, 1, 2]
    os.remove(tmp_path / "a.png")
    with pytest.raises(ChangedFile, match=r"sample 1: image .*a.png existed .*No such file"):
        packed[1,]
    assert packed[0, 2] == 2
