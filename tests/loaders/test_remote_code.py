"""Families whose classes are Python files of the checkpoint: consent, and what the loader mends. The checkpoints here
hold stand-ins, written for these tests (tiny_checkpoints/remote)."""

import json
import shutil

import pytest
import torch
from conftest import CONSENT, FACTS, FAMILIES, MODEL_ID, make_loader, rows_for, run, turns
from safetensors.torch import load_file, save_file

import merge_lora_weights
import predict
import preview
from collators import COLLATORS
from loaders import LOADERS
from loaders.remote_code import RemoteCodeLoader
from reading.dataset import MultimodalDataset

REMOTE = [family for family in FAMILIES if FACTS[family].remote_code]


@pytest.mark.parametrize("family", REMOTE)
def test_no_file_of_a_checkpoint_runs_without_consent(tiny, family, write_rows, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny(family), folder)
    for path in folder.glob("*.py"):
        path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + path.read_text())
    words = ["--model_id", MODEL_ID[family], "--model_local_path", str(folder)]
    data = ["--data_path", write_rows(rows_for(family))]
    (tmp_path / "adapter").mkdir()
    adapter = {"base_model_name_or_path": str(folder)}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    # Whoever made the folder cannot consent for whoever uses it.
    for place in (folder, tmp_path / "adapter"):
        (place / "args.yaml").write_text(f"model_id: {MODEL_ID[family]}\ntrust_remote_code: true\n")
    monkeypatch.setitem(CONSENT, family, [])
    tools = [
        lambda: run(lambda _: str(folder), family, data[1], tmp_path / "out"),
        lambda: preview.main([*words, *data]),
        lambda: predict.main(["--model_path", str(folder), *data, "--output_path", str(tmp_path / "a.jsonl")]),
        lambda: predict.main(["--model_path", str(tmp_path / "adapter"), *data, "--output_path", str(tmp_path / "a")]),
        lambda: merge_lora_weights.main(
            ["--model_path", str(tmp_path / "adapter"), "--model_save_path", str(tmp_path / "merged")]
        ),
    ]
    for tool in tools:
        with pytest.raises(ValueError, match="run with your permissions .* add --trust_remote_code True"):
            tool()
    assert not (tmp_path / "ran").exists()


def test_a_base_whose_family_is_unknown_runs_nothing(tiny):
    with pytest.raises(ValueError, match="is not a checkpoint"):
        predict.load(tiny(REMOTE[0]))


def test_consent_that_nothing_needs_is_refused(tiny):
    with pytest.raises(ValueError, match="--trust_remote_code True has no effect"):
        LOADERS.get("qwen2-vl")(tiny("qwen2-vl"), trust_remote_code=True)


@pytest.mark.parametrize("family", REMOTE)
def test_flash_attention_is_refused(tiny, family):
    with pytest.raises(ValueError, match="--use_flash_attn True.* cannot be used"):
        make_loader(family, tiny(family), attn_implementation="flash_attention_2")


def test_missing_packages_are_named_at_once(tiny, monkeypatch):
    loader = LOADERS.get(REMOTE[0])
    monkeypatch.setattr(loader, "packages", dict.fromkeys(["torch", "no_such_package", "nor_this"], "which it needs"))
    with pytest.raises(ValueError, match="pip install no_such_package nor_this"):
        make_loader(REMOTE[0], tiny(REMOTE[0]))


@pytest.mark.parametrize("family", REMOTE)
def test_every_weight_is_the_files(tiny, family):
    loader = make_loader(family, tiny(family))
    model = loader.load_model()
    loaded = dict(model.named_parameters())
    stored = {name.replace(*loader.renamed): w for name, w in load_file(f"{tiny(family)}/model.safetensors").items()}
    assert loaded.keys() == stored.keys() & loaded.keys()
    assert all(torch.equal(loaded[name], stored[name]) for name in loaded)


