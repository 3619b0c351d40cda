"""What each engine is told, and what it is refused, before anything is loaded."""

import json
import re

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from conftest import CONSENT, FAMILIES, MODEL_ID, REPO, make_loader, rows_for, run
from launch import Launch, launch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from arguments import parse_arguments
from training import engines

FSDP = ["--fsdp", "True", "--fsdp_config", "fsdp_configs/fsdp2.json"]


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """`parse(words, on=...)`: arguments as a launched process sees them, on CPUs or as if on accelerators."""

    def get(words: list[str], on: DistributedType | None = None):
        required = ["--model_id", "qwen2-vl-2b-instruct", "--data_path", "rows.json", "--output_dir", str(tmp_path)]
        if on:
            AcceleratorState._reset_state(reset_partial_state=True)
            PartialState(cpu=True)
            PartialState._shared_state["distributed_type"] = on
            required += ["--accelerator_config", '{"use_configured_state": true}']
        return parse_arguments([*required, "--use_cpu", "True", *words])

    monkeypatch.chdir(REPO)
    monkeypatch.setenv("RANK", "0")
    yield get
    unset_hf_deepspeed_config()
    AcceleratorState._reset_state(reset_partial_state=True)


def fsdp_config(tmp_path, **changes) -> list[str]:
    path = tmp_path / "fsdp.json"
    path.write_text(json.dumps(changes))
    return ["--fsdp", "True", "--fsdp_config", str(path)]


LORA = ["--use_lora", "True"]
ZERO3 = ["--deepspeed", "ds_configs/zero3.json"]
REFUSED_ON_CPUS = [
    (FSDP, "--fsdp True needs GPUs: on CPUs accelerate 1.15 would silently run DDP.*ds_configs/zero3.json"),
    (FSDP[2:], "--fsdp_config has no effect without --fsdp True"),
    ([*ZERO3, *LORA, "--load_in_8bit", "True"], "--load_in_8bit True.*full 8-bit.*ZeRO-3.*zero2.json, or --q_lora"),
    ([*ZERO3, "--save_on_each_node", "True"], "--save_on_each_node True: ZeRO-3 gathers"),
    ([*ZERO3, "--fsdp", "True"], "--fsdp True and --deepspeed .* only one engine"),
]


@pytest.mark.parametrize("words, message", REFUSED_ON_CPUS, ids=[" ".join(words) for words, _ in REFUSED_ON_CPUS])
def test_what_an_engine_cannot_do_is_refused_with_the_reason_and_the_cure(parse, words, message):
    with pytest.raises(ValueError, match=message):
        engines.check(parse(words))


REFUSED_BY_FSDP = [
    ([*LORA, "--load_in_8bit", "True"], {}, "--load_in_8bit True.*FSDP2.*--q_lora True"),
    (["--save_on_each_node", "True"], {}, "--save_on_each_node True: FSDP2 gathers"),
    ([], {"version": 1}, "only version 2"),
    ([], {"sync_module_states": True}, "sync_module_states has no effect; use only activation_"),
    ([], {"fsdp_forward_prefetch": True}, "forward_prefetch has no effect"),
    ([], {"activation_checkpointing": True}, "empty adapters.*--activation_checkpointing True"),
    ([], {"cpu_offload": True}, "cpu_offload.*--ddp_backend cuda:nccl,cpu:gloo"),
    ([], {"replicate_across_nodes": True}, "replicate_across_nodes has no effect on one node"),
]


@pytest.mark.parametrize("words, config, message", REFUSED_BY_FSDP, ids=[m[:30] for *_, m in REFUSED_BY_FSDP])
def test_what_fsdp_cannot_do_is_refused(parse, tmp_path, words, config, message):
    with pytest.raises(ValueError, match=message):
        engines.check(parse([*fsdp_config(tmp_path, **config), *words], on=DistributedType.MULTI_GPU))


@pytest.mark.parametrize("key", ["optimizer", "scheduler"])
def test_a_deepspeed_file_may_not_override_the_flags(parse, tmp_path, key):
    config = json.loads((REPO / "ds_configs" / "zero2.json").read_text()) | {key: {"type": "AdamW", "params": {}}}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"--deepspeed: '{key}' in the file would override flags"):
        engines.check(parse(["--deepspeed", str(path)]))


