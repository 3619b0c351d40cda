"""The label check of every start: it lets every family through, and refuses processors that change the text."""

from functools import cache

import pytest
from conftest import AUTO, FAMILIES, make_loader, run, turns
from transformers import AutoProcessor, Idefics2ImageProcessor, Idefics2Processor

from collators import COLLATORS
from collators.probes import check_labels


@cache
def loader_of(family: str, path: str):
    return make_loader(family, path)


@pytest.mark.parametrize("joined", [False, True], ids=["padded", "padding-free"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(tiny, family, joined):
    loader = loader_of(family, tiny(family))
    processor = loader.load_processor()
    collator = COLLATORS.get(family)(processor, stop_tokens=loader.stop_tokens(processor.tokenizer))
    if joined and loader.inseparable:
        pytest.skip(loader.inseparable)
    if joined:
        collator.join_samples(loader)
    check_labels(collator)
    assert collator.media_in_every_batch == set()  # the dummies were a trial's


def planted(processor, written: str):
    """The processor, but it writes something before each text, and its offsets are those of the longer text."""

    class Planted(type(processor)):
        def __call__(self, text, **kwargs):
            return super().__call__(text=[written + one for one in text], **kwargs)

    processor.__class__ = Planted
    return processor


@pytest.mark.parametrize("family", [AUTO, "qwen2-vl", "llava-1.5"])
@pytest.mark.parametrize("written", ["    ", "bos"], ids=["shifts", "adds BOS"])
def test_a_processor_that_changes_the_text_is_refused(tiny, family, written):
    loader = loader_of(family, tiny(family))
    processor = loader.load_processor()
    written = processor.tokenizer.bos_token or processor.tokenizer.pad_token if written == "bos" else written
    planted(processor, written)
    collator = COLLATORS.get(family)(processor, stop_tokens=loader.stop_tokens(processor.tokenizer))
    with pytest.raises(ValueError, match=r"Planted or its chat template cannot be trained.*\['Red.'\], each with"):
        check_labels(collator)


def test_idefics2_is_refused_under_auto(tiny):
    """Its processor writes the tokens of images into the text itself, and tells nobody (transformers 5.23)."""
    other = AutoProcessor.from_pretrained(tiny("idefics3"))
    images = Idefics2ImageProcessor(size={"shortest_edge": 28, "longest_edge": 56})
    processor = Idefics2Processor(images, other.tokenizer, image_seq_len=4, chat_template=other.chat_template)
    collator = COLLATORS.get(AUTO)(processor, stop_tokens=["<end_of_utterance>"])
    with pytest.raises(ValueError, match="Idefics2Processor or its chat template cannot be trained"):
        check_labels(collator)


@pytest.mark.parametrize("fault", ["a label of the prompt", "no end", "a label of the dummy"])
def test_a_collator_that_errs_is_refused(tiny, fault):
    class Wrong(COLLATORS.get("qwen2-vl")):
        def _with_labels(self, inputs, offsets, spans):
            if fault == "a label of the prompt":
                spans = [(start - 10, end) for start, end in spans]
            if fault == "no end":
                spans = [(start, end - 10) for start, end in spans]
            return super()._with_labels(inputs, offsets, spans)

        @property
        def dummy_rows(self):
            rows = super().dummy_rows
            return {k: r | {"labels": r["input_ids"]} for k, r in rows.items()} if "dummy" in fault else rows

    collator = Wrong(make_loader("qwen2-vl", tiny("qwen2-vl")).load_processor())
    with pytest.raises(ValueError, match="cannot be trained with this collator"):
        check_labels(collator)


def test_training_begins_with_the_check(tiny, write_rows, tmp_path, monkeypatch):
    family = COLLATORS.get("qwen2-vl")
    monkeypatch.setattr(family, "_with_labels", lambda self, inputs, *_: inputs | {"labels": inputs["input_ids"]})
    with pytest.raises(ValueError, match="Qwen2VLProcessor or its chat template cannot be trained"):
        run(tiny, "qwen2-vl", write_rows([{"conversations": turns("Hm", "Red")}]), tmp_path / "out")
