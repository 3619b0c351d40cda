"""What families are told of the moments and frames that rows choose, against their official processors."""

import re

import pytest
import torch
from conftest import TAKES_VIDEO, turns
from test_lengths import TIMED, collator_of, encoded_lengths
from transformers import AutoProcessor

from reading.dataset import MultimodalDataset
from reading.options import MediaOptions

HI = turns("<video>\nWhat?", "Grey")
LIST = {"video": [["red.png"] * 4], "conversations": HI}
ROWS = [
    {"video": "clip.mp4", "clip": [0.5, 1.75], "fps": 4, "max_pixels": 1024, "conversations": HI},
    {"video": "clip.mp4", "start": 1, "num_frames": 3, "conversations": HI},
    LIST | {"fps": 2},
    LIST | {"times": [0, 1, 2.5, 9]},
    {"video": ["clip.mp4"] * 2, "clip": [[0, 1], [1, 2]], "conversations": turns("<video><video>\nWhat?", "Grey")},
]
TIMES = [
    [0.5, 0.75, 1, 1.25, 1.5],
    [1, 1.5, 1.875],
    [0, 0.5, 1.0, 1.5],
    [0, 1, 2.5, 9],
    [0, 0.25, 0.625, 0.875, 1, 1.25, 1.625, 1.875],
]


@pytest.mark.parametrize("family", ["qwen3-vl", "qwen2.5-vl"])
def test_the_tokens_are_those_of_the_official_processor(tiny, write_rows, family):
    """Given the frames, and the times at which a clip of 8 a second or the row has them."""
    collator, official = collator_of(family, tiny), AutoProcessor.from_pretrained(tiny(family))
    dataset = MultimodalDataset(write_rows(ROWS), media=MediaOptions(num_frames=4))
    for i, times in enumerate(TIMES):
        sample = dataset[i]
        inputs = collator.encode(sample).inputs
        videos = [part for message in sample["messages"] for part in message["content"] if part["type"] == "video"]
        each = len(times) // len(videos)
        told = [[round(8000 * t) for t in times[j * each : (j + 1) * each]] for j in range(len(videos))]
        seconds = [1.25, 1.0, 2.0, 12.0, 1.0][i]  # of each clip
        metadata = [{"fps": 8000.0, "total_num_frames": round(8000 * seconds), "frames_indices": one} for one in told]
        theirs = official.apply_chat_template(
            [sample["messages"]],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"do_sample_frames": False, "video_metadata": [metadata], "cap_pixels_per_frame": False},
        )
        ours = inputs["input_ids"][:, : theirs["input_ids"].shape[1]]
        assert torch.equal(ours, theirs["input_ids"]), i
        assert torch.equal(inputs["pixel_values_videos"], theirs["pixel_values_videos"])
        if family == "qwen2.5-vl":
            assert torch.as_tensor(inputs["second_per_grid_ts"]).tolist() == pytest.approx(
                torch.as_tensor(theirs["second_per_grid_ts"]).tolist(), rel=1e-4
            )


def is_told_times(collator, dataset) -> bool:
    """Whether anything but its pixels follows from the times of a video."""
    found = []
    for fps in (8.0, 0.5):
        sample = dataset[3]
        (part,) = [part for part in sample["messages"][0]["content"] if part["type"] == "video"]
        part["metadata"] = {
            "fps": fps,
            "duration": 9 / fps,
            "total_num_frames": 9,
            "frames_indices": [1, 2, 5, 8, 8, 8, 8, 8],
        }
        found.append(collator.encode(sample).inputs)
    return any(
        not torch.equal(torch.as_tensor(value), torch.as_tensor(found[1][name])) for name, value in found[0].items()
    )


@pytest.mark.parametrize("family", TAKES_VIDEO)
def test_frames_without_times_are_refused_where_the_model_is_told_them(tiny, write_rows, family):
    collator, dataset = collator_of(family, tiny), MultimodalDataset(write_rows([LIST, *ROWS[:4]]))
    assert is_told_times(collator, dataset) == collator.told_times
    assert collator.told_times == (family in (*TIMED, "qwen2.5-vl"))
    refused = collator.budget.media_tokens(dataset).refused
    if not collator.told_times:
        lengths = encoded_lengths(collator, dataset)
        assert not refused and collator.budget.token_lengths(dataset).tolist() == lengths
        return
    said = r"sample 0: .*`video` is a list of images.*add `fps` .* or `times`"
    assert [*refused] == [0] and re.search(said, str(refused[0]))
    with pytest.raises(ValueError, match=said):
        collator.encode(dataset[0])
    dataset.select([1, 2, 3, 4])
    counted, true = collator.budget.token_lengths(dataset), encoded_lengths(collator, dataset)
    assert all(number <= most <= number + 24 for number, most in zip(true, counted))
