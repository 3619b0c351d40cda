"""How each training tool is asked for the same run: its own form of the rows, its own documented flags.

Used by benchmarks/correctness.py. A tool is a function that writes the files of a run and returns its command line. All
train in float32 on a CPU without dropout, warm-up, decay or clipping, so that what is left is the tool.
"""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from speed import for_transformers_4

HERE = Path(__file__).resolve().parent
repo = HERE.parent.parent  # of finelmm; correctness.py --fault puts a copy in its place
TEMPLATES = {"qwen2-vl": "qwen2_vl", "qwen3.5": "qwen3_5"}  # of LLaMA-Factory
MODEL_TYPES = {"qwen2-vl": "qwen2_vl", "qwen3.5": "qwen3_5"}  # of ms-swift, and templates
MODEL_IDS = {"qwen2-vl": "qwen2-vl-2b-instruct", "qwen3.5": "qwen3.5-0.8b"}
VISUAL = r"model\.visual\.blocks\..*"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PLACE = {"image": "<image>", "video": "<video>"}


@dataclass
class Run:
    """A run that every tool is asked for."""

    rows: list[dict]  # messages in parts, as in docs/dataset.md; perhaps tools
    family: str = "qwen2-vl"
    lora: str = ""  # "": all weights; "text" or "vision": where the adapters are
    batch: int = 1
    accumulate: int = 1
    steps: int = 1
    processes: int = 1
    length: int = 2048
    packing: bool = False
    save: int = 0
    resumes: str = ""  # the run whose checkpoint after `save` steps it goes on from
    extra: dict = field(default_factory=dict)  # fields of each row that no tool documents


