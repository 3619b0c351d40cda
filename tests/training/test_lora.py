"""LoRA in full: target modules by name and regex, inits, DoRA, quantized bases, going on from an adapter."""

import json
import re
from functools import cache

import pytest
import torch
import yaml
from conftest import CROSSED, FACTS, KINDS, MODEL_ID, VISION_FLAGS, logs_of, make_loader, rows_for, run, slow, turns
from launch import here, launch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_trainable import in_language_model, load, trainable_names
from torch import nn

import predict
import train
from arguments import parse_arguments
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions
from training.adapters import old_names, shortened
from training.trainable import format_summary, summarize

CLASSIC = r"language_model.model.layers.[\d]+.(mlp|cross_attn|self_attn).(up|down|gate|q|k|v|o)_proj"
LORA = ["--use_lora", "True"]
VISION_LORA = [*LORA, "--train_vision_encoder", "True", "--use_vision_lora", "True"]


def adapted(model) -> set[str]:
    return {re.split(r"\.(?:base_layer\.)?lora_", name)[0][17:] for name in trainable_names(model) if ".lora_" in name}


@cache
def linears(tiny, family) -> set[str]:
    modules = make_loader(family, tiny(family)).load_model().named_modules()
    return {name for name, module in modules if isinstance(module, nn.Linear)}


# ---- target modules ----


@pytest.mark.few
@pytest.mark.parametrize("family", CROSSED)
def test_a_pattern_of_older_versions_means_the_projections_of_the_language_model(tiny, family):
    meant = re.compile(r".*\.layers\.\d+\.(mlp|cross_attn|self_attn)\.(up|down|gate|q|k|v|o)_proj")
    expected = {n for n in linears(tiny, family) if meant.fullmatch(n) and in_language_model(family, n)}
    if not expected:  # qwen-vl, whose layers have names of their own
        with pytest.raises(ValueError, match="matches no module"):
            load(tiny, family, *LORA, "--lora_target_modules", CLASSIC)
        return
    model, loader, arguments = load(tiny, family, *LORA, "--lora_target_modules", CLASSIC)
    assert adapted(model) == expected
    assert f"adapters: {len(expected)} Linear" in format_summary(summarize(model, loader, arguments))


@pytest.mark.few
@pytest.mark.parametrize("family", CROSSED)
def test_old_names_are_those_in_the_checkpoints_of_the_hub(tiny, family):
    """Checkpoints keep the module names of the version that they were made with; the tiny ones have the Hub's."""
    keys = load_file(f"{tiny(family)}/model.safetensors").keys()
    loader = make_loader(family, tiny(family))
    for name in linears(tiny, family):
        if "layers." in name and loader.component_of(name) == "language_model":
            assert any(f"{old}.weight" in keys for old in (name, *old_names(name, loader))), name


@pytest.mark.parametrize(
    "words, meant",
    [
        (["q_proj", "v_proj"], r"model\.language_model\.layers\.\d\.self_attn\.[qv]_proj"),
        (["mlp.up_proj"], r"model\.language_model\.layers\.\d\.mlp\.up_proj"),
        (["model.layers.1.mlp.up_proj"], r"model\.language_model\.layers\.1\.mlp\.up_proj"),
        (["q_proj", r".*\.layers\.0\.mlp\..*"], r"model\.language_model\.layers\.(\d\.self_attn\.q_proj|0\.mlp\..*)"),
        ([r"^(?!.*visual).*(q_proj|up_proj)$"], r"model\.language_model\..*(q_proj|up_proj)"),
        ([r".*"], r"model\.language_model\..*"),
    ],
    ids=str,
)
def test_names_ends_of_names_and_patterns_reach_the_components_with_adapters(tiny, words, meant):
    model, _, _ = load(tiny, "qwen2-vl", *LORA, "--lora_target_modules", *words)
    expected = {name for name in linears(tiny, "qwen2-vl") if re.fullmatch(meant, name)}
    assert expected and adapted(model) == expected


