"""What vLLM and SGLang read of a folder, opened as they do, through transformers; of weights only the headers."""

import filecmp
import glob
import json
import os
from collections.abc import Callable, Iterator

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, GenerationConfig

from loaders import LOADERS
from loaders.output_folder import adapter_config, family_in, saved_arguments
from supported_models import AUTO

INDEX = "model.safetensors.index.json"
# What --max-lora-rank of vLLM (0.22) may be; 16 without the flag.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# `model_type` of checkpoints that come without a chat template.
WITHOUT_TEMPLATE = ("paligemma", "qwen")

TEMPLATE_CURE = "Copy chat_template.jinja from the base."
SAVE_AGAIN = "Save or merge again."
MERGE = "Merge it (merge_lora_weights.py) and serve the result."


class Lacks(ValueError):
    """What a server would miss, and the cure."""


class Note(Exception):
    """Nothing lacks, but there is something to know."""


def faults(path: str) -> list[str]:
    """What lacks, and how to mend it."""
    return [f"{name}: {text}" for kind, name, text in check(path) if kind == "LACKS"]


def check(path: str) -> Iterator[tuple[str, str, str]]:
    """(kind, what was looked at, what was found) of each check of a folder.

    The kind is "ok", "note", "LACKS", or "later" where the reason may be a fault that was found before.
    """
    lacking = []
    for name, function in (ADAPTER_CHECKS if adapter_config(path) else CHECKS).items():
        try:
            yield "ok", name, function(path)
        except Note as found:
            yield "note", name, str(found)
        except ValueError as fault:
            if before := [other for other in lacking if other in READ_WITH.get(name, ())]:
                yield "later", name, f"it cannot be read before the {before[0]} is mended."
            else:
                lacking.append(name)
                yield "LACKS", name, str(fault)


# ---- of a whole checkpoint ----


def check_config(path: str) -> str:
    config = read_json(path, "config.json", "Copy it from the base.")
    if not config.get("architectures"):
        raise Lacks("config.json names no `architectures`, by which a server picks its class. Copy the base's.")
    if not remote_code(path, "config.json"):
        loaded(AutoConfig, path, "config.json", "Copy it from the base.")
    dtype = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype") or "float32"
    found = f"{', '.join(config['architectures'])}, {config.get('model_type')}, {dtype}"
    if dtype == "float32":
        raise Note(f"{found}, which servers halve unless told. Start them with --dtype bfloat16, or float32.")
    return found


def check_generation_config(path: str) -> str:
    if not os.path.isfile(os.path.join(path, "generation_config.json")):
        raise Note(
            "none, as of some bases. Answers end at the eos_token_id of config.json and of the tokenizer, and are "
            "sampled at temperature 1 if a request says nothing else."
        )
    config = loaded(GenerationConfig, path, "generation_config.json", "Copy it from the base.")
    if config.eos_token_id is None:
        raise Lacks('generation_config.json has no "eos_token_id", so that no answer would end. Copy the base\'s.')
    sampling = ("temperature", "top_p", "top_k", "repetition_penalty")
    asked = {name: value for name in sampling if (value := getattr(config, name)) is not None}
    taken = f"; requests that say nothing else take its {asked}" if asked else ""
    return f"answers end at token {config.eos_token_id}{taken}"


def check_tokenizer(path: str) -> str:
    files = ("tokenizer.json", "tokenizer.model", "vocab.json", "*.tiktoken", "tekken.json")
    found = [os.path.basename(file) for name in files for file in glob.glob(os.path.join(path, name))]
    if not found:  # transformers (5.23) would make an empty one
        raise Lacks(f"none of {', '.join(files)}. Copy them from the base.")
    if found == ["tekken.json"]:
        raise Lacks(
            "Mistral's tekken.json alone, which AutoTokenizer does not read. Serve with --tokenizer-mode mistral where "
            "the server can, or add the tokenizer and processor files of the 2503 model."
        )
    if remote_code(path, "tokenizer_config.json") or remote_code(path, "config.json"):
        return f"{', '.join(found)}, read by a Python file of the checkpoint"
    tokenizer = loaded(AutoTokenizer, path, found[0], "Copy the tokenizer files from the base.")
    return f"{', '.join(found)}, {len(tokenizer):,} tokens"


