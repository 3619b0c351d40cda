"""What is known about inference servers (servers.yaml), and how to start vLLM with a folder and send requests."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import yaml

from arguments import ReadingArguments
from collators import COLLATORS
from collators.thoughts_and_tools import SERVER_TEMPLATE
from loaders import LOADERS
from loaders.output_folder import adapter_config, family_in, saved_arguments
from merging.serving import MERGE, of_vision, tensors_of
from predict import AS_IN_TRAINING
from reading.strict_json import json_object, strict_json

SERVERS = yaml.safe_load(Path(__file__).with_name("servers.yaml").read_text())
HAS_IT = ("ran", "in its sources")
# Without this flag, vLLM samples even if generation_config.json has do_sample false. The default temperature is 1.
GREEDY = ["--override-generation-config", '{"temperature": 0}']
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values that vLLM 0.32 accepts for --max-lora-rank


def outcome(server: str, kind: str, family: str) -> str:
    """Return what is known about serving a family. `kind` is "merged" or "adapter"."""
    return next((known for known, families in SERVERS[server][kind].items() if family in families), "not known")


def advice(path: str) -> Iterator[str]:
    """Yield lines to print: what is known about each server and, for vLLM, the command and the fields of a request."""
    adapter = adapter_config(path)
    base, kind = (adapter["base_model_name_or_path"], "adapter") if adapter else (path, "merged")
    family, saved = family_in(path, base), saved_arguments(path)
    yield f"What is known about servers for {family}, {kind}:"
    for server, known in SERVERS.items():
        yield f"  {server} {known['version']} ({known['date']}): {outcome(server, kind, family)}"
    if outcome("vLLM", kind, family) not in HAS_IT:
        if adapter and outcome("vLLM", "merged", family) in HAS_IT:
            yield MERGE
        return
    loader_class, name = LOADERS.get(family), os.path.basename(os.path.abspath(path))
    command = ["vllm", "serve", base]
    if adapter:
        rank = next((rank for rank in LORA_RANKS if rank >= adapter["r"]), adapter["r"])
        command += ["--enable-lora", "--lora-modules", f"{name}={path}", "--max-lora-rank", str(rank)]
        if of_vision(path, tensors_of(path, "adapter_model.safetensors")):
            command.append("--enable-tower-connector-lora")
    else:
        command += ["--served-model-name", name]
    file = "chat_template.jinja" if adapter and saved.get("chat_template") else SERVER_TEMPLATE
    template = os.path.join(path, file)
    command += ["--chat-template", template] if os.path.isfile(template) else []
    command += GREEDY + SERVERS["vLLM"]["flags"].get(family, "").split()
    command += ["--trust-remote-code"] if loader_class.remote_code else []
    options, request = json_object("processor_kwargs", saved.get("processor_kwargs")), ["temperature=0"]
    own_bounds = saved.get("keep_processor_config") is False
    if not loader_class.remote_code:
        variables = json_object("template_kwargs", saved.get("template_kwargs"))
        collator = COLLATORS.get(family)(loader_class(base).load_processor(path), template_kwargs=variables)
        if adapter and own_bounds:  # servers read the base's processor
            options["size"] = dict(collator.processor.image_processor.size)
        request += [f"extra_body={body}"] if (body := collator.template.request_options()) else []
    command += ["--mm-processor-kwargs", strict_json(options)] if options else []
    yield f"  {shlex.join(command)}"
    yield f"  Each request: model={name!r}, {', '.join(request)}"
    if note := SERVERS["vLLM"]["notes"].get(family):
        yield f"  {note}"
    if loader_class.packages and not loader_class.remote_code:
        yield f"  It needs these packages: {' '.join(loader_class.packages)}"
    defaults = vars(ReadingArguments())
    names = {name for group in AS_IN_TRAINING for name in group} - {"processor_kwargs", "keep_processor_config"}
    names -= {"min_pixels", "max_pixels"} if own_bounds else set()
    if seen := [f"--{n} {saved[n]}" for n in defaults if n in names and saved.get(n, defaults[n]) != defaults[n]]:
        yield f"  Send media as in training: {', '.join(seen)}"
