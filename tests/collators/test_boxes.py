"""Boxes and points in labels, read back by scripts that know only how the makers of each family write them."""

import re

import numpy as np
import pytest
from conftest import FAMILIES, make_loader
from PIL import Image, ImageDraw, ImageOps

from collators import COLLATORS
from reading.dataset import IGNORE_INDEX, MultimodalDataset
from reading.options import MediaOptions

PAIRS, LISTS = r"\((\d+),(\d+)\),\((\d+),(\d+)\)", r"\[(\d+), (\d+), (\d+), (\d+)\]"
# Family -> how to find a box in its texts, and what its numbers are parts of; None: pixels.
READERS = {
    "qwen-vl": (f"<box>{PAIRS}</box>", 1000),
    "qwen2-vl": (rf"<\|box_start\|>{PAIRS}<\|box_end\|>", 1000),
    "qwen2.5-vl": (f'"bbox_2d": {LISTS}', None),
    **dict.fromkeys(("qwen3-vl", "qwen3-vl-moe", "qwen3.5", "qwen3.5-moe"), (f'"bbox_2d": {LISTS}', 1000)),
    "internvl3": (rf"<box>\[{LISTS}\]</box>", 1000),
    "paligemma": (r"<loc(\d{4})>" * 4, 1023),
}
OPTIONS = [{}, {"image_size": "280x90"}, {"max_pixels": 30_000}, {"min_pixels": 400_000}]
ROW = {"question": "<image>Find the <ref-object>.", "answer": "<ref-object><bbox>"}


@pytest.fixture(scope="module")
def collators(tiny):
    found = {}

    def of(family: str, **kwargs):
        key = family, *kwargs.items()
        if key not in found:
            processor = make_loader(family, tiny(family)).load_processor()
            stop_tokens = make_loader(family, tiny(family)).stop_tokens(processor.tokenizer)
            found[key] = COLLATORS.get(family)(processor, stop_tokens=stop_tokens, **kwargs)
        return found[key]

    return of


def draw(folder, width: int, height: int) -> list[dict]:
    """Rows of a picture with a red square, upright and turned by EXIF; they tell where it is as a person sees it."""
    box = [round(width * 0.6), round(height * 0.1), round(width * 0.9), round(height * 0.45)]
    picture = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(picture).rectangle((*box[:2], box[2] - 1, box[3] - 1), fill="red")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "boxes_upright.jpg", quality=95)
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "boxes_turned.jpg", exif=exif, quality=95)
    objects = {"ref": ["square", "square"], "bbox": [box]}
    return [ROW | {"image": f"boxes_{name}.jpg", "objects": objects} for name in ("upright", "turned")]


