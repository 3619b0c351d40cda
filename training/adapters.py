"""LoRA through peft: which modules get an adapter, and how to continue training the adapter of an earlier run."""

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate, chain

from safetensors import SafetensorError
from torch import nn

from loaders.base import COMPONENTS, BaseLoader
from loaders.new_tokens import trained_rows
from loaders.output_folder import fill_adapter, public_name
from supported_models import nearest
from training.engines import print_once

# Paths of the language model's layers in older versions of transformers, for LLaVA, Qwen2-VL and Idefics. Users still
# have patterns with these names.
OLD_PATHS = ("language_model.model", "model", "model.language_model")
NOT_LINEAR = "not linear layers"


def add_adapters(model: nn.Module, loader: BaseLoader, modes: dict[str, str], lora) -> nn.Module:
    """Add adapters to layers of mode "lora", and trained copies of modules of mode "full" (see `parameter_modes`).

    Raises:
        ValueError: a pattern of `--lora_target_modules` matches no layer, a flag has no effect, or the adapter in
            `--lora_weight_path` does not fit the model.
    """
    from peft import LoraConfig, get_peft_model  # only a run with adapters needs peft

    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is table.weight
    if tied and any(mode == "full" and model.get_parameter(name) is head.weight for name, mode in modes.items()):
        flag = "--train: leave the embeddings out" if lora.use_lora else "--use_vision_lora True: add --use_lora True"
        raise ValueError(f"{flag}, since peft cannot save embeddings that train in full and are tied to the head.")
    if lora.lora_weight_path:
        config = LoraConfig.from_pretrained(lora.lora_weight_path)
        config.inference_mode = False
        if {*trained_rows(vars(config))} != {*loader.pieces}:
            raise ValueError(
                f"--lora_weight_path {lora.lora_weight_path} has {len(trained_rows(vars(config)))} added tokens, but "
                f"this run has {len(loader.pieces)}. Use the --add_tokens file that the adapter was trained with."
            )
        try:
            return with_base_name(get_peft_model(model, config), loader)
        except ValueError as error:
            raise ValueError(f"--lora_weight_path {lora.lora_weight_path} does not fit the model: {error}") from error
    parameters = []
    for flag, ends in (("lora_experts", loader.experts), ("lora_router", loader.routers)):
        if getattr(lora, flag):
            if not (found := [name for name in modes if name.endswith(tuple(f".{end}" for end in ends))]):
                raise ValueError(f"--{flag} True has no effect: the model is not a mixture of experts. Leave it out.")
            parameters += [name for name in found if modes[name] == "lora"]
    full = [name for component in COMPONENTS for name in units(model, loader, component, modes)]
    targets = target_modules(model, loader, modes, lora.lora_target_modules)
    if not targets and not parameters:
        raise ValueError("--use_lora, --use_vision_lora: no layer can have an adapter. Leave these flags out.")
    tables = [name for name, module in model.named_modules() if module is table or module is head and not tied]
    if loader.pieces and {*tables}.intersection(targets):
        raise ValueError("--lora_target_modules: leave the output head out, since --add_tokens trains its new rows.")
    config = LoraConfig(
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        bias=lora.lora_bias,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        init_lora_weights=lora.lora_init == "default" or lora.lora_init,
        target_modules=targets,
        target_parameters=parameters or None,
        modules_to_save=full or None,
        trainable_token_indices=dict.fromkeys(tables, [*loader.pieces]) if loader.pieces else None,
        task_type="CAUSAL_LM",
    )
    try:
        return with_base_name(get_peft_model(model, config), loader)
    finally:  # this error explains more than the one that peft may raise
        if wrong := {*(config.target_parameters or ())} - {*parameters}:
            raise ValueError(
                f"--use_lora True: peft 0.21 mistakes layers of {loader.model_path} for experts ({min(wrong)}). "
                "Choose other layers: --lora_target_modules q_proj k_proj v_proj o_proj."
            )


