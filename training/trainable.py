"""What a run trains, and how: freezing, precision, learning rates, and the summary that is printed before step 1."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import torch
from torch import nn
from transformers import TrainerCallback

from loaders.base import COMPONENTS, BaseLoader
from training.adapters import add_adapters, base_name, largest_modules, load_adapter, named_in, shortened

BY_HAND = "by hand"  # frozen by code, not by a flag


def training_modes(arguments) -> dict[str, str]:
    """Return the mode of each component from the flags: "full", "lora" or "frozen"."""
    model, lora = arguments.model, arguments.lora
    encoder = "lora" if lora.use_vision_lora else "full"
    return {
        "vision_encoder": encoder if model.train_vision_encoder else "frozen",
        "vision_projector": "full" if model.train_vision_projector else "frozen",
        "language_model": "lora" if lora.use_lora else "full" if model.train_language_model else "frozen",
    }


def parameter_modes(model: nn.Module, loader: BaseLoader, arguments) -> dict[str, str]:
    """Return the mode of each parameter: "full", "lora" or "frozen". A tied parameter is listed under all its names.

    Raises:
        ValueError: a pattern of `--freeze` or `--train` matches nothing, has no effect, or contradicts the other flag.
    """
    parameters, modes = dict(model.named_parameters(remove_duplicate=False)), training_modes(arguments)
    modes = {name: modes.get(loader.component_of(name), "frozen") for name in parameters}
    found = {}
    for flag, mode in (("freeze", "frozen"), ("train", "full")):
        for pattern in getattr(arguments.model, flag) or []:
            shared = {id(parameters[name]) for name in named_in(flag, [pattern], parameters, loader)}
            named = {name for name, parameter in parameters.items() if id(parameter) in shared}
            if all(modes[name] == mode for name in named):
                raise ValueError(f"--{flag} {pattern!r} has no effect: its mode is already {mode}. Leave it out.")
            if flag == "train":
                named = {name for name in named if loader.component_of(name) and not is_quantized(parameters[name])}
            if both := sorted(name for name in named if found.get(name, mode) != mode):
                raise ValueError(f"--freeze and --train both match {both[0]}: make one name more specific.")
            found |= dict.fromkeys(named, mode)
    tables = (model.get_input_embeddings().weight, model.get_output_embeddings().weight) if loader.pieces else ()
    if wrong := [name for name, p in parameters.items() if name in found and any(p is table for table in tables)]:
        raise ValueError(f"--add_tokens trains rows of {wrong[0]}: do not name it in --freeze or --train.")
    return modes | found


def is_quantized(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "quant_state") or not parameter.is_floating_point()


def compute_dtype(training) -> torch.dtype:
    """Return the precision of matrix products, from `--bf16` and `--fp16`."""
    return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32


def learning_rate_of(component: str, arguments) -> float:
    model = arguments.model
    rate = {"vision_encoder": model.vision_encoder_lr, "vision_projector": model.vision_projector_lr}.get(component)
    return arguments.training.learning_rate if rate is None else rate


def learning_rates(model: nn.Module, loader: BaseLoader, arguments) -> dict[str, float]:
    """Return the learning rate of each parameter that trains, by name."""
    return {
        name: learning_rate_of(component, arguments)
        for component, parameters in component_parameters(model, loader).items()
        for name, parameter in parameters
        if parameter.requires_grad
    }


def make_trainable(model: nn.Module, loader: BaseLoader, arguments) -> nn.Module:
    """Freeze and unfreeze the parameters and add LoRA adapters, as the flags require. Return the model.

    Trained weights are kept in float32, since small updates vanish in 16 bits. Frozen weights are kept in the precision
    of matrix products, and so are all weights with DeepSpeed, which has a float32 copy of the trained ones. To freeze
    more by code, change `parameter_modes`, since weights that are frozen after this function would stay in float32.

    Raises:
        ValueError: a component that should train, or a pattern of `--train`, has no parameter that can train.
    """
    modes, single = training_modes(arguments), parameter_modes(model, loader, arguments)
    partly = {loader.component_of(name) for name, mode in single.items() if mode == "full"}
    in_full = {component for component in partly if modes[component] != "lora"}
    model.requires_grad_(False)
    if "lora" in modes.values():
        model = add_adapters(model, loader, single, arguments.lora)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(single[name] == "full")
    for name, parameter in model.named_parameters():
        component = loader.component_of(base_name(name))
        if loader.is_unused(base_name(name)) or single.get(base_name(name)) == "frozen":
            parameter.requires_grad_(False)  # for example, biases under `--lora_bias all`
        if parameter.is_floating_point() and not hasattr(parameter, "ds_id"):  # ZeRO-3 manages the others
            # If a component trains in full, its frozen norms and parameters that cannot train get the same precision
            # as the trained ones, since a LayerNorm on a CPU cannot mix two precisions (torch 2.14).
            beside_trained = component in in_full and ".original_module." not in name
            beside_trained &= parameter.dim() < 2 or why_frozen(name, loader, hasattr(model, "peft_config")) != BY_HAND
            is_exact = not arguments.training.deepspeed and (parameter.requires_grad or beside_trained)
            parameter.data = parameter.data.to(torch.float32 if is_exact else compute_dtype(arguments.training))
    if arguments.lora.lora_weight_path:
        load_adapter(model, loader, modes, arguments.lora.lora_weight_path)
    parameters = {base_name(name): p for name, p in model.named_parameters(remove_duplicate=False)}
    training = {name for name, parameter in parameters.items() if parameter.requires_grad}
    if not training:
        raise ValueError("--freeze leaves nothing to train: name fewer modules.")
    for component, mode in modes.items():
        by_name = mode == "full" and arguments.model.freeze
        if mode != "frozen" and not by_name and not any(loader.component_of(name) == component for name in training):
            raise ValueError(f"The {component} should train ({mode}), but none of its parameters can train.")
    for pattern in arguments.model.train or []:
        if training.isdisjoint(named_in("train", [pattern], parameters, loader)):
            raise ValueError(
                f"--train {pattern!r} matches only parameters that cannot train: quantized, in no component, without a "
                "gradient, or bare (no adapter possible)."
            )
    return model


def why_frozen(name: str, loader: BaseLoader, has_adapters: bool) -> str:
    """Return why a parameter is frozen in a component that trains. `name` may have prefixes of peft."""
    if loader.is_unused(base_name(name)):
        return "it gets no gradient"
    if has_adapters and ".modules_to_save." not in name and ".lora_" not in name:
        return "a bare parameter cannot have an adapter"
    return BY_HAND


class SkipFrozenBackward(TrainerCallback):
    """Keeps frozen modules out of the autograd graph under activation checkpointing.

    transformers (5.23) makes the text and patch embeddings require a gradient under activation checkpointing. Only
    reentrant checkpointing, which training/checks.py refuses, needs that. Without this callback, the backward pass
    would run a frozen vision encoder forward and backward again, for nothing.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        model.disable_input_require_grads()


