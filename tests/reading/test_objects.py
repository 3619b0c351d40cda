"""`objects` of a row: what its marks stand for, on pictures whose sizes are known, and what is refused."""

import json
import os

import pytest
from conftest import check_each
from PIL import Image

from reading import row_index
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions

# red.png has 64x64 pixels, blue.png 100x50.
ASKED = {"image": "blue.png", "question": "Find the <ref-object>.", "answer": "<bbox>"}
FOUND = ASKED | {"objects": {"ref": ["dog"], "bbox": [[10, 5, 60, 50]]}}


def objects(dataset, row: int = 0) -> list[dict]:
    """Those of all texts of a row, without how errors name them."""
    found = [found for message in dataset.rows[row]["messages"] for found in message.get("objects", [])]
    return [{name: value for name, value in one.items() if name not in ("part", "where", "type")} for one in found]


def test_marks_take_names_boxes_and_points_in_order(write_rows, media_folder):
    name = media_folder / "turned.jpg"  # 100x50 as a person sees it
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 100)).save(name, exif=exif)
    box, at = {"at": [0.1, 0.1, 0.6, 1], "image": 0, "size": (100, 50)}, {"image": 0, "size": (100, 50)}
    dog = {"span": (9, 21), "name": "dog"}
    two = {"image": ["red.png", "blue.png"], "question": "<image><image>Which?", "answer": "<bbox> <point>"}
    rows = [
        (FOUND, [dog, box | {"span": (0, 6)}]),
        (FOUND | {"image": "turned.jpg"}, [dog, box | {"span": (0, 6)}]),
        (FOUND | {"objects": json.dumps(FOUND["objects"])}, [dog, box | {"span": (0, 6)}]),
        # a `bbox` of two numbers is a point; shares of the sides; a pixel beyond the edge, as roundings leave it
        (
            ASKED | {"objects": {"ref": ["a"], "bbox": [[50, 25]]}},
            [dog | {"name": "a"}, at | {"span": (0, 6), "at": [0.5, 0.5]}],
        ),
        (
            ASKED | {"objects": {"ref": ["a"], "bbox": [[0, 0.5, 0.25, 1]], "bbox_type": "norm1"}},
            [dog | {"name": "a"}, at | {"span": (0, 6), "at": [0, 0.5, 0.25, 1]}],
        ),
        (
            ASKED | {"objects": {"ref": ["a"], "bbox": [[-0.5, 0, 101, 50.9]]}},
            [dog | {"name": "a"}, at | {"span": (0, 6), "at": [0, 0, 1, 1]}],
        ),
        (
            two | {"objects": {"bbox": [[0, 0, 16, 32]], "point": [[25, 50]], "image_id": [0, 1]}},
            [
                {"span": (0, 6), "at": [0, 0, 0.25, 0.5], "image": 0, "size": (64, 64)},
                {"span": (7, 14), "at": [0.25, 1], "image": 1, "size": (100, 50)},
            ],
        ),
    ]  # fmt: skip
    dataset = MultimodalDataset(write_rows([row for row, _ in rows]))
    check_each(
        [*enumerate(rows)],
        lambda i, row: None if objects(dataset, i) == row[1] else pytest.fail(str(objects(dataset, i))),
    )
    resized = MultimodalDataset(write_rows([FOUND]), media=MediaOptions(image_size="20x40"))
    assert objects(resized)[1] == box | {"span": (0, 6), "size": (20, 40)}
    assert len({*dataset.of_rows("hashes").tolist()}) == len(rows) - 1  # what rows 0 and 2 say is the same
    name.unlink()


def test_marks_without_objects_and_objects_of_another_form_are_what_they_were(write_rows):
    plain = ASKED | {"question": "Where?", "answer": "There"}
    rows = [ASKED, plain | {"objects": ["dog"]}, plain | {"objects": {"category": [3]}}, plain | {"objects": {}}]
    dataset = MultimodalDataset(write_rows(rows))
    assert [objects(dataset, i) for i in range(4)] == [[]] * 4
    assert dataset.notes() == [f"{dataset.name}: fields that are not read: objects (2 rows)"]


