"""Every flag of `train.py`: its name, default and help are written here, once.

`parse_arguments` reads flags, or a YAML file of the same names (`python train.py run.yaml --learning_rate 1e-4`;
a flag after the file wins).
"""

import argparse
import difflib
import json
import os
import re
import sys
import traceback
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields

import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_liger_kernel_available,
    is_torch_bf16_gpu_available,
    is_torch_tf32_available,
)

from supported_models import find_model

HERE = os.path.dirname(os.path.abspath(__file__))

# Flags that transformers 5 removed or renamed -> what to write now.
RENAMED_FLAGS = {
    "warmup_ratio": "--warmup_steps (a fraction such as 0.03 is accepted)",
    "evaluation_strategy": "--eval_strategy",
    "group_by_length": "--train_sampling_strategy group_by_length",
    "no_cuda": "--use_cpu",
    "use_mps_device": "nothing: an MPS device is used by itself",
    "save_safetensors": "nothing: checkpoints are always safetensors",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "nothing: --output_dir is reused; --resume_from_checkpoint continues a run in it",
    "per_gpu_train_batch_size": "--per_device_train_batch_size",
    "per_gpu_eval_batch_size": "--per_device_eval_batch_size",
    "fp16_backend": "--fp16",
    "half_precision_backend": "--fp16 or --bf16",
    "push_to_hub_model_id": "--hub_model_id",
    "push_to_hub_token": "--hub_token",
    "jit_mode_eval": "--torch_compile",
    "fsdp_transformer_layer_cls_to_wrap": "--fsdp_config",
    "fsdp_min_num_params": "--fsdp_config",
    "dispatch_batches": "--accelerator_config",
    "split_batches": "--accelerator_config",
    "include_tokens_per_second": "--include_num_input_tokens_seen",
    "include_inputs_for_metrics": "--include_for_metrics inputs",
    "torchdynamo": "--torch_compile_backend",
    "adafactor": "--optim adafactor",
}

# Flags of TrainingArguments that change nothing here -> the value that says what happens anyway, and why.
FLAGS_WITHOUT_EFFECT = {
    "do_train": (True, "train.py always trains"),
    "do_eval": (True, "--eval_data_path decides on evaluation"),
    "do_predict": (False, "predict.py writes answers"),
    "use_cache": (False, "training never uses a cache"),
    "prediction_loss_only": (True, "evaluation measures the loss only"),
    "length_column_name": (None, "lengths are estimated from the data"),
    "optim_target_modules": (None, "no optimizer that reads it is supported"),
    "enable_jit_checkpoint": (False, "SIGTERM saves and stops anyway"),
    **dict.fromkeys(
        ("include_for_metrics", "batch_eval_metrics", "eval_accumulation_steps", "eval_do_concat_batches"),
        (None, "evaluation measures the loss only"),
    ),
    **dict.fromkeys(("eval_use_gather_object", "label_names"), (None, "evaluation measures the loss only")),
}

# Of `init_lora_weights` of peft. PiSSA and OLoRA take a part out of the base's weights, which peft 0.21 does again, to
# the same result, wherever the adapter is loaded. Its others need data first, or cannot be done again exactly.
LORA_INITS = ("default", "gaussian", "orthogonal", "pissa", "olora")

# Flags of TrainingArguments that would make the loss or the order of samples inexact -> the value that stays, and why.
FIXED_FLAGS = {
    "remove_unused_columns": (False, "would empty every sample"),
    "average_tokens_across_devices": (True, "would make the loss a mean of the processes' means"),
    "auto_find_batch_size": (False, "would begin again, with another batch size, on weights that are already trained"),
    "dataloader_in_order": (True, "would give another order of samples in every run"),
    **dict.fromkeys(
        ("bf16_full_eval", "fp16_full_eval"), (False, "would round the trained weights before they are saved")
    ),
}

# What --accelerator_config may not change: every process takes whole batches, evenly, in the order of our sampler.
BATCH_SETTINGS = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler")

# Keys of --activation_checkpointing_kwargs that leave the gradients alone.
CHECKPOINTING_KEYS = {"every_n_layers", "offload", "use_reentrant"}

# Where Liger runs; and all of its kernels but those that stand in for a loss: ours needs the logits.
LIGER_DEVICES = ("cuda", "xpu", "npu")
LIGER_KERNELS = {"cross_entropy": False, "fused_linear_cross_entropy": False}

