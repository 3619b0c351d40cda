"""The merge shard by shard: the base's layout, each tensor rounded once, errors before anything is written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CONSENT, IMAGE_ROWS, MODEL_ID, REPO, check_each, make_loader, run
from launch import launch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

import merge_lora_weights
from merging.shard_merge import ShardMerge, check_equal

ATTENTION = r"model\.language_model\..*\.[qv]_proj"


def make_adapter(base, folder, **config) -> PeftModel:
    """An adapter of random weights of a checkpoint in `folder`; returns base and adapter in float32."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(**({"r": 4, "target_modules": ATTENTION} | config)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def in_shards(base, folder, dtype, size="400KB") -> Path:
    """A checkpoint again, in another precision and in shards, with its processor."""
    AutoModelForImageTextToText.from_pretrained(base, dtype=dtype).save_pretrained(folder, max_shard_size=size)
    for path in Path(base).iterdir():
        if not (folder / path.name).exists() and path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def load_all(folder) -> dict[str, dict[str, torch.Tensor]]:
    """Shard -> its tensors."""
    return {path.name: load_file(path) for path in sorted(Path(folder).glob("*.safetensors"))}


def merge(adapter, merged, *flags) -> None:
    merge_lora_weights.main(["--model_path", str(adapter), "--model_save_path", str(merged), *map(str, flags)])


def flat(shards: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: tensor for tensors in shards.values() for key, tensor in tensors.items()}


@pytest.fixture(scope="module")
def sharded(tiny, tmp_path_factory):
    """A LLaVA in bfloat16 shards, with a tensor in float32 and one that the model knows nothing of, and an adapter."""
    folder = tmp_path_factory.mktemp("sharded")
    base = in_shards(tiny("llava-1.5"), folder / "base", torch.bfloat16)
    index = json.loads((base / "model.safetensors.index.json").read_text())
    kept, shard = next((key, shard) for key, shard in index["weight_map"].items() if "q_proj.weight" in key)
    tensors = load_file(base / shard)
    tensors |= {"mtp.layers.0.weight": torch.randn(3, 3), kept: tensors[kept].float() + 1e-4}
    index["weight_map"]["mtp.layers.0.weight"] = shard
    save_file(tensors, base / shard, metadata={"format": "pt", "note": "ours"})
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    make_adapter(base, folder / "adapter")
    return folder


def test_shards_keys_and_dtypes_are_the_bases_and_each_sum_is_rounded_once(sharded, tmp_path, capsys):
    merge(sharded / "adapter", tmp_path / "merged")
    before, after = load_all(sharded / "base"), load_all(tmp_path / "merged")
    assert len(before) > 2
    assert {s: {k: t.dtype for k, t in ts.items()} for s, ts in before.items()} == {
        s: {k: t.dtype for k, t in ts.items()} for s, ts in after.items()
    }
    assert len({t.dtype for t in flat(after).values()}) == 2
    for name in ("config.json", "model.safetensors.index.json"):
        assert json.loads((tmp_path / "merged" / name).read_text()) == json.loads((sharded / "base" / name).read_text())
    lora = load_file(sharded / "adapter" / "adapter_model.safetensors")
    before, after, adapted = flat(before), flat(after), 0
    for key, tensor in before.items():
        path = "base_model.model." + key.replace("language_model.model.", "model.language_model.").removesuffix(
            ".weight"
        )
        if f"{path}.lora_A.weight" in lora:
            tensor, adapted = (
                tensor.float() + 2 * lora[f"{path}.lora_B.weight"] @ lora[f"{path}.lora_A.weight"],
                adapted + 1,
            )
        assert torch.equal(after[key], tensor.to(after[key].dtype)), key
    assert adapted == len(lora) / 2 == 4
    printed = capsys.readouterr().out
    assert f"4 tensors are sums of base and adapter, {len(before) - 4} are those of the base" in printed
    differ, rounding, moved = map(
        float, re.findall(r"(?:differ|moves them) by ([\d.e-]+)|the adapter by", printed)[0:2] + ["1"]
    )
    assert differ <= 4 * rounding < moved


def test_dtype_is_written_everywhere(sharded, tmp_path):
    merge(sharded / "adapter", tmp_path / "merged", "--dtype", "float16")
    shards = load_all(tmp_path / "merged")
    assert {tensor.dtype for tensor in flat(shards).values()} == {torch.float16}
    assert shards.keys() == load_all(sharded / "base").keys()
    config = AutoConfig.from_pretrained(tmp_path / "merged")
    assert {config.dtype, config.text_config.dtype, config.vision_config.dtype} == {torch.float16}
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    sizes = [(tmp_path / "merged" / shard).stat().st_size for shard in shards]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype="auto").dtype == torch.float16


