"""LoRA through peft: which modules get an adapter, and continuing from an earlier run's adapter."""

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

# Where older versions of transformers have the layers of a language model (of LLaVA, of Qwen2-VL, of Idefics): people
# carry such names along in patterns.
OLD_PATHS = ("language_model.model", "model", "model.language_model")
NOT_LINEAR = "not linear layers"


def add_adapters(model: nn.Module, loader: BaseLoader, modes: dict[str, str], lora) -> nn.Module:
    """Adapters on linear layers of mode "lora", whole copies of modules of mode "full"; `modes` are of parameters.

    Raises:
        ValueError: a pattern of `--lora_target_modules` without a match, a flag without effect, an adapter in
            `--lora_weight_path` that does not fit.
    """
    from peft import LoraConfig, get_peft_model  # only a run with adapters needs peft

    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is table.weight
    if tied and any(mode == "full" and model.get_parameter(name) is head.weight for name, mode in modes.items()):
        flag = "--train next to adapters" if lora.use_lora else "--use_vision_lora True without --use_lora True"
        raise ValueError(f"{flag} cannot save embeddings that train in full, since the head is tied to them.")
    if lora.lora_weight_path:
        config = LoraConfig.from_pretrained(lora.lora_weight_path)
        config.inference_mode = False
        if {*trained_rows(vars(config))} != {*loader.pieces}:
            raise ValueError(
                f"--lora_weight_path {lora.lora_weight_path} has {len(trained_rows(vars(config)))} added tokens, but "
                f"{len(loader.pieces)} are named here: use the --add_tokens file that it was trained with."
            )
        try:
            return named(get_peft_model(model, config), loader)
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
        raise ValueError("--use_lora, --use_vision_lora: no layer is left that can have an adapter. Leave them out.")
    tables = [name for name, module in model.named_modules() if module is table or module is head and not tied]
    if loader.pieces and {*tables}.intersection(targets):
        raise ValueError("--lora_target_modules: the head has rows of --add_tokens, so it takes no adapter.")
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
        return named(get_peft_model(model, config), loader)
    finally:  # whatever it says of them
        if wrong := {*(config.target_parameters or ())} - {*parameters}:
            raise ValueError(
                f"--use_lora True: peft 0.21 mistakes layers of {loader.model_path} for its experts ({min(wrong)}). "
                "Name others: --lora_target_modules q_proj k_proj v_proj o_proj."
            )


def named(model: nn.Module, loader: BaseLoader) -> nn.Module:
    """Make `adapter_config.json` name the base so that it is found from anywhere, and list modules in a fixed order."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = public_name(loader.model_path)
    if isinstance(config.target_modules, set):  # which is saved in the order of its hashes
        config.target_modules = sorted(config.target_modules)
    return model


def target_modules(model: nn.Module, loader: BaseLoader, modes: dict, patterns: list[str] | None) -> list[str]:
    """Full names of the linear layers that get an adapter.

    Without patterns: every one of the components in mode "lora", except the output head. The experts and the router of
    a mixture have flags of their own: a router may be a Linear, but what it returns is more than a product.

    Args:
        patterns: names, ends of names, or regular expressions of whole names; a pattern that matches none may match one
            of `old_names`.
    """
    head = model.get_output_embeddings()
    reasons = {name: why_not(name, module, loader, modes) for name, module in model.named_modules()}
    head_name = next(name for name, module in model.named_modules() if module is head)
    if not patterns:
        return [name for name, reason in reasons.items() if not reason and name != head_name]
    if head.weight is model.get_input_embeddings().weight:
        reasons[head_name] = "tied to the embeddings, which an adapter would change too when it is merged"
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
    """Why a module cannot have an adapter, or None if it can."""
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
    """The names that a pattern matches; if none, those that it would match by their `old_names`."""
    found = [name for name in names if matches(pattern, name)]
    return found or [name for name in names if any(matches(pattern, old) for old in old_names(name, loader))]


def old_names(name: str, loader: BaseLoader) -> list[str]:
    """A module's names in older transformers: without `model.`; in language-model layers, under each of `OLD_PATHS`."""
    in_layer = loader.component_of(name) == "language_model" and re.search(r"layers\.\d+(\..*)?$", name)
    return [name.removeprefix("model."), *(f"{old}.{in_layer[0]}" for old in OLD_PATHS if in_layer)]


def no_target(pattern: str, found: dict[str, str], reasons: dict[str, str | None]) -> str:
    """The message for a pattern without a module that can have an adapter."""
    matched = f"only modules that get no adapter:{by_reason(found)}" if found else "no module."
    fitting = shortened([name for name, reason in reasons.items() if not reason])
    return f"--lora_target_modules {pattern!r} matches {matched}\nLinear layers that can have an adapter: {fitting}"


def by_reason(found: dict[str, str]) -> str:
    """Modules with the reasons why they get no adapter, a line for each reason."""
    names_of = defaultdict(list)
    for name, reason in found.items():
        names_of[reason].append(name)
    if len(names_of) > 1:
        names_of.pop(NOT_LINEAR, None)  # such as the blocks around linear layers
    return "".join(f"\n  {len(names)} {reason}: {shortened(names)}" for reason, names in names_of.items())


def shortened(names: list[str]) -> str:
    """Module names in short: names that differ in the layer index or in their ends are written together, as in
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
    """`a.b.c` -> `a`, `a.b`, `a.b.c`: the modules around a parameter, and itself."""
    return accumulate(name.split("."), "{}.{}".format)


def named_in(flag: str, patterns: list[str] | None, names: Iterable[str], loader: BaseLoader) -> set[str]:
    """The parameters that patterns match, as those of `target_modules`, or match a module around.

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
    """Some of the `known` parameters -> the largest modules that hold only these, and are none of `never`."""
    names = dict.fromkeys(names)
    holding_others = {path for name in {*known} - names.keys() for path in paths(name)}.union(never)
    return list(dict.fromkeys(next(path for path in paths(name) if path not in holding_others) for name in names))


def braces(words: list[str]) -> str:
    return words[0] if len(words) == 1 and ".." not in words[0] else "{" + ", ".join(words) + "}"


def ranges(numbers: list[int]) -> list[str]:
    """`(0, 1, 2, 5)` -> `["0..2", "5"]`."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return [f"{start}..{end}" if start < end else str(start) for start, end in zip(sorted(starts), sorted(ends))]


def load_adapter(model: nn.Module, loader: BaseLoader, modes: dict, path: str) -> None:
    """Load the weights in `path`, by whose configuration `add_adapters` has wrapped the model.

    Raises:
        ValueError: they are not those of this model, or train other components than the flags say.
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
                raise ValueError(f"its {component} is {held[component]}, but {mode} by the flags")
        fill_adapter(model, weights)
    except (KeyError, OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"--lora_weight_path {path} does not fit the model: {error}") from error


def units(model: nn.Module, loader: BaseLoader, component: str, modes: dict[str, str]) -> list[str]:
    """The largest modules of a component of which all trains in full: what peft can save next to an adapter."""
    modules = dict(model.named_modules())
    own = [name for name, mode in modes.items() if mode == "full" and loader.component_of(name) == component]
    own = [name for name in own if not loader.is_unused(name)]
    # Code may index a container, or check its type: its members are copied one by one.
    containers = [name for name, module in modules.items() if isinstance(module, (nn.ModuleList, nn.Sequential))]
    return [name for name in largest_modules(own, modes, containers) if name in modules]


def base_name(name: str) -> str:
    """A parameter's name in the model that peft wrapped."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
