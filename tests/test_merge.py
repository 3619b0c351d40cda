"""Adapter -> standalone checkpoint -> answers."""

import json
import shlex

import pytest
import torch
from conftest import (
    CONSENT,
    FACTS,
    FAMILIES,
    MODEL_ID,
    OF_FEW,
    VIDEO_ROWS,
    VISION_FLAGS,
    lines_of,
    make_loader,
    rows_for,
    run,
)
from official import official_processor
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import check_serving
import merge_lora_weights
import predict
import preview
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions

LORA_FLAGS = ["--use_lora", True, *VISION_FLAGS]
MIXTURE_FLAGS = ["--lora_experts", True, "--lora_router", True, "--lora_dropout", 0]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_adapter_and_reloads(tiny, family, write_rows, tmp_path):
    path = write_rows(rows_for(family))
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    mixture = [*FACTS[family].experts, *filter(None, [FACTS[family].router])]
    flags = [*LORA_FLAGS, "--use_vision_lora", FACTS[family].vision_linears, *(MIXTURE_FLAGS if mixture else [])]
    run(tiny, family, path, adapter, *flags, "--max_steps", 3, "--learning_rate", 1e-2)
    merge_lora_weights.main(["--model_path", str(adapter), "--model_save_path", str(merged), *CONSENT[family]])

    base, after = load_file(f"{tiny(family)}/model.safetensors"), load_file(merged / "model.safetensors")
    kinds = [{name: (t.dtype, t.shape) for name, t in weights.items()} for weights in (base, after)]
    assert kinds[0] == kinds[1]
    adapted = [name for name in base if name.endswith(tuple(mixture))]
    assert len(adapted) >= len(mixture) and not any(torch.equal(base[name], after[name]) for name in adapted)
    for name in FACTS[family].files:
        assert (merged / name).read_bytes() == open(f"{tiny(family)}/{name}", "rb").read()

    official_processor(family, merged)
    if not FACTS[family].remote_code:  # which the library alone cannot load
        _, loading = AutoModelForImageTextToText.from_pretrained(merged, output_loading_info=True)
        assert not loading["missing_keys"] and not loading["unexpected_keys"]
    with_adapter, collator = predict.load(str(adapter), trust_remote_code=FACTS[family].remote_code)
    dataset = MultimodalDataset(path, media=MediaOptions(num_frames=4))
    batch = collator([dataset[i] for i in range(len(dataset))])
    batch.pop("labels")
    plain, untrained = (make_loader(family, path).load_model() for path in (merged, tiny(family)))
    with torch.no_grad():
        logits = [model.eval()(**batch).logits for model in (plain, with_adapter, untrained)]
    assert (logits[0] - logits[1]).abs().max() < FACTS[family].rounding
    assert (logits[0] - logits[2]).abs().max() > 1e-2  # the training left its mark


def test_merge_keeps_the_precision_of_the_base(tiny, write_rows, tmp_path):
    """A base in bfloat16 gives a merged checkpoint in bfloat16, each weight rounded once."""
    base = tmp_path / "base"
    AutoModelForImageTextToText.from_pretrained(tiny("llava-1.5"), dtype=torch.bfloat16).save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        (base / name).write_bytes(open(f"{tiny('llava-1.5')}/{name}", "rb").read())
    path = write_rows(rows_for("llava-1.5"))
    run(lambda family: str(base), "llava-1.5", path, tmp_path / "adapter", "--use_lora", True)
    merge_lora_weights.main(["--model_path", str(tmp_path / "adapter"), "--model_save_path", str(tmp_path / "merged")])
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert before.keys() == after.keys() and {t.dtype for t in after.values()} == {torch.bfloat16}
    head = next(name for name in before if name.endswith("lm_head.weight"))
    assert torch.equal(before[head], after[head])


