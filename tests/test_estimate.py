"""`estimate.py`: its bytes against the tensors of real runs, what it takes and refuses, and a whole run (slow)."""

import importlib.util
import json

import pytest
import torch
from conftest import CONSENT, FAMILIES, MODEL_ID, REPO, crossed, turns
from torch import nn
from transformers import Trainer

import estimate
from arguments import parse_arguments
from training import trainable
from training.step_memory import QuantizedLinear

ROWS = [{"image": "red.png", "conversations": turns("<image>\nWhat is it?", "A red square on red paper")}] * 2


@pytest.fixture
def forecast(tiny, capsys):
    """`forecast(family, *words)`: the object that --json prints."""

    def run(family: str, *words: str) -> dict:
        flags = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), *CONSENT[family]]
        capsys.readouterr()  # what making the checkpoint printed
        estimate.main([*flags, "--json", *words])
        return json.loads(capsys.readouterr().out)

    return run


def bytes_of(tensors) -> int:
    """Of tensors, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize(
    ("family", "flags"),
    [
        pytest.param("llava-1.5", [], marks=pytest.mark.slow),
        ("qwen2.5-vl", ["--use_lora", "True", "--train_vision_projector", "True"]),
        pytest.param("gemma-3", ["--optim", "adafactor"], marks=pytest.mark.slow),
        pytest.param("llava-1.5", ["--optim", "sgd"], marks=pytest.mark.slow),
        pytest.param("llava-1.5", ["--optim", "adamw_8bit"], marks=pytest.mark.slow),
    ],
)
def test_bytes_are_those_of_a_real_step(family, flags, tiny, write_rows, forecast):
    words = ["--data_path", write_rows(ROWS), "--per_device_train_batch_size", "2", *flags]
    words += ["--gradient_accumulation_steps", "2"]  # so that all gradients are there at the peak
    found = forecast(family, *words)

    arguments = parse_arguments(["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), *words])
    loader = estimate.make_loader(arguments)
    model = trainable.make_trainable(loader.load_model(), loader, arguments)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments.training)
    optimizer = optimizer_class(trained, **kwargs)
    batch, _ = estimate.make_batch(arguments, loader)
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch, use_cache=False).loss
    loss.backward()
    optimizer.step()
    weights = [*model.parameters(), *model.buffers()]
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert found["weights"] == bytes_of(weights)
    assert found["gradients"] == bytes_of(parameter.grad for parameter in trained)
    assert found["optimizer"] == pytest.approx(bytes_of(states), abs=4096)
    # What autograd saves has to be there; what comes and goes besides is no more than half of that.
    kept = sum(size for place, size in saved.items() if place not in {t.untyped_storage().data_ptr() for t in weights})
    assert 0.5 * kept < found["activations"] + found["logits"] < 1.5 * kept


def test_a_quantized_layer_has_the_bytes_of_bitsandbytes():
    import bitsandbytes

    linear = nn.Linear(1000, 700, bias=False)
    packed, state = bitsandbytes.functional.quantize_4bit(
        linear.weight.data, compress_statistics=True, quant_type="nf4"
    )
    real = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert QuantizedLinear(linear, 4).weight.nbytes == real
    rows, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(linear.weight.data.half())
    assert QuantizedLinear(linear, 8).weight.nbytes == rows.nbytes + scales.nbytes


@pytest.mark.parametrize(
    "flags",
    [
        ["--bf16", "True", "--use_flash_attn", "True", "--deepspeed", str(REPO / "ds_configs/zero3.json")],
        pytest.param(
            ["--fsdp", "True", "--fsdp_config", str(REPO / "fsdp_configs/fsdp2.json")], marks=pytest.mark.slow
        ),
        pytest.param(["--fp16", "True", "--optim", "paged_adamw_8bit"], marks=pytest.mark.slow),
    ],
)
def test_no_gpu_is_needed(flags, forecast):
    assert forecast("llava-1.5", "--model_max_length", "128", "--num_devices", "4", *flags)["total"] > 0


@pytest.mark.slow
def test_engines_leave_shares(forecast):
    """Of a full run in float32: AdamW has two numbers for each parameter, DeepSpeed a copy of each besides."""
    words = ["--model_max_length", "64", "--gradient_accumulation_steps", "2"]
    alone = forecast("llava-1.5", *words)
    trained = alone["gradients"]
    ddp = forecast("llava-1.5", *words, "--num_devices", "4")
    assert ddp["gradients"] == 2 * trained  # with the buckets
    assert ddp["optimizer"] == alone["optimizer"]
    zero2 = forecast("llava-1.5", *words, "--num_devices", "4", "--deepspeed", str(REPO / "ds_configs/zero2.json"))
    assert zero2["weights"] == alone["weights"]
    assert zero2["optimizer"] == pytest.approx(3 * trained / 4, rel=0.01)
    offload = str(REPO / "ds_configs/zero3_offload.json")
    assert forecast("llava-1.5", *words, "--num_devices", "4", "--deepspeed", offload)["optimizer"] == 0


@pytest.mark.slow
def test_checkpointing_and_fewer_labels_save(forecast, write_rows):
    rows = [{"conversations": turns("red " * 200, answer)} for answer in ("red", "red " * 200)]
    few, many = (["--data_path", write_rows([row])] for row in rows)
    plain = forecast("qwen2.5-vl", *many)
    assert forecast("qwen2.5-vl", *many, "--activation_checkpointing", "True")["activations"] < plain["activations"]
    assert forecast("qwen2.5-vl", *few)["logits"] < plain["logits"] / 10


def test_the_longest_rows_are_taken(forecast, write_rows):
    rows = [{"conversations": turns("Hi", "red " * words)} for words in (1, 90, 40, 80, 2)]
    found = forecast("llava-1.5", "--data_path", write_rows(rows), "--per_device_train_batch_size", "2")
    assert found["samples"] == 2 and 170 <= found["labels"] < found["tokens"] <= 240


def test_what_does_not_fit_is_said_without_colours(tiny, capsys):
    words = ["--model_id", MODEL_ID["llava-1.5"], "--model_local_path", tiny("llava-1.5"), "--model_max_length", "64"]
    capsys.readouterr()
    estimate.main([*words, "--gpu_memory", "0.0001", "--use_lora", "True"])
    text = capsys.readouterr().out
    assert "does not fit into 0.0001 GB" in text and "\x1b" not in text
    assert "docs/memory.md#will-it-fit-estimatepy" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpu_memory", "0"], "--gpu_memory"),
        (["--num_devices", "-1"], "--num_devices"),
        (["--optim", "adam"], "--optim: invalid choice: 'adam'"),
        (["--optim", "galore_adamw"], "--optim galore_adamw"),
        (["--bf16", "maybe"], "bf16"),
        (["--bf16", "True", "--fp16", "True"], "--fp16"),
        (["--use_flash_attn", "True"], "--bf16 True"),
        (["--deepspeed", "none.json"], "--deepspeed none.json"),
        (["--learning_rat", "1"], "--learning_rate"),
    ],
)
def test_bad_flags(flags, message):
    with pytest.raises(ValueError, match=message):
        estimate.parse(["--model_id", "llava-1.5-7b", *flags])


ONE_OF_EACH_VISION = [("qwen2.5-vl",), ("llama-3.2-vision",), ("phi3-v",)]


@pytest.mark.slow
@pytest.mark.parametrize("family", crossed(((family,) for family in FAMILIES), ONE_OF_EACH_VISION))
def test_every_family(family, forecast):
    flags = ["--use_lora", "True", "--bf16", "True", "--train_vision_projector", "True", "--model_max_length", "2048"]
    if CONSENT[family]:
        with pytest.raises(ValueError, match="Python files"):
            forecast(family)
    else:
        assert forecast(family)["total"] > forecast(family, *flags)["weights"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full-gemma", pytest.param("lora", marks=pytest.mark.cross)])  # bfloat16 is slow
def test_a_real_run_of_two_gigabytes(name, monkeypatch, capsys):
    """The benchmark, on one run of its grid."""
    spec = importlib.util.spec_from_file_location("benchmark", REPO / "benchmarks" / "estimate.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    monkeypatch.setattr(benchmark, "GRID", {name: benchmark.GRID[name]})
    monkeypatch.setattr("sys.argv", ["estimate.py"])
    benchmark.main()
    found, forecast, steps, *_ = capsys.readouterr().out.splitlines()[-1].split()
    assert found == name and float(steps) >= 2
    assert float(forecast) == pytest.approx(float(steps), rel=0.2)