def component_parameters(model: nn.Module, loader: BaseLoader) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Return the (name, parameter) pairs of each component. Parameters outside all components are under "other"."""
    groups = {component: [] for component in (*COMPONENTS, "other")}
    for name, parameter in model.named_parameters():
        if ".original_module." not in name:  # peft keeps the untrained original next to a copy that trains
            groups[loader.component_of(base_name(name)) or "other"].append((name, parameter))
    return groups


@dataclass
class ComponentSummary:
    component: str
    mode: str
    trained: int
    total: int
    learning_rate: float | None
    dtypes: str
    left_frozen: dict[str, list[str]]  # reason -> modules that are frozen although their component trains
    named: list[str]  # modules that train in full only because of --train
    mixture: dict[str, int]  # "experts" and "router" of a mixture of experts -> number of parameters that train
    adapted: list[str]  # linear layers with an adapter


def summarize(model: nn.Module, loader: BaseLoader, arguments) -> list[ComponentSummary]:
    """Count the parameters after `make_trainable`, one row per component. Quantized weights count as if unquantized."""
    rows = []
    modes, groups = training_modes(arguments), component_parameters(model, loader)
    names = [base_name(name) for parameters in groups.values() for name, _ in parameters]
    freeze, train = (named_in(flag, getattr(arguments.model, flag), names, loader) for flag in ("freeze", "train"))
    training = {base_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    for component, parameters in groups.items():
        if not parameters:
            continue
        trained = sum(num_elements(p) for _, p in parameters if p.requires_grad)
        mode = label = modes.get(component, "frozen")
        if mode == "lora":
            label = f"{'dora' if arguments.lora.use_dora else 'lora'} r={arguments.lora.lora_r}"
        named = [] if mode == "full" else [n for n in map(base_name, dict(parameters)) if n in train & training]
        if named or not trained:
            label = f"{label}, full" if mode == "lora" else "full" if trained else "frozen"
        rate = learning_rate_of(component, arguments) if trained else None
        total = sum(num_elements(p) for _, p in parameters)
        mixture, frozen = Counter(), defaultdict(dict)
        for name, parameter in parameters:
            if part := loader.mixture_part(name):
                mixture[part] += num_elements(parameter) * parameter.requires_grad
            by_name = mode != "frozen" and base_name(name) in freeze
            if not parameter.requires_grad and (mode == "full" or ".lora_" in name or by_name):
                reason = "--freeze" if by_name else why_frozen(name, loader, hasattr(model, "peft_config"))
                frozen[reason][base_name(name)] = None
        known = training.union(*frozen.values())
        frozen = {reason: largest_modules(found, known) for reason, found in frozen.items()}
        adapted = [base_name(name).split(".lora_A.")[0] for name, p in parameters if ".lora_A." in name]
        adapted = [name for name in adapted if not loader.mixture_part(name)]
        named = largest_modules(named, names)
        dtypes = precision(parameters)
        rows.append(ComponentSummary(component, label, trained, total, rate, dtypes, frozen, named, mixture, adapted))
    return rows


def precision(parameters: list[tuple[str, nn.Parameter]]) -> str:
    """Return the precisions in a component; for quantized weights, also the number of linear layers."""
    kinds = Counter("nf4" if hasattr(p, "quant_state") else str(p.dtype).removeprefix("torch.") for _, p in parameters)
    return ", ".join(f"{kind} ({kinds[kind]} Linear)" if kind in ("nf4", "int8") else kind for kind in sorted(kinds))


def num_elements(parameter: nn.Parameter) -> int:
    """Count the elements of a parameter, even if ZeRO-3 shards it (`ds_numel`) or two elements share a byte."""
    if hasattr(parameter, "ds_numel"):
        return parameter.ds_numel
    if getattr(parameter, "quant_state", None) is not None:
        return parameter.quant_state.shape.numel()
    return parameter.numel()


def format_summary(rows: list[ComponentSummary]) -> str:
    """Return the table that is printed before step 1."""
    lines = [f"{'component':<18}{'trained':<16}{'parameters':>16}{'trainable':>16}{'learning rate':>15}  precision"]
    for row in rows:
        rate = f"{row.learning_rate:g}" if row.learning_rate is not None else "-"
        lines.append(f"{row.component:<18}{row.mode:<16}{row.total:>16,}{row.trained:>16,}{rate:>15}  {row.dtypes}")
    total, trained = sum(row.total for row in rows), sum(row.trained for row in rows)
    lines.append(f"{'all':<34}{total:>16,}{trained:>16,}  ({trained / total:.2%} of all parameters)")
    lines += [f"adapters: {len(row.adapted)} Linear, {shortened(row.adapted)}" for row in rows if row.adapted]
    for row in rows:
        for part, trained in sorted(row.mixture.items()):
            lines.append(f"{part}: " + (f"{row.mode}, {trained:,} parameters" if trained else "frozen"))
    lines += [f"in full: {shortened(row.named)} (--train)" for row in rows if row.named]
    lines += [f"frozen: {shortened(names)} ({reason})" for row in rows for reason, names in row.left_frozen.items()]
    return "\n".join(lines)