def with_base_name(model: nn.Module, loader: BaseLoader) -> nn.Module:
    """Store a base model name that works from any folder in `adapter_config.json`, and sort the target modules."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = public_name(loader.model_path)
    if isinstance(config.target_modules, set):  # the order of a set differs from run to run
        config.target_modules = sorted(config.target_modules)
    return model


def target_modules(model: nn.Module, loader: BaseLoader, modes: dict, patterns: list[str] | None) -> list[str]:
    """Return the full names of the linear layers that get an adapter.

    Without patterns, these are all linear layers of mode "lora" except the output head, and experts and routers, which
    have separate flags. A router may be a subclass of Linear that computes more than a matrix product.

    Args:
        patterns: names, ends of names, or regular expressions that match a whole name. A pattern that matches no name
            is compared with the `old_names`.
    """
    head = model.get_output_embeddings()
    reasons = {name: why_not(name, module, loader, modes) for name, module in model.named_modules()}
    head_name = next(name for name, module in model.named_modules() if module is head)
    if not patterns:
        return [name for name, reason in reasons.items() if not reason and name != head_name]
    if head.weight is model.get_input_embeddings().weight:
        reasons[head_name] = "tied to the embeddings, which would change too when the adapter is merged"
    targets = []
    for pattern in patterns:
        found = matching(pattern, reasons, loader)
        fitting = [name for name in found if not reasons[name]]
        if not fitting:
            raise ValueError(no_target(pattern, {name: reasons[name] for name in found}, reasons))
        if rest := {name: reasons[name] for name in found if reasons[name] not in (None, NOT_LINEAR)}:
            print_once(f"--lora_target_modules {pattern!r} also matches modules that get no adapter:{by_reason(rest)}")
        targets += fitting
    return list(dict.fromkeys(targets))


def why_not(name: str, module: nn.Module, loader: BaseLoader, modes: dict) -> str | None:
    """Return why a module cannot have an adapter, or None if it can."""
    component = loader.component_of(name)
    if not isinstance(module, nn.Linear):
        return NOT_LINEAR
    if component is None:
        return "in no component that trains"
    if (mode := modes[f"{name}.weight"]) != "lora":
        fixes = {"vision_encoder": "; add --train_vision_encoder True --use_vision_lora True"}
        return f"of the {component}, which has no adapters (it is {mode}{fixes.get(component, '')})"
    if loader.mixture_part(name):
        return "of a mixture of experts: see --lora_experts and --lora_router"
    if loader.is_unused(name) or name.endswith(tuple(loader.bare_weights)):
        return "never called by the model"
    return None


def matches(pattern: str, name: str) -> bool:
    return name == pattern or name.endswith(f".{pattern}") or bool(re.fullmatch(pattern, name))


def matching(pattern: str, names: Iterable[str], loader: BaseLoader) -> list[str]:
    """Return the names that a pattern matches. If it matches none, return the names whose `old_names` it matches."""
    found = [name for name in names if matches(pattern, name)]
    return found or [name for name in names if any(matches(pattern, old) for old in old_names(name, loader))]


def old_names(name: str, loader: BaseLoader) -> list[str]:
    """Return a module's names in older transformers: without `model.` or, in a decoder layer, under `OLD_PATHS`."""
    in_layer = loader.component_of(name) == "language_model" and re.search(r"layers\.\d+(\..*)?$", name)
    return [name.removeprefix("model."), *(f"{old}.{in_layer[0]}" for old in OLD_PATHS if in_layer)]


def no_target(pattern: str, found: dict[str, str], reasons: dict[str, str | None]) -> str:
    """Return the message for a pattern that matches no module that can have an adapter."""
    matched = f"only modules that get no adapter:{by_reason(found)}" if found else "no module."
    fitting = shortened([name for name, reason in reasons.items() if not reason])
    return f"--lora_target_modules {pattern!r} matches {matched}\nLinear layers that can have an adapter: {fitting}"


def by_reason(found: dict[str, str]) -> str:
    """List the modules that get no adapter, one line per reason."""
    names_of = defaultdict(list)
    for name, reason in found.items():
        names_of[reason].append(name)
    if len(names_of) > 1:
        names_of.pop(NOT_LINEAR, None)  # for example, blocks that contain linear layers
    return "".join(f"\n  {len(names)} {reason}: {shortened(names)}" for reason, names in names_of.items())