# Starts of names of --optim -> why not.
REFUSED_OPTIMIZERS = {
    ("galore", "apollo", "lomo", "adalomo"): "it groups the parameters itself, past the learning rates of components",
    ("schedule_free",): "other weights would be saved than those that are evaluated (transformers 5.23)",
}

# --attn_implementation -> whether this machine has what it needs, and what that is.
ATTENTION = {
    "sdpa": (lambda: True, ""),
    "eager": (lambda: True, ""),
    "flash_attention_2": (is_flash_attn_2_available, "a CUDA GPU and the package flash-attn (docs/training.md)"),
    "flash_attention_3": (is_flash_attn_3_available, "a Hopper GPU and the package flash-attn-3"),
    "flex_attention": (torch.cuda.is_available, "a GPU: PyTorch trains with it on no CPU"),
}

# Flags that ask for a GPU, a package or an engine: what is trained on does not depend on them.
HARDWARE_FLAGS = {
    *("bf16", "fp16", "tf32", "use_flash_attn", "attn_implementation", "deepspeed", "fsdp", "optim", "optim_args"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel"),
}

# Flags of TrainingArguments -> the smallest value that has a meaning; the Trainer fails late on a smaller one.
SMALLEST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "label_smoothing_factor"), 0),
    **dict.fromkeys(("dataloader_num_workers", "seed"), 0),
}


def flag(default, help: str):
    """A dataclass field that carries its own help."""
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    model_id: str | None = flag(
        None, "Model id, or Hub path, of `python supported_models.py`; auto: any other, by --model_local_path."
    )
    model_local_path: str | None = flag(None, "Folder or Hub path to load weights, processor and config from instead.")
    attn_implementation: str | None = flag(None, f"How attention is computed: {', '.join(ATTENTION)}. Default: sdpa.")
    use_flash_attn: bool = flag(False, "Short for --attn_implementation flash_attention_2 (package flash-attn).")
    trust_remote_code: bool = flag(
        False, "Run the Python files of the checkpoint, with all your rights: families without a class in transformers."
    )
    train_vision_encoder: bool = flag(False, "Train the vision encoder.")
    train_vision_projector: bool = flag(False, "Train the vision projector (always in full).")
    vision_encoder_lr: float | None = flag(None, "Learning rate of the vision encoder. Default: --learning_rate.")
    vision_projector_lr: float | None = flag(None, "Learning rate of the vision projector. Default: --learning_rate.")

    def __post_init__(self):
        for component in ("vision_encoder", "vision_projector"):
            rate = getattr(self, f"{component}_lr")
            if rate is not None and not rate >= 0:  # nan too
                raise ValueError(f"--{component}_lr is {rate}; it must be 0 or more.")
            if rate is not None and not getattr(self, f"train_{component}"):
                raise ValueError(f"--{component}_lr has no effect without --train_{component} True: add it.")
        if not self.model_id:
            raise ValueError("--model_id is missing; `python supported_models.py` lists the models.")
        self.family, hub_path = find_model(self.model_id)
        self.model_path = self.model_local_path or hub_path
        if not self.model_path:
            raise ValueError(f"--model_id {self.model_id} needs --model_local_path, a folder or Hub path.")
        if self.use_flash_attn and self.attn_implementation not in (None, "flash_attention_2"):
            raise ValueError(
                f"--use_flash_attn True and --attn_implementation {self.attn_implementation} contradict each other: "
                "leave one of them out."
            )
        if self.attn_implementation and self.attn_implementation not in ATTENTION:
            raise ValueError(
                f"--attn_implementation {self.attn_implementation} is unknown; use one of {', '.join(ATTENTION)}."
            )
        if self.use_flash_attn or self.attn_implementation:
            name = self.attn_implementation or "flash_attention_2"
            is_available, needed = ATTENTION[name]
            if not is_available():
                flags = "--use_flash_attn True" if self.use_flash_attn else f"--attn_implementation {name}"
                raise ValueError(f"{flags} needs {needed}: leave it out.")
            self.attn_implementation = name


