"""What a run with `--model_id auto` learns of its model: whether samples stay apart, what gets no gradient."""

from types import SimpleNamespace

import pytest
import torch
from conftest import AUTO, make_loader, run, turns

from collators import COLLATORS
from training import auto_checks


def prepared(tiny, family: str, **data):
    """(model, loader, collator, arguments) of a run that reads the tiny checkpoint of a family as `auto`."""
    loader = make_loader(AUTO, tiny(family), attn_implementation="sdpa")
    processor = loader.load_processor()
    collator = COLLATORS.get(AUTO)(processor, stop_tokens=loader.stop_tokens(processor.tokenizer))
    collator.make_padding_free(loader)
    flags = SimpleNamespace(**({"padding_free": None, "packing": False} | data))
    training = SimpleNamespace(deepspeed=None, fsdp=False, device=torch.device("cpu"))
    lora = SimpleNamespace(load_in_8bit=False)
    return loader.load_model(), loader, collator, SimpleNamespace(data=flags, training=training, lora=lora)


@pytest.mark.parametrize(
    "family, reason",
    [
        (AUTO, None),
        ("qwen2.5-vl", None),  # positions of time, height and width
        ("qwen3.5", "affect each other"),  # linear attention carries what it has read
        ("gemma-3", "affect each other"),  # the library has no masks of media in one row
    ],
)
def test_samples_are_concatenated_where_the_model_keeps_them_apart(tiny, family, reason):
    model, loader, collator, arguments = prepared(tiny, family)
    said = auto_checks.check_batches(model, loader, collator, arguments)
    assert collator.is_padding_free is (reason is None)
    assert said == "" if reason is None else f"padded, because concatenated samples {reason}" in said
    assert model.get_decoder().config._attn_implementation == ("sdpa_by_sample" if reason is None else "sdpa")


def test_packing_of_a_model_that_mixes_samples_is_refused(tiny):
    for flag in ("padding_free", "packing"):
        with pytest.raises(ValueError, match=f"--{flag} True cannot be used with .*: concatenated samples affect"):
            auto_checks.check_batches(*prepared(tiny, "qwen3.5", **{flag: True}))


def test_a_model_whose_padded_batches_are_wrong_is_refused(tiny):
    model, *others = prepared(tiny, AUTO)

    def of_the_batch(module, inputs, output):
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(0, keepdim=True)
        return output

    model.get_decoder().register_forward_hook(of_the_batch)
    with pytest.raises(ValueError, match="other losses in a padded batch: they differ by"):
        auto_checks.check_batches(model, *others)


def test_a_model_that_sees_what_follows_is_refused(tiny):
    """Such as one that writes a whole text at once: its losses would not be those of a next token."""
    model, *others = prepared(tiny, AUTO)

    def of_the_row(module, inputs, output):
        states = output.last_hidden_state
        output.last_hidden_state = torch.cat([states[:, :-1] + states[:, -1:], states[:, -1:]], dim=1)
        return output

    model.get_decoder().register_forward_hook(of_the_row)
    with pytest.raises(ValueError, match="other losses with a different last token: they differ by"):
        auto_checks.check_batches(model, *others)


def test_logits_of_other_tokens_than_the_rows_are_refused(tiny):
    """Diffusion Gemma gives those of the 256 that it would write next."""
    model, *others = prepared(tiny, AUTO)

    def of_a_canvas(module, inputs, output):
        output.logits = output.logits[:, :1].expand(-1, 256, -1)
        return output

    model.register_forward_hook(of_a_canvas)
    with pytest.raises(ValueError, match=r"fails on a test .*: it returns 256 logits for \d+ tokens\. Add"):
        auto_checks.check_batches(model, *others)


def test_a_model_that_refuses_its_processors_tensors_is_named(tiny):
    model, *others = prepared(tiny, AUTO)
    model.register_forward_pre_hook(lambda *args: {}["pixels"])
    with pytest.raises(ValueError, match="Cohere2Vision.* fails on a test conversation .*: 'pixels'"):
        auto_checks.check_batches(model, *others)


def test_ddp_looks_for_what_the_examples_leave_without_a_gradient(tiny):
    model, _, collator, _ = prepared(tiny, AUTO)
    flags = {"world_size": 2, "deepspeed": None, "fsdp": False, "bf16": False, "fp16": False}
    training = SimpleNamespace(**flags, ddp_find_unused_parameters=None)
    model.requires_grad_(True)
    assert auto_checks.allow_unreached(model, collator, training) == ""
    assert training.ddp_find_unused_parameters is None
    assert all(parameter.grad is None for parameter in model.parameters())

    model.model.vision_tower.register_module("beside", torch.nn.Linear(2, 2))
    assert "Test conversations give model.vision_tower.beside no gradient" in auto_checks.allow_unreached(
        model, collator, training
    )
    assert training.ddp_find_unused_parameters is True
    training = SimpleNamespace(**flags | {"world_size": 1}, ddp_find_unused_parameters=None)
    assert auto_checks.allow_unreached(model, collator, training) == ""


def test_a_run_packs_with_auto(tiny, write_rows, tmp_path, capsys):
    path = write_rows([{"conversations": turns("Count.", "1 2 3 " * n)} for n in (1, 4, 2, 3)])
    words = ["--use_lora", True, "--lora_dropout", 0, "--per_device_train_batch_size", 4]
    losses = [
        run(tiny, AUTO, path, tmp_path / name, *words, *flags)
        for name, flags in {"apart": ("--padding_free", False), "together": ()}.items()
    ]
    assert [step["loss"] for step in losses[1]] == pytest.approx([step["loss"] for step in losses[0]], abs=1e-4)
    run(tiny, AUTO, path, tmp_path / "packed", "--use_lora", True, "--packing", True)
    assert "padded" not in capsys.readouterr().out