REFUSED = [
    ({"ref": ["dog"], "bbox": []}, r"1 <bbox> in its texts, so `objects\.bbox` must list 1 values, not \[\]"),
    ({"ref": ["dog", "cat"], "bbox": [[1, 2, 3, 4]]}, r"1 <ref-object> in its texts, so `objects\.ref` .* 'cat'\]"),
    ({"ref": ["dog"], "bbox": [[1, 2, 3, 4]], "point": [[1, 2]]}, r"0 <point> .* \[\[1, 2\]\] .*--columns objects="),
    ({"ref": ["dog"], "bbox": [[1, 2, 3]]}, r"bbox\[0\] is \[1, 2, 3\]; it must be \[x1, y1, x2, y2\] or"),
    ({"ref": ["dog"], "bbox": [[1, 2, "3", 4]]}, r"objects\.bbox\[0\]"),
    ({"ref": ["dog"], "bbox": [[1, 2, True, 4]]}, r"objects\.bbox\[0\]"),
    ({"ref": ["dog"], "bbox": [1, 2, 3, 4]}, r"1 <bbox> in its texts, so"),
    ({"ref": ["dog"], "bbox": [[30, 5, 10, 20]]}, r"objects\.bbox\[0\].*x2 must be greater"),
    ({"ref": ["dog"], "bbox": [[30, 20, 40, 20]]}, r"x \+ width"),
    ({"ref": ["dog"], "bbox": [[30, 5, 102, 20]]}, r"bbox\[0\] is .* outside of its image of 100 x 50"),
    ({"ref": ["dog"], "bbox": [[-2, 5, 10, 20]]}, "outside of its image"),
    ({"ref": ["dog"], "bbox": [[10, 5, 20, 52]]}, "outside of its image"),
    ({"ref": ["dog"], "bbox": [[1, 2, 30, 40]], "bbox_type": "norm1"}, "norm1.*between 0 and 1"),
    ({"ref": ["dog"], "bbox": [[1, 2, 3, 4]], "bbox_type": "norm1000"}, "bbox_type is 'norm1000', expected 'real'"),
    ({"ref": ["dog"], "bbox": [[1, 2, 3, 4]], "image_id": [1]}, r"image_id` must have one image number below 1 "),
    ({"ref": ["dog"], "bbox": [[1, 2, 3, 4]], "image_id": [0, 0]}, "image_id"),
    ({"ref": [7], "bbox": [[1, 2, 3, 4]]}, r"objects\.ref\[0\] must be text, not int"),
    ({"ref": "dog", "bbox": [[1, 2, 3, 4]]}, r"`objects\.ref` must list 1 values, not 'dog'"),
    ({"boxes": [[1, 2, 3, 4]]}, r"<ref-object> in its texts, but no `ref`, `bbox` or `point` in `objects`"),
    ("{", "`objects` is not valid JSON"),
    ({"ref": ["dog"], "bbox": [[1, 2, 3, 4]], "masks": ["a.png"]}, r"objects\.masks"),
]  # fmt: skip


def test_what_cannot_be_meant_is_refused_by_row_and_field(write_rows):
    rows = [ASKED | {"objects": value} for value, _ in REFUSED]
    two, thought = {"image": ["red.png", "red.png"]}, {"answer": "<think><bbox></think><bbox>"}
    more = [
        (FOUND | two, r"2 images, so `objects\.image_id` must have one image number below 2 .*not \[\]"),
        ({"question": "<ref-object>?", "answer": "<bbox>", "objects": FOUND["objects"]}, "has 0 images"),
        (FOUND | thought, "in a thought"),
    ]
    dataset = MultimodalDataset(write_rows([*rows, *(row for row, _ in more)]), check=False)
    named = [text for _, text in [*REFUSED, *more]]

    def check(i: int, text: str) -> None:
        with pytest.raises(ValueError, match=rf"\.json, sample {i}: .*{text}"):
            raise ValueError(dataset.errors.get(i))

    check_each([*enumerate(named)], check)


def test_an_index_is_kept_while_its_faulty_rows_are_faulty(media_folder, monkeypatch):
    """Whatever is wrong with them; and made again where a picture is whole, though its folder was not changed."""
    monkeypatch.setattr(row_index, "SECONDS_CURRENT", 0)
    (media_folder / "bad.png").write_bytes(b"no picture")
    outside = FOUND | {"objects": {"ref": ["dog"], "bbox": [[30, 5, 102, 20]]}}
    rows = [outside, {"image": "bad.png", "question": "What?", "answer": "Red"}, FOUND]
    path = media_folder / "rows.jsonl"
    path.write_text("\n".join(["{", '{"a": 1, "a": 2}', *map(json.dumps, rows)]))
    first = MultimodalDataset(str(path), check=False)
    made = os.stat(first.files[0].folder).st_ino
    again = MultimodalDataset(str(path), check=False)
    assert [*first.errors] == [*again.errors] == [0, 1, 2, 3]
    assert os.stat(again.files[0].folder).st_ino == made
    (media_folder / "bad.png").write_bytes((media_folder / "red.png").read_bytes())
    assert [*MultimodalDataset(str(path), check=False).errors] == [0, 1, 2]