RANKS = {"use_rslora": True, "r": 16, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}
KINDS = {
    "dora, whole modules": {"use_dora": True, "modules_to_save": ["model.multi_modal_projector", "model.vision_tower"]},
    "ranks, biases": {"bias": "all", "target_modules": r".*(q_proj|k_proj|v_proj|out_proj)", **RANKS},
    "lora biases": {"bias": "lora_only", "target_modules": r".*(q_proj|out_proj|fc1)"},
    "head": {"target_modules": "lm_head", "modules_to_save": ["model.language_model.layers.1"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_equals_pefts_own_merge(tiny, tmp_path, kind):
    base = tiny("llava-1.5")
    expected = make_adapter(base, tmp_path / "adapter", **KINDS[kind]).merge_and_unload()
    expected.save_pretrained(tmp_path / "expected")
    merge(tmp_path / "adapter", tmp_path / "merged")
    found, wanted = flat(load_all(tmp_path / "merged")), flat(load_all(tmp_path / "expected"))
    assert found.keys() == wanted.keys()
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], atol=1e-6, rtol=1e-6, msg=key)
    assert any(not torch.equal(found[key], tensor) for key, tensor in flat(load_all(base)).items())


@pytest.mark.parametrize("init", ["pissa", pytest.param("olora", marks=pytest.mark.slow)])
def test_an_adapter_that_starts_from_the_base_is_merged_on_the_loaded_model(tiny, tmp_path, init, capsys):
    base = tiny("llava-1.5")
    expected = make_adapter(base, tmp_path / "adapter", init_lora_weights=init).merge_and_unload()
    expected.save_pretrained(tmp_path / "expected")
    merge(tmp_path / "adapter", tmp_path / "merged")
    assert "The whole model is loaded" in capsys.readouterr().out
    found, wanted = flat(load_all(tmp_path / "merged")), flat(load_all(tmp_path / "expected"))
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], atol=1e-5, rtol=1e-5, msg=key)


def test_a_base_of_bin_files_is_merged_on_the_loaded_model(tiny, tmp_path, capsys):
    base = tmp_path / "base"
    base.mkdir()
    for path in Path(tiny("llava-1.5")).iterdir():
        if path.suffix != ".safetensors":
            (base / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(Path(tiny("llava-1.5")) / "model.safetensors"), base / "pytorch_model.bin")
    make_adapter(base, tmp_path / "adapter").merge_and_unload().save_pretrained(tmp_path / "expected")
    merge(tmp_path / "adapter", tmp_path / "merged", "--dtype", "bfloat16")
    assert re.search(r"0.0 GB of memory., because the weights of the base are not safe", capsys.readouterr().out)
    found, wanted = flat(load_all(tmp_path / "merged")), flat(load_all(tmp_path / "expected"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key].bfloat16()) for key in wanted)
    assert AutoConfig.from_pretrained(tmp_path / "merged").text_config.dtype == torch.bfloat16


