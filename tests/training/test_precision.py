"""What saves time or memory leaves loss and gradients as they are."""

import json
import sys
from types import ModuleType

import pytest
import torch
from conftest import CONSENT, FACTS, FAMILIES, KINDS, MODEL_ID, VISION_FLAGS, make_loader, rows_for, run
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed

import train
from arguments import parse_arguments
from loaders import LOADERS
from loaders.output_folder import ProcessorFiles
from reading.dataset import EncodedDataset, make_dataset
from training import trainable
from training.checks import ATTENTION, KERNEL
from training.make_collator import make_collator
from training.trainer import FinetuneTrainer

MODES = {
    "full": VISION_FLAGS,
    "projector": ["--use_lora", "True", "--lora_dropout", "0", *VISION_FLAGS[2:]],
    "vision LoRA": ["--use_lora", "True", "--lora_dropout", "0", *VISION_FLAGS[:2], "--use_vision_lora", "True"],
    "LoRA": ["--use_lora", "True", "--lora_dropout", "0"],  # all embeddings are frozen
}


def modes_of(family: str) -> list[str]:
    return [mode for mode in MODES if mode != "vision LoRA" or FACTS[family].vision_linears]


class Step(TrainerCallback):
    """Loss, gradients by parameter name, and the number of calls of linear layers, of one step of training."""

    def __init__(self, tiny, family: str, path: str, output_dir, *flags):
        words = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", path]
        words += ["--max_steps", "1", "--per_device_train_batch_size", "8", "--num_frames", "4", "--use_cpu", "True"]
        words += ["--max_grad_norm", "0", "--save_strategy", "no", "--disable_tqdm", "True", "--logging_steps", "1"]
        words += ["--train_sampling_strategy", "sequential", "--model_max_length", "2048"]
        arguments = parse_arguments([*words, "--output_dir", str(output_dir), *CONSENT[family], *flags])
        model = arguments.model
        loader = LOADERS.get(family)(model.model_path, model.trust_remote_code, **train.model_kwargs(arguments))
        set_seed(0)
        model = trainable.make_trainable(loader.load_model(), loader, arguments)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # starts at zero, which would hide the gradients of lora_A
                torch.nn.init.normal_(parameter, std=0.1)
        self.calls = 0
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(self.count)
        collator = make_collator(family, loader, arguments.data)
        dataset = EncodedDataset(make_dataset(arguments.data, "data_path", path), collator)
        trainer = FinetuneTrainer(
            model=model,
            args=arguments.training,
            data_collator=collator.collate,
            train_dataset=dataset,
            processor_files=ProcessorFiles(loader.model_path),
            callbacks=[self],
        )
        self.loss = trainer.train().training_loss

    def count(self, *_):
        self.calls += 1

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def check(self, other: "Step", family: str) -> None:
        tolerance = 10 * FACTS[family].rounding
        assert other.loss == pytest.approx(self.loss, abs=tolerance)
        assert other.gradients.keys() == self.gradients.keys()
        for name, gradient in self.gradients.items():
            atol = tolerance * max(1, gradient.abs().max().item())
            torch.testing.assert_close(other.gradients[name], gradient, atol=atol, rtol=0)


def marks_of(family: str, mode: str) -> list:
    """One is quick of one family, and one is slow of one of each kind."""
    if family == "llava-1.5":
        return [] if mode == "full" else [pytest.mark.slow]
    return [pytest.mark.slow, *([] if family in KINDS and mode == "full" else [pytest.mark.cross])]


COMBINATIONS = [(family, mode) for family in FAMILIES for mode in modes_of(family)]


@pytest.mark.parametrize(
    "family, mode", [pytest.param(*pair, id="-".join(pair), marks=marks_of(*pair)) for pair in COMBINATIONS]
)
def test_no_gradient_depends_on_checkpointing_or_attention(tiny, family, mode, write_rows, tmp_path):
    path = write_rows(rows_for(family))
    plain = Step(tiny, family, path, tmp_path, *MODES[mode])
    again = Step(tiny, family, path, tmp_path, *MODES[mode], "--activation_checkpointing", "True")
    plain.check(again, family)
    assert again.calls > plain.calls  # some were made a second time
    if mode == "full":
        plain.check(Step(tiny, family, path, tmp_path, *MODES[mode], "--attn_implementation", "eager"), family)