def test_a_pattern_reaches_the_vision_encoder_where_it_has_adapters(tiny):
    model, _, _ = load(tiny, "qwen2-vl", *VISION_LORA, "--lora_target_modules", "up_proj", r"visual\.blocks\.0\..*")
    names = linears(tiny, "qwen2-vl")
    expected = {n for n in names if re.fullmatch(r"model\.visual\.blocks\.0\..*|model\.language_model\..*up_proj", n)}
    assert adapted(model) == expected
    with pytest.raises(ValueError, match="The vision_encoder should train .lora., but none of its parameters"):
        load(tiny, "qwen2-vl", *VISION_LORA, "--lora_target_modules", "up_proj")


def test_the_head_has_an_adapter_where_it_is_named_and_not_tied(tiny):
    model, _, _ = load(tiny, "llava-1.5", *LORA, "--lora_target_modules", "lm_head", "q_proj")
    assert "lm_head" in adapted(model)
    with pytest.raises(ValueError, match="matches only modules that get no adapter:\n  1 tied to the embeddings"):
        load(tiny, "qwen2-vl", *LORA, "--lora_target_modules", "lm_head", "q_proj")


def test_a_pattern_names_what_it_matches_without_an_adapter(tiny, capsys):
    load(tiny, "llava-1.5", *LORA, "--lora_target_modules", "q_proj", r".*linear_1|.*\.0\.mlp\.up_proj", "v_proj")
    said = [line for line in capsys.readouterr().out.splitlines() if "adapter" in line]
    head = "--lora_target_modules {!r} also matches modules that get no adapter:"
    frozen = ", which has no adapters (it is frozen"
    assert said[0] == head.format("q_proj") and said[1].startswith(f"  2 of the vision_encoder{frozen}; add --train_v")
    assert said[2] == head.format(r".*linear_1|.*\.0\.mlp\.up_proj")
    assert said[3] == f"  1 of the vision_projector{frozen}): model.multi_modal_projector.linear_1"


@pytest.mark.parametrize(
    "family, pattern, named",
    [
        (
            "llava-1.5",
            "q_prj",
            "'q_prj' matches no module.\nLinear layers that can have an adapter: "
            "model.language_model.layers.{0..1}.{self_attn.q_proj, .*, lm_head",
        ),
        (
            "llava-1.5",
            r"vision_tower\..*",
            "12 of the vision_encoder.*add --train_vision_encoder True --use_vision_lora",
        ),
        ("llava-1.5", "linear_1", "1 of the vision_projector, which has no adapters .it is frozen.: .*linear_1"),
        ("llava-1.5", "embed_tokens", "1 not linear layers: model.language_model.embed_tokens"),
        ("llama4", "router", "of a mixture of experts: see --lora_experts and --lora_router"),
        ("llava-1.5", "(", "'.' is not a regular expression"),
    ],
)
def test_a_pattern_without_a_target_is_refused_with_what_is_near(tiny, family, pattern, named):
    with pytest.raises(ValueError, match=f"(?s)--lora_target_modules .*{named}"):
        load(tiny, family, *LORA, "--lora_target_modules", "v_proj", pattern)


def test_targets_in_short():
    names = [f"a.layers.{i}.{end}" for i in (0, 1, 2, 4) for end in ("mlp.up", "mlp.down")] + ["a.layers.7.q", "head"]
    assert shortened(names) == "a.layers.{0..2, 4}.{mlp.up, mlp.down}, a.layers.7.q, head"


# ---- refused flags ----