@dataclass
class DataArguments:
    data_path: str | None = flag(None, "Training data: a JSON list or JSONL file (docs/dataset.md).")
    eval_data_path: str | None = flag(None, "Evaluation data in the same form.")
    image_folder: str | None = flag(None, "Folder of relative image paths. Default: the data file's folder.")
    video_folder: str | None = flag(None, "Folder of relative video paths. Default: the data file's folder.")
    num_frames: int = flag(8, "Frames taken from each video, evenly spaced from the first to the last.")
    user_key: str = flag("human", "Name of the user in the `from` field of `conversations`.")
    assistant_key: str = flag("gpt", "Name of the assistant in the `from` field of `conversations`.")
    model_max_length: int = flag(1024, "Longest sample in tokens, media included; the rest is cut on the right.")
    chat_template: str | None = flag(
        None, "Jinja file that replaces the chat template, in training and in answers (docs/chat_formats.md)."
    )
    mask_question_tokens: bool = flag(True, "Train on replies only. False: on all text, never on media or padding.")
    drop_overlong: bool = flag(
        False, "Drop (and count) a sample whose first exchange exceeds --model_max_length; by default it is an error."
    )

    def __post_init__(self):
        if not self.data_path:
            raise ValueError("--data_path is missing: a JSON list or JSONL file, see docs/dataset.md.")
        for name in ("num_frames", "model_max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be 1 or more.")
        for name in ("image_folder", "video_folder"):
            if (folder := getattr(self, name)) and not os.path.isdir(folder):
                raise ValueError(f"--{name} {folder!r} is not a folder.")
        if self.chat_template and not os.path.isfile(self.chat_template):
            raise ValueError(f"--chat_template {self.chat_template!r} is not a file.")
        if self.user_key == self.assistant_key:
            raise ValueError(f"--user_key and --assistant_key are both {self.user_key!r}; they must differ.")


