"""What trains: the names of trainable parameters, per family and mode, and the summary that is printed."""

import re
import shutil

import pytest
import torch
import transformers
from conftest import CONSENT, FACTS, FAMILIES, MODEL_ID, VISION_FLAGS, make_loader, rows_for, run, turns
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from arguments import parse_arguments
from collators import COLLATORS
from loaders import LOADERS
from loaders.output_folder import ProcessorFiles
from loaders.quantization import quantization_config
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions
from training.added_tokens import untrained_tokens
from training.trainable import (
    add_adapters,
    format_summary,
    learning_rates,
    make_trainable,
    summarize,
)
from training.trainer import FinetuneTrainer

MIXTURES = [family for family in FAMILIES if FACTS[family].experts]


def load(tiny, family, *flags):
    words = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", "x.json"]
    arguments = parse_arguments([*words, "--output_dir", "unused", *CONSENT[family], *flags])
    loader = make_loader(family, tiny(family))
    model = make_trainable(loader.load_model(), loader, arguments)
    return model, loader, arguments


def in_language_model(family: str, name: str) -> bool:
    """Whether a module lies in the language model, without its head, routers and bare weights."""
    facts = FACTS[family]
    router = facts.router.removesuffix(".weight")
    outside = name.endswith("lm_head") or (router and name.endswith(f".{router}"))
    return bool(re.match(facts.language_model, f"{name}.")) and not outside and not re.match(facts.bare_weights, name)


def trainable_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def batch_with_everything(tiny, family, write_rows, loader):
    dataset = MultimodalDataset(write_rows(rows_for(family)), media=MediaOptions(num_frames=4))
    collator = COLLATORS.get(family)(loader.load_processor(), 2048)
    return collator([dataset[i] for i in range(len(dataset))])