def check_processor(path: str) -> str:
    names = ("processor_config.json", "preprocessor_config.json")
    found = [name for name in names if os.path.isfile(os.path.join(path, name))]
    if found and any(remote_code(path, name) for name in found):
        return f"{', '.join(found)}, read by a Python file of the checkpoint"
    if not found:
        if read_json(path, "config.json", "Copy it from the base.").get("model_type") == "qwen":
            return "none, as of the base: its tokenizer writes the paths of images"
        raise Lacks(f"neither {' nor '.join(names)}: no picture could be read. Copy the base's.")
    processor = loaded(AutoProcessor, path, found[0], "Copy the processor files from the base.")
    parts = [name for name in ("image_processor", "video_processor") if getattr(processor, name, None)]
    if "image_processor" not in parts:
        raise Lacks(f"{', '.join(found)}: it makes a {type(processor).__name__} without images. Copy the base's.")
    return f"{', '.join(found)}: {type(processor).__name__} with {' and '.join(parts)}"


def check_template(path: str) -> str:
    is_remote = remote_code(path, "config.json")
    if is_remote:
        template = read_json(path, "tokenizer_config.json", "Copy it from the base.").get("chat_template")
    else:
        processor = loaded(AutoProcessor, path, "The processor", "Copy its files from the base.")
        template = processor.chat_template or getattr(processor, "tokenizer", processor).chat_template
    if not template:
        model_type = read_json(path, "config.json", "Copy it from the base.").get("model_type")
        if model_type in WITHOUT_TEMPLATE:
            raise Note(
                f"none, as of the base. vLLM has one of its own for {model_type}; compare its answers with those of "
                "predict.py. Elsewhere give the server one by --chat-template."
            )
        raise Lacks(f"none, so that no conversation could be asked. {TEMPLATE_CURE}")
    if is_remote:
        return f"{len(template):,} characters"
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    try:
        text = processor.apply_chat_template([{"role": "user", "content": content}], template, tokenize=False)
    except Exception as error:  # a template may raise anything
        raise Lacks(f"it cannot be rendered with a picture: {error}. {TEMPLATE_CURE}") from error
    if processor.image_token not in text:
        raise Lacks(f"it leaves the picture out (no {processor.image_token}). {TEMPLATE_CURE}")
    return f"{len(template):,} characters, with a place for pictures"


def check_weights(path: str) -> str:
    shards, shard_of = sorted(os.path.basename(file) for file in glob.glob(os.path.join(path, "*.safetensors"))), {}
    if os.path.isfile(os.path.join(path, INDEX)):
        shard_of = read_json(path, INDEX, SAVE_AGAIN).get("weight_map", {})
        shards = sorted(set(shard_of.values()))
    elif len(shards) > 1:
        raise Lacks(f"{len(shards)} files, but no {INDEX} that says what is where. {SAVE_AGAIN}")
    if not shards:
        if glob.glob(os.path.join(path, "pytorch_model*.bin")):
            raise Note("pytorch_model*.bin, pickled. Servers read it; safetensors load faster and run no code.")
        raise Lacks("no model*.safetensors. Shards of a training engine have to be put together (docs/inference.md).")
    stored = {shard: tensors_of(path, shard) for shard in shards}
    for name, shard in shard_of.items():
        if name not in stored[shard]:
            raise Lacks(f"{INDEX} names {name} in {shard}, which does not hold it. {SAVE_AGAIN}")
    size = sum(os.path.getsize(os.path.join(path, shard)) for shard in shards)
    return f"{sum(map(len, stored.values())):,} tensors in {len(shards)} file(s), {size / 1e9:.2f} GB"


# ---- of an adapter ----


def check_base(path: str) -> str:
    base = adapter_config(path).get("base_model_name_or_path")
    if not base:
        raise Lacks("adapter_config.json names no base. Write it into base_model_name_or_path.")
    if os.path.isdir(base):
        if found := faults(base):
            raise Lacks(f"{base} cannot be served itself: {'; '.join(found)}")
    elif base.startswith((".", "/", "~")) or base.count("/") != 1:
        raise Lacks(f"{base} is not here. Name its new place in base_model_name_or_path of adapter_config.json.")
    else:
        raise Note(f"{base}, to be fetched from the Hub by the server")
    return base