def hf_flags(run: Run, out: Path) -> dict:
    """What all of these tools take from transformers' TrainingArguments."""
    flags = {"output_dir": str(out), "per_device_train_batch_size": run.batch, "max_steps": run.steps}
    flags |= {"gradient_accumulation_steps": run.accumulate, "learning_rate": 1e-3, "logging_steps": 1}
    flags |= {"lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1e9}
    flags |= {"report_to": "none", "seed": 0, "use_cpu": True, "save_strategy": "steps" if run.save else "no"}
    return flags | ({"save_steps": run.save} if run.save else {})


def words(flags: dict) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def content(message: dict) -> list[dict]:
    found = message.get("content") or []
    return [{"type": "text", "text": found}] if isinstance(found, str) else found


def flat(message: dict) -> str:
    """A message as a text with places for media."""
    return "".join(part["text"] if part["type"] == "text" else PLACE[part["type"]] for part in content(message))


def media(row: dict, kind: str) -> list[str]:
    return [part[kind] for message in row["messages"] for part in content(message) if part["type"] == kind]


def thinks(row: dict) -> bool:
    return any("reasoning_content" in message for message in row["messages"])


def write_lines(rows: list[dict], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def checkpoint(run: Run, folder: Path) -> Path:
    return folder.parent.parent / "checkpoints" / run.family


# ---- finelmm ----


def finelmm(run: Run, folder: Path) -> dict:
    data = write_lines([row | run.extra for row in run.rows], folder / "rows.jsonl")
    flags = {"model_id": MODEL_IDS[run.family], "model_local_path": checkpoint(run, folder), "data_path": data}
    flags |= hf_flags(run, folder / "out") | {"model_max_length": run.length, "packing": run.packing}
    flags |= {"num_frames": 4, "disable_tqdm": True}
    if any(map(thinks, run.rows)):
        flags |= {"template_kwargs": '{"enable_thinking": true}'}
    if run.lora:
        flags |= {"use_lora": True, "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0}
    elif any(media(row, kind) for row in run.rows for kind in PLACE):
        flags |= {"train_vision_encoder": True, "train_vision_projector": True}
    if run.lora == "vision":
        flags |= {"train_vision_encoder": True, "use_vision_lora": True}
    if run.resumes:
        flags |= {"resume_from_checkpoint": True}
    return {"entry": str(repo / "train.py"), "words": words(flags), "cwd": str(repo)}


def finelmm_merge(adapter: Path, folder: Path) -> dict:
    flags = words({"model_path": adapter, "model_save_path": folder / "merged"})
    return {"entry": str(repo / "merge_lora_weights.py"), "words": flags, "cwd": str(repo)}


# ---- TRL ----


def trl(run: Run, folder: Path) -> dict:
    """Prompt and completion, of which TRL trains the completion; max_length None, as its page on images advises."""
    if any(media(row, "video") for row in run.rows):
        return {"refused": "no column for videos"}
    rows = []
    for row in run.rows:
        *prompt, last = [as_trl(message) for message in row["messages"]]
        images = {"images": media(row, "image")} if any(media(row, "image") for row in run.rows) else {}
        rows.append({"prompt": prompt, "completion": [last], **images, **run.extra})
        rows[-1] |= {"tools": json.dumps(row["tools"])} if "tools" in row else {}
        rows[-1] |= {"chat_template_kwargs": {"enable_thinking": True}} if thinks(row) else {}
    config = hf_flags(run, folder / "out") | {"gradient_checkpointing": False, "bf16": False, "disable_tqdm": True}
    config |= {"max_length": run.length if run.length != 2048 else None, "packing": run.packing}
    targets = VISUAL + r"(qkv|proj|fc1|fc2)" if run.lora == "vision" else f".*language_model.*({'|'.join(PROJECTIONS)})"
    asked = {
        "checkpoint": str(checkpoint(run, folder)),
        "rows": str(write_lines(rows, folder / "rows.jsonl")),
        "config": config,
        "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": targets} if run.lora else None,
        "resume": str(folder / "out" / f"checkpoint-{run.save}") if run.resumes else None,
    }
    (folder / "run.json").write_text(json.dumps(asked))
    return {"entry": str(HERE / "trl_chats.py"), "words": [str(folder / "run.json")], "cwd": str(folder)}


def as_trl(message: dict) -> dict:
    """Places of images are parts without the picture: those are a column of their own."""
    parts = [part if part["type"] == "text" else {"type": "image", "text": None} for part in content(message)]
    return {name: value for name, value in message.items() if name != "content"} | {"content": parts}


# ---- LLaMA-Factory ----


def llamafactory(run: Run, folder: Path) -> dict:
    rows = []
    for row in run.rows:
        turns = [turn for message in row["messages"] for turn in as_sharegpt(message)]
        rows.append({"conversations": turns, "images": media(row, "image"), "videos": media(row, "video"), **run.extra})
        rows[-1] |= {"tools": json.dumps([tool["function"] for tool in row["tools"]])} if "tools" in row else {}
    columns = {"messages": "conversations"}
    columns |= {name: name for name in ("images", "videos", "tools") if any(row.get(name) for row in rows)}
    rows = [{k: v for k, v in row.items() if k not in ("images", "videos") or k in columns} for row in rows]
    (folder / "rows.json").write_text(json.dumps(rows))
    info = {"rows": {"file_name": "rows.json", "formatting": "sharegpt", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    flags = hf_flags(run, folder / "out") | {"model_name_or_path": str(checkpoint(run, folder)), "stage": "sft"}
    flags |= {"do_train": True, "template": TEMPLATES[run.family], "dataset": "rows", "dataset_dir": str(folder)}
    flags |= {"cutoff_len": run.length, "overwrite_cache": True, "dataloader_num_workers": 0, "disable_tqdm": True}
    flags |= {"finetuning_type": "lora" if run.lora else "full", "disable_gradient_checkpointing": True}
    flags |= {"packing": True, "neat_packing": True} if run.packing else {}
    if run.lora:
        flags |= {"lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.0, "lora_target": "all"}
        flags |= {"lora_target": "qkv,fc1,fc2", "freeze_vision_tower": False} if run.lora == "vision" else {}
    else:
        flags |= {"freeze_vision_tower": False, "freeze_multi_modal_projector": False}
    if any(map(thinks, run.rows)):
        flags |= {"enable_thinking": True}
    if run.resumes:
        flags |= {"resume_from_checkpoint": str(folder / "out" / f"checkpoint-{run.save}")}
    return llamafactory_command("train", flags, folder)


def llamafactory_command(what: str, flags: dict, folder: Path) -> dict:
    path = folder / f"{what}.yaml"
    path.write_text(json.dumps(flags))  # JSON is YAML
    entry = "llamafactory.train.tuner:run_exp" if what == "train" else "llamafactory.train.tuner:export_model"
    return {"entry": entry, "words": [str(path)], "cwd": str(folder)}


def as_sharegpt(message: dict) -> list[dict]:
    thought, text = message.get("reasoning_content"), flat(message)
    roles = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
    if calls := message.get("tool_calls"):
        return [{"from": "function_call", "value": json.dumps(call["function"])} for call in calls]
    text = f"<think>\n{thought}\n</think>\n\n{text}" if thought else text
    return [{"from": roles[message["role"]], "value": text}]


def llamafactory_merge(adapter: Path, folder: Path) -> dict:
    base = folder.parent.parent / "checkpoints" / "qwen2-vl"
    flags = {"model_name_or_path": str(base), "adapter_name_or_path": str(adapter), "template": "qwen2_vl"}
    flags |= {"finetuning_type": "lora", "export_dir": str(folder / "merged"), "export_device": "cpu"}
    return llamafactory_command("export", flags, folder)


# ---- ms-swift ----


def swift(run: Run, folder: Path) -> dict:
    rows = []
    for row in run.rows:
        messages = [message for message in row["messages"] for message in as_swift(message)]
        rows.append({"messages": messages, **run.extra})
        rows[-1] |= {f"{kind}s": media(row, kind) for kind in PLACE if media(row, kind)}
        rows[-1] |= {"tools": json.dumps(row["tools"])} if "tools" in row else {}
    flags = hf_flags(run, folder / "out") | {"model": checkpoint(run, folder), "check_model": "false"}
    flags |= {
        "model_type": MODEL_TYPES[run.family],
        "template": MODEL_TYPES[run.family],
        "torch_dtype": "float32",
        "max_length": run.length,
    }
    flags |= {"dataset": write_lines(rows, folder / "rows.jsonl"), "load_from_cache_file": "false"}
    flags |= {"tuner_type": "lora" if run.lora else "full", "freeze_vit": "false", "freeze_aligner": "false"}
    flags |= {"gradient_checkpointing": "false", "add_version": "false", "split_dataset_ratio": 0, "attn_impl": "sdpa"}
    flags |= {"packing": "true"} if run.packing else {}
    if run.lora:
        flags |= {"lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
        flags |= {"freeze_vit": "true", "freeze_aligner": "true"} if run.lora == "text" else {"freeze_llm": "true"}
    if any(map(thinks, run.rows)):
        flags |= {"enable_thinking": "true"}
    if run.resumes:
        flags |= {"resume_from_checkpoint": str(folder / "out" / f"checkpoint-{run.save}")}
    return {"entry": "swift:sft_main", "words": words(flags), "cwd": str(folder)}


def as_swift(message: dict) -> list[dict]:
    thought, text = message.get("reasoning_content"), flat(message)
    if calls := message.get("tool_calls"):
        return [{"role": "tool_call", "content": json.dumps(call["function"])} for call in calls]
    text = f"<think>\n{thought}\n</think>\n\n{text}" if thought else text
    role = "tool_response" if message["role"] == "tool" else message["role"]
    return [{"role": role, "content": text}]


def swift_merge(adapter: Path, folder: Path) -> dict:
    flags = {
        "adapters": adapter / "checkpoint-6",
        "merge_lora": "true",
        "output_dir": folder / "merged",
        "check_model": "false",
    }
    return {"entry": "swift:export_main", "words": words(flags), "cwd": str(folder)}


# ---- lmms-finetune ----


def lmms_finetune(run: Run, folder: Path) -> dict:
    """Its scripts are run from a clone, named by the environment variable LMMS_FINETUNE."""
    if run.family != "qwen2-vl":
        return {"refused": "the family came later"}
    if run.packing:
        return {"refused": "no packing"}
    if any(message.get("tool_calls") for row in run.rows for message in row["messages"]):
        return {"refused": "no tools"}
    rows = []
    for row in run.rows:
        roles = {"user": "human", "assistant": "gpt"}
        turns = [{"from": roles[m["role"]], "value": flat(m)} for m in row["messages"] if m["role"] in roles]
        found = {"conversations": turns} | {kind: media(row, kind) for kind in PLACE if media(row, kind)}
        systems = [flat(m) for m in row["messages"] if m["role"] == "system"]
        rows.append(found | ({"system_prompt": systems[0]} if systems else {}) | run.extra)
    (folder / "rows.json").write_text(json.dumps(rows))
    old = for_transformers_4(checkpoint(run, folder))
    hub = folder / "Qwen" / "Qwen2-VL-2B-Instruct"  # it reads some files by the Hub path, whatever --model_local_path
    hub.parent.mkdir()
    hub.symlink_to(old)
    flags = {"model_id": "qwen2-vl-2b-instruct", "model_local_path": old, "data_path": folder / "rows.json"}
    flags |= hf_flags(run, folder / "out") | {"model_max_length": run.length, "num_frames": 4, "disable_tqdm": True}
    flags |= {
        "use_lora": bool(run.lora)
    }  # without it, the whole language model: its peft cannot keep the projector too
    flags |= {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0} if run.lora else {}
    flags |= {"train_vision_encoder": True, "use_vision_lora": True} if run.lora == "vision" else {}
    if run.resumes:
        return {"refused": "no flag for it is documented"}
    return {"entry": f"{os.environ['LMMS_FINETUNE']}/train.py", "words": words(flags), "cwd": str(folder)}


def lmms_merge(adapter: Path, folder: Path) -> dict:
    flags = words({"model_path": adapter, "model_save_path": folder / "merged"})
    return {"entry": f"{os.environ['LMMS_FINETUNE']}/merge_lora_weights.py", "words": flags, "cwd": str(adapter.parent)}


@dataclass(frozen=True)
class Tool:
    """A tool: what to import before its runs are forked, how it is called, what its flags are in words."""

    name: str
    imports: tuple[str, ...]
    packages: str  # whose versions are printed
    run: callable
    merge: callable
    flags: str


TOOLS = {
    "finelmm": Tool(
        "finelmm",
        ("train", "peft", "reports.run_report", "matplotlib.pyplot", "merge_lora_weights"),
        "torch transformers peft",
        finelmm,
        finelmm_merge,
        "defaults",
    ),
    "trl": Tool(
        *("TRL", ("trl:SFTTrainer", "peft"), "trl torch transformers peft", trl, None),
        "prompt and completion, `max_length=None`",
    ),
    "llamafactory": Tool(
        *("LLaMA-Factory", ("llamafactory.train.tuner",), "llamafactory torch transformers peft"),
        *(llamafactory, llamafactory_merge, "`sharegpt`, `neat_packing`"),
    ),
    "swift": Tool(
        *("ms-swift", ("swift:sft_main", "peft"), "ms-swift torch transformers peft", swift, swift_merge),
        "`messages`, `packing`",
    ),
    "lmms-finetune": Tool(
        *("lmms-finetune", ("transformers:Qwen2VLForConditionalGeneration", "peft"), "torch transformers peft"),
        *(lmms_finetune, lmms_merge, "LLaVA's JSON"),
    ),
}


def first_error(log: str) -> str:
    """The last line that looks like an exception."""
    found = [line.strip() for line in log.splitlines() if re.match(r"\s*[\w.]*(Error|Exception|Interrupt)\b.*:", line)]
    return found[-1] if found else (log.strip().splitlines() or ["no word"])[-1]
