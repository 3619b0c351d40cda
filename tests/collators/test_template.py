"""The template and the budget by themselves, and how rows become a batch: none of it needs a collator."""

import pytest
import torch
from conftest import golden_records, turns
from official import official_processor

from collators import COLLATORS
from collators.batch import concatenate, with_all_sequences
from collators.boxes import Boxes
from collators.budget import Budget
from collators.template import Template
from reading.dataset import MultimodalDataset

FAMILY = "qwen2.5-vl"


@pytest.fixture
def template(tiny) -> Template:
    processor = official_processor(FAMILY, tiny(FAMILY))
    template = Template(processor, COLLATORS.get(FAMILY), Boxes(processor, None))
    template.frame.find(set(), ())
    return template


def test_a_template_renders_the_golden_texts(template):
    for record in golden_records(FAMILY):
        text, spans = template.render(record["messages"])
        assert text == record["text"] and [list(span) for span in spans] == record["trained"]


# In the checkpoint's template, by version: where the empty thought is not in the history, and where it is.
QWEN_VERSIONS = dict.fromkeys(("qwen3.5", "qwen3.6"), "loop.index0 > last.question") | {"qwen3.8": "true"}


@pytest.mark.parametrize("version, where", QWEN_VERSIONS.items())
def test_later_qwens_have_the_format_of_qwen3_5(tiny, version, where):
    family, processor = COLLATORS.get("qwen3.5"), official_processor("qwen3.5", tiny("qwen3.5"))
    processor.chat_template = processor.chat_template.replace(QWEN_VERSIONS["qwen3.5"], where)
    template = Template(processor, family, Boxes(processor, None))
    template.frame.find(set(), family.reply_tokens)
    for record in golden_records("qwen3.5", [*QWEN_VERSIONS].index(version)):
        form = record.get("documented_variant", record)
        text, spans = template.render(record["messages"])
        assert text == form["text"] and [list(span) for span in spans] == form["trained"]
        assert template.render_official(record["messages"]) == record["text"]
    assert template.differences() == []


def test_a_budget_counts_what_the_library_tokenizes(template, tiny, write_rows):
    texts = ["Red", "Blue, of course, and nothing but blue", "A </s> and an <|im_end|> that somebody typed"]
    dataset = MultimodalDataset(write_rows([{"conversations": turns("Which?", text)} for text in texts]))
    untouched = official_processor(FAMILY, tiny(FAMILY))
    message = lambda role, text: {"role": role, "content": [{"type": "text", "text": text}]}  # noqa: E731
    conversations = [[message("user", "Which?"), message("assistant", text)] for text in texts]
    whole = [untouched.apply_chat_template(c, tokenize=True, return_dict=False)[0] for c in conversations[:2]]
    counted = Budget(template.processor, COLLATORS.get(FAMILY), template).token_lengths(dataset)
    assert counted[:2].tolist() == [len(ids) for ids in whole]
    assert counted[2] > len(untouched.apply_chat_template(conversations[2], tokenize=True, return_dict=False)[0])


# ---- rows -> a batch ----


def row(tokens: int, **more) -> dict:
    return {"input_ids": torch.arange(tokens)[None], **more}


PADDING = {"input_ids": 0, "label_weights": -1.0}


def test_a_row_without_a_per_token_tensor_gets_its_padding():
    weighted = row(3, label_weights=torch.tensor([[0.5, 1.0, 2.0]]))
    rows = with_all_sequences([row(2), weighted], PADDING)
    assert rows[0]["label_weights"].tolist() == [[-1.0, -1.0]] and rows[1]["label_weights"].tolist() == [
        [0.5, 1.0, 2.0]
    ]
    batch = concatenate([row["label_weights"] for row in rows], PADDING["label_weights"])
    assert batch.tolist() == [[-1.0, -1.0, -1.0], [0.5, 1.0, 2.0]]


def test_a_per_token_tensor_that_nobody_declared_is_an_error():
    rows = [row(n, weights=torch.ones(1, n)) for n in (2, 3)]
    with pytest.raises(AssertionError, match="weights has one value per token: .*sequence_padding"):
        with_all_sequences(rows, PADDING)


def test_a_per_token_tensor_of_another_length_is_an_error():
    with pytest.raises(AssertionError, match="label_weights: expected"):
        with_all_sequences([row(2, label_weights=torch.ones(1, 3))], PADDING)
