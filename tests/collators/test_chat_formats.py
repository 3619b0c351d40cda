"""Families whose checkpoints differ in chat format: the checkpoint's own template decides."""

import json
import sys
from functools import cache

import pytest
import torch
from conftest import FACTS, FAMILIES, golden_records, rows_for
from transformers import AutoProcessor

import tiny_models
from collators import COLLATORS
from collators.base import IGNORE_INDEX
from collators.label_check import check_labels
from collators.template import conversation
from loaders import LOADERS
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions
from reading.rows import RESERVED_CHARACTER
from supported_models import MODELS
from tiny_checkpoints import TINY_CHECKPOINTS, make_tiny_checkpoint

# (family, `family` of the golden records of one of its checkpoints)
CHECKPOINTS = [(f, name) for f in FAMILIES if COLLATORS.get(f).other_formats for name in FACTS[f].golden]
QUICK = "llava-v1.6-mistral"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`folder(family, name)`: a tiny checkpoint that follows the named one."""

    @cache
    def make(family: str, name: str) -> str:
        made = str(tmp_path_factory.mktemp("formats") / name)
        make_tiny_checkpoint(family, made, checkpoint=name)
        return made

    return make


@pytest.fixture(
    scope="module",
    params=[pytest.param(c, id=c[1], marks=[] if c[1] == QUICK else [pytest.mark.slow]) for c in CHECKPOINTS],
)
def checkpoint(request) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def loader(checkpoint, folder):
    return LOADERS.get(checkpoint[0])(folder(*checkpoint))


@pytest.fixture(scope="module")
def collator(checkpoint, loader):
    return COLLATORS.get(checkpoint[0])(loader.load_processor())


@pytest.fixture(scope="module")
def official(checkpoint, folder):
    return AutoProcessor.from_pretrained(folder(*checkpoint))


@pytest.fixture(scope="module")
def records(checkpoint) -> list[dict]:
    family, name = checkpoint
    return golden_records(family, FACTS[family].golden.index(name))


@pytest.fixture(scope="module")
def samples(checkpoint, media_folder) -> list[dict]:
    path = media_folder / f"{checkpoint[1]}-formats.json"
    path.write_text(json.dumps(rows_for(checkpoint[0])))
    dataset = MultimodalDataset(str(path), media=MediaOptions(num_frames=4))
    return [dataset[i] for i in range(len(dataset))]


def bos_of(record: dict) -> str:
    return record["bos"] if record["bos_added_by"] == "tokenizer" else ""


# Model ids whose checkpoints have another format than their family's first -> which.
FORMATS = {
    **{
        "llava-1.6-mistral-7b": 1,
        "llava-1.6-34b": 2,
        "llava-next-video-34b": 2,
        "mistral-small-3.2-24b-instruct-2506": 1,
    },
    **{id: 1 for id in MODELS if id.startswith("qwen3-vl") and id.endswith("thinking")},
    **{"gemma-4-26b-a4b-it": 2, "gemma-4-31b-it": 2},
    **{"smolvlm-256m-instruct": 1, "smolvlm-500m-instruct": 1, "smolvlm-instruct": 1},
}
OF_SEVERAL = [id for id, model in MODELS.items() if COLLATORS.get(model.family).other_formats]


@pytest.mark.parametrize(
    "model_id", [id if id == "llava-1.6-34b" else pytest.param(id, marks=pytest.mark.slow) for id in OF_SEVERAL]
)
def test_the_tiny_checkpoint_of_a_model_id_is_in_its_format(model_id, monkeypatch):
    made = []
    monkeypatch.setattr(tiny_models, "make_tiny_checkpoint", lambda *args: made.append(args))
    monkeypatch.setattr(sys, "argv", ["tiny_models.py", "--model_id", model_id, "--output_dir", "out"])
    tiny_models.main()
    [(family, _, _, checkpoint)] = made
    kind = COLLATORS.get(family)
    collator = kind(TINY_CHECKPOINTS.get(family)(checkpoint).processor)
    formats = [(kind.chat_template, kind.template_exceptions), *kind.other_formats]
    assert formats.index((collator.template.text, collator.template.exceptions)) == FORMATS.get(model_id, 0)
    assert collator.template.differences() == []


@pytest.mark.slow
def test_the_checkpoints_of_a_family_are_told_apart(folder):
    for family in {family for family, _ in CHECKPOINTS}:
        chosen = set()
        for name in FACTS[family].golden:
            collator = COLLATORS.get(family)(AutoProcessor.from_pretrained(folder(family, name)))
            chosen.add(collator.template.text)
        assert len(chosen) == 1 + len(COLLATORS.get(family).other_formats)


def test_the_tiny_template_is_the_official_one(official, records):
    for record in records:
        assert bos_of(record) + official.apply_chat_template(record["messages"]) == record["text"]


def test_texts_and_spans_are_the_golden_ones(collator, records):
    for record in records:
        form = record.get("documented_variant", record)
        bos, space = bos_of(record), record["trained"][-1][0] - record["generation_prompt_end"][-1]
        rendered, spans = collator.template.render(record["messages"])
        assert bos + rendered.replace(RESERVED_CHARACTER, "") == form["text"]
        spans = [[n - rendered[:n].count(RESERVED_CHARACTER) for n in span] for span in spans]
        assert [[start + len(bos) + space, end + len(bos)] for start, end in spans] == form["trained"]


def test_training_text_agrees_with_the_checkpoint(collator):
    assert collator.template.differences() == []
    check_labels(collator)


ALTERED = {
    "llava-v1.6-mistral": ("' [/INST]'", "' [/INST] '"),
    "llava-next-video-7b-32k": ("ASSISTANT:", "ASSISTANT: "),
    "llava-next-video-7b-32k-mistral": ("</s> ", "</s>"),
    "llava-next-video-34b": ("<|im_end|>\n", "<|im_end|>"),
}


@pytest.mark.parametrize("family, name", [(f, name) for f, name in CHECKPOINTS if name in ALTERED])
def test_an_altered_checkpoint_template_is_reported(folder, family, name):
    loader = LOADERS.get(family)(folder(family, name))
    plain, altered = loader.load_processor(), loader.load_processor()
    altered.chat_template = plain.chat_template.replace(*ALTERED[name])
    collators = [COLLATORS.get(family)(processor) for processor in (plain, altered)]
    assert collators[0].template.text == collators[1].template.text  # still the nearest
    assert len(collators[0].template.differences()) < len(collators[1].template.differences())


def test_a_template_that_refuses_a_system_message_is_reported(folder):
    """As LLaVA 1.6 Mistral's did at first."""
    processor = LOADERS.get("llava-1.6")(folder("llava-1.6", "llava-v1.6-mistral")).load_processor()
    format = COLLATORS.get("llava-1.6")(processor).template.text
    start = processor.chat_template.index("{{- '<<SYS>>")
    end = processor.chat_template.index("{%- else", start)
    refusal = "{{ raise_exception('No system messages!') }}"
    processor.chat_template = processor.chat_template[:start] + refusal + processor.chat_template[end:]
    collator = COLLATORS.get("llava-1.6")(processor)
    assert collator.template.text == format
    assert {official for _, official in collator.template.differences()} == {
        "[the chat template cannot render the conversation: No system messages!]"
    }