@pytest.mark.parametrize("family", REMOTE)
def test_weights_that_are_not_the_files_are_an_error(tiny, family, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny(family), folder)
    weights = load_file(folder / "model.safetensors")
    head = weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="0 weights differ from the file, 1 are missing, such as lm_head.weight"):
        make_loader(family, folder).load_model()
    save_file(weights | {"lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    loader = make_loader(family, folder)
    model = loader.load_model()
    model.get_output_embeddings().weight.data[0, 0] += 1
    with pytest.raises(ValueError, match="1 weights differ from the file, 0 are missing, such as lm_head.weight"):
        RemoteCodeLoader.check_weights(loader, model, {})


@pytest.mark.parametrize("family", REMOTE)
def test_kept_logits_are_those_of_the_whole(tiny, family, write_rows):
    loader = make_loader(family, tiny(family))
    collator = COLLATORS.get(family)(loader.load_processor(), 2048)
    dataset = MultimodalDataset(write_rows(rows_for(family)))
    batch = collator([dataset[i] for i in range(len(dataset))])
    before = {name: value.clone() for name, value in batch.items()}
    keep = batch.pop("labels") != -100
    model = loader.load_model().eval()
    with torch.no_grad():
        whole, kept = model(**batch).logits, model(**batch, logits_to_keep=keep).logits
        again = model(**batch).logits
    torch.testing.assert_close(kept.view(-1, kept.shape[-1]), whole[keep], atol=1e-5, rtol=0)
    assert torch.equal(again, whole)
    assert all(torch.equal(batch[name], before[name]) for name in batch)  # some code writes into its inputs


def test_an_evaluated_long_row_leaves_the_training_as_it_was(tiny):
    """Qwen-VL's code scales the positions of a row of more than 2,048 tokens, and keeps the scaling."""
    model = make_loader("qwen-vl", tiny("qwen-vl")).load_model()
    row = torch.arange(40)[None]
    with torch.no_grad():
        before, alone = model.train()(row).logits, model.eval()(row).logits
        model(torch.ones(1, 2100, dtype=torch.long))
        assert model.transformer.rotary_emb._ntk_alpha_cached == 3
        assert torch.equal(model.train()(row).logits, before) and torch.equal(model.eval()(row).logits, alone)


@pytest.mark.slow
@pytest.mark.parametrize("family", REMOTE)
def test_gradient_checkpointing_changes_nothing(tiny, family, write_rows, tmp_path):
    path = write_rows(rows_for(family))
    for kind, flags in (
        ("lora", ["--use_lora", True, "--lora_dropout", 0]),
        ("full", ["--train_vision_encoder", True]),
    ):
        plain = run(tiny, family, path, tmp_path / kind / "plain", *flags)
        checkpointed = run(tiny, family, path, tmp_path / kind / "less", *flags, "--activation_checkpointing", True)
        assert [e["loss"] for e in plain] == pytest.approx([e["loss"] for e in checkpointed], abs=1e-5)
        assert [e["grad_norm"] for e in plain] == pytest.approx([e["grad_norm"] for e in checkpointed], abs=1e-4)


@pytest.mark.parametrize("family", REMOTE)
def test_a_saved_checkpoint_trains_again_and_text_alone_does_too(tiny, family, write_rows, tmp_path):
    run(tiny, family, write_rows(rows_for(family)), tmp_path / "first")
    path = write_rows([{"conversations": turns("Hello.", "Hi")}] * 4)
    assert run(lambda _: str(tmp_path / "first"), family, path, tmp_path / "second", "--use_lora", True)


@pytest.mark.parametrize("family", REMOTE)
def test_a_reply_ends_where_its_end_was_trained(tiny, family, write_rows, tmp_path):
    """The checkpoint's own generation_config.json names another token, and leaves the rest to its sample code."""
    path, answers = write_rows([{"conversations": turns("What is it?", "Red")}]), tmp_path / "answers.jsonl"
    run(tiny, family, path, tmp_path / "out", "--max_steps", 30, "--learning_rate", 3e-3)
    words = ["--model_path", str(tmp_path / "out"), "--data_path", path, "--output_path", str(answers)]
    predict.main([*words, *CONSENT[family], "--max_new_tokens", "20"])
    assert json.loads(answers.read_text())["prediction"] == "Red"
