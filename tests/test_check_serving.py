"""What an inference server reads: found in whole folders, missed in damaged ones."""

import json
import re
import shlex
import shutil

import pytest
import torch
from conftest import CONSENT, FAMILIES, run, turns
from facts import FACTS
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

import check_serving
import merge_lora_weights
from collators import COLLATORS
from loaders import LOADERS
from loaders.output_folder import public_name
from merging import servers, serving
from supported_models import families


def outcomes(path) -> dict[str, tuple[str, str]]:
    return {name: (is_whole, text) for is_whole, name, text in serving.check_folder(str(path))}


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_lacks_in_a_checkpoint_of_any_family(tiny, family):
    found = outcomes(tiny(family))
    assert len(found) == (4 if "Python files" in found else 6) and all(is_whole for is_whole, _ in found.values()), (
        found
    )
    assert ("Python files" in found) == (family in ("phi3-v", "qwen-vl"))


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_request_adds_for_the_prompt_that_is_trained(tiny, family):
    folder = tiny(family)
    loader = LOADERS.get(family)(folder, bool(CONSENT[family]))
    options = COLLATORS.get(family)(loader.load_processor()).template.request_options()
    assert options.pop("add_special_tokens", False) == (family != "auto" and bool(FACTS[family].bos))
    variables = {"llama-3.2-vision": {"date_string": "26 Jul 2024"}}
    variables |= dict.fromkeys(("qwen3.5-moe", "glm-4.6v"), {"enable_thinking": False})
    assert options.get("chat_template_kwargs") == variables.get(family)


def test_the_table_of_servers_knows_each_family_on_vllm_once():
    for kind in ("merged", "adapter"):
        named = [family for known in servers.SERVERS["vLLM"][kind].values() for family in known]
        assert sorted(named) == sorted(families())


