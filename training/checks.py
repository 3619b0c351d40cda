"""Checks of the flags before anything is loaded. They find values out of range, flags that have no effect or contradict
each other, and what this machine or a library does not support. Errors are ValueErrors that name the flag and the fix.

`check_flags` checks most flags with the tables below. The functions after it contain the rules that fit no table.
"""

import os
import re
from collections.abc import Collection, Iterator
from copy import copy
from dataclasses import MISSING, fields

import torch
import transformers
from transformers import utils
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils import is_liger_kernel_available, is_torch_bf16_gpu_available

from evaluation import metrics
from loaders import family_of
from loaders.output_folder import adapter_config, check_writable, public_name
from reading.mapping import COLUMN, SEVERAL, Mapping
from reading.options import AUTO_PIXELS, CACHE_FOLDER, MediaOptions
from reading.rows import RowForm
from reading.sources import names_of
from reading.strict_json import json_object
from supported_models import AUTO, MODELS, nearest
from training.make_collator import OWN_TEMPLATES

# Flags of TrainingArguments that must keep their default -> what another value does.
KEPT_FLAGS = {
    **dict.fromkeys(
        """
        do_train do_eval do_predict use_cache length_column_name optim_target_modules enable_jit_checkpoint
        prediction_loss_only include_for_metrics batch_eval_metrics eval_accumulation_steps eval_do_concat_batches
        eval_use_gather_object label_names
        """.split(),
        "has no effect in train.py",
    ),
    "remove_unused_columns": "would empty every sample",
    "ignore_data_skip": "would repeat samples of the current epoch when a run is resumed",
    "restore_callback_states_from_checkpoint": "would replace the callbacks that write the log",
    "average_tokens_across_devices": "would average the mean loss of each process, regardless of its number of labels",
    "auto_find_batch_size": "would restart with another batch size, but keep weights that are already trained",
    "liger_kernel_config": "is set by --use_liger_kernel True",
    "dataloader_in_order": "would change the order of samples from run to run",
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "would round the trained weights before they are saved"),
}

# Allowed range -> (test of a value, flags). The Trainer would find wrong values of its own flags only later.
RANGES = {
    "1 or more": (
        lambda value: value >= 1,
        "max_samples model_max_length lora_r lora_alpha per_device_train_batch_size per_device_eval_batch_size "
        "gradient_accumulation_steps eval_max_new_tokens early_stopping_patience sample_rows save_total_limit "
        "image_pixel_limit media_megabytes_limit video_seconds_limit video_pixel_limit",
    ),
    "0 or more": (
        lambda value: value >= 0,
        "vision_encoder_lr vision_projector_lr max_bad_samples eval_generate learning_rate weight_decay max_grad_norm "
        "dataloader_num_workers seed",
    ),
    "at least 0 and below 1": (lambda value: 0 <= value < 1, "label_smoothing_factor lora_dropout"),
    "above 0": (
        lambda value: value == AUTO_PIXELS or value > 0,
        "peak_tflops num_train_epochs min_pixels max_pixels num_frames fps max_frames video_max_pixels",
    ),
    # With 0, the Trainer takes one step, at a learning rate of 0 (transformers 5.23).
    "1 or more, or -1 to use --num_train_epochs": (lambda value: value == -1 or value >= 1, "max_steps"),
    "a fraction (0.05) or number (200) of rows": (lambda value: 0 < value < 1 or value % 1 == 0 < value, "eval_split"),
}
RANGE_OF = {flag: (wanted, is_right) for wanted, (is_right, flags) in RANGES.items() for flag in flags.split()}