REFUSED = [
    ("--lora_init loftq", "--lora_init.*'loftq'.*default.*gaussian"),
    ("--lora_init orthogonal --lora_r 5", "--lora_init orthogonal needs an even rank, but --lora_r is 5"),
    ("--lora_init pissa --q_lora True", "--lora_init pissa .* --q_lora True"),
    ("--lora_init olora --load_in_8bit True", "--lora_init olora .* --load_in_8bit True"),
    ("--lora_init orthogonal --lora_experts True --lora_dropout 0", "--lora_init orthogonal .* --lora_experts True"),
    ("--use_dora True --load_in_8bit True", "--use_dora True .* --load_in_8bit True"),
    ("--use_dora True --lora_router True --lora_dropout 0", "--use_dora True .* --lora_router True"),
    ("--q_lora True --load_in_8bit True", "--q_lora True and --load_in_8bit True are mutually exclusive"),
    ("--use_lora False --load_in_8bit True", "--load_in_8bit has no effect without --use_lora True: add it"),
    ("--use_lora False --use_dora True", "--use_dora has no effect without --use_lora True or --use_vision_lora True"),
    ("--use_lora False --lora_target_modules q_proj", "--lora_target_modules has no effect without --use_lora True"),
    ("--lora_weight_path nowhere", "--lora_weight_path nowhere contains no adapter"),
    ("--vision_encoder_lr 1e-5", "--vision_encoder_lr has no effect without --train_vision_encoder True"),
    ("--vision_projector_lr 1e-5", "--vision_projector_lr has no effect without --train_vision_projector True"),
    ("--train_vision_projector True --vision_projector_lr -1", "--vision_projector_lr is -1.0; it must be 0 or more"),
]


@pytest.mark.parametrize("words, named", REFUSED, ids=[words for words, _ in REFUSED])
def test_flags_that_do_not_go_together_are_refused(words, named):
    with pytest.raises(ValueError, match=named):
        parse_arguments(["--model_id", "qwen2-vl-2b-instruct", "--data_path", "rows.json", *LORA, *words.split()])


# ---- inits, DoRA, quantized bases: trained, saved, loaded again ----


@pytest.fixture
def trained(tiny, write_rows, tmp_path, monkeypatch):
    """`trained(family, *flags)`: (the model of a run as it was at its end, its losses, its folder, its data)."""
    caught = {}
    make_trainable = train.trainable.make_trainable
    monkeypatch.setattr(
        train.trainable, "make_trainable", lambda *args: caught.setdefault("model", make_trainable(*args))
    )

    def get(family, *flags, out="out"):
        caught.clear()
        path = write_rows(rows_for(family))
        steps = run(tiny, family, path, tmp_path / out, "--learning_rate", 1e-2, "--max_steps", 4, *flags)
        return caught["model"], [step["loss"] for step in steps], str(tmp_path / out), path

    return get


def logits_of(model, collator, path) -> torch.Tensor:
    dataset = MultimodalDataset(path, media=MediaOptions(num_frames=4))
    batch = collator([dataset[i] for i in range(len(dataset))])
    batch.pop("labels")
    with torch.no_grad():
        return model.eval()(**batch).logits


def in_turn(*values):
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.cross])


INITS = ["--use_dora True", slow("--use_rslora True")]
INITS += [slow(f"--lora_init {i}") for i in ("gaussian", "orthogonal", "pissa", "olora")]


@pytest.mark.parametrize("words", INITS)
def test_a_plain_peft_model_on_the_base_answers_as_the_trained_one(tiny, trained, words):
    model, losses, folder, path = trained("llava-1.5", *VISION_LORA, *words.split())
    assert losses[-1] < losses[0] - 0.5
    loader = make_loader("llava-1.5", tiny("llava-1.5"))
    again = PeftModel.from_pretrained(loader.load_model(), folder)
    _, collator = predict.load(folder)
    expected = logits_of(model, collator, path)
    torch.testing.assert_close(logits_of(again, collator, path), expected, atol=1e-5, rtol=0)
    merged = again.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits_of(merged, collator, path), expected, atol=1e-4, rtol=0)
    untrained = logits_of(loader.load_model(), collator, path)
    assert (untrained - expected).abs().max() > 0.1


