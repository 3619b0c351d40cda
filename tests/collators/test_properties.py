"""Random conversations: what is trained is the replies and nothing else, and every medium has its tokens."""

import itertools
import json
import unicodedata
from functools import cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import FACTS, collator_of, taught, trained_runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from official import official_processor
from PIL import Image

from collators.base import IGNORE_INDEX
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions

# The same examples in every run; the media and checkpoints of the fixtures are made once.
quick = partial(
    settings,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# One family with a SentencePiece tokenizer and text parts joined by spaces; one with videos; one that trims texts.
# llama-3.2-vision hands its images over beside the text, idefics3 cuts them into tiles.
FAMILIES = ("llava-1.5", "qwen2.5-vl", "gemma-3", "llama-3.2-vision", "idefics3")
CONTROL = (
    *("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<image>", "<video>"),
    *("</s>", "<s>", "<unk>", "ASSISTANT:", "USER: ", "<end_of_turn>", "<start_of_image>", "<bos>", "<|eot_id|>"),
    *("<|image|>", "<end_of_utterance>", "<fake_token_around_image>", "Assistant:", "\n", "\n\n", " ", "  ", "\t"),
    *("{{", "}}", "{%", "%}", "\\", "\u200b", "\u0301", "👩‍👩‍👧", "漢字", "ﬁ", "\u2028", "\x00", "\x1b[2J"),
)
SIZES = ((64, 64), (100, 50), (60, 140), (28, 28), (336, 64))
PICTURES = {size: Image.new("RGB", size, (size[0] % 256, 99, size[1])) for size in SIZES}
FRAMES = {"metadata": {"fps": 2.0, "duration": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}}
CLIPS = {size: np.full((4, *size, 3), 99, np.uint8) for size in ((56, 56), (84, 56))}

# Lone surrogates and the reserved U+FDD0 are errors of the reader.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0")
PIECES = st.lists(st.sampled_from(CONTROL) | st.text(CHARACTERS, max_size=8), max_size=5)
TEXTS = PIECES.map("".join).map(partial(unicodedata.normalize, "NFC"))  # as the tokenizer of Qwen does
WORDS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6)  # that no template trims


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def image(size: tuple[int, int]) -> dict:
    return {"type": "image", "image": PICTURES[size]}


def video(size: tuple[int, int]) -> dict:
    return {"type": "video", "video": CLIPS[size], **FRAMES}


@st.composite
def conversations(draw, videos: bool, images: bool = True) -> list[dict]:
    """A system message or none; one to three exchanges, whose questions are texts and media in any order."""
    part = TEXTS.map(text)
    if images:
        part |= st.sampled_from(SIZES).map(image)
    if videos:
        part |= st.sampled_from([*CLIPS]).map(video)
    messages = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": [text(draw(TEXTS))]})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(st.lists(part, min_size=1, max_size=4))})
        messages.append({"role": "assistant", "content": [text(draw(TEXTS))]})
    return messages


@pytest.fixture(scope="module")
def families(tiny):
    """`families(family)`: (collator, the checkpoint's processor as it comes, tokens of one medium by that one)."""

    @cache
    def get(family: str):
        untouched = official_processor(family, tiny(family))

        @cache
        def count(kind: str, size: tuple[int, int]) -> int:
            token = getattr(untouched, "boi_token", None) or getattr(untouched, f"{kind}_token")
            if kind == "image":
                given = {"images": PICTURES[size]}
            else:
                options = {"video_metadata": [FRAMES["metadata"]], "do_sample_frames": False}
                given = {"videos": [CLIPS[size]], "videos_kwargs": options}
            ids = untouched(text=[token], **given, return_tensors="pt")["input_ids"]
            return torch.isin(ids, torch.tensor(getattr(untouched, f"{kind}_token_ids"))).sum().item()

        return collator_of(family, tiny), untouched, count

    return get


def parts_of(messages: list[dict]) -> list[dict]:
    return [part for message in messages for part in message["content"]]