@dataclass
class LoraArguments:
    use_lora: bool = flag(False, "Train LoRA adapters on the language model instead of all its weights.")
    use_vision_lora: bool = flag(False, "Train LoRA adapters on the vision encoder instead of all its weights.")
    q_lora: bool = flag(False, "Quantize the frozen language model to 4 bits (nf4, double quantization) under LoRA.")
    load_in_8bit: bool = flag(False, "Quantize the frozen language model to 8 bits (LLM.int8) under LoRA.")
    lora_r: int = flag(8, "Rank of the adapters.")
    lora_alpha: int = flag(16, "Scale: the adapter's output is multiplied by lora_alpha / lora_r.")
    lora_dropout: float = flag(0.05, "Dropout before the adapters.")
    lora_bias: str = flag("none", "Which biases train beside the adapters: none, lora_only or all.")
    lora_target_modules: list[str] | None = flag(
        None, "Linear layers with an adapter: names, ends of names, or regexes of whole names. Default: all."
    )
    lora_init: str = flag("default", f"How adapters start: {', '.join(LORA_INITS)}.")
    use_dora: bool = flag(False, "DoRA: train the magnitudes of the adapted weights beside their directions.")
    use_rslora: bool = flag(False, "Scale by lora_alpha / sqrt(lora_r), so that high ranks learn as well.")
    lora_weight_path: str | None = flag(None, "Folder of an adapter to go on from; it decides on its rank and targets.")
    lora_experts: bool = flag(False, "Adapters on the experts of a mixture of experts too; needs --lora_dropout 0.")
    lora_router: bool = flag(False, "Adapters on the router of a mixture of experts too; needs --lora_dropout 0.")

    def __post_init__(self):
        if self.lora_bias not in ("none", "lora_only", "all"):
            raise ValueError(f"--lora_bias {self.lora_bias!r} is unknown; use none, lora_only or all.")
        for name in ("lora_r", "lora_alpha"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be 1 or more.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--lora_dropout is {self.lora_dropout}; it must be at least 0 and below 1.")
        if self.q_lora and self.load_in_8bit:
            raise ValueError("--q_lora True and --load_in_8bit True exclude each other: 4 bits or 8.")
        quantized = "q_lora" if self.q_lora else "load_in_8bit" if self.load_in_8bit else None
        if quantized and not self.use_lora:
            raise ValueError(f"--{quantized} True quantizes the language model under LoRA: add --use_lora True.")
        if self.lora_init not in LORA_INITS:
            raise ValueError(f"--lora_init {self.lora_init} is not supported; use one of {', '.join(LORA_INITS)}.")
        flags = [name for name in ("q_lora", "load_in_8bit", "lora_experts", "lora_router") if getattr(self, name)]
        if flags and self.lora_init not in ("default", "gaussian"):
            raise ValueError(
                f"--lora_init {self.lora_init} cannot read the weights as --{flags[0]} True holds them: use default or "
                "gaussian."
            )
        if self.use_dora and (flags := [name for name in flags if name != "q_lora"]):
            raise ValueError(f"--use_dora True does not work with --{flags[0]} True (peft 0.21): leave one out.")
        if self.lora_init == "orthogonal" and self.lora_r % 2:
            raise ValueError(f"--lora_init orthogonal needs an even rank, but --lora_r is {self.lora_r}.")
        for pattern in self.lora_target_modules or []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"--lora_target_modules {pattern!r} is no regular expression: {error}.") from error
        for name in ("lora_experts", "lora_router"):
            if getattr(self, name) and not self.use_lora:
                raise ValueError(f"--{name} True has no effect without LoRA: add --use_lora True.")
            if getattr(self, name) and self.lora_dropout:
                raise ValueError(
                    f"--{name} True adapts weights whose input has no place for dropout: add --lora_dropout 0."
                )
        names = [f.name for f in fields(self) if f.name.startswith(("lora_", "use_dora", "use_rslora"))]
        changed = [name for name in names if getattr(self, name) != self.__dataclass_fields__[name].default]
        if changed and not (self.use_lora or self.use_vision_lora):
            raise ValueError(
                f"--{changed[0]} has no effect without LoRA: add --use_lora True (or --use_vision_lora True), "
                f"or leave --{changed[0]} out."
            )

    def take_from_adapter(self, given: Collection[str], model_path: str) -> None:
        """Set the flags to what the adapter in --lora_weight_path is; refuse those that say otherwise."""
        path = self.lora_weight_path
        adapter = adapter_config(path)
        if adapter is None:
            raise ValueError(f"--lora_weight_path {path} holds no adapter (adapter_config.json).")
        base = adapter["base_model_name_or_path"]
        # The folder of a checkpoint may have been moved, so its name decides.
        if os.path.basename(os.path.realpath(base)) != os.path.basename(os.path.realpath(model_path)):
            raise ValueError(
                f"--lora_weight_path {path} was trained on {base}, not on {model_path}. If they are the same under two "
                "names, change base_model_name_or_path in its adapter_config.json."
            )
        values = {
            "lora_init": "default" if adapter["init_lora_weights"] is True else adapter["init_lora_weights"],
            **{f"lora_{name}": adapter[name] for name in ("r", "bias")},
            **{name: adapter[name] for name in ("lora_alpha", "lora_dropout", "use_dora", "use_rslora")},
        }
        for name, value in values.items():
            if name in given and getattr(self, name) != value:
                raise ValueError(
                    f"--{name} {getattr(self, name)} contradicts the adapter in --lora_weight_path, which has {value}: "
                    "leave it out."
                )
            setattr(self, name, value)
        for name in ("lora_target_modules", "lora_experts", "lora_router"):
            if getattr(self, name):
                raise ValueError(f"--{name} is settled by the adapter in --lora_weight_path: leave it out.")
        self.__post_init__()


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    # The dataset hands over whole samples, so no column of theirs may be removed.
    remove_unused_columns: bool = flag(False, "Kept False: the collator needs every field of a sample.")
    # The Trainer (5.23) would log the mean of the steps before in the place of a loss that is nan or infinite.
    logging_nan_inf_filter: bool = flag(False, "Log a mean of earlier losses where the loss is nan or infinite.")
    # The Trainer's type, dict[str, bool], has no reader for the command line (5.23).
    liger_kernel_config: str | None = flag(None, 'Kernels of Liger to use or not, as JSON: {"rope": false}.')
    fsdp: bool = flag(
        False, "Shard weights, gradients and optimizer with FSDP2 (--fsdp_config fsdp_configs/fsdp2.json)."
    )

    def __post_init__(self):
        if self.tf32 and not is_torch_tf32_available():
            raise ValueError("--tf32 True needs an Ampere or newer NVIDIA GPU, which this machine lacks: leave it out.")
        for name in ("bf16", "bf16_full_eval"):
            if getattr(self, name) and not self.use_cpu and not is_torch_bf16_gpu_available():
                raise ValueError(
                    f"--{name} True needs a GPU with bfloat16, which this machine lacks: leave it out, "
                    "or add --use_cpu True to run bfloat16 on the CPU."
                )
        folder = self.resume_from_checkpoint
        if folder and str(folder).lower() not in ("true", "false") and not os.path.isdir(folder):
            raise ValueError(
                f"--resume_from_checkpoint {folder} is not a folder; True resumes the last checkpoint in --output_dir."
            )
        config = self.deepspeed
        if config and not str(config).startswith("{") and not os.path.isfile(config):
            raise ValueError(f"--deepspeed {config} is not a file; ds_configs/ holds some.")
        for name, (kept, reason) in FIXED_FLAGS.items():
            if getattr(self, name) != kept:
                raise ValueError(f"--{name} {not kept} {reason}: leave it out.")
        self._check_values()
        try:
            super().__post_init__()
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"transformers refuses the training flags: {error}") from error
        if self.fp16 and self.device.type == "cpu":
            raise ValueError("--fp16 True needs a GPU: leave it out, or use --bf16 True --use_cpu True on the CPU.")
        self._check_engine()
        self.dataloader_pin_memory &= self.device.type == "cuda"  # else every loader warns
        check_writable("--output_dir", self.output_dir)

    def _check_engine(self) -> None:
        """What the Trainer would change in silence, or refuse only after the model is loaded."""
        for name in BATCH_SETTINGS:
            if getattr(self.accelerator_config, name) != getattr(AcceleratorConfig(), name):
                raise ValueError(f"--accelerator_config {name} would change which samples a step holds: leave it out.")
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if precision != "no" and not getattr(self, precision):
            raise ValueError(f"accelerate launch was told {precision}, the flags not: add --{precision} True.")
        kwargs = self.activation_checkpointing_kwargs or {}
        if kwargs and not self.activation_checkpointing:
            raise ValueError("--activation_checkpointing_kwargs has no effect: add --activation_checkpointing True.")
        if kwargs.keys() - CHECKPOINTING_KEYS or kwargs.get("use_reentrant"):
            raise ValueError(
                f"--activation_checkpointing_kwargs takes {', '.join(sorted(CHECKPOINTING_KEYS))}, the last as false "
                "only: others can lose gradients."
            )
        if self.use_liger_kernel and not (self.device.type in LIGER_DEVICES and is_liger_kernel_available()):
            raise ValueError("--use_liger_kernel True needs a GPU and the package liger-kernel: leave it out.")
        self.liger_kernel_config = LIGER_KERNELS if self.use_liger_kernel else None
        self._try_optimizer()
        if self.torch_compile:
            try:
                compiled = torch.compile(torch.sin, backend=self.torch_compile_backend, mode=self.torch_compile_mode)
                compiled(torch.zeros(8, device=self.device))
            except Exception as error:  # of a compiler, a backend or a driver
                raise ValueError(f"--torch_compile True does not work on this machine: {error}") from error

    def _try_optimizer(self) -> None:
        """Make optimizer and schedule for one number: before step 1, nothing else reads the flags for them."""
        name = self.optim.value
        for starts, reason in REFUSED_OPTIMIZERS.items():
            if name.startswith(starts):
                raise ValueError(f"--optim {name} is not supported: {reason}.")
        if "paged" in name and self.device.type != "cuda":
            raise ValueError(f"--optim {name} needs a CUDA GPU: use {name.removeprefix('paged_')}.")
        try:
            optimizer_class, kwargs = transformers.Trainer.get_optimizer_cls_and_kwargs(self)
            optimizer = optimizer_class([torch.nn.Parameter(torch.zeros(1))], **kwargs)
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"--optim {name} cannot be made with these flags: {error}") from error
        try:
            steps = {"num_warmup_steps": 1, "num_training_steps": 10}
            transformers.get_scheduler(
                self.lr_scheduler_type, optimizer, **steps, scheduler_specific_kwargs=self.lr_scheduler_kwargs
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"--lr_scheduler_type {self.lr_scheduler_type.value} with --lr_scheduler_kwargs "
                f"{self.lr_scheduler_kwargs or {}} is not possible: {error}"
            ) from error

    def _check_values(self) -> None:
        """What the Trainer would refuse with a traceback, and after the model is loaded."""
        for name, smallest in SMALLEST.items():
            if not getattr(self, name) >= smallest:  # nan too
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be {smallest} or more.")
        if self.label_smoothing_factor > 1:
            raise ValueError(f"--label_smoothing_factor is {self.label_smoothing_factor}; it must be at most 1.")
        if not (self.num_train_epochs > 0 or self.max_steps > 0):
            raise ValueError(f"--num_train_epochs is {self.num_train_epochs}: raise it, or give --max_steps.")
        if self.max_steps == 0 or self.max_steps < -1:  # the Trainer makes one step at a rate of 0 of it (5.23)
            raise ValueError(f"--max_steps is {self.max_steps}; it must be 1 or more, or -1 for --num_train_epochs.")
        for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
            if getattr(self, name) and not self.dataloader_num_workers:
                raise ValueError(f"--{name} {getattr(self, name)} has no effect without --dataloader_num_workers.")
        if self.save_strategy == "best" and not (self.metric_for_best_model or self.load_best_model_at_end):
            raise ValueError("--save_strategy best needs --metric_for_best_model eval_loss.")
        names = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        for name in set(names) - {"none", "all", *get_available_reporting_integrations()}:
            if name not in INTEGRATION_TO_CALLBACK:
                raise ValueError(f"--report_to {name} is unknown; use none, all, {', '.join(INTEGRATION_TO_CALLBACK)}.")
            raise ValueError(f"--report_to {name} needs a package that is not installed; add it, or --report_to none.")