# --attn_implementation -> (whether this machine can run it, what it needs). Called with True, the functions of
# transformers also accept the package `kernels`, which downloads a kernel for this GPU from the Hub.
KERNEL = "kernels-community/NAME"  # NAME must contain "flash": other kernels do not compute attention
ATTENTION = {
    "sdpa": (lambda _: True, ""),
    "eager": (lambda _: True, ""),
    "flash_attention_2": (utils.is_flash_attn_2_available, "a CUDA GPU, and the package flash-attn or kernels"),
    "flash_attention_3": (utils.is_flash_attn_3_available, "a Hopper GPU, and flash-attn-3 or kernels"),
    "flash_attention_4": (utils.is_flash_attn_4_available, "a Hopper or newer GPU, and flash-attn-4 or kernels"),
    "flex_attention": (lambda _: torch.cuda.is_available(), "a GPU, since PyTorch cannot train with it on CPUs"),
    KERNEL: (lambda _: torch.cuda.is_available() and utils.is_kernels_available(), "a GPU, and the package kernels"),
}

# Values of peft's `init_lora_weights`. PiSSA and OLoRA also change the base weights. When the adapter is loaded,
# peft 0.21 repeats this change exactly. The values left out here need data first, or cannot be repeated exactly.
LORA_INITS = ("default", "gaussian", "orthogonal", "pissa", "olora")

# Flags to add (one of them is enough) -> flags that have no effect without them.
NEEDED_BY = {
    "--train_vision_encoder True, --use_vision_lora True or --train NAME": "vision_encoder_lr",
    "--train_vision_projector True or --train NAME": "vision_projector_lr",
    "--train_vision_encoder True": "use_vision_lora",
    "--use_lora True": "q_lora load_in_8bit lora_experts lora_router",
    "--use_lora True or --use_vision_lora True": "lora_r lora_alpha lora_dropout lora_bias lora_target_modules "
    "lora_init use_dora use_rslora lora_weight_path",
    "--on_bad_sample skip": "max_bad_samples",
    "--image_size, --min_pixels or --max_pixels": "image_resize_algorithm",
    "--min_pixels or --max_pixels": "keep_processor_config",
    "--image_size or --max_pixels": "jpeg_draft",
    "--fps 2": "max_frames",
    "--allow_urls True": "media_megabytes_limit",
    "--eval_data_path or --eval_split 0.05": "eval_strategy eval_generate eval_on_start "
    "metric_for_best_model greater_is_better",
    "--eval_data_path, --eval_split 0.05 or --probe": "per_device_eval_batch_size",
    "--eval_generate 100": "metric",
    "--eval_generate 100 or --probe": "eval_max_new_tokens",
    "--eval_strategy epoch": "early_stopping_patience load_best_model_at_end eval_delay",
    "--save_strategy steps": "save_total_limit save_only_model",
    "--logging_strategy steps": "logging_nan_inf_filter",
    "--fsdp True": "fsdp_config",
    "--activation_checkpointing True or --gradient_checkpointing True": "activation_checkpointing_kwargs",
    "--torch_compile True": "torch_compile_backend torch_compile_mode",
    "--report_to wandb": "run_name project trackio_space_id trackio_bucket_id trackio_static_space_id",
    "--dataloader_num_workers 4": "dataloader_persistent_workers dataloader_multiprocessing_context "
    "dataloader_prefetch_factor",
    "--push_to_hub True": "hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision",
}
NEEDS = {flag: needed for needed, flags in NEEDED_BY.items() for flag in flags.split()}

# Values that turn a flag off.
OFF = (None, False, 0, -1, "no", "none", "error", [], {})

