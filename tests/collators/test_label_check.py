"""The label check of every start: it lets every family through, and refuses processors that change the text."""

from functools import cache

import pytest
from conftest import AUTO, FAMILIES, make_loader, run, turns
from transformers import (
    AutoProcessor,
    Emu3ImageProcessor,
    Emu3Processor,
    Idefics2ImageProcessor,
    Idefics2Processor,
    Molmo2ImageProcessor,
    Molmo2Processor,
    Molmo2VideoProcessor,
)

from collators import COLLATORS
from collators.label_check import check_labels


@cache
def loader_of(family: str, path: str):
    return make_loader(family, path)


@pytest.mark.few
@pytest.mark.parametrize("joined", [False, True], ids=["padded", "padding-free"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(tiny, family, joined):
    loader = loader_of(family, tiny(family))
    processor = loader.load_processor()
    collator = COLLATORS.get(family)(processor, stop_tokens=loader.stop_tokens(processor.tokenizer))
    if joined and loader.cannot_be_padding_free:
        pytest.skip(loader.cannot_be_padding_free)  # --padding_free True is refused with this reason
    if joined:
        collator.make_padding_free(loader)
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
    with pytest.raises(ValueError, match=r"Planted or its chat template does not work.*\['Red.'\], each with"):
        check_labels(collator)


def test_idefics2_is_refused_under_auto(tiny):
    """Its processor writes the tokens of images into the text itself, and tells nobody (transformers 5.23)."""
    other = AutoProcessor.from_pretrained(tiny("idefics3"))
    images = Idefics2ImageProcessor(size={"shortest_edge": 28, "longest_edge": 56})
    processor = Idefics2Processor(images, other.tokenizer, image_seq_len=4, chat_template=other.chat_template)
    collator = COLLATORS.get(AUTO)(processor, stop_tokens=["<end_of_utterance>"])
    with pytest.raises(ValueError, match="Idefics2Processor or its chat template does not work"):
        check_labels(collator)


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{{ part.text if part.type == 'text' else '<|' + part.type + '|>' }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def emu3(tokenizer, template: str):
    names = {"boi_token": "<|image start|>", "eoi_token": "<|image end|>", "image_wrapper_token": "<|image token|>"}
    names |= {"image_token": "<|image|>", "eof_token": "<|extra_201|>", "bos_token": "<|extra_203|>"}
    tokenizer.add_tokens([*names.values()], special_tokens=True)
    for name, token in names.items():
        setattr(tokenizer, name, token)
    tokenizer.image_token_id = tokenizer.convert_tokens_to_ids("<|image|>")
    return Emu3Processor(Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64), tokenizer, chat_template=template)


def molmo2(tokenizer, template: str):
    names = "im_patch im_col im_start low_res_im_start frame_start im_end frame_end im_low |image| |video|".split()
    tokenizer.add_tokens([f"<{name}>" for name in names], special_tokens=True)
    return Molmo2Processor(Molmo2ImageProcessor(), Molmo2VideoProcessor(), tokenizer, chat_template=template)


@pytest.mark.parametrize("make, bos", [(emu3, "<|extra_203|>"), (molmo2, "<|im_end|>")])
def test_processors_that_write_a_bos_of_their_own_are_refused_or_right(tiny, make, bos):
    """Emu3's puts one before every text, also one that has it; Molmo2's only where the template writes none."""
    for template in (CHATML, bos + CHATML):
        processor = make(AutoProcessor.from_pretrained(tiny("qwen2-vl")).tokenizer, template)
        collator = COLLATORS.get(AUTO)(processor, stop_tokens=["<|im_end|>"])
        if make is molmo2 and template != CHATML:
            check_labels(collator)
            continue
        with pytest.raises(ValueError, match=f"{type(processor).__name__} or its chat template does not work"):
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
    with pytest.raises(ValueError, match="does not work with this collator"):
        check_labels(collator)


def test_training_begins_with_the_check(tiny, write_rows, tmp_path, monkeypatch):
    family = COLLATORS.get("qwen2-vl")
    monkeypatch.setattr(family, "_with_labels", lambda self, inputs, *_: inputs | {"labels": inputs["input_ids"]})
    with pytest.raises(ValueError, match="Qwen2VLProcessor or its chat template does not work"):
        run(tiny, "qwen2-vl", write_rows([{"conversations": turns("Hm", "Red")}]), tmp_path / "out")