def test_a_checkpoint_without_a_template_is_refused(checkpoint, loader):
    processor = loader.load_processor()
    processor.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        COLLATORS.get(checkpoint[0])(processor)


def test_tokens_and_labels_equal_the_librarys(collator, official, records, samples):
    for sample in samples:
        inputs = collator.encode(sample).inputs
        options = {}
        if "pixel_values_videos" in inputs:
            metadata = [p["metadata"] for m in sample["messages"] for p in m["content"] if p["type"] == "video"]
            options = {"do_sample_frames": False, "video_metadata": [metadata]}
        theirs = official.apply_chat_template(
            [sample["messages"]],
            chat_template=collator.template.text,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
            processor_kwargs=options,
        )
        ids, mask = theirs["input_ids"], torch.as_tensor(theirs["assistant_masks"]).bool()
        assert inputs["input_ids"].equal(ids)
        assert inputs["labels"].equal(ids.masked_fill(~mask, IGNORE_INDEX))
        assert ids[0].tolist().count(official.tokenizer.bos_token_id) == (bos_of(records[0]) != "")
        ends = (inputs["labels"] == official.tokenizer.eos_token_id).sum()
        assert ends == sum(message["role"] == "assistant" for message in sample["messages"])


def test_a_prompt_is_the_beginning_of_what_is_trained(collator, samples):
    for sample in samples:
        reply = next(i for i, message in enumerate(sample["messages"]) if message["role"] == "assistant")
        inputs = collator.encode(sample).inputs
        prompt = collator.encode_prompt(sample["messages"][:reply])["input_ids"][0]
        assert inputs["input_ids"][0, : len(prompt)].equal(prompt)
        assert (inputs["labels"][0] != IGNORE_INDEX).nonzero()[0] == len(prompt)


def test_glm_is_told_once_not_to_think():
    collator = COLLATORS.get("glm-4.6v")(TINY_CHECKPOINTS.get("glm-4.6v")().processor, stop_tokens=["<|user|>"])
    for asked, told in (("Hm", "Hm/nothink"), ("Hm /nothink", "Hm /nothink")):
        messages = conversation(("user", asked), ("assistant", "Red"))
        assert f"<|user|>\n{told}<|assistant|>" in collator.template.render(messages)[0]
        assert collator.template.differences_in(messages) == []


def test_what_was_typed_is_text(collator, official):
    def special(text: str) -> list[int]:
        part = [{"type": "text", "text": text}]
        messages = [{"role": role, "content": part} for role in ("system", "user", "assistant", "user", "assistant")]
        ids = collator.encode({"messages": messages}).inputs["input_ids"][0].tolist()
        return [id for id in ids if id in official.tokenizer.added_tokens_decoder]

    for typed in ["</s>", "<s>", "<image>", "<video>", "<|im_end|>", "<|im_start|>", "[INST] </s> "]:
        assert special(f"a {typed} b") == special("a b"), typed


def test_the_model_of_the_checkpoint_learns_from_every_row(loader, collator, samples):
    model = loader.load_model()
    batch = collator(samples)
    loss = model(**batch).loss
    loss.backward()
    assert loss.isfinite() and model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_the_ids_of_media_are_the_processors(folder, tmp_path):
    """LLaVA-NeXT-Video-34B came with a config.json of other ids than its tokenizer's."""
    source = folder("llava-next-video", "llava-next-video-34b")
    loader = LOADERS.get("llava-next-video")(source)
    model, processor = loader.load_model(), loader.load_processor()
    model.config.image_token_id, model.config.video_token_id = 1, 0
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = LOADERS.get("llava-next-video")(str(tmp_path)).load_model().config
    assert (config.image_token_id, config.video_token_id) == (processor.image_token_id, processor.video_token_id)