@pytest.mark.parametrize("words", [ZERO3, []])
def test_an_engine_needs_a_launcher(parse, words, monkeypatch):
    monkeypatch.delenv("RANK")
    arguments = parse(words)
    if words:
        with pytest.raises(ValueError, match="--deepspeed needs a launcher.* torchrun"):
            engines.check(arguments)
    else:
        engines.check(arguments)


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero2_offload", "zero3_offload"])
@pytest.mark.parametrize("words", [[], LORA, [*LORA, "--q_lora", "True"]], ids=["full", "lora", "q_lora"])
def test_what_deepspeed_can_do_is_not_refused(parse, name, words):
    arguments = parse(["--deepspeed", f"ds_configs/{name}.json", *words])
    engines.check(arguments)
    zero = arguments.training.hf_deepspeed_config.config["zero_optimization"]
    assert zero["stage"] == int(name[4]) and zero["overlap_comm"]
    assert ("offload_optimizer" in zero, "offload_param" in zero) == ("offload" in name, name == "zero3_offload")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_values_that_reach_fsdp(parse, tiny, dtype):
    training = parse(FSDP, on=DistributedType.MULTI_GPU).training
    engines.set_up_fsdp(training, make_loader("llava-1.5", tiny("llava-1.5")).load_model(), dtype)
    plugin = FullyShardedDataParallelPlugin(**training.fsdp_plugin_args)
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True and plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing and plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.transformer_cls_names_to_wrap == ["CLIPEncoderLayer", "CLIPVisionEmbeddings", "LlamaDecoderLayer"]
    policy = plugin.mixed_precision_policy
    if dtype == torch.float32:
        assert policy is None
    else:
        assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
def test_fsdp_gathers_the_language_model_layer_by_layer(parse, tiny, family):
    """Every list of layers that holds attention and MLP consists of units of FSDP."""
    training = parse([*FSDP, "--model_id", MODEL_ID[family], "--model_local_path", "x", *CONSENT[family]]).training
    loader = make_loader(family, tiny(family))
    model = loader.load_model()
    engines.set_up_fsdp(training, model, torch.float32)
    named = set(training.fsdp_plugin_args["transformer_cls_names_to_wrap"])
    lists = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    layers = [
        type(layer).__name__
        for name, module in lists.items()
        if loader.component_of(name) == "language_model" and re.search(r"(layers|\.h)$", name)
        for layer in module
    ]
    assert len(layers) >= 2 and named.issuperset(layers)


@pytest.mark.parametrize(
    "engine, device_map, storage", [(ZERO3, False, "uint8"), ([], True, "uint8"), (FSDP, True, "float32")]
)
def test_where_and_how_quantized_weights_are_kept(parse, engine, device_map, storage):
    from transformers import BitsAndBytesConfig

    arguments = parse([*engine, *LORA, "--q_lora", "True"])
    kwargs = engines.quantized(arguments, BitsAndBytesConfig(load_in_4bit=True), torch.float32)
    assert ("device_map" in kwargs) == device_map
    assert kwargs["quantization_config"].bnb_4bit_quant_storage == getattr(torch, storage)


def test_an_evaluation_between_steps_changes_nothing_of_a_quantized_run(tiny, write_rows, tmp_path):
    path = write_rows(rows_for("llava-1.5")[:2])
    flags = [*LORA, "--q_lora", "True", "--lora_dropout", "0", "--use_cpu", "True"]
    evaluated = [*flags, "--eval_data_path", path, "--eval_strategy", "steps", "--eval_steps", 1]
    without = run(tiny, "llava-1.5", path, tmp_path / "a", *flags)
    found = run(tiny, "llava-1.5", path, tmp_path / "b", *evaluated)
    assert [step["loss"] for step in found] == pytest.approx([step["loss"] for step in without], abs=1e-5)


@pytest.mark.slow
def test_processes_that_would_each_train_a_copy_are_refused(tiny, write_rows, tmp_path):
    words = ["--model_id", "llava-1.5-7b", "--model_local_path", tiny("llava-1.5"), "--output_dir", tmp_path / "out"]
    words += ["--data_path", write_rows(rows_for("llava-1.5")), "--max_steps", 1]
    started = Launch(words, 2)
    assert started.wait() == [1, 1] and not (tmp_path / "out").exists()
    assert "Error: Each of 2 processes on CPUs would train a separate copy: add --use_cpu True." in started.output
    launch([*words, "--use_cpu", True], 2)