def test_experts_stored_one_by_one_and_in_several_shards(tiny, tmp_path):
    """GLM-4.5V: one parameter holds a layer's experts, for which the checkpoint has two dozen tensors."""
    from transformers import Glm4vMoeConfig

    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "n_routed_experts": 8, "moe_intermediate_size": 48, "num_experts_per_tok": 2}
    text |= {"first_k_dense_replace": 1, "vocab_size": 256, "n_group": 1, "topk_group": 1, "head_dim": 16}
    text |= {
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64}
    model = AutoModelForImageTextToText.from_config(Glm4vMoeConfig(text_config=text, vision_config=vision))
    model.save_pretrained(tmp_path / "base", max_shard_size="60KB")
    config = {"target_modules": ATTENTION, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    expected = make_adapter(tmp_path / "base", tmp_path / "adapter", **config).merge_and_unload()
    expected.save_pretrained(tmp_path / "expected")

    (tmp_path / "merged").mkdir()
    found = ShardMerge(make_loader("auto", tmp_path / "base"), str(tmp_path / "adapter"))
    found.write(str(tmp_path / "merged"))
    found.check(str(tmp_path / "merged"))
    shards = {shard for key, shard in found.shard_of.items() if ".experts." in key}
    before, after = load_all(tmp_path / "base"), load_all(tmp_path / "merged")
    assert len(shards) > 2 and {s: t.keys() for s, t in before.items()} == {s: t.keys() for s, t in after.items()}
    before, after, expected = flat(before), flat(after), flat(load_all(tmp_path / "expected"))
    experts = [key for key in before if ".experts." in key]
    assert len(experts) == 24 and not any(torch.equal(before[key], after[key]) for key in experts)
    for key in expected:
        torch.testing.assert_close(after[key], expected[key], atol=1e-6, rtol=1e-6, msg=key)


def cut_file(path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change(path, **tensors) -> None:
    """Write a file of tensors again: with these, or without those that are None."""
    found = load_file(path) | tensors
    save_file({key: tensor for key, tensor in found.items() if tensor is not None}, path)


KEY = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
FAULTS = {
    "cut adapter": (
        lambda b, a: cut_file(a / "adapter_model.safetensors"),
        "adapter_model.safetensors is missing or broken",
    ),
    "no adapter file": (
        lambda b, a: (a / "adapter_model.safetensors").unlink(),
        "adapter_model.safetensors is missing",
    ),
    "missing shard": (
        lambda b, a: (b / "model-00002-of-00006.safetensors").unlink(),
        "model-00002.* is missing or broken",
    ),
    "cut shard": (lambda b, a: cut_file(b / "model-00001-of-00006.safetensors"), "model-00001.* is missing or broken"),
    "lost key": (
        lambda b, a: change(b / "model-00001-of-00006.safetensors", **{"language_model.lm_head.weight": None}),
        "base: model.safetensors.index.json lists language_model.lm_head.weight, but no shard contains it",
    ),
    "lacks a tensor": (
        lambda b, a: change(a / "adapter_model.safetensors", **{KEY: None}),
        "it lacks tensors, such as model.*q_proj.lora_A",
    ),
    "one too many": (
        lambda b, a: change(a / "adapter_model.safetensors", **{"base_model.model.x.lora_A.weight": torch.ones(1)}),
        "it has tensors without a layer, such as x.lora_A.weight",
    ),
    "other size": (
        lambda b, a: change(a / "adapter_model.safetensors", **{KEY: torch.ones(4, 64)}),
        r"lora_A.weight has the shape \[4, 64\], not \[4, 128\]",
    ),
    "other names": (
        lambda b, a: (a / "adapter_config.json").write_text(
            (a / "adapter_config.json").read_text().replace("language_model", "decoder")
        ),
        "is not an adapter of .*base",
    ),
    "not a number": (
        lambda b, a: change(a / "adapter_model.safetensors", **{KEY: torch.full((4, 128), torch.nan)}),
        "it makes .*q_proj.weight infinite or nan",
    ),
    "quantized base": (
        lambda b, a: (b / "config.json").write_text(
            json.dumps(json.loads((b / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}})
        ),
        "base are quantized. Pass its full-precision base with --model_local_path",
    ),
}


def test_what_is_broken_is_refused_and_leaves_nothing(tiny, tmp_path):
    base = in_shards(tiny("llava-1.5"), tmp_path / "whole" / "base", torch.float32, "1MB")
    make_adapter(base, tmp_path / "whole" / "adapter")

    def check(fault: str) -> None:
        spoil, message = FAULTS[fault]
        folder = shutil.copytree(tmp_path / "whole", tmp_path / fault)
        config = folder / "adapter" / "adapter_config.json"
        config.write_text(config.read_text().replace(str(base), str(folder / "base")))
        spoil(folder / "base", folder / "adapter")
        with pytest.raises(ValueError, match=message):
            merge(folder / "adapter", folder / "merged")
        assert sorted(os.listdir(folder)) == ["adapter", "base"]

    check_each([(fault,) for fault in FAULTS], check)


def test_a_tied_head_is_refused(tiny, tmp_path):
    make_adapter(tiny("qwen2-vl"), tmp_path / "adapter", target_modules="lm_head")
    with pytest.raises(ValueError, match="changes lm_head.weight, but the base ties its embeddings"):
        merge(tmp_path / "adapter", tmp_path / "merged")


def test_an_interrupted_merge_leaves_nothing(sharded, tmp_path, monkeypatch):
    written = []

    def interrupt(self, name):
        written.append(name)
        assert len(os.listdir(tmp_path)) == 1  # a folder of its own, beside the place
        assert not (tmp_path / "merged").exists()
        if len(written) == 3:
            raise KeyboardInterrupt
        return self.base_weight(name)

    monkeypatch.setattr(ShardMerge, "merged", interrupt)
    with pytest.raises(KeyboardInterrupt):
        merge(sharded / "adapter", tmp_path / "merged")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("check", ["files", "logits"])
def test_the_self_check_notices_a_layer_left_out(sharded, tmp_path, monkeypatch, check):
    merged = ShardMerge.merged
    monkeypatch.setattr(
        ShardMerge,
        "merged",
        lambda self, name: (self.base_weight if ".1.self_attn.v" in name else lambda n: merged(self, n))(name),
    )
    if check == "logits":
        monkeypatch.setattr(ShardMerge, "check", lambda *_: "left out")
    with pytest.raises(
        ValueError, match="Self-check failed: " + {"files": ".*1.self_attn.v_proj", "logits": "the logits"}[check]
    ):
        merge(sharded / "adapter", tmp_path / "merged")


def test_the_self_check_allows_one_rounding_and_no_more():
    sums = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    rounded, eps = sums.bfloat16(), 2**-7  # of its 7 bits
    check_equal("weight", rounded.float(), sums, eps)
    for wrong in (rounded.float() * (1 + 4 * eps), sums.bfloat16().float() + 0.01):
        with pytest.raises(ValueError, match="Self-check failed: weight"):
            check_equal("weight", wrong, sums, eps)


def test_the_self_check_of_the_logits_allows_rounding_and_no_more(sharded, tmp_path, monkeypatch):
    """Each sum is wrong by 50 roundings, at random; nothing else would notice."""
    merged = ShardMerge.merged

    def wrong(self, name):
        weight = merged(self, name)
        return weight * (1 + 50 * 2**-8 * (2 * torch.rand_like(weight) - 1))

    monkeypatch.setattr(ShardMerge, "merged", wrong)
    monkeypatch.setattr(ShardMerge, "check", lambda *_: "left out")
    with pytest.raises(ValueError, match="Self-check failed: the logits"):
        merge(sharded / "adapter", tmp_path / "merged")


def test_without_the_memory_for_it_only_the_files_are_checked(sharded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(merge_lora_weights, "memory_needed", lambda loader: 1e15)
    merge(sharded / "adapter", tmp_path / "merged")
    printed = capsys.readouterr().out
    assert "Self-check of the files: 4 tensors" in printed and "The logits were not checked" in printed
    assert "1000000.0 GB" in printed


def test_shards_of_an_engine_are_refused_with_the_command_that_joins_them(tmp_path):
    for name, command in {
        "global_step3": f"python {tmp_path}/zero/zero_to_fp32.py {tmp_path}/zero {tmp_path}/zero --safe_serialization",
        "pytorch_model_fsdp_0": f"accelerate merge-weights {tmp_path}/fsdp/pytorch_model_fsdp_0 {tmp_path}/fsdp",
    }.items():
        folder = tmp_path / ("zero" if "step" in name else "fsdp")
        (folder / name).mkdir(parents=True)
        with pytest.raises(ValueError, match=re.escape(command)):
            merge(folder, tmp_path / "merged")
    (tmp_path / "out" / "checkpoint-7").mkdir(parents=True)
    with pytest.raises(ValueError, match="Pass the last one: --model_path .*out/checkpoint-7"):
        merge(tmp_path / "out", tmp_path / "merged")


def test_push_to_hub(sharded, tmp_path, monkeypatch):
    """The library's own calls, in this order: the repository first, so that a wrong name costs no merge."""
    calls = []

    class Hub:
        def create_repo(self, *args, **kwargs):
            calls.append(("create_repo", args, kwargs))

        def upload_folder(self, **kwargs):
            calls.append(("upload_folder", sorted(os.listdir(kwargs["folder_path"])), kwargs["repo_id"]))

    monkeypatch.setattr(merge_lora_weights, "HfApi", Hub)
    merge(sharded / "adapter", tmp_path / "merged", "--push_to_hub", "someone/model")
    assert calls[0] == ("create_repo", ("someone/model",), {"exist_ok": True})
    assert calls[1] == ("upload_folder", sorted(os.listdir(tmp_path / "merged")), "someone/model")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="--push_to_hub a/b/c"):
        merge(sharded / "adapter", tmp_path / "again", "--push_to_hub", "a/b/c")
    assert os.listdir(tmp_path) == ["merged"]


def test_a_checkpoint_within_a_run(tiny, write_rows, tmp_path):
    """checkpoint-N holds an adapter; the flags of the run are in the folder above."""
    flags = ["--use_lora", True, "--save_strategy", "steps", "--save_steps", 1]
    run(tiny, "llava-1.5", write_rows(IMAGE_ROWS), tmp_path / "out", *flags)
    merge(tmp_path / "out" / "checkpoint-1", tmp_path / "merged")
    assert (tmp_path / "merged" / "args.yaml").read_bytes() == (tmp_path / "out" / "args.yaml").read_bytes()
    assert make_loader("llava-1.5", tmp_path / "merged").load_model()


# Runs merges and predictions, with every connection and every look-up of a name refused and noted.
NO_NETWORK = """
import json, sys
asked = []

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        asked.append(arguments)
        raise OSError("no network")

sys.addaudithook(refuse)
import merge_lora_weights, predict
for folder, data, consent in json.loads(sys.argv[1]):
    merge_lora_weights.main(["--model_path", f"{folder}/adapter", "--model_save_path", f"{folder}/merged", *consent])
    for name in ("adapter", "merged"):
        words = ["--model_path", f"{folder}/{name}", "--data_path", data, "--output_path", f"{folder}/{name}.jsonl"]
        predict.main([*words, "--max_new_tokens", "2", *consent])
    assert not asked, (folder, asked)
"""


@pytest.mark.slow
def test_merge_and_predict_need_no_network(tiny, write_rows, tmp_path):
    path, given = write_rows(IMAGE_ROWS[:2]), []
    for family in ("qwen2-vl", "mistral-small-3.1", "phi3-v"):
        run(tiny, family, path, tmp_path / family / "adapter", "--use_lora", True)
        given.append([str(tmp_path / family), path, CONSENT[family]])
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    words = [sys.executable, "-c", NO_NETWORK, json.dumps(given)]
    result = subprocess.run(words, cwd=REPO, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_checkpoints_of_zero_3(tiny, write_rows, tmp_path):
    """Of two processes: an adapter is whole and merges; a model left in shards is made whole by the named command."""
    config = json.loads((REPO / "ds_configs" / "zero3.json").read_text())
    config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = False
    (tmp_path / "zero3.json").write_text(json.dumps(config))
    path = write_rows(IMAGE_ROWS)
    for name, *flags in (
        ("lora", "--use_lora", True, "--deepspeed", "ds_configs/zero3.json"),
        ("full", "--deepspeed", tmp_path / "zero3.json"),
    ):
        words = ["--model_id", MODEL_ID["llava-1.5"], "--model_local_path", tiny("llava-1.5"), "--data_path", path]
        words += ["--output_dir", tmp_path / name, "--use_cpu", True, "--max_steps", 2, "--save_steps", 1]
        words += ["--per_device_train_batch_size", 1, "--learning_rate", 1e-2]
        launch([*words, *flags], processes=2)
    merge(tmp_path / "lora" / "checkpoint-1", tmp_path / "merged")
    before, after = flat(load_all(tiny("llava-1.5"))), flat(load_all(tmp_path / "merged"))
    assert sum(not torch.equal(before[key], after[key]) for key in before) == 14

    folder = tmp_path / "full" / "checkpoint-1"
    assert not list(folder.glob("model*.safetensors"))
    with pytest.raises(ValueError, match="zero_to_fp32") as refusal:
        merge(folder, tmp_path / "again")
    command = re.search("`python (.*)`", str(refusal.value))[1].split()
    subprocess.run([sys.executable, *command], cwd=REPO, check=True, timeout=600)
    whole = make_loader("llava-1.5", folder).load_model().state_dict()
    base = make_loader("llava-1.5", tiny("llava-1.5")).load_model().state_dict()
    assert whole.keys() == base.keys() and any(not torch.equal(whole[key], base[key]) for key in base)


@pytest.mark.slow
def test_peak_memory_is_about_a_shard(tmp_path):
    from benchmarks.merge_memory import measure

    # Beside the shard there are three float32 copies of a matrix and what malloc keeps, about 30 MB.
    found = measure(str(tmp_path), layers=36, hidden=768, shard_size="260MB")
    assert found["shards"] >= 2 and found["checkpoint"] > 1.5 * found["shard"]
    assert found["peak by shards"] < 1.5 * found["shard"]
    assert found["peak by whole"] > 2 * found["checkpoint"]