def red_part(picture: Image.Image) -> np.ndarray:
    """The corners of what is red, as shares of the sides."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    y, x = np.nonzero((pixels[..., 0] > 128) & (pixels[..., 1] < 128))
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / ((*pixels.shape[1::-1],) * 2)


def box_in_labels(family: str, collator, inputs: dict) -> np.ndarray:
    labels = [label for label in inputs["labels"][0].tolist() if label != IGNORE_INDEX]
    pattern, steps = READERS[family]
    [numbers] = re.findall(pattern, collator.processor.tokenizer.decode(labels))
    numbers = np.array(numbers, float)
    if family == "paligemma":
        numbers = numbers[[1, 0, 3, 2]]
    if steps is None:  # the picture as it was cut into patches of 14 pixels
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        steps = np.array([columns, rows, columns, rows]) * 14
    return numbers / steps


def check_covers(collators: dict, path: str, folder, options: list[dict] = OPTIONS) -> None:
    originals = [ImageOps.exif_transpose(Image.open(folder / f"boxes_{name}.jpg")) for name in ("upright", "turned")]
    squares = [red_part(original) for original in originals]
    for flags in options:
        dataset = MultimodalDataset(path, media=MediaOptions(**flags))
        samples = [dataset[i] for i in range(2)]
        for sample, square in zip(samples, squares):
            opened = sample["messages"][0]["content"][0]["image"]
            assert red_part(opened) == pytest.approx(square, abs=0.012), flags
        for family, collator in collators.items():
            rows = [collator.encode(sample).inputs for sample in samples]
            for inputs, square in zip(rows, squares):
                assert box_in_labels(family, collator, inputs) == pytest.approx(square, abs=0.012), (family, flags)
            lengths = collator.budget.token_lengths(dataset).tolist()
            assert lengths == [inputs["input_ids"].shape[1] for inputs in rows], (family, flags)


def test_the_families_that_write_boxes_are_these():
    assert {family for family in FAMILIES if COLLATORS.get(family).box_format} == {*READERS}


@pytest.mark.parametrize("family", READERS)
def test_the_box_in_the_labels_covers_what_it_names(family, collators, write_rows, media_folder):
    check_covers({family: collators(family)}, write_rows(draw(media_folder, 400, 300)), media_folder)


@pytest.mark.slow
def test_the_box_covers_it_on_photos_of_12_megapixels(collators, write_rows, media_folder):
    path = write_rows(draw(media_folder, 4032, 3024))
    families = ("qwen2-vl", "qwen2.5-vl", "qwen3.5", "internvl3", "paligemma")  # one of each form
    check_covers({family: collators(family) for family in families}, path, media_folder, OPTIONS[:3])


TOLD = {
    "image": "blue.png",  # 100x50
    "objects": {
        "ref": ['a "dog"', "cat"],
        "bbox": [[0, 0, 50, 50], [10, 10, 20, 20], [50, 25, 100, 50]],
        "point": [[25, 25]],
    },
}
LISTED = "<ref-object><bbox><bbox>, <ref-object><bbox>"
# Family -> the reply LISTED, and what it makes of "The <ref-object> <bbox> at <point>".
TEXTS = {
    "qwen2-vl": (
        '<|object_ref_start|>a "dog"<|object_ref_end|><|box_start|>(0,0),(500,1000)<|box_end|>'
        "<|box_start|>(100,200),(200,400)<|box_end|>, "
        "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(500,500),(1000,1000)<|box_end|>",
        'The <|object_ref_start|>a "dog"<|object_ref_end|> <|box_start|>(0,0),(500,1000)<|box_end|> at '
        "<|box_start|>(250,500)<|box_end|>",
    ),
    "qwen2.5-vl": (  # 100x50 becomes 112x56
        '```json\n[\n\t{"bbox_2d": [0, 0, 56, 55], "label": "a \\"dog\\""},\n\t{"bbox_2d": [11, 11, 22, 22], "label": '
        '"a \\"dog\\""},\n\t{"bbox_2d": [56, 28, 111, 55], "label": "cat"}\n]\n```',
        'The a "dog" [0, 0, 56, 55] at [28, 28]',
    ),
    "qwen3.5": (
        '```json\n[\n\t{"bbox_2d": [0, 0, 500, 1000], "label": "a \\"dog\\""},\n\t{"bbox_2d": [100, 200, 200, 400], '
        '"label": "a \\"dog\\""},\n\t{"bbox_2d": [500, 500, 1000, 1000], "label": "cat"}\n]\n```',
        'The a "dog" [0, 0, 500, 1000] at [250, 500]',
    ),
    "internvl3": (
        '<ref>a "dog"</ref><box>[[0, 0, 500, 1000], [100, 200, 200, 400]]</box>, '
        "<ref>cat</ref><box>[[500, 500, 1000, 1000]]</box>",
        'The <ref>a "dog"</ref> <box>[[0, 0, 500, 1000]]</box> at <box>[[250, 500]]</box>',
    ),
    "paligemma": (
        '<loc0000><loc0000><loc1023><loc0512> a "dog" ; <loc0205><loc0102><loc0409><loc0205> a "dog" ; '
        "<loc0512><loc0512><loc1023><loc1023> cat",
        'The a "dog" <loc0000><loc0000><loc1023><loc0512> at <loc0512><loc0256>',
    ),
    "llava-1.5": (  # by --box_format
        '```json\n[\n\t{"bbox_2d": [0.0, 0.0, 0.5, 1.0], "label": "a \\"dog\\""},\n\t{"bbox_2d": [0.1, 0.2, 0.2, 0.4], '
        '"label": "a \\"dog\\""},\n\t{"bbox_2d": [0.5, 0.5, 1.0, 1.0], "label": "cat"}\n]\n```',
        'The a "dog" [0.0, 0.0, 0.5, 1.0] at [0.25, 0.5]',
    ),
}


@pytest.mark.parametrize("family", TEXTS)
def test_names_boxes_and_points_are_written_as_the_makers_do(family, collators, write_rows):
    collator = collators(family, **({"box_format": "relative"} if family == "llava-1.5" else {}))
    named, objects = "The <ref-object> <bbox> at <point>", TOLD["objects"]
    single = {"ref": objects["ref"][:1], "bbox": objects["bbox"][:1], "point": objects["point"]}
    rows = [
        TOLD | {"question": "<image>?", "answer": LISTED, "objects": {**objects, "point": []}},
        TOLD | {"question": "<image>?", "answer": named, "objects": single},
    ]
    dataset = MultimodalDataset(write_rows(rows))
    for i, expected in enumerate(TEXTS[family]):
        said = collator.template.boxes.written(dataset.rows[i]["messages"])[-1]["content"]
        assert [part["text"] for part in said] == [expected]
        assert collator.encode(dataset[i]).text.count(expected) == 1
        boxes = objects["bbox"] if i == 0 else [*single["bbox"], *single["point"]]
        shares = [[number / (100, 50)[j % 2] for j, number in enumerate(box)] for box in boxes]
        messages = dataset[i]["messages"]
        told = collator.template.boxes.told(expected, messages, messages[-1:])
        assert [pytest.approx(box, abs=0.02) for box in shares] == [one["at"] for one in told]


def test_a_family_without_a_form_of_its_own_asks_for_one(collators, write_rows):
    dataset = MultimodalDataset(write_rows([TOLD | {"question": "<image>?", "answer": LISTED, "objects": {
        **TOLD["objects"], "point": []}}, {"image": "red.png", "question": "<image>?", "answer": "Red"}]))  # fmt: skip
    collator = collators("llava-1.5")
    refused = collator.budget.media_tokens(dataset).refused
    assert [*refused] == [0] and re.search(
        "sample 0: .*--box_format with one of pixels, thousand, relative", str(refused[0])
    )
    with pytest.raises(ValueError, match="sample 0: .*--box_format"):
        collator.encode(dataset[0])


def test_the_grid_of_patches_is_that_of_the_pixels_that_were_told(collators):
    """The resize that the numbers follow is the one that the processor makes, whatever its bounds and the picture."""
    collator = collators("qwen2.5-vl")
    images, bounds = collator.processor.image_processor, dict(collator.processor.image_processor.size)
    try:
        for most in (bounds["longest_edge"], 20_000):
            images.size = {**bounds, "longest_edge": most}
            for size in ((400, 300), (30, 200), (1000, 333)):
                [(_, rows, columns)] = images(images=[Image.new("RGB", size)])["image_grid_thw"]
                assert collator.template.boxes.sides(size) == (columns * 14, rows * 14) * 2
    finally:
        images.size = bounds