def names_without_gradient(model, batch):
    model(**batch, use_cache=False).loss.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is None}


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
def test_full_training_trains_all_that_gets_a_gradient(tiny, family, write_rows):
    model, loader, _ = load(tiny, family, *VISION_FLAGS)
    everything = loader.load_model()
    never = names_without_gradient(everything, batch_with_everything(tiny, family, write_rows, loader))
    names = {name for name, _ in everything.named_parameters() if not re.match(FACTS[family].other, name)}
    assert trainable_names(model) == names - never


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("flags, patterns", [([], "l"), (VISION_FLAGS[:2], "le"), (VISION_FLAGS[2:], "lp")])
def test_only_the_named_components_train(tiny, family, flags, patterns):
    model, _, _ = load(tiny, family, *flags)
    by_letter = {
        "l": FACTS[family].language_model,
        "e": FACTS[family].vision_encoder,
        "p": FACTS[family].vision_projector,
    }
    for letter, pattern in by_letter.items():
        in_component = {name for name, _ in model.named_parameters() if re.match(pattern, name)}
        assert bool(in_component & trainable_names(model)) == (letter in patterns)


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_adapts_every_linear_of_the_language_model_and_no_other(tiny, family):
    model, loader, _ = load(tiny, family, "--use_lora", "True")
    plain = loader.load_model()
    linears = {
        name
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear) and in_language_model(family, name)
    }
    adapted = {re.sub(r"\.lora_[AB]\.default\.weight$", "", name) for name in trainable_names(model)}
    assert adapted == {f"base_model.model.{name}" for name in linears}


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_on_a_deep_model_is_as_exact(tiny, family):
    """From 20 targets on, peft looks for shorter patterns that match them; tiny models have fewer."""
    trust = FACTS[family].remote_code
    config = AutoConfig.from_pretrained(tiny(family), trust_remote_code=trust)
    auto_class, options = AutoModelForImageTextToText, {}
    if trust:
        auto_class, options = AutoModelForCausalLM, {"trust_remote_code": True, "attn_implementation": "eager"}
        config.num_hidden_layers = 8
    else:
        text, layers = config.text_config, config.text_config.num_hidden_layers
        fields = text.to_dict() | {"num_hidden_layers": 8}
        per_layer = {k: (v * 8)[:8] for k, v in fields.items() if isinstance(v, list) and len(v) == layers}
        fields.pop("per_layer_config", None)  # follows from the layer types
        config.text_config = type(text)(**fields | per_layer)
    with torch.device("meta"):
        model = auto_class.from_config(config, **options)
    _, loader, arguments = load(tiny, family, "--use_lora", "True")
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    expected = {name for name in linears if in_language_model(family, name)}
    assert len(expected) == FACTS[family].deep_linears
    modes = {
        name: "lora" if loader.component_of(name) == "language_model" else "frozen"
        for name, _ in model.named_parameters(remove_duplicate=False)
    }
    names = trainable_names(add_adapters(model, loader, modes, arguments.lora))
    adapted = {re.sub(r"\.lora_[AB]\.default\.weight$", "", name) for name in names}
    assert adapted == {f"base_model.model.{name}" for name in expected}


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_beside_full_vision_parts(tiny, family):
    model, _, _ = load(tiny, family, "--use_lora", "True", *VISION_FLAGS)
    names = {name.removeprefix("base_model.model.") for name in trainable_names(model)}
    full = {name.replace(".modules_to_save.default", "") for name in names if ".modules_to_save." in name}
    assert {name for name in names if ".modules_to_save." not in name and ".lora_" not in name} == set()
    assert any(re.match(FACTS[family].vision_encoder, name) for name in full)
    assert any(re.match(FACTS[family].vision_projector, name) for name in full)
    assert not any(re.match(FACTS[family].language_model, name) for name in full)
    # what the loss never uses, and bare parameters, which an adapter checkpoint cannot hold
    reference, _, _ = load(tiny, family, *VISION_FLAGS)
    expected = {name for name in trainable_names(reference) if not re.match(FACTS[family].language_model, name)}
    assert full == expected - set(FACTS[family].bare)


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
def test_vision_lora_leaves_the_projector_alone(tiny, family):
    flags = ["--use_lora", "True", "--train_vision_encoder", "True", "--use_vision_lora", "True"]
    if not FACTS[family].vision_linears:
        with pytest.raises(ValueError, match="The vision_encoder should train .lora., but none of its parameters"):
            load(tiny, family, *flags)
        return
    model, _, _ = load(tiny, family, *flags)
    names = {name.removeprefix("base_model.model.") for name in trainable_names(model)}
    assert all(".lora_" in name for name in names)
    assert any(re.match(FACTS[family].vision_encoder, name) for name in names)
    assert not any(re.match(FACTS[family].vision_projector, name) for name in names)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_lora_bias_does_not_reach_frozen_components(tiny, bias):
    model, _, _ = load(tiny, "qwen2-vl", "--use_lora", "True", "--lora_bias", bias)
    names = {name.removeprefix("base_model.model.") for name in trainable_names(model)}
    assert any(name.endswith("bias") for name in names)
    assert all(name.startswith("model.language_model.") for name in names)


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "bits, kind", [(4, "nf4"), pytest.param(8, "int8", marks=[pytest.mark.slow, pytest.mark.cross])]
)
def test_only_the_language_model_is_quantized(tiny, family, bits, kind):
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    flag = {4: "--q_lora", 8: "--load_in_8bit"}[bits]
    words = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", "x.json"]
    arguments = parse_arguments([*words, "--use_lora", "True", flag, "True", *CONSENT[family]])
    loader = make_loader(family, tiny(family))
    linears = {n for n, m in loader.load_model().named_modules() if isinstance(m, nn.Linear)}
    loader.model_kwargs["quantization_config"] = quantization_config(loader, torch.float32, bits)
    model = loader.load_model()
    kinds = {4: Linear4bit, 8: Linear8bitLt}
    quantized = {name for name, module in model.named_modules() if isinstance(module, kinds[bits])}
    assert quantized == {name for name in linears if in_language_model(family, name)}
    assert not any(isinstance(module, kinds[12 - bits]) for module in model.modules())
    rows = {row.component: row for row in summarize(make_trainable(model, loader, arguments), loader, arguments)}
    assert f"{kind} ({len(quantized)} Linear)" in rows.pop("language_model").dtypes
    assert {row.dtypes for row in rows.values()} == {"float32"}