@pytest.mark.parametrize(
    "family", [*FAMILIES[:2], *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES[2:])]
)
def test_labels_are_the_replies_and_media_have_their_tokens(families, family):
    collator, untouched, count = families(family)
    facts = FACTS[family]
    trim = str.strip if facts.trims else str

    @quick(max_examples=30)
    @given(conversations(videos=facts.takes_video))
    def check(messages):
        encoded = collator.encode({"messages": messages, "source": "rows.json, sample 0"})
        ids, labels = encoded.inputs["input_ids"][0], encoded.inputs["labels"][0]
        replies = [trim(m["content"][0]["text"]) for m in messages if m["role"] == "assistant"]
        assert trained_runs(untouched.tokenizer, labels) == taught(family, replies)
        trained = labels != IGNORE_INDEX
        assert torch.equal(labels[trained], ids[trained])
        for kind in ("image", "video"):
            media = [part[kind] for part in parts_of(messages) if part["type"] == kind]
            sizes = [m.size if kind == "image" else m.shape[1:3] for m in media]
            assert collator.is_media(ids[None], kind).sum() == sum(count(kind, size) for size in sizes)
        assert not (collator.is_media(ids[None])[0] & trained).any()

    check()


@pytest.mark.parametrize("family", ["llava-1.5", "qwen2.5-vl"])
def test_a_batch_is_its_samples_padded(families, family):
    collator, _, _ = families(family)

    @quick(max_examples=8)
    @given(st.lists(conversations(videos=FACTS[family].takes_video), min_size=2, max_size=3))
    def check(several):
        batch = collator([{"messages": messages} for messages in several])
        for row, messages in enumerate(several):
            alone = collator([{"messages": messages}])
            length = alone["input_ids"].shape[1]
            for name in ("input_ids", "labels", "attention_mask"):
                assert torch.equal(batch[name][row, :length], alone[name][0])
            assert not batch["attention_mask"][row, length:].any()
            assert (batch["labels"][row, length:] == IGNORE_INDEX).all()

    check()


def as_file(rows: list[dict], ending: str, path) -> str:
    path = path.with_suffix(f".{ending}")
    if ending == "parquet":
        pq.write_table(pa.Table.from_struct_array(pa.array(rows)), path)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return str(path)


ENDINGS = ["json", *(pytest.param(ending, marks=pytest.mark.slow) for ending in ("jsonl", "parquet"))]


@pytest.mark.parametrize("ending", ENDINGS)
def test_any_texts_come_back_from_a_file_as_they_were(tmp_path, ending):
    """Nothing that stands in a text is taken for the end of a row, a medium or a part."""
    number = itertools.count()

    @quick(max_examples=25)
    @given(st.lists(conversations(videos=False, images=False), min_size=1, max_size=3))
    def check(several):
        rows = [{"messages": messages} for messages in several]
        file = as_file(rows, ending, tmp_path / f"{next(number)}")
        dataset = MultimodalDataset(
            file, media=MediaOptions(cache_folder=str(tmp_path / "cache")), allow_empty_answers=True
        )
        assert [dataset.rows[i]["messages"] for i in range(len(dataset))] == several

    check()


@pytest.mark.parametrize("ending", ENDINGS)
def test_any_layout_of_placeholders_takes_the_images_in_order(media_folder, tmp_path, ending):
    """`conversations`: words and <image> in any order, over any turns."""
    number = itertools.count()
    question = st.lists(WORDS | st.just("<image>"), min_size=1, max_size=5)

    @quick(max_examples=30)
    @given(st.lists(st.tuples(question, WORDS), min_size=1, max_size=3), st.randoms(use_true_random=False))
    def check(exchanges, random):
        turns, expected, paths = [], [], []
        for pieces, reply in exchanges:
            content = []
            for is_image, group in itertools.groupby(pieces, "<image>".__eq__):
                if not is_image:
                    content.append(text("".join(group)))
                    continue
                chosen = [random.choice(["red.png", "blue.png"]) for _ in group]
                content += [{"type": "image", "image": str(media_folder / name)} for name in chosen]
                paths += chosen
            turns += [{"from": "human", "value": "".join(pieces)}, {"from": "gpt", "value": reply}]
            expected += [{"role": "user", "content": content}, {"role": "assistant", "content": [text(reply)]}]
        row = {"conversations": turns} | ({"images": paths} if paths else {})
        file = as_file([row], ending, tmp_path / f"{next(number)}")
        dataset = MultimodalDataset(
            file, image_folder=str(media_folder), media=MediaOptions(cache_folder=str(tmp_path / "cache"))
        )
        assert dataset.rows[0]["messages"] == expected

    check()