def test_an_attention_that_a_class_does_not_have_is_refused_before_the_weights(tiny, tmp_path, capfd):
    for family, attention in [("qwen2.5-vl", "flex_attention"), ("llama-3.2-vision", "flash_attention_2")]:
        loader = make_loader(family, tiny(family), attn_implementation=attention)
        capfd.readouterr()
        with pytest.raises(ValueError, match=f"cannot be loaded with attention {attention}: .* does not support"):
            loader.load_model()
        assert "Loading weights" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.cross  # over a minute
def test_a_compiled_model_is_the_same(tiny, write_rows, tmp_path):
    """Adapters and a whole projector, batches of different shapes, evaluation, and the names of what is saved."""
    family = "llava-1.5"
    path = write_rows(rows_for(family))
    flags = [*MODES["projector"], "--eval_data_path", path, "--use_cpu", True, "--max_steps", 3]
    plain = run(tiny, family, path, tmp_path / "plain", *flags)
    compiled = run(tiny, family, path, tmp_path / "compiled", *flags, "--torch_compile", True)
    for key in ("loss", "grad_norm"):
        assert [e[key] for e in compiled] == pytest.approx([e[key] for e in plain], rel=1e-4)
    results = [json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("plain", "compiled")]
    assert results[1]["eval_loss"] == pytest.approx(results[0]["eval_loss"], abs=1e-4)
    saved = [load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("plain", "compiled")]
    assert saved[0].keys() == saved[1].keys()


# ---- what only a GPU can do: the calls that the library would get ----


@pytest.fixture
def gpu_packages(monkeypatch):
    """As on a machine with a GPU, FlashAttention and Liger; returns what Liger is called with."""
    calls = []
    liger = ModuleType("liger_kernel.transformers")
    liger._apply_liger_kernel_to_instance = lambda model, **kwargs: calls.append((type(model).__name__, kwargs))
    table = ModuleType("liger_kernel.transformers.monkey_patch")
    table.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llava": None}
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, liger.__name__, liger)
    monkeypatch.setitem(sys.modules, table.__name__, table)
    for module in ("training.checks", "transformers.integrations.liger"):
        monkeypatch.setattr(f"{module}.is_liger_kernel_available", lambda: True)
    monkeypatch.setattr("training.checks.LIGER_DEVICES", {"cpu"})
    for name in ("flash_attention_2", "flash_attention_3", "flash_attention_4", KERNEL):
        monkeypatch.setitem(ATTENTION, name, (lambda _: True, ""))
    return calls


@pytest.mark.parametrize("lora", [False, True])
def test_liger_is_given_all_but_its_losses(tiny, gpu_packages, lora, write_rows, tmp_path):
    path = write_rows(rows_for("llava-1.5"))
    run(tiny, "llava-1.5", path, tmp_path / "out", "--use_liger_kernel", True, "--use_lora", lora, "--max_steps", 1)
    no_losses = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert gpu_packages == [("LlavaForConditionalGeneration", no_losses)]


def test_liger_is_refused_for_a_model_that_it_does_not_know(tiny, gpu_packages, write_rows, tmp_path):
    with pytest.raises(ValueError, match="--use_liger_kernel: Liger has no kernels for qwen2_vl"):
        path = write_rows(rows_for("qwen2-vl"))
        run(tiny, "qwen2-vl", path, tmp_path / "out", "--use_liger_kernel", True)


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--use_flash_attn", "True"], "flash_attention_2"),
        (["--attn_implementation", "flash_attention_3"], "flash_attention_3"),
        (["--attn_implementation", "flash_attention_4"], "flash_attention_4"),
        (["--attn_implementation", "kernels-community/flash-attn2"], "kernels-community/flash-attn2"),
    ],
)
def test_from_pretrained_is_told_the_attention(tiny, gpu_packages, flags, expected, write_rows, tmp_path, monkeypatch):
    told = []

    def from_pretrained(path, **kwargs):
        told.append((path, kwargs))
        raise OSError("that is all")

    monkeypatch.setattr("loaders.base.AutoModelForImageTextToText.from_pretrained", from_pretrained)
    monkeypatch.setattr("loaders.base.BaseLoader.check_kernel", lambda loader: None)  # which would load it
    with pytest.raises(ValueError, match="that is all"):
        path = write_rows(rows_for("qwen2.5-vl"))
        run(tiny, "qwen2.5-vl", path, tmp_path / "out", *flags, "--bf16", True, "--use_cpu", True)
    ((path, options),) = told
    assert path == tiny("qwen2.5-vl")
    assert options.items() >= {"dtype": "auto", "attn_implementation": expected}.items()