@pytest.mark.parametrize(
    "precision",
    [[], pytest.param(["--bf16", True, "--use_cpu", True], marks=pytest.mark.slow)],
    ids=["float32", "bfloat16"],
)
def test_merge_of_q_lora_sees_the_quantized_base(tiny, write_rows, tmp_path, precision, monkeypatch):
    """With --load_4bit, the merged weight is the dequantized base weight, as training saw it, plus the product."""
    import bitsandbytes.functional as bnb

    import train

    name, seen = "model.language_model.layers.1.mlp.down_proj", {}
    make_trainable = train.trainable.make_trainable

    def spy(model, *args):
        weight = model.get_submodule(name).weight
        seen["weight"] = bnb.dequantize_4bit(weight.data, weight.quant_state)
        return make_trainable(model, *args)

    monkeypatch.setattr(train.trainable, "make_trainable", spy)

    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    flags = ["--use_lora", True, "--q_lora", True, "--learning_rate", 1e-2, "--max_steps", 3, *VISION_FLAGS, *precision]
    run(tiny, "qwen2-vl", write_rows(rows_for("qwen2-vl")), adapter, *flags)
    merge_lora_weights.main(["--model_path", str(adapter), "--model_save_path", str(merged), "--load_4bit"])
    base, after = load_file(f"{tiny('qwen2-vl')}/model.safetensors"), load_file(merged / "model.safetensors")
    assert base.keys() == after.keys()
    key = next(k for k in base if k.endswith("layers.1.mlp.down_proj.weight"))
    packed, state = bnb.quantize_4bit(base[key], quant_type="nf4", compress_statistics=True)
    lora = load_file(adapter / "adapter_model.safetensors")
    product = lora[f"base_model.model.{name}.lora_B.weight"] @ lora[f"base_model.model.{name}.lora_A.weight"]
    torch.testing.assert_close(after[key], bnb.dequantize_4bit(packed, state) + product * 2, atol=1e-6, rtol=1e-5)
    assert (after[key] - base[key]).abs().max() > 1e-3
    torch.testing.assert_close(seen["weight"], bnb.dequantize_4bit(packed, state), atol=0, rtol=0)


def test_merge_refuses_what_it_cannot_do(tiny, tmp_path):
    with pytest.raises(ValueError, match="--model_pth is not a flag: did you mean --model_path"):
        merge_lora_weights.main(["--model_pth", tiny("llava-1.5"), "--model_save_path", str(tmp_path / "merged")])
    with pytest.raises(ValueError, match="no adapter"):
        merge_lora_weights.main(["--model_path", tiny("llava-1.5"), "--model_save_path", str(tmp_path / "merged")])
    (tmp_path / "full/checkpoint-2").mkdir(parents=True)
    (tmp_path / "full/model-00001-of-00002.safetensors").touch()
    with pytest.raises(ValueError, match="full contains no adapter .*a whole checkpoint.* There is nothing to merge"):
        merge_lora_weights.main(["--model_path", f"{tmp_path}/full", "--model_save_path", str(tmp_path / "merged")])
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="--model_save_path .*file cannot be written"):
        merge_lora_weights.main(["--model_path", str(tmp_path), "--model_save_path", str(tmp_path / "file")])
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": tiny("llava-1.5")}))
    (tmp_path / "args.yaml").write_text("model_id: llava-1.5-7b\nuse_lora: true\n")
    with pytest.raises(ValueError, match="--load_4bit: the adapter was not trained on a 4-bit base"):
        words = ["--model_path", str(tmp_path), "--model_save_path", str(tmp_path / "merged"), "--load_4bit"]
        merge_lora_weights.main(words)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="adapter_config.json is not valid JSON"):
        merge_lora_weights.main(["--model_path", str(tmp_path), "--model_save_path", str(tmp_path / "merged")])


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--batch_size", "0"], "--batch_size is 0"),
        (["--max_new_tokens", "0"], "--max_new_tokens is 0"),
        (["--num_frames", "0"], "--num_frames is 0"),
        (["--image_folder", "nowhere"], "--image_folder 'nowhere' is not a folder"),
        (["--output_path", "/"], "--output_path / is a folder"),
        (["--output_path", f"{__file__}/x.jsonl"], "--output_path .* cannot be written: .* is not a folder"),
        ([], "rows.json contains videos, but .*llava-1.5 does not accept videos"),
    ],
)
def test_predict_refuses_what_would_fail_late(tiny, write_rows, tmp_path, flags, named):
    path = write_rows(VIDEO_ROWS)
    words = ["--model_path", tiny("llava-1.5"), "--data_path", path, "--output_path", str(tmp_path / "new" / "a.jsonl")]
    with pytest.raises(ValueError, match=named):
        predict.main(words + flags)