# Pairs of flags, or of flags with a value, that exclude each other, and why.
EXCLUDES = (
    ("eval_data_path", "eval_split", "both choose what is evaluated"),
    ("num_frames", "fps", "both choose the frames of a video"),
    *((name, "image_size", "both choose the size of images") for name in ("min_pixels", "max_pixels")),
    ("q_lora", "load_in_8bit", "weights have either 4 bits or 8"),
    *(("use_dora", name, "peft 0.21 cannot do both") for name in ("load_in_8bit", "lora_experts", "lora_router")),
    ("packing", "train_sampling_strategy", "packing decides which samples share a batch"),
    ("packing", "padding_free False", "packing concatenates samples"),
    ("train_thoughts False", "mask_question_tokens False", "the latter trains all text"),
    ("train_replies", "mask_question_tokens False", "the latter trains all text"),
    ("use_lora", "train_language_model False", "LoRA trains the language model"),
    ("fsdp", "deepspeed", "a run can use only one engine"),
    (
        "fsdp",
        "load_in_8bit",
        "8-bit weights lose their scales when FSDP2 shards them (bitsandbytes 0.50), unlike those of --q_lora True",
    ),
    ("on_nonfinite", "deepspeed", "DeepSpeed updates the weights before the gradients can be tested"),
    ("on_nonfinite", "fp16", "the fp16 scaler already skips updates whose gradients are not finite"),
    *(
        (f"ddp_{name}", engine, "only DDP uses the former")
        for name in ("find_unused_parameters", "bucket_cap_mb", "broadcast_buffers", "static_graph")
        for engine in ("deepspeed", "fsdp")
    ),
    *((name, "lora_weight_path", "the adapter decides what trains") for name in ("freeze", "train")),
    ("peak_tflops", "torch_compile", "the operations of a compiled model cannot be counted"),
)

# Required values in --accelerator_config, so that all processes get equally many whole batches in our sampler's order.
BATCH_SETTINGS = {"split_batches": False, "dispatch_batches": None, "even_batches": True, "use_seedable_sampler": True}

# Allowed keys of --activation_checkpointing_kwargs. They do not change the gradients.
CHECKPOINTING_KEYS = {"every_n_layers", "offload", "use_reentrant"}

# Devices that Liger supports. Its kernels that replace a loss are turned off, since our loss needs the logits.
LIGER_DEVICES = ("cuda", "xpu", "npu")
LIGER_KERNELS = {"cross_entropy": False, "fused_linear_cross_entropy": False}

# Flags that only some optimizers read, and their defaults.
ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}

# Prefixes of --optim values that are refused -> the reason.
REFUSED_OPTIMIZERS = {
    ("galore", "apollo", "lomo", "adalomo"): "it groups the parameters itself, ignoring the components' learning rates",
    ("schedule_free",): "the saved weights would differ from the evaluated ones (transformers 5.23)",
}


def check_flags(*parts, given: Collection[str] = ()) -> None:
    """Check the flags of some dataclasses with the tables. Skip rules that also involve other dataclasses.

    Args:
        given: the flags that the user wrote. A written `--lora_r 8` requires LoRA although 8 is the default, unless
            the user also wrote `--use_lora False`.
    """
    known = [(field, getattr(part, field.name)) for part in parts for field in fields(part)]
    values = {field.name: value for field, value in known}
    changed = {field.name for field, value in known if value not in (field.default, {}) and value is not False}
    # The args.yaml of a run lists all model, data and LoRA flags, but only those training flags that the user wrote.
    of_training = {f.name for part in parts if isinstance(part, transformers.TrainingArguments) for f in fields(part)}
    written = {name for name in values.keys() & given if values[name] not in OFF}
    asked = changed | of_training & written

    for name, (wanted, is_right) in RANGE_OF.items():
        if values.get(name) is not None and not is_right(values[name]):  # nan is never right
            raise ValueError(f"--{name} is {values[name]}; it must be {wanted}.")
    for name, needed in NEEDS.items():
        flags = set(re.findall(r"--(\w+)", needed))
        is_asked = name in asked or "True" in needed and name in written and not flags & given
        is_there = not flags <= values.keys() or any(values[flag] not in OFF for flag in flags)
        if is_asked and not is_there:
            raise ValueError(f"--{name} has no effect without {needed}: add it, or leave --{name} out.")
    for one, other, reason in EXCLUDES:
        pair = {name: value for name, _, value in (text.partition(" ") for text in (one, other))}
        if all(str(values.get(name)) == value if value else name in asked for name, value in pair.items()):
            written = ((f"--{name}", *(v if isinstance(v := values[name], list) else [v])) for name in pair)
            flags = " and ".join(" ".join(map(str, words)) for words in written)
            raise ValueError(f"{flags} are mutually exclusive, since {reason}: leave one out.")