PARTS = (ModelArguments, DataArguments, TrainingArguments, LoraArguments)


@dataclass
class Arguments:
    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    lora: LoraArguments
    given: set[str] = field(default_factory=set)  # names of the flags that the user wrote

    def __post_init__(self):
        if self.lora.use_vision_lora and not self.model.train_vision_encoder:
            raise ValueError("--use_vision_lora True has no effect without --train_vision_encoder True: add it.")
        if self.lora.lora_weight_path:
            self.lora.take_from_adapter(self.given, self.model.model_path)
        rates = [n for n in ("vision_encoder_lr", "vision_projector_lr") if getattr(self.model, n) is not None]
        if rates and self.training.deepspeed and self.training.hf_deepspeed_config.get_value("optimizer"):
            raise ValueError(
                f"--{rates[0]} has no effect on the optimizer in --deepspeed {self.training.deepspeed}: take its "
                "section out of the file; --optim chooses an optimizer."
            )
        if self.training.eval_strategy != "no" and not self.data.eval_data_path:
            raise ValueError(f"--eval_strategy {self.training.eval_strategy.value} needs --eval_data_path.")
        for name in sorted(self.given & FLAGS_WITHOUT_EFFECT.keys()):
            accepted, reason = FLAGS_WITHOUT_EFFECT[name]
            if getattr(self.training, name) != accepted:
                raise ValueError(f"--{name} has no effect, since {reason}: leave it out.")
        attention = self.model.attn_implementation or ""
        if attention.startswith("flash") and not (self.training.bf16 or self.training.fp16):
            raise ValueError(f"--attn_implementation {attention} computes in 16 bits only: add --bf16 True.")
        if self.training.eval_on_start and not self.data.eval_data_path:
            raise ValueError("--eval_on_start True needs --eval_data_path.")
        if {"gradient_checkpointing", "activation_checkpointing"} <= self.given:
            raise ValueError("--gradient_checkpointing is the old name of --activation_checkpointing: leave it out.")
        for kind in ("eval", "save", "logging"):
            strategy = getattr(self.training, f"{kind}_strategy").value
            if f"{kind}_steps" in self.given and strategy != "steps":
                raise ValueError(
                    f"--{kind}_steps has no effect with --{kind}_strategy {strategy}: add --{kind}_strategy steps, "
                    f"or leave --{kind}_steps out."
                )

    def as_dict(self) -> dict:
        """What `args.yaml` holds: model, data and LoRA flags, and the training flags that were given."""
        values = {}
        for part in (self.model, self.data, self.lora):
            values |= {f.name: getattr(part, f.name) for f in fields(part)}
        # `to_dict` turns enums and configurations into plain values; a token of the Hub is not for a file.
        values |= {n: v for n, v in self.training.to_dict().items() if n in self.given and not n.endswith("_token")}
        return {name: value for name, value in values.items() if value not in (None, [])}