def test_no_router_is_quantized():
    """As the library matches names; of some families, it would quantize the router for a Linear."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    for family in MIXTURES:
        skipped = quantization_config(LOADERS.get(family), torch.float32).llm_int8_skip_modules
        router = FACTS[family].router.removesuffix(".weight")
        assert not should_convert_module(f"model.language_model.layers.1.{router}", skipped)
        assert should_convert_module("model.language_model.layers.1.mlp.gate_proj", skipped)


# ---- learning rates ----

RATES = {"vision_encoder": 1e-3, "vision_projector": 2e-3, "language_model": 5e-4}
RATE_FLAGS = ["--vision_encoder_lr", "1e-3", "--vision_projector_lr", "2e-3", "--learning_rate", "5e-4"]


def component_by_name(family: str, name: str) -> str:
    name = name.removeprefix("base_model.model.")
    facts = FACTS[family]
    patterns = (facts.vision_projector, facts.vision_encoder, facts.language_model)
    found = zip(("vision_projector", "vision_encoder", "language_model"), patterns)
    return next(component for component, pattern in found if re.match(pattern, name))


# Weights of norms: `norm1`, `norm_out`, `ln_q`, `bn2`, `input_layernorm`.
A_NORM = re.compile(r"(^|[._])(\w*norm\d?|norm_\w+|ln_\w+|bn\d?)\.([\w.]+\.)?weight$")


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "lora",
    [[], pytest.param(["--use_lora", "True"], marks=[pytest.mark.slow, pytest.mark.cross])],
    ids=["full", "lora"],
)
def test_each_component_steps_at_its_own_learning_rate(tiny, family, lora, write_rows, tmp_path):
    """With plain gradient descent, a step is the gradient times the rate."""
    flags = [*lora, *VISION_FLAGS, *RATE_FLAGS, "--optim", "sgd", "--weight_decay", "0.1"]
    flags += ["--output_dir", str(tmp_path)]
    model, loader, arguments = load(tiny, family, *flags)
    rates = learning_rates(model, loader, arguments)
    trainer = FinetuneTrainer(
        model=model, args=arguments.training, processor_files=ProcessorFiles(tiny(family)), learning_rates=rates
    )
    groups = trainer.create_optimizer().param_groups
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(rate_of) == sorted(map(id, trained.values()))
    assert sum(len(group["params"]) for group in groups) == len(trained)
    plain = transformers.Trainer(model=model, args=arguments.training).create_optimizer().param_groups
    by_library = {id(p): group["weight_decay"] for group in plain for p in group["params"]}
    for name, p in trained.items():
        assert decays[id(p)] == (0 if A_NORM.search(name) else by_library[id(p)]), name
    assert groups[0]["lr"] == RATES["language_model"]  # the one that is logged

    for group in groups:
        group["weight_decay"] = 0
    names_without_gradient(model, batch_with_everything(tiny, family, write_rows, loader))
    before = {name: p.detach().clone() for name, p in trained.items()}
    trainer.optimizer.step()
    for name, p in trained.items():
        step = RATES[component_by_name(family, name)] * p.grad
        torch.testing.assert_close(before[name] - p.detach(), step, atol=2e-6, rtol=1e-3)
    lines = format_summary(summarize(model, loader, arguments)).splitlines()[1:4]
    assert [line.split()[-2] for line in lines] == ["0.001", "0.002", "0.0005"]


@pytest.mark.slow
def test_learning_rates_are_those_of_the_run_and_of_a_resumed_one(tiny, write_rows, tmp_path):
    path, out = write_rows(rows_for("qwen2-vl")), tmp_path / "out"
    flags = [*VISION_FLAGS, "--vision_encoder_lr", 1e-4, "--vision_projector_lr", 0, "--learning_rate", 1e-2]
    flags += ["--save_strategy", "steps", "--save_steps", 1]
    whole = run(tiny, "qwen2-vl", path, out, *flags)
    assert [step["learning_rate"] for step in whole] == [1e-2, 5e-3]
    before, after = (load_file(f"{folder}/model.safetensors") for folder in (tiny("qwen2-vl"), out))
    merger = {name for name in before if name.startswith("visual.merger.")}
    assert merger and all(torch.equal(before[name], after[name]) for name in merger)
    blocks = {name for name in before if name.startswith("visual.blocks.") and name.endswith("weight")}
    moved = torch.stack([(before[name] - after[name]).abs().max() for name in blocks])
    # Adam's first steps are about as long as the rate: 1e-4 + 0.5e-4.
    assert 5e-5 < moved.min() and moved.max() < 2e-4
    shutil.rmtree(out / "checkpoint-2")
    resumed = run(tiny, "qwen2-vl", path, out, *flags, "--resume_from_checkpoint", True)
    assert [step["loss"] for step in resumed] == pytest.approx([step["loss"] for step in whole], abs=1e-5)
    again = load_file(out / "model.safetensors")
    assert all(torch.allclose(after[name], again[name], atol=1e-6) for name in after)


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("router", [False, True])
def test_experts_and_router_have_adapters_only_where_asked(tiny, family, experts, router):
    asked = ["--lora_experts"] * experts + ["--lora_router"] * router
    flags = ["--use_lora", "True", "--lora_dropout", "0", *(word for flag in asked for word in (flag, "True"))]
    model, loader, arguments = load(tiny, family, *flags)
    plain = dict(loader.load_model().named_parameters())
    # an adapter of rank r of each expert, (in + out) * r numbers
    experts_total = sum(
        shape[0] * 8 * (shape[1] + shape[2])
        for shape in (p.shape for name, p in plain.items() if name.endswith(FACTS[family].experts))
    )
    router_total = sum(8 * sum(p.shape) for name, p in plain.items() if name.endswith(FACTS[family].router))
    assert experts_total and router_total
    without, _, _ = load(tiny, family, "--use_lora", "True")
    count = lambda model: sum(p.numel() for p in model.parameters() if p.requires_grad)  # noqa: E731
    assert count(model) - count(without) == experts * experts_total + router * router_total
    lines = format_summary(summarize(model, loader, arguments)).splitlines()
    assert f"experts: {f'lora r=8, {experts_total:,} parameters' if experts else 'frozen'}" in lines
    assert f"router: {f'lora r=8, {router_total:,} parameters' if router else 'frozen'}" in lines


@pytest.mark.parametrize("family", MIXTURES)
def test_summary_counts_the_experts_that_train_in_full(tiny, family):
    model, loader, arguments = load(tiny, family)
    experts = sum(p.numel() for name, p in model.named_parameters() if name.endswith(FACTS[family].experts))
    assert f"experts: full, {experts:,} parameters" in format_summary(summarize(model, loader, arguments))


@pytest.mark.parametrize("flag", ["--lora_experts", "--lora_router"])
def test_a_model_without_experts_has_none_to_adapt(tiny, flag):
    with pytest.raises(ValueError, match=f"{flag} True has no effect: the model is not a mixture of experts"):
        load(tiny, "qwen2-vl", "--use_lora", "True", "--lora_dropout", "0", flag, "True")


def test_precision_of_trained_and_frozen_weights(tiny):
    flags = ["--use_lora", "True", "--train_vision_projector", "True", "--bf16", "True", "--use_cpu", "True"]
    model, _, _ = load(tiny, "llava-1.5", *flags)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


FIRST_LAYERS = ["model.vision_tower.encoder.layers.0", "model.language_model.layers.0"]


def test_what_is_frozen_by_name_has_the_precision_of_what_is_frozen(tiny):
    flags = ["--freeze", "layers.0", "--bf16", "True", "--use_cpu", "True"]
    model, loader, arguments = load(tiny, "llava-1.5", *VISION_FLAGS, *flags)
    for name, parameter in model.named_parameters():
        is_matrix_of_first = ".layers.0." in name and parameter.dim() > 1
        assert parameter.dtype == (torch.bfloat16 if is_matrix_of_first else torch.float32), name
        assert not (parameter.requires_grad and ".layers.0." in name)
    text = format_summary(summarize(model, loader, arguments))
    assert [line for line in text.splitlines() if "(--freeze)" in line] == [
        f"frozen: {m} (--freeze)" for m in FIRST_LAYERS
    ]


@pytest.mark.parametrize("lora", ["False", "True"])
def test_the_summary_names_what_is_frozen_later_in_a_line(tiny, lora):
    model, loader, arguments = load(tiny, "llava-1.5", *VISION_FLAGS, "--use_lora", lora)
    for name, parameter in model.named_parameters():
        if ".layers.0." in name:
            parameter.requires_grad_(False)
    text = format_summary(summarize(model, loader, arguments))
    lines = [line for line in text.splitlines() if line.startswith("frozen: ") and "no gradient" not in line]
    assert lines == [f"frozen: {module} (by hand)" for module in FIRST_LAYERS]


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
def test_bare_parameters_have_their_own_reason(tiny, family):
    model, loader, arguments = load(tiny, family, "--use_lora", "True", *VISION_FLAGS)
    text = format_summary(summarize(model, loader, arguments))
    assert "by hand" not in text and ("a bare parameter" in text) == bool(FACTS[family].bare)


def test_frozen_layers_train_around_them_in_bfloat16(tiny, write_rows, tmp_path):
    flags = ["--bf16", True, "--use_cpu", True, "--freeze", "layers.0", *VISION_FLAGS]
    run(tiny, "llava-1.5", write_rows(rows_for("llava-1.5")), tmp_path / "out", *flags)
    before, after = (load_file(f"{folder}/model.safetensors") for folder in (tiny("llava-1.5"), tmp_path / "out"))
    first = {name for name in before if ".layers.0." in name}
    assert first and all(torch.equal(before[name], after[name]) for name in first)
    later = {name for name in before if ".language_model." in f".{name}" and ".layers.1." in name}
    assert later and not any(torch.equal(before[name], after[name]) for name in later)


# Flags -> what trains, as a pattern of names of plain transformers; then the same beside adapters.
NO_TEXT = ["--train_language_model", "False"]
BY_NAME = {
    "projector alone": ([*NO_TEXT, *VISION_FLAGS[2:]], r"model\.multi_modal_projector\."),
    "vision alone": ([*NO_TEXT, *VISION_FLAGS], r"model\.(multi_modal_projector|vision_tower)\."),
    "last layer": ([*NO_TEXT, "--train", r"model.language_model.layers.1"], r"model\.language_model\.layers\.1\."),
    "a parameter": ([*NO_TEXT, "--train", "norm.weight", "lm_head"], r"model\.language_model\.norm\.weight|lm_head\."),
    "old name": ([*NO_TEXT, "--train", r"language_model.model.layers.[1-9]"], r"model\.language_model\.layers\.1\."),
    "all but": (
        ["--freeze", r"language_model.layers.\d+.mlp", "embed_tokens", "--train", "linear_1"],
        r"model\.language_model\.(layers\.\d\.(?!mlp)|norm)|lm_head|model\.multi_modal_projector\.linear_1",
    ),
    "last word over a component": (["--freeze", "language_model", "lm_head", *VISION_FLAGS[2:]], r"model\.multi_modal"),
}


@pytest.mark.parametrize("flags, expected", BY_NAME.values(), ids=BY_NAME)
def test_names_have_the_last_word(tiny, flags, expected):
    model, loader, arguments = load(tiny, "llava-1.5", *flags)
    sizes = {name: p.numel() for name, p in loader.load_model().named_parameters()}
    meant = {name for name in sizes if re.match(expected, name) and not loader.is_unused(name)}
    assert meant and trainable_names(model) == meant
    for row in summarize(model, loader, arguments):
        own = {name for name in meant if component_by_name("llava-1.5", name) == row.component}
        assert row.trained == sum(sizes[name] for name in own)
        assert (row.mode == "frozen") == (not own)


LORA_BY_NAME = ["--use_lora", "True", "--freeze", "layers.0", "--train", "lm_head", "layers.1.mlp.up_proj", "linear_2"]


def test_beside_adapters_names_freeze_a_layer_or_train_it_in_full(tiny):
    model, loader, arguments = load(tiny, "llava-1.5", *LORA_BY_NAME)
    names = {name.removeprefix("base_model.model.") for name in trainable_names(model)}
    full = {name.replace(".modules_to_save.default", "") for name in names if ".modules_to_save." in name}
    sides = [f"multi_modal_projector.linear_2.{end}" for end in ("weight", "bias")]
    sides += ["language_model.layers.1.mlp.up_proj.weight"]
    # `layers.1` is one of the vision encoder's too, but no `up_proj` of a CLIP.
    assert full == {"lm_head.weight", *(f"model.{name}" for name in sides)}
    linears = {n for n, m in loader.load_model().named_modules() if isinstance(m, nn.Linear)}
    expected = {n for n in linears if n.startswith("model.language_model.layers.1.") and not n.endswith("up_proj")}
    assert {re.split(r"\.lora_", name)[0] for name in names if ".lora_" in name} == expected
    text = format_summary(summarize(model, loader, arguments))
    assert re.search(r"\nlanguage_model +lora r=8, full ", text) and re.search(r"\nvision_projector +full ", text)
    assert "\nin full: model.language_model.layers.1.mlp.up_proj, lm_head (--train)" in text
    assert "\nfrozen: model.language_model.layers.0 (--freeze)" in text and "by hand" not in text


REFUSED_NAMES = [
    ("--freeze layer.0", "--freeze 'layer.0' matches no module and no parameter: did you mean layers.0"),
    ("--train visoin_tower", "--train 'visoin_tower' matches no module .*: did you mean .*vision_tower"),
    ("--train xyzzy", "matches no module and no parameter. The components are model.vision_tower, "),
    ("--freeze vision_tower", "--freeze 'vision_tower' has no effect: its mode is already frozen"),
    ("--train embed_tokens", "--train 'embed_tokens' has no effect: its mode is already full", "qwen2-vl"),
    ("--freeze layers.1 --train layers.1.mlp", "--freeze and --train both match model.language_model.layers.1.mlp"),
    ("--freeze .*", "--freeze leaves nothing to train"),
    ("--train post_layernorm", "--train 'post_layernorm' matches only parameters that cannot train"),
    ("--use_lora True --freeze language_model", "no layer can have an adapter"),
    (
        "--use_lora True --train lm_head",
        "--train: leave the embeddings out, since .* tied to the head",
        "qwen2-vl",
    ),
    ("--freeze [", "--freeze '.' is not a regular expression"),
    ("--train_language_model False", "--train_language_model False leaves nothing to train"),
    (
        "--train_language_model False --use_lora True",
        "--train_language_model False are mutually exclusive",
    ),
]


@pytest.mark.parametrize("words, named, family", [(*case, "llava-1.5")[:3] for case in REFUSED_NAMES], ids=str)
def test_names_without_a_meaning_are_refused(tiny, words, named, family):
    with pytest.raises(ValueError, match=named):
        load(tiny, family, *words.split())


def test_summary_counts_every_parameter(tiny):
    model, loader, arguments = load(tiny, "llava-onevision", *VISION_FLAGS, "--learning_rate", "3e-4")
    rows = summarize(model, loader, arguments)
    assert sum(row.total for row in rows) == sum(p.numel() for p in model.parameters())
    assert sum(row.trained for row in rows) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    text = format_summary(rows)
    assert [line.split()[:2] for line in text.splitlines()[1:4]] == [
        ["vision_encoder", "full"],
        ["vision_projector", "full"],
        ["language_model", "full"],
    ]
    assert "0.0003" in text and "model.vision_tower.post_layernorm" in text


def test_vision_lora_with_a_full_tied_language_model_is_refused(tiny):
    with pytest.raises(ValueError, match="--use_vision_lora True: add .* tied"):
        load(tiny, "qwen2-vl", "--train_vision_encoder", "True", "--use_vision_lora", "True")


def test_checkpoint_of_another_family_is_refused(tiny):
    with pytest.raises(ValueError, match="'llava' checkpoint, but --model_id expects 'qwen2_vl'"):
        LOADERS.get("qwen2-vl")(tiny("llava-1.5"))


def test_added_tokens_that_no_flag_trains_are_listed(tiny, write_rows, tmp_path, capsys, monkeypatch):
    """As somebody adds them to a tokenizer; the tokens of the family itself have smaller ids."""
    folder = tmp_path / "added"
    shutil.copytree(tiny("qwen2-vl"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    monkeypatch.setattr(LOADERS.get("qwen2-vl"), "vocabulary", len(tokenizer))
    tokenizer.add_tokens(["<point>", "<unused>", "<asked>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    box = "<|box_start|>(1,2)<|box_end|>"
    path = write_rows([{"conversations": turns("<asked> Where?", text)} for text in ("Red", f"<point>{box}")])
    for lora, expected in ((True, ["<point>"]), (False, [])):
        words = ["--model_id", MODEL_ID["qwen2-vl"], "--data_path", path, "--output_dir", str(tmp_path / "out")]
        arguments = parse_arguments([*words, "--model_local_path", str(folder), "--use_lora", str(lora)])
        loader = make_loader("qwen2-vl", folder)
        template = COLLATORS.get("qwen2-vl")(loader.load_processor()).template
        warning = untrained_tokens(loader, arguments, template, MultimodalDataset(path))
        assert re.findall("<.*?>", warning) == expected
        assert ("--use_lora False" in warning) == lora
