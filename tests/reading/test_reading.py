"""Flags of how media are read reach the tensors, in training, previews and answers alike."""

import json

import numpy as np
import pytest
import torch
import yaml
from conftest import TAKES_VIDEO, make_loader, outline, run, turns
from PIL import Image

import predict
from arguments import DataArguments
from reading.dataset import make_dataset
from training.make_collator import make_collator

ROW = {"image": "red.png", "conversations": turns("<image>\nWhat?", "Red")}
CLIP = {"video": "clip.mp4", "conversations": turns("<video>\nWhat?", "Grey")}  # 16 frames of 64x64, 8 a second


def encoded(tiny, family: str, path: str, **flags) -> dict[str, torch.Tensor]:
    data = DataArguments(data_path=[path], **flags)
    dataset = make_dataset(data, "data_path", data.data_path)
    return make_collator(family, make_loader(family, tiny(family)), data).encode(dataset[0]).inputs


@pytest.mark.parametrize(
    "flags, size",
    [
        ({}, (64, 64)),
        ({"image_size": "112"}, (112, 112)),
        ({"image_size": "56x112"}, (112, 56)),
        ({"max_pixels": 40 * 40}, (56, 56)),  # the processor's own least
        ({"min_pixels": 112 * 112}, (112, 112)),
    ],
)
def test_the_size_of_an_image_reaches_the_processor(tiny, write_rows, flags, size):
    """Qwen2.5-VL has a patch for every 14x14 pixels."""
    grid = encoded(tiny, "qwen2.5-vl", write_rows([ROW]), **flags)["image_grid_thw"]
    assert grid.tolist() == [[1, size[0] // 14, size[1] // 14]]


def test_the_resize_algorithm_is_the_one_asked_for(tiny, write_rows, media_folder):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(media_folder / "stripes.png")
    path = write_rows([ROW | {"image": "stripes.png"}])
    flags = {"image_size": "32"}
    data = {name: DataArguments(data_path=[path], image_resize_algorithm=name, **flags) for name in ("nearest", "box")}
    pixels = {
        name: np.asarray(make_dataset(of, "data_path", of.data_path)[0]["messages"][0]["content"][0]["image"])
        for name, of in data.items()
    }
    assert set(np.unique(pixels["nearest"])) <= {0, 255} and len(np.unique(pixels["nearest"])) == 1
    assert set(np.unique(pixels["box"])) <= {127, 128}  # the mean of a black and a white column


@pytest.mark.parametrize(
    "flags, frames", [({"num_frames": 4}, 4), ({"fps": 4.0}, 8), ({"fps": 4.0, "max_frames": 6}, 6)]
)
def test_the_frames_of_a_video_reach_the_processor(tiny, write_rows, flags, frames):
    grid = encoded(tiny, "qwen2.5-vl", write_rows([CLIP]), **flags)["video_grid_thw"]
    assert grid[0, 0] == frames // 2  # two frames a patch


@pytest.mark.parametrize("family", TAKES_VIDEO)
def test_counts_hold_whatever_the_flags(tiny, write_rows, family):
    """What is counted before training, from headers, is what the processor makes of the opened media."""
    path = write_rows([ROW, CLIP])
    for flags in ({"image_size": "96x48", "fps": 3.0}, {"max_pixels": 1500, "video_max_pixels": 2000, "num_frames": 5}):
        data = DataArguments(data_path=[path], model_max_length=4096, **flags)
        dataset = make_dataset(data, "data_path", data.data_path)
        collator = make_collator(family, make_loader(family, tiny(family)), data)
        for i, row in enumerate(dataset.rows):
            found = outline(dataset, i)
            length = collator.encode(dataset[i]).inputs["input_ids"].shape[1]
            counted = collator.budget.count_text_tokens([row])[0] + collator.budget.count_media_tokens(*found)
            counted += collator.budget.count_frame_text_tokens(*found)
            assert length <= counted


def test_processor_kwargs_reach_the_processor_and_its_counts(tiny, write_rows):
    path, options = write_rows([ROW]), json.dumps({"size": {"shortest_edge": 112 * 112, "longest_edge": 112 * 112}})
    inputs = encoded(tiny, "qwen2.5-vl", path, processor_kwargs=options)
    assert inputs["image_grid_thw"].tolist() == [[1, 8, 8]]
    data = DataArguments(data_path=[path], processor_kwargs=options)
    collator = make_collator("qwen2.5-vl", make_loader("qwen2.5-vl", tiny("qwen2.5-vl")), data)
    assert collator.budget.count_media_tokens(*outline(make_dataset(data, "data_path", [path]), 0)) == 16


@pytest.mark.parametrize(
    "options, named",
    [
        ('{"max_pixel": 3}', "has no option 'max_pixel'. Its options are: .*size"),
        ('{"num_frames": 3}', "has no option 'num_frames'"),
        ('{"size": "large"}', "--processor_kwargs"),
        ('{"do_normalize": "false"}', "'do_normalize' with value 'false' doesn't match any type"),
        ('{"do_normalize": false, "do_resize": true}', "do_resize true has no effect on what Qwen2_5_VLProcessor"),
        ('{"crop_size": {"height": 9, "width": 9}}', "crop_size .* has no effect"),
        ("[1]", "must be a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_wrong_processor_kwargs_are_refused(tiny, write_rows, options, named):
    with pytest.raises(ValueError, match=named):
        encoded(tiny, "qwen2.5-vl", write_rows([ROW]), processor_kwargs=options)


def test_answers_see_media_as_the_run_did(tiny, write_rows, tmp_path, monkeypatch):
    path = write_rows([ROW])
    run(tiny, "qwen2.5-vl", path, tmp_path / "out", "--image_size", "112", "--use_lora", True)
    assert yaml.safe_load((tmp_path / "out" / "args.yaml").read_text())["image_size"] == "112"
    sizes = []

    def note(model, collator, dataset, *_):
        sizes.append(dataset[0]["messages"][0]["content"][0]["image"].size)
        yield {"prediction": "Red", "reference": "Red", "exact_match": True}

    monkeypatch.setattr(predict, "generate_answers", note)
    words = ["--model_path", str(tmp_path / "out"), "--data_path", path, "--output_path", str(tmp_path / "a.jsonl")]
    predict.main(words)
    predict.main([*words, "--image_size", "28x56"])
    assert sizes == [(112, 112), (28, 56)]