def shard(folder) -> None:
    """Spread the weights over two files."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for half, file in zip(halves, files):
        save_file({name: weights[name] for name in half}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for half, file in zip(halves, files) for name in half}}
    (folder / serving.INDEX).write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def edit(folder, name: str, **changes) -> None:
    """Set fields of a JSON file; None takes one away."""
    values = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def cut(folder, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-100])


DAMAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), "config"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config"),
    "no architecture": (lambda f: edit(f, "config.json", architectures=None), "config"),
    "broken generation config": (lambda f: (f / "generation_config.json").write_text("{"), "generation config"),
    "endless": (lambda f: edit(f, "generation_config.json", eos_token_id=None), "generation config"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer"),
    "tekken alone": (lambda f: (f / "tokenizer.json").rename(f / "tekken.json"), "tokenizer"),
    "no processor": (lambda f: (f / "processor_config.json").unlink(), "processor"),
    "broken processor": (lambda f: (f / "processor_config.json").write_text("{"), "processor"),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "chat template"),
    "broken template": (lambda f: (f / "chat_template.jinja").write_text("{% for %}"), "chat template"),
    "blind template": (lambda f: (f / "chat_template.jinja").write_text("User:"), "chat template"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "weights"),
    "cut weights": (lambda f: cut(f, "model.safetensors"), "weights"),
    "no index": (lambda f: [shard(f), (f / serving.INDEX).unlink()], "weights"),
    "broken index": (lambda f: [shard(f), (f / serving.INDEX).write_text("{")], "weights"),
    "a lost shard": (lambda f: [shard(f), (f / "model-00002-of-00002.safetensors").unlink()], "weights"),
    "a cut shard": (lambda f: [shard(f), cut(f, "model-00002-of-00002.safetensors")], "weights"),
    "a swapped shard": (
        lambda f: [shard(f), shutil.copy(*(f / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)))],
        "weights",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_found(tiny, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(tiny("qwen2-vl"), folder)
    harm, expected = DAMAGES[damage]
    harm(folder)
    found = outcomes(folder)
    failed = [name for name, (is_whole, _) in found.items() if not is_whole]
    assert failed[:1] == [expected], found  # others may be read with it
    assert all(found[name][1].endswith(".") for name in failed), found


def test_a_sharded_folder_is_whole(tiny, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny("qwen2-vl"), folder)
    shard(folder)
    (folder / "generation_config.json").unlink()
    edit(folder, "config.json", dtype="bfloat16")
    found = outcomes(folder)
    assert found["weights"][1].startswith("57 tensors in 2 file(s)")
    assert (
        found["generation config"]
        == (True, "none: answers end at the eos_token_id of config.json, and are sampled at temperature 1")
        and "halve" not in found["config"][1]
    )
    check_serving.main(["--model_path", str(folder)])
    said = capsys.readouterr().out
    assert "  vLLM 0.32.0 (2026-11-30): ran\n" in said
    assert said.endswith(
        f"  vllm serve {folder} --served-model-name model --override-generation-config '{{\"temperature\": 0}}'\n"
        "  Each request: model='model', temperature=0\n"
    )
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="cannot be served: 1 of the checks failed"):
        check_serving.main(["--model_path", str(folder)])
    assert "FAULT chat template: none" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--model_path 'nowhere' is not a folder"):
        check_serving.main(["--model_path", "nowhere"])


@pytest.mark.parametrize("file", ["modeling_phi3_v.py", "processing_phi3_v.py"])
def test_python_files_of_a_checkpoint_are_missed(tiny, tmp_path, file):
    folder = tmp_path / "model"
    shutil.copytree(tiny("phi3-v"), folder)
    (folder / file).unlink()
    is_whole, text = outcomes(folder)["Python files"]
    assert not is_whole and f"names {file}, which is missing" in text


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """An adapter as training writes it: LoRA on the language model alone."""
    folder = tmp_path_factory.mktemp("adapter")
    (folder / "rows.json").write_text(json.dumps([{"conversations": turns("Name a colour.", "Blue")}]))
    run(tiny, "qwen2-vl", str(folder / "rows.json"), folder / "out", "--use_lora", True, "--max_steps", 1)
    return folder / "out"


def test_an_adapter_and_its_merge(tiny, adapter, tmp_path, capsys):
    assert all(is_whole for is_whole, _ in outcomes(adapter).values())
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] == tiny("qwen2-vl")  # which is absolute
    capsys.readouterr()
    merge_lora_weights.main(["--model_path", str(adapter), "--model_save_path", str(tmp_path / "merged")])
    said = capsys.readouterr().out
    assert "incomplete" not in said and f"check_serving.py --model_path {tmp_path / 'merged'}" in said
    assert outcomes(tmp_path / "merged") == outcomes(tiny("qwen2-vl"))
    (tmp_path / "merged" / "chat_template.jinja").touch()
    modes = {path.stat().st_mode for folder in (adapter, tmp_path / "merged") for path in folder.glob("*.*")}
    (tmp_path / "any").touch()
    assert modes == {(tmp_path / "any").stat().st_mode}


def test_the_command_for_an_adapter(adapter, tmp_path):
    folder = tmp_path / "hinges"
    shutil.copytree(adapter, folder)
    edit(folder, "adapter_config.json", r=9)
    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight"] = torch.zeros(2, 2)
    save_file(weights, folder / "adapter_model.safetensors")
    assert outcomes(folder)["parts"][1].startswith("1 of ")
    saved = {"model_id": "qwen2-vl-2b-instruct", "chat_template": "own.jinja", "max_pixels": 5000, "num_frames": 4}
    (folder / "args.yaml").write_text(json.dumps(saved | {"processor_kwargs": '{"max_pixels": 9}'}))
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    *_, command, request, media = servers.advice(str(folder))
    assert shlex.split(command) == [
        *["vllm", "serve", base, "--enable-lora", "--lora-modules", f"hinges={folder}", "--max-lora-rank", "16"],
        *["--enable-tower-connector-lora", "--chat-template", f"{folder}/chat_template.jinja"],
        *["--override-generation-config", '{"temperature": 0}', "--mm-processor-kwargs", '{"max_pixels": 9}'],
    ]
    assert "--max_pixels 5000, --num_frames 4" in media and "processor_kwargs" not in media
    (folder / "args.yaml").write_text(json.dumps(saved | {"keep_processor_config": False}))  # the processor resizes
    *_, command, request, media = servers.advice(str(folder))
    size = AutoProcessor.from_pretrained(folder).image_processor.size
    assert json.loads(shlex.split(command)[-1]) == {
        "size": {edge: size[edge] for edge in ("shortest_edge", "longest_edge")}
    }
    assert "--num_frames 4" in media and "pixels" not in media

    saved = {"model_id": "llava-onevision-7b-ov"}
    (folder / "args.yaml").write_text(json.dumps(saved))
    said = [*servers.advice(str(folder))]
    assert "its class takes no LoRA" in said[1] and said[-1] == serving.MERGE


def test_how_a_base_is_named(tmp_path, monkeypatch):
    cached = tmp_path / "hub/models--Qwen--Qwen2--VL/snapshots/895c3a4"
    cached.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("Qwen/Qwen2-VL") == "Qwen/Qwen2-VL"
    assert public_name(str(cached)) == public_name(f"{cached}/") == "Qwen/Qwen2--VL"
    assert public_name("hub") == str(tmp_path / "hub")


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"modules_to_save": ["model.visual.merger"]}, "modules_to_save is .*Merge the adapter"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias is lora_only"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters is .*mlp.experts"),
        ({"init_lora_weights": "pissa_niter_16"}, "started from changed base weights"),
    ],
)
def test_what_servers_refuse_of_adapters(adapter, tmp_path, changes, named):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    edit(folder, "adapter_config.json", **changes)
    is_whole, text = outcomes(folder)["kind"]
    assert not is_whole and re.search(named, text)


def test_parts_that_no_server_adapts(adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.model.language_model.layers.0.linear_attn.out_proj.lora_A.weight"] = torch.zeros(2, 2)
    save_file(weights, folder / "adapter_model.safetensors")
    is_whole, text = outcomes(folder)["parts"]
    assert not is_whole and re.match(r"1 of .*linear_attn.*Merge the adapter", text)
    (folder / "adapter_model.safetensors").unlink()
    assert not outcomes(folder)["parts"][0]


@pytest.mark.parametrize(
    "words, named",
    [
        ("--rows 3", "--rows has no effect without --url"),
        ("--served_model_name a", "--served_model_name has no effect without --url"),
        ("--image_size 8", "--image_size has no effect without --url"),
        ("--row 3", "--row is not a flag: did you mean --rows"),
        ("--image_sizee 3 --url http://a --data_path b", "--image_sizee is not a flag: did you mean --image_size"),
    ],
)
def test_flags_about_a_server_need_one(words, named):
    with pytest.raises(ValueError, match=named):
        check_serving.parse(["--model_path", "a", *words.split()])