def check_model_paths(model) -> None:
    """Refuse a folder as --model_id, and the path of an adapter in place of a model."""
    for option in ("model_id", "model_local_path"):
        path = getattr(model, option)
        if path and adapter_config(path) is not None and not os.path.isfile(os.path.join(path, "config.json")):
            raise ValueError(
                f"--{option} {path} is an adapter, not a model. To continue training it, use --lora_weight_path {path} "
                f"and name its base ({adapter_config(path).get('base_model_name_or_path')}) with --model_id and "
                "--model_local_path."
            )
    if os.path.isdir(model.model_id):
        path, family = model.model_id, family_of(model.model_id)
        ids = [model_id for model_id, listed in MODELS.items() if listed.family == family]
        (model_id, *_) = nearest(os.path.basename(os.path.abspath(path)), ids, cutoff=0) or [AUTO]
        raise ValueError(f"--model_id {path} is a folder: write --model_id {model_id} --model_local_path {path}.")


def check_model(model) -> None:
    check_flags(model)
    check_patterns(model, "freeze", "train")
    name = model.attn_implementation or ("flash_attention_2" if model.use_flash_attn else "sdpa")
    if model.use_flash_attn and name != "flash_attention_2":
        raise ValueError(f"--use_flash_attn True contradicts --attn_implementation {name}: leave one out.")
    known = KERNEL if re.fullmatch(r"kernels-community/[\w.-]*flash[\w.-]*(@[\w.-]+)?", name) else name
    if known not in ATTENTION:
        raise ValueError(f"--attn_implementation {name} is unknown; use {', '.join(ATTENTION)} (NAME contains flash).")
    is_available, needed = ATTENTION[known]
    if not is_available(True):
        flags = "--use_flash_attn True" if model.use_flash_attn else f"--attn_implementation {name}"
        raise ValueError(f"{flags} needs {needed} (docs/memory.md): leave it out.")


def check_reading(reading) -> None:
    """Check the flags that control how rows and media are read."""
    check_flags(reading)
    for name in ("image_folder", "video_folder"):
        if (folder := getattr(reading, name)) and not os.path.isdir(folder):
            raise ValueError(f"--{name} {folder!r} is not a folder.")
    if reading.user_key == reading.assistant_key:
        raise ValueError(f"--user_key and --assistant_key are both {reading.user_key!r}; they must differ.")
    for column in reading.columns or []:
        if not COLUMN.fullmatch(column):
            raise ValueError(f"--columns {column} must be NAME=FIELD, or FIELD= to ignore a field (docs/dataset.md).")
    mapping = Mapping.of(reading.columns)
    for names in zip(*mapping.sources):
        if twice := [name for name in names if names.count(name) > 1 and name not in SEVERAL]:
            raise ValueError(f"--columns names {twice[0]} twice; name it once.")
    readable = RowForm({}, field_messages=reading.field_messages).columns
    for name, field in mapping.sources:
        if name not in readable:
            raise ValueError(
                f"--columns {name}={field}: `{name}` is not a known name; use one of {', '.join(readable)} (NAME=FIELD "
                "reads the data's FIELD as NAME)."
            )
    MediaOptions.of(reading)
    for flag in ("processor_kwargs", "template_kwargs"):
        json_object(flag, getattr(reading, flag))
    check_writable("--data_cache", os.path.expanduser(reading.data_cache or CACHE_FOLDER))


def check_data(data) -> None:
    if not data.data_path:
        raise ValueError("--data_path is missing: give a JSON, JSONL, Parquet or CSV file (docs/start.md).")
    template = data.chat_template
    if template and template not in OWN_TEMPLATES and not os.path.isfile(template):
        raise ValueError(f"--chat_template {template!r} is no file, nor {' or '.join(OWN_TEMPLATES)}: leave it out.")