def adapter_config(model_path: str) -> dict | None:
    """The adapter's configuration, or None where `model_path` is no adapter."""
    path = os.path.join(model_path, "adapter_config.json")
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error


def cli(main) -> None:
    """Run a script: an error message of ours ends it without a traceback, any other error with one."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
    except BrokenPipeError:  # the reader of stdout, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ValueError as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if os.path.dirname(os.path.dirname(os.path.abspath(raised_in))) not in (HERE, os.path.dirname(HERE)):
            raise
        sys.exit(f"Error: {error}")


def check_writable(option: str, folder: str) -> None:
    """Raise a ValueError where a folder can neither be written to nor made. Makes nothing."""
    existing = os.path.abspath(folder)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise ValueError(f"{option} {folder} cannot be written: {existing} is not a folder. Name another.")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{option} {folder} cannot be written: no permission for {existing}. Name another.")


def yaml_to_flags(path: str) -> list[str]:
    """A YAML mapping of flag names to values, as a list of command line words."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a mapping of flags to values, such as `model_id: llava-1.5-7b`.")
    words = []
    for name, value in values.items():
        if value is False and str(name).endswith("_strategy"):
            value = "no"  # as it was written: YAML 1.1 reads a bare `no` as false
        if isinstance(value, dict):
            value = json.dumps(value)
        if value not in (None, []):
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def check_flag_names(written: Iterable[str], known: Collection[str]) -> None:
    """Raise a ValueError for a flag that does not exist, naming its successor or the nearest ones."""
    for option in sorted(set(written) - set(known)):
        name = option.removeprefix("--").replace("-", "_")
        if name in RENAMED_FLAGS:
            successor = RENAMED_FLAGS[name]
            cure = successor.replace("nothing: ", "leave it out, ") if "nothing" in successor else f"use {successor}"
            raise ValueError(f"{option} does not exist in transformers 5; {cure}.")
        names = [other for other in known if "-" not in other.removeprefix("--")]  # of two spellings, the usual one
        nearest = difflib.get_close_matches(f"--{name}", names, n=3, cutoff=0.7)
        hint = f" Did you mean {', '.join(nearest)}?" if nearest else ""
        raise ValueError(f"{option} is not a flag.{hint} `python train.py --help` lists all.")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Each default behind its help; the description with its own line breaks."""


def without_flags(words: list[str], names: Collection[str]) -> list[str]:
    """Command line words without these flags and their values."""
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word.removeprefix("--").split("=")[0].replace("-", "_") in names
        kept += [] if dropping else [word]
    return kept


def parse_arguments(words: list[str] | None = None, description: str | None = None, extend=None):
    """Command line words -> `Arguments`.

    Args:
        words: as in `sys.argv[1:]`, which is the default; the first may be a YAML file.
        description: head of the `--help` text.
        extend: called with the parser to add the flags of a tool that trains nothing; then `HARDWARE_FLAGS` are
            passed over, so that it runs on any machine, and `(Arguments, namespace)` is returned.

    Raises:
        ValueError: an unknown, renamed or contradictory flag, or one without effect.
    """
    words = list(sys.argv[1:] if words is None else words)
    usage = "%(prog)s [run.yaml] [--flag value ...]"  # argparse would list all flags before every help text
    parser = HfArgumentParser(
        PARTS,
        usage=usage,
        description=description,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    if extend:
        extend(parser)
    if words and words[0].endswith((".yaml", ".yml")):
        words = yaml_to_flags(words[0]) + words[1:]
    if extend:
        words = without_flags(words, HARDWARE_FLAGS)
    # `--no-dataloader-pin-memory` and the like write the field that `dest` names.
    fields_of = {option: action.dest for action in parser._actions for option in action.option_strings}
    written = {word.split("=")[0] for word in words if word.startswith("--")}
    check_flag_names(written, fields_of.keys())
    try:
        *parts, rest = parser.parse_args_into_dataclasses(
            words, look_for_args_file=False, return_remaining_strings=True
        )
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    if rest:
        hint = "; a YAML file comes first" if rest[0].endswith((".yaml", ".yml")) else ""
        raise ValueError(f"{' '.join(rest)!r} does not belong to any flag{hint}.")
    arguments = Arguments(*parts[:4], {fields_of[option] for option in written})
    return (arguments, parts[4]) if extend else arguments