def shortened(names: list[str]) -> str:
    """Join module names into one text. Names that differ only in the layer index or the end are merged, as in
    `model.layers.{0..27}.{mlp.up_proj, mlp.down_proj}`.
    """
    layers, ends = defaultdict(list), defaultdict(list)
    for name in names:
        head, number, end = re.fullmatch(r"(.*?)(?:\.(\d+)((?:\..*)?))?", name).groups(default="")
        layers[head, end].append(number)
    for (head, end), numbers in layers.items():
        ends[f"{head}.{braces(ranges([*map(int, numbers)]))}" if numbers[0] else head, bool(end)].append(end[1:])
    return ", ".join(f"{head}.{braces(tails)}" if has_ends else head for (head, has_ends), tails in ends.items())


def paths(name: str) -> Iterable[str]:
    """Yield the names of all modules around a parameter, then its name: `a.b.c` -> `a`, `a.b`, `a.b.c`."""
    return accumulate(name.split("."), "{}.{}".format)


def named_in(flag: str, patterns: list[str] | None, names: Iterable[str], loader: BaseLoader) -> set[str]:
    """Return the parameters that match a pattern (see `target_modules`) or are inside a module that matches.

    Raises:
        ValueError: a pattern matches nothing.
    """
    around = {name: [*paths(name)] for name in names}
    found = set()
    for pattern in patterns or []:
        modules = {*matching(pattern, {*chain(*around.values())}, loader)}
        if not (own := {name for name in around if not modules.isdisjoint(around[name])}):
            known = dict.fromkeys(".".join(path.split(".")[-n:]) for path in chain(*around.values()) for n in (1, 2, 9))
            near = ", ".join(nearest(pattern, known, cutoff=0.6))
            parts = ", ".join([*loader.vision_encoder, *loader.vision_projector, *loader.language_model])
            hint = f": did you mean {near}?" if near else f". The components are {parts}."
            raise ValueError(f"--{flag} {pattern!r} matches no module and no parameter{hint}")
        found |= own
    return found


def largest_modules(names: Iterable[str], known: Iterable[str], never: Iterable[str] = ()) -> list[str]:
    """Return the outermost modules that contain no `known` parameters except `names`, and are not in `never`."""
    names = dict.fromkeys(names)
    holding_others = {path for name in {*known} - names.keys() for path in paths(name)}.union(never)
    return list(dict.fromkeys(next(path for path in paths(name) if path not in holding_others) for name in names))


def braces(words: list[str]) -> str:
    return words[0] if len(words) == 1 and ".." not in words[0] else "{" + ", ".join(words) + "}"


def ranges(numbers: list[int]) -> list[str]:
    """Merge consecutive numbers: `(0, 1, 2, 5)` -> `["0..2", "5"]`."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return [f"{start}..{end}" if start < end else str(start) for start, end in zip(sorted(starts), sorted(ends))]


def load_adapter(model: nn.Module, loader: BaseLoader, modes: dict, path: str) -> None:
    """Load the adapter weights in `path` into a model that `add_adapters` wrapped with the same configuration.

    Raises:
        ValueError: the weights do not fit the model, or the flags train other components than the adapter does.
    """
    from peft import load_peft_weights

    config = model.peft_config["default"]
    try:
        weights = load_peft_weights(path, device="cpu")
        held = dict.fromkeys(COMPONENTS, "frozen")
        held |= {loader.component_of(name): "full" for name in config.modules_to_save or []}
        held |= {loader.component_of(base_name(name)): "lora" for name in weights if ".lora_" in name}
        for component, mode in modes.items():
            if held[component] != mode:
                raise ValueError(f"its {component} is {held[component]}, but {mode} with the flags of this run")
        fill_adapter(model, weights)
    except (KeyError, OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"--lora_weight_path {path} does not fit the model: {error}") from error


def units(model: nn.Module, loader: BaseLoader, component: str, modes: dict[str, str]) -> list[str]:
    """Return a component's outermost modules that contain only fully trained parameters. peft saves copies of them."""
    modules = dict(model.named_modules())
    own = [name for name, mode in modes.items() if mode == "full" and loader.component_of(name) == component]
    own = [name for name in own if not loader.is_unused(name)]
    # Model code may index a container or check its type, so peft must copy the members, not the container.
    containers = [name for name, module in modules.items() if isinstance(module, (nn.ModuleList, nn.Sequential))]
    return [name for name in largest_modules(own, modes, containers) if name in modules]


def base_name(name: str) -> str:
    """Return the name that a parameter had before peft wrapped the model."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