def check_lora(lora) -> None:
    if all_of_them := {"all", "all-linear"}.intersection(lora.lora_target_modules or []):
        raise ValueError(f"--lora_target_modules {all_of_them.pop()} is the default: leave it out.")
    check_flags(lora)
    check_patterns(lora, "lora_target_modules")
    init = lora.lora_init
    if init == "orthogonal" and lora.lora_r % 2:
        raise ValueError(f"--lora_init orthogonal needs an even rank, but --lora_r is {lora.lora_r}.")
    for name in ("q_lora", "load_in_8bit", "lora_experts", "lora_router"):
        if getattr(lora, name) and init not in ("default", "gaussian"):
            raise ValueError(f"--lora_init {init} does not work with --{name} True: use default or gaussian.")
        if getattr(lora, name) and name.startswith("lora_") and lora.lora_dropout:
            raise ValueError(f"--{name} True adapts weights that cannot have dropout: add --lora_dropout 0.")


def check_patterns(part, *flags: str) -> None:
    for flag in flags:
        for pattern in getattr(part, flag) or []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"--{flag} {pattern!r} is not a regular expression: {error}.") from error


def check_training(training) -> None:
    """Refuse flags that fail on every machine, or that the Trainer would refuse only after loading the model."""
    check_flags(training)
    for name, reason in KEPT_FLAGS.items():
        default = training.__dataclass_fields__[name].default
        if (value := getattr(training, name)) != ([] if default is MISSING else default):
            raise ValueError(f"--{name} {value} {reason}: leave it out.")
    if training.bf16 and not training.use_cpu and not is_torch_bf16_gpu_available():
        raise ValueError("--bf16 True needs a GPU with bfloat16: leave it out, or run on the CPU with --use_cpu True.")
    folder = training.resume_from_checkpoint
    if folder and folder is not True and not os.path.isdir(folder):
        raise ValueError(f"--resume_from_checkpoint {folder} is not a folder; True resumes from the last checkpoint.")
    if training.overwrite_output_dir and folder:
        raise ValueError("--overwrite_output_dir starts a new run, --resume_from_checkpoint does not: leave one out.")
    for kind, steps in (("save", training.save_steps), ("eval", training.eval_steps)):
        if getattr(training, f"{kind}_strategy") == "steps" and steps is not None and steps <= 0:
            raise ValueError(f"--{kind}_steps is {steps}; raise it, or add --{kind}_strategy no.")
    if training.save_strategy == "best" and not (training.metric_for_best_model or training.load_best_model_at_end):
        raise ValueError("--save_strategy best needs --metric_for_best_model eval_loss.")
    names = [training.report_to] if isinstance(training.report_to, str) else training.report_to or []
    for name in set(names) - {"none", "all", *get_available_reporting_integrations()}:
        fault = "needs a package that is not installed" if name in INTEGRATION_TO_CALLBACK else "is unknown"
        raise ValueError(f"--report_to {name} {fault}; choose from none, all, {', '.join(INTEGRATION_TO_CALLBACK)}.")


def check_best_metric(training, paths: list[str]) -> None:
    """Refuse a --metric_for_best_model that does not exist, or that needs answers if none are generated."""
    measured = ["loss", *metrics.load_metrics(training.metric)]
    best = (training.metric_for_best_model or "loss").removeprefix("eval_")
    kind = metrics.kind_of(best)
    if kind != "loss" and not training.eval_generate:
        raise ValueError(f"--metric_for_best_model {best} is measured on answers: add --eval_generate 100.")
    files = names_of(paths) if paths[1:] else []
    known = [*measured, *(f"{file}_{name}" for file in files for name in measured)]
    if best not in known and {*measured} <= {"loss", *metrics.METRICS}:  # a user's function may return any names
        fix = f", or add --metric {kind or 'FILE.py:FUNCTION'}" if kind != "loss" else ""
        raise ValueError(f"--metric_for_best_model {best} is not measured: use one of {', '.join(known)}{fix}.")