def test_answers_never_replace_their_data(tiny, write_rows, tmp_path):
    path = write_rows(VIDEO_ROWS)
    (tmp_path / "link").symlink_to(path)
    before = open(path).read()
    with pytest.raises(ValueError, match="--output_path .*link is a file of --data_path"):
        predict.main(["--model_path", tiny("llava-1.5"), "--data_path", path, "--output_path", str(tmp_path / "link")])
    assert open(path).read() == before


REPLIES = ["Red", "Two dogs", "A lake", "Seven", "It rains", "Nobody", "Paris 1900", "Left </s> right"]


@pytest.mark.slow
def test_lora_memorises_the_rows_of_a_table_and_the_merged_model_repeats_them(tiny, media_folder, tmp_path):
    """The way of somebody with a table: the error names --columns, with which every script reads it."""
    path = media_folder / "Tabelle.csv"
    rows = [f"{i};red.png;Question {i}: what is it?;{fact}\n" for i, fact in enumerate(REPLIES)]
    path.write_text("Nr;Foto;query;label\n" + "".join(rows), encoding="utf-8-sig")
    model = ["--model_id", MODEL_ID["qwen2-vl"], "--model_local_path", tiny("qwen2-vl")]
    with pytest.raises(ValueError, match="--columns") as error:
        preview.main([*model, "--data_path", str(path)])
    columns = shlex.split(str(error.value).partition("try ")[2])
    assert columns == ["--columns", "question=query", "answer=label", "image=foto"]
    with pytest.raises(SystemExit, match="^0$"):
        preview.main([*model, "--data_path", str(path), *columns, "--check"])
    adapter, merged, answers = tmp_path / "adapter", tmp_path / "merged", tmp_path / "answers.jsonl"
    flags = ["--use_lora", True, "--lora_r", 16, "--lora_alpha", 32, "--lora_dropout", 0, "--max_steps", 200]
    flags += ["--per_device_train_batch_size", 8, "--learning_rate", 5e-3, "--lr_scheduler_type", "cosine"]
    run(tiny, "qwen2-vl", str(path), adapter, *columns, *flags)
    merge_lora_weights.main(["--model_path", str(adapter), "--model_save_path", str(merged)])
    predict.main(["--model_path", str(merged), "--data_path", str(path), *columns, "--output_path", str(answers)])
    check_serving.main(["--model_path", str(merged)])
    lines = lines_of(answers)
    assert [line["prediction"] for line in lines] == REPLIES
    assert [(line["index"], line["turn"], line["exact_match"]) for line in lines] == [(i, 0, True) for i in range(8)]


@pytest.mark.parametrize("family", OF_FEW)
def test_answers_do_not_depend_on_the_batch(tiny, family, write_rows, tmp_path, capsys):
    path, found = write_rows(rows_for(family)), []
    for batch_size in ("1", "5"):
        out = tmp_path / f"{batch_size}.jsonl"
        words = ["--model_path", tiny(family), "--data_path", path, "--output_path", str(out), "--num_frames", "4"]
        words += [*CONSENT[family], *(["--model_id", MODEL_ID[family]] if CONSENT[family] else [])]
        predict.main([*words, "--batch_size", batch_size, "--max_new_tokens", "4"])
        found.append(lines_of(out))
    assert found[0] == found[1]
    assert set(found[0][0]) == {"index", "turn", "question", "prediction", "reference", "exact_match"}
    turns_of = [(i, t) for i, row in enumerate(rows_for(family)) for t in range(number_of_replies(row))]
    assert [(line["index"], line["turn"]) for line in found[0]] == turns_of
    assert capsys.readouterr().out.splitlines()[-2] == "exact match: 0.00"


def number_of_replies(row: dict) -> int:
    return sum(
        turn.get("role", turn.get("from")) in ("assistant", "gpt")
        for turn in row.get("messages") or row["conversations"]
    )
