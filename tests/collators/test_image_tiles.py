"""Media that a processor cuts into tiles or frames: token counts from sizes alone, and what each processor needs."""

import importlib.util

import numpy as np
import pytest
import torch
from conftest import FACTS, golden_records, run, turns
from PIL import Image
from transformers import AutoProcessor

import loaders.smolvlm2
from collators import COLLATORS
from collators.base import IGNORE_INDEX
from loaders import LOADERS

TILED = ["smolvlm2", "idefics3", "internvl3", "ovis2", "lfm2-vl", "granite-vision", "minicpm-v-4.6"]
SIZES = [
    (64, 64),
    (63, 64),
    (64, 65),
    (1, 200),
    (200, 1),
    (30, 31),
    (97, 33),
    (33, 97),
    (128, 500),
    (333, 77),
    (32, 32),
]


def user(*parts: dict) -> list[dict]:
    return [
        {"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "This."}]},
    ]


@pytest.fixture(scope="module", params=TILED)
def family(request) -> str:
    return request.param


@pytest.fixture
def collator(family, tiny):
    return COLLATORS.get(family)(LOADERS.get(family)(tiny(family)).load_processor())


def written_tokens(processor, **media) -> int:
    """The tokens of what the processor writes in the place of all media."""
    text = "".join(processor.image_token for _ in media.get("images", [[]])[0])
    text += "".join(processor.video_token for _ in media.get("videos", [[]])[0])
    done = processor(text=[text], return_text_replacement_offsets=True, return_tensors="pt", **media)
    replaced = [found["replacement"] for found in done["text_replacement_offsets"][0]]
    return sum(len(processor.tokenizer(text, add_special_tokens=False).input_ids) for text in replaced)


def test_images_of_any_shape_are_counted_exactly(collator, family, tiny):
    processor = AutoProcessor.from_pretrained(tiny(family))
    for sizes in [*([size] for size in SIZES), SIZES[:3], SIZES[3:7]]:
        images = [Image.new("RGB", (width, height), "red") for height, width in sizes]
        row = {"messages": user(*({"type": "image", "image": str(i)} for i in range(len(sizes))))}
        known = {("image", str(i)): size for i, size in enumerate(sizes)}
        assert collator.budget.count_media_tokens(row, known) == written_tokens(processor, images=[images]), sizes


VIDEO = np.zeros((5, 48, 64, 3), np.uint8)
SECONDS = [0, 1, 61, 599, 5999]  # of its frames
METADATA = {"fps": 1.0, "duration": 6000.0, "total_num_frames": 6000, "frames_indices": SECONDS}


@pytest.mark.parametrize("family", ["smolvlm2", "internvl3"], scope="module")
def test_a_video_is_counted_exactly(collator, family, tiny):
    processor = AutoProcessor.from_pretrained(tiny(family))
    kwargs = {"videos": [[VIDEO]], "video_metadata": [[METADATA]], "do_sample_frames": False}
    row = {"messages": user({"type": "video", "video": "a"})}
    assert collator.budget.count_media_tokens(row, {("video", "a"): VIDEO.shape[:3]}) == written_tokens(
        processor, **kwargs
    )


def labelled(collator, messages: list[dict]) -> tuple[str, str]:
    """The decoded tokens of a sample, and those with a label."""
    inputs = collator.encode({"messages": messages}).inputs
    ids, labels = inputs["input_ids"][0], inputs["labels"][0]
    return tuple(collator.processor.tokenizer.decode(found) for found in (ids, labels[labels != IGNORE_INDEX]))


@pytest.mark.parametrize("family", ["smolvlm2"], scope="module")
def test_frames_carry_their_own_times_and_none_is_trained(collator):
    text, trained = labelled(collator, user({"type": "video", "video": VIDEO, "metadata": METADATA}))
    assert "User: You are provided the following series of five frames from a 1:40:00 [H:MM:SS] video.\n" in text
    for time in ("00:00", "00:01", "01:01", "09:59", "99:59"):
        assert text.count(f"\nFrame from {time}:<fake_token_around_image><global-img>") == 1
    assert text.endswith("\n\nWhat?<end_of_utterance>\nAssistant: This.<end_of_utterance>\n")
    assert trained == " This.<end_of_utterance>"


@pytest.mark.parametrize("family", ["smolvlm2"], scope="module")
def test_images_beside_a_video_are_refused(collator, tiny, write_rows, tmp_path):
    image = {"type": "image", "image": Image.new("RGB", (8, 8))}
    video = {"type": "video", "video": VIDEO, "metadata": METADATA}
    with pytest.raises(ValueError, match="sample: SmolVLMProcessor refuses it: .* images or videos, not both"):
        collator.encode({"messages": user(image, video)})
    row = {"image": "red.png", "video": "clip.mp4", "conversations": turns("<image><video>What?", "Red")}
    with pytest.raises(ValueError, match="sample 0: .* images or videos, not both"):
        run(tiny, "smolvlm2", write_rows([row]), tmp_path / "out")


def test_the_first_smolvlm_gets_its_own_begin_token(tiny):
    """Its checkpoints are of the Idefics3 classes; its text is that of the golden records of SmolVLM2."""
    processor = LOADERS.get("idefics3")(tiny("idefics3")).load_processor()
    processor.chat_template = processor.chat_template.replace("<|begin_of_text|>", "<|im_start|>")
    collator = COLLATORS.get("idefics3")(processor)
    assert collator.template.differences() == []
    records = golden_records("smolvlm2")
    assert [collator.template.render(record["messages"])[0] for record in records] == [
        record["text"] for record in records
    ]


def test_a_missing_num2words_is_named(tiny, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(loaders.base, "find_spec", lambda name: find_spec(name) if name != "num2words" else None)
    with pytest.raises(ValueError, match="pip install num2words"):
        LOADERS.get("smolvlm2")(tiny("smolvlm2"))


@pytest.mark.parametrize(
    "trained", ["all", *(pytest.param(part, marks=pytest.mark.slow) for part in ("language_model", "vision"))]
)
def test_smolvlm2_trains_in_bfloat16_whatever_is_frozen(tiny, write_rows, tmp_path, trained):
    """Image features and text embeddings meet in one precision, also where only one of both trains in float32."""
    path = write_rows([{"image": "red.png", "conversations": turns("<image>What?", "Red")}] * 2)
    vision = ["--train_vision_encoder", True, "--train_vision_projector", True]
    flags = {
        "language_model": ["--train_vision_encoder", True, "--use_vision_lora", True],
        "vision": [*vision, "--use_lora", True],
        "all": vision,
    }[trained]
    steps = run(tiny, "smolvlm2", path, tmp_path / "out", "--bf16", True, "--use_cpu", True, *flags)
    assert all(step["grad_norm"] > 0 for step in steps)
    assert torch.isfinite(torch.tensor([step["loss"] for step in steps])).all()


def test_every_family_of_tiles_is_listed():
    # Where the count is more than the tokens of pixels. Gemma's few tokens around them are always the same.
    others = {"auto", "gemma-3", "gemma-3n", "gemma-4", "gemma-4-unified"}
    assert set(TILED) >= {family for family, facts in FACTS.items() if facts.expanded} - others