def check_machine(training) -> None:
    """Refuse flags that this machine does not support, or that the Trainer would silently change."""
    if training.fp16 and training.device.type == "cpu":
        raise ValueError("--fp16 True needs a GPU: leave it out, or use --bf16 True --use_cpu True on the CPU.")
    for name, value in BATCH_SETTINGS.items():
        if getattr(training.accelerator_config, name) != value:
            raise ValueError(f"--accelerator_config {name} would change which samples a step has: leave it out.")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16", "fp16"):
        raise ValueError(
            f"`accelerate launch` sets {precision}, which is not supported: pass --mixed_precision bf16 to it."
        )
    if precision != "no" and not getattr(training, precision):
        raise ValueError(f"`accelerate launch` sets {precision}, but the flags do not: add --{precision} True.")
    kwargs = training.activation_checkpointing_kwargs or {}
    if kwargs.keys() - CHECKPOINTING_KEYS or kwargs.get("use_reentrant"):
        raise ValueError(
            f"--activation_checkpointing_kwargs accepts only {', '.join(sorted(CHECKPOINTING_KEYS))}; use_reentrant "
            "must be false, since true can lose gradients."
        )
    if training.use_liger_kernel and not (training.device.type in LIGER_DEVICES and is_liger_kernel_available()):
        raise ValueError("--use_liger_kernel True needs a GPU and the package liger-kernel: leave it out.")
    try_optimizer(training)
    if training.torch_compile:
        try:
            backend, mode = training.torch_compile_backend, training.torch_compile_mode
            torch.compile(torch.sin, backend=backend, mode=mode)(torch.zeros(8, device=training.device))
        except Exception as error:  # from a compiler, a backend or a driver
            raise ValueError(f"--torch_compile True does not work on this machine, leave it out: {error}") from error


def check_optimizer_name(training) -> None:
    for starts, reason in REFUSED_OPTIMIZERS.items():
        if training.optim.value.startswith(starts):
            raise ValueError(f"--optim {training.optim.value} is not supported: {reason}.")


def try_optimizer(training) -> None:
    """Create the optimizer and the schedule for a dummy parameter. Wrong flags would otherwise fail only at step 1."""
    check_optimizer_name(training)
    name, rate = training.optim.value, training.learning_rate
    if "paged" in name and training.device.type != "cuda":
        raise ValueError(f"--optim {name} needs a CUDA GPU: use {name.removeprefix('paged_')}.")
    what = f"--optim {name}"
    try:
        optimizer_class, kwargs = transformers.Trainer.get_optimizer_cls_and_kwargs(training)
        optimizer = optimizer_class([torch.nn.Parameter(torch.zeros(1))], **kwargs)
        idle = [flag for flag, other in without_each(training) if other == (optimizer_class, kwargs)]
        schedule, kwargs = training.lr_scheduler_type, training.lr_scheduler_kwargs
        what = f"--lr_scheduler_type {schedule.value} with --lr_scheduler_kwargs {kwargs or {}}"
        made = transformers.get_scheduler(schedule, optimizer, 5, 10, scheduler_specific_kwargs=kwargs)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be created with these flags: {error}") from error
    if idle:
        raise ValueError(f"{idle[0]} has no effect with --optim {name}: leave it out.")
    if training.warmup_steps and made.get_last_lr() == [rate] != [0]:
        raise ValueError(f"--warmup_steps has no effect with --lr_scheduler_type {schedule.value}: leave one out.")
    if kwargs and schedule.value.startswith("constant"):  # these schedules ignore them (transformers 5.23)
        raise ValueError(f"--lr_scheduler_kwargs has no effect with {schedule.value}: leave one of them out.")


def without_each(training) -> Iterator[tuple[str, tuple]]:
    """Yield each optimizer flag that differs from its default, and the optimizer that the run would have without it."""
    others = {f"--{name} {getattr(training, name)}": {name: value} for name, value in ADAM.items()}
    words = (training.optim_args or "").split(",")
    for word in filter(None, words):
        others[f"--optim_args {word}"] = {"optim_args": ",".join(other for other in words if other != word)}
    for flag, values in others.items():
        other = copy(training)
        vars(other).update(values)
        if any(getattr(training, name) != value for name, value in values.items()):
            yield flag, transformers.Trainer.get_optimizer_cls_and_kwargs(other)