def check_kind(path: str) -> str:
    """That it is LoRA and nothing else."""
    config = adapter_config(path)
    if (full := config.get("modules_to_save")) or config.get("use_dora") or config.get("bias", "none") != "none":
        beside = f"parts trained in full ({full[0]}, ...)" if full else "DoRA" if config["use_dora"] else "biases"
        raise Lacks(f"{beside}, which servers refuse or leave out. {MERGE}")
    if config.get("target_parameters"):
        raise Lacks(f"adapters on {config['target_parameters'][0]}, ..., for which servers have no form. {MERGE}")
    if str(config.get("init_lora_weights")).startswith(("pissa", "olora", "corda", "loftq")):
        raise Lacks(f"it started from changed weights of the base ({config['init_lora_weights']}). {MERGE}")
    rank = config.get("r", 0)
    if rank > RANKS[-1]:
        raise Lacks(f"rank {rank}, and vLLM takes at most {RANKS[-1]}. {MERGE}")
    notes = []
    if rank > 16:
        notes.append(f"vLLM needs --max-lora-rank {next(size for size in RANKS if size >= rank)}")
    if config.get("use_rslora"):
        notes.append("scaled by rsLoRA, which vLLM heeds; compare the answers of another server with predict.py")
    if saved_arguments(path).get("q_lora"):
        notes.append("trained on a 4-bit base, which a server loads in full precision (docs/inference.md)")
    if notes:
        raise Note(f"LoRA of rank {rank}; {'; '.join(notes)}")
    return f"LoRA of rank {rank}"


def check_parts(path: str) -> str:
    """That it adapts the language model alone."""
    names = tensors_of(path, "adapter_model.safetensors")
    base = adapter_config(path).get("base_model_name_or_path")
    family = family_in(path, base)
    loader = LOADERS.get(family)(base) if family == AUTO else LOADERS.get(family)
    seen = tuple(f"base_model.model.{module}." for module in loader.vision_encoder + loader.vision_projector)
    seeing = [name for name in names if name.startswith(seen)]
    if seeing:
        raise Lacks(
            f"{len(seeing):,} of {len(names):,} tensors adapt the vision encoder, which SGLang and, without "
            f"--enable-tower-connector-lora, vLLM leave out. {MERGE}"
        )
    return f"{len(names):,} tensors, all of the language model"


def check_same_template(path: str) -> str:
    base = adapter_config(path).get("base_model_name_or_path") or ""
    own, other = (os.path.join(folder, "chat_template.jinja") for folder in (path, base))
    if os.path.isfile(own) and os.path.isfile(other) and not filecmp.cmp(own, other, shallow=False):
        raise Note(f"another than the base's, which the server would take: start it with --chat-template {own}")
    return "that of the base"


# ---- files ----


def read_json(path: str, name: str, cure: str) -> dict:
    try:
        with open(os.path.join(path, name), encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise Lacks(f"no {name}. {cure}") from error
    except ValueError as error:
        raise Lacks(f"{name} is not valid JSON: {error}. {cure}") from error


def loaded(auto_class, path: str, name: str, cure: str):
    """What transformers makes of a folder."""
    try:
        return auto_class.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # on broken files they raise nearly any
        raise Lacks(f"{name} cannot be used: {error}. {cure}") from error


def remote_code(path: str, name: str) -> bool:
    """Whether a Python file of the checkpoint reads a configuration; then it has to be there."""
    if not os.path.isfile(os.path.join(path, name)):
        return False
    for classes in read_json(path, name, "Copy it from the base.").get("auto_map", {}).values():
        for class_name in [classes] if isinstance(classes, str) else filter(None, classes):
            module = class_name.rpartition("--")[2].partition(".")[0] + ".py"
            if "--" not in class_name and not os.path.isfile(os.path.join(path, module)):
                raise Lacks(f"{name} names {module}, which is not here. Copy the Python files of the base.")
    return "auto_map" in read_json(path, name, "")


def tensors_of(path: str, shard: str) -> set[str]:
    """The names of the tensors in a safetensors file."""
    try:
        with safe_open(os.path.join(path, shard), framework="pt") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise Lacks(f"{shard} is missing or cut short: {error}. {SAVE_AGAIN}") from error


CHECKS: dict[str, Callable[[str], str]] = {
    "config": check_config,
    "generation config": check_generation_config,
    "tokenizer": check_tokenizer,
    "processor": check_processor,
    "chat template": check_template,
    "weights": check_weights,
}
READ_WITH = {
    "tokenizer": ("config",),
    "processor": ("config", "tokenizer"),
    "chat template": ("config", "tokenizer", "processor"),
    "parts": ("base",),
}
ADAPTER_CHECKS: dict[str, Callable[[str], str]] = {
    "base": check_base,
    "kind": check_kind,
    "parts": check_parts,
    "chat template": check_same_template,
}