QUANTIZED = ["--q_lora True", "--load_in_8bit True"]
BESIDE = [("llava-1.5", "--q_lora True"), slow("llava-1.5", "--load_in_8bit True")]
BESIDE += [slow("llava-1.5", "--q_lora True --use_dora True")]
OTHERS = [family for family in KINDS if family != "llava-1.5"]
BESIDE += [slow(family, QUANTIZED[0]) for family in OTHERS] + [in_turn(family, QUANTIZED[1]) for family in OTHERS]


@pytest.mark.parametrize("family, words", BESIDE)
def test_vision_parts_train_beside_a_quantized_language_model(tiny, trained, family, words):
    flags = [*LORA, *words.split(), *VISION_FLAGS, "--lora_dropout", 0]
    if FACTS[family].vision_linears:
        flags += ["--use_vision_lora", True]
    model, losses, folder, path = trained(family, *flags)
    assert losses[-1] < losses[0] - 0.05 and all(torch.isfinite(p).all() for p in model.parameters() if p.requires_grad)
    again, collator = predict.load(folder, trust_remote_code=FACTS[family].remote_code)
    # Activations are rounded to int8 too: the last bit of one can move it a whole step.
    atol = 1e-2 if "8bit" in words else 1e-5
    torch.testing.assert_close(logits_of(again, collator, path), logits_of(model, collator, path), atol=atol, rtol=0)
    _, checkpointed, _, _ = trained(family, *flags, "--activation_checkpointing", True, out="checkpointed")
    assert checkpointed == pytest.approx(losses, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("words", [*QUANTIZED, "--q_lora True --use_dora True"])
def test_a_quantized_run_in_bfloat16(trained, words):
    flags = [*VISION_LORA, *words.split(), "--bf16", True, "--use_cpu", True, "--activation_checkpointing", True]
    _, losses, _, _ = trained("qwen2.5-vl", *flags)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("part", ["language_model", "vision_encoder"])
@pytest.mark.parametrize("quantize", [[], slow(["--q_lora", "True"]), slow(["--load_in_8bit", "True"])], ids=str)
def test_gradients_reach_every_adapter_under_checkpointing_and_after_evaluation(tiny, write_rows, part, quantize):
    """Where embeddings and all else below the first adapter are frozen."""
    family = "qwen2.5-vl"
    flags = VISION_LORA if part == "vision_encoder" else LORA
    words = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", "x.json"]
    arguments = parse_arguments([*words, *flags, *quantize, "--lora_dropout", "0"])
    loader = make_loader(family, tiny(family))
    train.quantize(arguments, loader)
    model = train.trainable.make_trainable(loader.load_model(), loader, arguments)
    path = write_rows(rows_for(family))
    collator = predict.COLLATORS.get(family)(loader.load_processor(), 2048)
    dataset = MultimodalDataset(path, media=MediaOptions(num_frames=4))
    batch = collator([dataset[i] for i in range(len(dataset))])

    def gradients():
        model.zero_grad()
        model.train()(**batch, use_cache=False).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    plain = gradients()
    assert all(g.any() for name, g in plain.items() if ".lora_B." in name)
    assert any(".visual." in name for name in plain) == (part == "vision_encoder")
    with torch.no_grad():
        model.eval()(**batch)
    torch.testing.assert_close(gradients(), plain, atol=1e-6, rtol=1e-4)
    model.base_model.model.activation_checkpointing_enable()
    torch.testing.assert_close(gradients(), plain, atol=1e-6, rtol=1e-4)


# ---- going on from an adapter ----


CONTINUED = [
    ("llava-1.5", ["--train_vision_projector", True], ["--lora_r", 4, "--lora_target_modules", "q_proj", "up_proj"]),
    slow("llava-1.5", ["--q_lora", True, *VISION_FLAGS, "--use_vision_lora", True], ["--use_dora", True]),
    in_turn("qwen2-vl", VISION_FLAGS, ["--lora_init", "pissa", "--use_rslora", True]),
    slow("qwen3-vl-moe", ["--load_in_8bit", True], ["--lora_experts", True, "--lora_router", True]),
    in_turn(
        "qwen2-vl", ["--bf16", True, "--use_cpu", True, "--train_vision_projector", True], ["--lora_bias", "lora_only"]
    ),
]


@pytest.mark.parametrize("family, parts, own", CONTINUED)
def test_an_adapter_goes_on_where_it_ended(tiny, trained, family, parts, own, tmp_path):
    model, _, folder, path = trained(family, *LORA, *parts, *own, "--lora_dropout", 0)
    _, collator = predict.load(folder)
    dataset = MultimodalDataset(path, media=MediaOptions(num_frames=4))
    batch = collator([dataset[i] for i in range(len(dataset))])
    # In training mode, as bitsandbytes multiplies 8-bit weights in two ways. Nothing drops out.
    with torch.autocast("cpu", torch.bfloat16, enabled="--bf16" in parts):
        expected = model.train()(**batch).loss.item()
    flags = [*LORA, *parts, "--lora_weight_path", folder, "--learning_rate", 1e-30, "--per_device_train_batch_size", 8]
    _, losses, out, _ = trained(family, *flags, "--max_steps", 1, out="again")
    assert losses == pytest.approx([expected], abs=1e-2 if "--bf16" in parts else 2e-5)
    before, after = (load_file(f"{run}/adapter_model.safetensors") for run in (folder, out))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    # the run file of the second run knows the adapter's own rank and kind
    train.main([f"{out}/args.yaml", "--output_dir", str(tmp_path / "third")])
    saved = yaml.safe_load((tmp_path / "third" / "args.yaml").read_text())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (saved["lora_r"], saved["use_dora"]) == (config["r"], config["use_dora"])


def test_what_contradicts_the_adapter_is_refused(tiny, write_rows, tmp_path):
    path, folder = write_rows([{"conversations": turns("Hello.", "Hi")}]), tmp_path / "adapter"
    run(tiny, "llava-1.5", path, folder, *LORA, "--lora_r", 4, "--max_steps", 1)

    def refused(named, *flags, family="llava-1.5"):
        with pytest.raises(ValueError, match=named):
            run(tiny, family, path, tmp_path / "out", *LORA, "--lora_weight_path", folder, *flags)

    refused("--lora_r 8 contradicts the adapter .4.: leave it out", "--lora_r", 8)
    refused("--use_dora True contradicts the adapter", "--use_dora", True)
    refused("--lora_target_modules is set by the adapter", "--lora_target_modules", "q_proj")
    refused("--lora_dropout 0.0 contradicts the adapter", "--lora_experts", True, "--lora_dropout", 0)
    refused("was trained on .*llava-1.5, not on .*qwen2-vl", family="qwen2-vl")
    with_image = write_rows(rows_for("llava-1.5"))
    for flag, held in (("--train_vision_projector", "full"), ("--train_vision_encoder", "full")):
        with pytest.raises(
            ValueError, match=f"does not fit the model: its {flag[8:]} is frozen, but {held} with the flags of this run"
        ):
            run(tiny, "llava-1.5", with_image, tmp_path / "out", *LORA, "--lora_weight_path", folder, flag, True)

    config = json.loads((folder / "adapter_config.json").read_text())
    weights = load_file(folder / "adapter_model.safetensors")
    first, lost = next(iter(weights.items()))
    for change, named in (
        (lambda: weights.pop(first), "does not fit the model: it lacks tensors, such as base_model.*lora_"),
        (
            lambda: weights.update({first: torch.zeros(4, 7)}),
            r"does not fit the model: .* has the shape \[4, 7\], not ",
        ),
        (lambda: weights.update({first: lost * torch.nan}), "does not fit the model: its .* is infinite or nan"),
    ):
        change()
        save_file(weights, folder / "adapter_model.safetensors")
        refused(named)
    # As an older peft wrote it, whose base has no name; of another kind.
    of_old = {name: value for name, value in config.items() if name not in ("use_dora", "use_rslora")}
    for written, named in (
        (of_old | {"base_model_name_or_path": None}, "was trained on an unnamed model, not on .*llava-1.5"),
        ({"peft_type": "IA3", "base_model_name_or_path": "a"}, "contains a IA3 adapter; only LoRA can be continued"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(written))
        refused(named)
    (folder / "adapter_config.json").write_text(json.dumps(of_old | {"target_modules": ["no_such_layer"]}))
    refused("does not fit the model: .*no_such_layer")


# ---- engines ----

SHARDED = {
    "dora and rates": ["--use_dora", True, "--vision_encoder_lr", 1e-4, "--vision_projector_lr", 2e-3],
    "pissa": ["--lora_init", "pissa"],
}


def sharded_losses(tiny, path, out, processes: int, *flags) -> list[float]:
    words = ["--model_id", MODEL_ID["llava-1.5"], "--model_local_path", tiny("llava-1.5"), "--data_path", path]
    words += [*LORA, *VISION_FLAGS, "--use_cpu", True, "--max_steps", 3, "--per_device_train_batch_size"]
    words += [4 // processes]
    words += ["--learning_rate", 2e-3, "--logging_steps", 1, "--save_strategy", "no", "--max_grad_norm", 0]
    words += ["--train_sampling_strategy", "sequential", "--output_dir", out]
    if processes == 1:
        here([*words, *flags])
    else:
        launch([*words, "--deepspeed", "ds_configs/zero3.json", *flags], processes)
    log = logs_of(out)
    return [entry["loss"] for entry in log if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("flags", SHARDED.values(), ids=SHARDED)
def test_shards_on_two_processes_train_as_one(tiny, write_rows, tmp_path, flags):
    path = write_rows(rows_for("llava-1.5")[:4])
    flags = ["--lora_dropout", 0, *flags]
    alone = sharded_losses(tiny, path, tmp_path / "one", 1, *flags)
    assert sharded_losses(tiny, path, tmp_path / "two", 2, *flags) == pytest.approx(alone, abs=1e-4)
    # An adapter that shards wrote goes on in one process and in shards.
    go_on = ["--lora_weight_path", tmp_path / "two"]
    alone = sharded_losses(tiny, path, tmp_path / "one-on", 1, *go_on)
    assert sharded_losses(tiny, path, tmp_path / "two-on", 2, *go_on) == pytest.approx(alone, abs=1e-4)
    assert alone[0] < 6.5  # 7.3 at the start


@pytest.mark.slow
def test_shards_take_adapters_beside_modules_in_full_in_bfloat16(tiny, write_rows, tmp_path):
    path = write_rows(rows_for("llava-1.5")[:4])
    flags = ["--bf16", True, "--lora_dropout", 0]
    alone = sharded_losses(tiny, path, tmp_path / "one", 1, *flags)
    assert sharded_losses(tiny, path, tmp_path / "two", 2, *flags) == pytest.approx(alone, abs=3e-2)


def test_layers_that_peft_takes_for_experts_are_not_adapted_elsewhere(tiny, write_rows, tmp_path, monkeypatch):
    """As the dense layers of GLM-4.5V, of which it then says only that experts take no dropout."""
    import peft

    def get_peft_model(model, config):
        config.target_parameters = {"down_proj"}
        raise ValueError("lora.ParamWrapper does not work with lora_dropout != 0.")

    monkeypatch.setattr(peft, "get_peft_model", get_peft_model)
    path = write_rows([{"conversations": turns("A?", "B.")}])
    with pytest.raises(ValueError, match=r"takes layers of .* for experts \(down_proj\)\. Choose other layers"):
        run(tiny, "llava-1.5", path, tmp_path / "out", "--use_lora", True)