def check_together(arguments) -> None:
    """Check rules that involve flags of several dataclasses."""
    model, data, training, lora = arguments.model, arguments.data, arguments.training, arguments.lora
    check_best_metric(training, data.eval_data_path or [])
    check_flags(model, data, training, lora, given=arguments.given)
    if not any((training.learning_rate, model.vision_encoder_lr, model.vision_projector_lr)):
        raise ValueError("--learning_rate 0 trains nothing: raise it.")
    if not any((model.train_language_model, model.train_vision_encoder, model.train_vision_projector, model.train)):
        raise ValueError("--train_language_model False leaves nothing to train: add --train_vision_projector True.")
    if data.add_tokens and not (lora.use_lora or model.train_language_model and not lora.use_vision_lora):
        raise ValueError("--add_tokens needs --use_lora True, or a language model that trains in full without LoRA.")
    base = public_name(model.model_path)
    if training.push_to_hub and (lora.use_lora or lora.use_vision_lora) and os.path.isabs(base):
        raise ValueError(
            f"--push_to_hub True: the adapter would name its base as {base}, a folder on this machine. Give the base "
            "by its Hub id (--model_local_path ORG/NAME), or leave --push_to_hub out and push a merged model."
        )
    attention = model.attn_implementation or ""
    if "flash" in attention and not (training.bf16 or training.fp16):
        raise ValueError(f"--attn_implementation {attention} computes in 16 bits only: add --bf16 True.")
    if {"gradient_checkpointing", "activation_checkpointing"} <= arguments.given:
        raise ValueError("--gradient_checkpointing is the old name of --activation_checkpointing: use only the latter.")
    for kind in ("eval", "save", "logging"):
        name = getattr(training, f"{kind}_strategy").value
        if f"{kind}_steps" in arguments.given and name != "steps":
            raise ValueError(f"--{kind}_steps has no effect: add --{kind}_strategy steps, or leave --{kind}_steps out.")


def take_from_adapter(lora, given: Collection[str], model_path: str) -> None:
    """Set the LoRA flags to the values in the adapter of --lora_weight_path. Refuse flags that contradict them."""
    from peft import LoraConfig

    path = lora.lora_weight_path
    adapter = adapter_config(path)
    if adapter is None:
        raise ValueError(f"--lora_weight_path {path} contains no adapter: adapter_config.json is missing.")
    if (kind := adapter.get("peft_type")) != "LORA":
        raise ValueError(f"--lora_weight_path {path} contains a {kind} adapter; only LoRA can be continued.")
    adapter = LoraConfig().to_dict() | adapter  # an older peft did not save newer settings
    base = adapter["base_model_name_or_path"] or "an unnamed model"
    # The folder of a checkpoint may have been moved, so only its name is compared.
    if os.path.basename(os.path.realpath(base)) != os.path.basename(os.path.realpath(public_name(model_path))):
        raise ValueError(
            f"--lora_weight_path {path} was trained on {base}, not on {model_path}. If both names mean the same "
            "model, change base_model_name_or_path in the adapter's adapter_config.json."
        )
    values = {
        "lora_init": "default" if adapter["init_lora_weights"] is True else adapter["init_lora_weights"],
        **{f"lora_{name}": adapter[name] for name in ("r", "bias")},
        **{name: adapter[name] for name in ("lora_alpha", "lora_dropout", "use_dora", "use_rslora")},
    }
    if values["lora_init"] not in LORA_INITS:
        raise ValueError(f"--lora_weight_path {path} has an unknown init_lora_weights: {values['lora_init']}.")
    for name, value in values.items():
        if name in given and getattr(lora, name) != value:
            raise ValueError(f"--{name} {getattr(lora, name)} contradicts the adapter ({value}): leave it out.")
        setattr(lora, name, value)
    for name in ("lora_target_modules", "lora_experts", "lora_router"):
        if getattr(lora, name):
            raise ValueError(f"--{name} is set by the adapter in --lora_weight_path: leave it out.")
    check_lora(lora)
