"""What `--model_id auto` refuses by its config and its processor, and the table of what it does with each type."""

import json
import re

import pytest
import transformers
from conftest import AUTO, REPO, check_each
from transformers import ProcessorMixin

from collators import COLLATORS
from collators.label_check import check_labels
from loaders import LOADERS

STEPS = ("components", "labels", "batch", "picture", "trained", "merged", "answered")
TABLE = json.loads((REPO / "docs" / "auto_types.json").read_text(encoding="utf-8"))


def write_config(folder, **fields) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


def test_what_auto_cannot_train_is_refused_by_its_config(tmp_path):
    own = {"model_type": "my_vlm", "auto_map": {"AutoModelForCausalLM": "modeling_my_vlm.MyVLM"}}
    cases = [
        ({"model_type": "florence2"}, {}, "a 'florence2' model is an encoder-decoder"),
        ({"model_type": "t5gemma2"}, {}, "a 't5gemma2' model is an encoder-decoder"),
        ({"model_type": "blip-2", "text_config": {"model_type": "t5"}}, {}, "'blip-2' model is an encoder-decoder"),
        # One reason, whatever the flag says.
        (own, {}, "--model_id auto never runs a checkpoint's Python files"),
        (own, {"trust_remote_code": True}, "--model_id auto never runs a checkpoint's Python files"),
        ({"model_type": "llava"}, {"trust_remote_code": True}, "transformers itself has the classes"),
        ({"model_type": "bert"}, {}, "is a 'bert' checkpoint"),
        ({"model_type": "gemma4_unified"}, {}, "Use the --model_id of its family, such as gemma-4-12b-it"),
    ]

    def check(fields, kwargs, message):
        with pytest.raises(ValueError, match=message):
            LOADERS.get(AUTO)(write_config(tmp_path / "there", **fields), **kwargs)

    check_each(cases, check)


def test_a_processor_that_cannot_place_pictures_is_refused(tiny, monkeypatch):
    loader = LOADERS.get(AUTO)(tiny(AUTO))
    processor = loader.load_processor()
    del processor.image_token
    monkeypatch.setattr(loader, "load_with", lambda *args: processor)
    with pytest.raises(ValueError, match="Cohere2VisionProcessor lacks a tokenizer, an image processor or"):
        loader.load_processor()


def test_tensors_that_a_processor_makes_and_values_of_tokens_are_taken(tiny, monkeypatch):
    """DeepSeek-VL's and nine more return tensors by default; Gemma 3's has `token_type_ids`."""
    loader = LOADERS.get(AUTO)(tiny("gemma-3"))
    processor = loader.load_processor()
    defaults = processor.valid_processor_kwargs._defaults
    monkeypatch.setitem(defaults, "text_kwargs", {**defaults.get("text_kwargs", {}), "return_tensors": "pt"})
    collator = COLLATORS.get(AUTO)(processor, stop_tokens=loader.stop_tokens(processor.tokenizer))
    check_labels(collator)
    rows = [
        collator.encode({"messages": [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in turns]}).inputs
        for turns in ((("user", "Hi"), ("assistant", "Yes")), (("user", "Count"), ("assistant", "1 2 3 4 5 6")))
    ]
    batch = collator.collate(rows)
    assert batch["token_type_ids"].shape == batch["input_ids"].shape


def test_a_part_without_the_usual_attention_takes_its_own(tiny, monkeypatch):
    """As the audio tower of Gemma 4 and the language model of Inkling, which have no sdpa."""
    path = tiny(AUTO)
    own = type(LOADERS.get(AUTO)(path).load_model().model.vision_tower)
    monkeypatch.setattr(own, "_supports_sdpa", False)
    loader = LOADERS.get(AUTO)(path, attn_implementation="sdpa")
    model = loader.load_model()
    found = [part.config._attn_implementation for part in (model.model.vision_tower, model.get_decoder())]
    assert found == ["eager", "sdpa"]
    assert loader.text_attention == "eager"  # of which nothing more is known
    with pytest.raises(ValueError, match="loaded with attention flash_attention_3"):  # what was asked for stays
        LOADERS.get(AUTO)(path, attn_implementation="flash_attention_3").load_model()


def test_chunks_by_the_place_in_the_row_keep_samples_padded(tiny):
    """Llama 4's are of 8,192 tokens, which no probe has."""
    assert "chunks by position in the row" in LOADERS.get(AUTO)(tiny("llama4")).cannot_be_padding_free
    assert LOADERS.get(AUTO)(tiny(AUTO)).cannot_be_padding_free == ""


def test_the_table_has_a_row_for_each_type():
    from transformers.models.auto import modeling_auto

    newer = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys() - TABLE["types"].keys()
    assert not newer or transformers.__version__ != TABLE["transformers"]
    raw = "ERROR|not run yet|ended with status"
    assert [name for name, row in TABLE["types"].items() if re.search(raw, json.dumps(row))] == []
    page = (REPO / "docs" / "auto_types.md").read_text(encoding="utf-8")
    assert [name for name in TABLE["types"] if page.count(f"\n| `{name}` | ") != 1] == []
    for name, row in TABLE["types"].items():
        (line,) = re.findall(rf"(?m)^\| `{name}` \|.*", page)
        assert line.count("✓") == sum(value is True for step, value in row.items() if step in STEPS), name


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["deepseek_vl", "ovis2", "florence2"])
def test_a_row_of_the_table_is_what_comes_out(model_type, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    import auto_table

    row = auto_table.row_of(model_type, tmp_path)
    assert row.keys() == TABLE["types"][model_type].keys()
    assert [name for name, value in row.items() if value is True] == [
        name for name, value in TABLE["types"][model_type].items() if value is True
    ]


def test_a_processor_that_does_not_name_its_tokens_of_pictures_is_refused(tiny, monkeypatch):
    """As Ovis2's, whose config does: else a cut could go through a picture, and its tokens could be trained."""
    loader = LOADERS.get(AUTO)(tiny(AUTO))
    processor = loader.load_processor()
    monkeypatch.setattr(type(processor), "image_token_ids", [-1])
    with pytest.raises(ValueError, match="Cohere2VisionProcessor does not tell which tokens stand for an image"):
        COLLATORS.get(AUTO)(processor, stop_tokens=loader.stop_tokens(processor.tokenizer))

    monkeypatch.setattr(type(processor), "image_token_ids", ProcessorMixin.image_token_ids)
    processor.image_token_id = -1
    monkeypatch.setattr(loader, "load_with", lambda *args: processor)
    assert loader.config.image_token_id in loader.load_processor().image_token_ids
