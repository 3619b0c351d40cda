"""The flags of `train.py`, each with its name, default and help text.

`parse_arguments` reads the flags from the command line and from a YAML file with the same names. A flag after the file
overrides the file's value: `python train.py run.yaml --learning_rate 1e-4`.
"""

import argparse
import json
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass, field, fields

import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from collators.boxes import BOX_FORMATS
from collators.pixel_bounds import settle_resize
from command_line import FlagParser, by_flag
from evaluation.metrics import METRICS, kind_of
from loaders.new_tokens import read_tokens
from loaders.output_folder import check_writable
from reading.options import FILTERS, int_or_auto
from reading.strict_json import is_no_json
from supported_models import find_model
from training import checks
from training.sampling import SAMPLERS

PLAIN = "plain"  # value of --probe without a file
# Flags whose value is JSON or the path of a JSON file. transformers reads these values.
CONFIGURATIONS = ("deepspeed", "fsdp_config", "accelerator_config", "lr_scheduler_kwargs")
# Options of `add_argument` for a switch that is not a dataclass field: `--flag`, `--flag True` or `--flag False`.
BARE = {"nargs": "?", "const": True}
SWITCH = {"type": string_to_bool, "default": False} | BARE

# Flags that need a GPU, a package or an engine. The training samples do not depend on them.
HARDWARE_FLAGS = {
    *("bf16", "fp16", "tf32", "use_flash_attn", "attn_implementation", "deepspeed", "fsdp", "optim", "optim_args"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel", "fsdp_config"),
}


def flag(default, help: str, choices=None, **more):
    """A dataclass field with its help text, its allowed values and other options of `add_argument`."""
    return field(default=default, metadata={"help": help} | ({"choices": list(choices)} if choices else {}) | more)


@dataclass
class ModelArguments:
    model_id: str | None = flag(
        None, "Model id or Hub path from `supported_models.py`, or auto for any other model in --model_local_path."
    )
    model_local_path: str | None = flag(None, "Folder or Hub path to load weights, processor and config from.")
    attn_implementation: str | None = flag(
        None, f"Attention: {', '.join(checks.ATTENTION)} (a FlashAttention). Default: sdpa, or eager if needed."
    )
    use_flash_attn: bool = flag(False, "Short for --attn_implementation flash_attention_2 (docs/memory.md).")
    trust_remote_code: bool = flag(
        False,
        "Run the checkpoint's Python files with your permissions. Families without a class in transformers need this.",
    )
    train_vision_encoder: bool = flag(False, "Train the vision encoder.")
    train_vision_projector: bool = flag(False, "Train the vision projector (always in full).")
    train_language_model: bool = flag(True, "Train the language model. False: train only vision parts.")
    freeze: list[str] | None = flag(
        None, "Modules and parameters to freeze, named as in --train; overrides other flags (docs/training.md#by-name)."
    )
    train: list[str] | None = flag(
        None,
        "Modules and parameters to train in full, even if other flags freeze them. Each value is a name, the end of a "
        "name, or a regex that matches a whole name.",
    )
    vision_encoder_lr: float | None = flag(None, "Learning rate of the vision encoder. Default: --learning_rate.")
    vision_projector_lr: float | None = flag(None, "Learning rate of the vision projector. Default: --learning_rate.")

    def __post_init__(self):
        if not self.model_id:
            raise ValueError("--model_id is missing; `python supported_models.py` lists the models.")
        checks.check_model_paths(self)
        self.family, hub_path = find_model(self.model_id)
        self.model_path = self.model_local_path or hub_path
        if not self.model_path:
            raise ValueError(f"--model_id {self.model_id} needs --model_local_path, a folder or Hub path.")
        checks.check_model(self)
        if self.use_flash_attn:
            self.attn_implementation = "flash_attention_2"


@dataclass
class ReadingArguments:
    """Flags that control how rows and media are read, in training and in inference."""

    max_samples: int | None = flag(None, "Use only the first N rows of each path.")
    user_key: str = flag("human", "Name of the user in the `from` field of `conversations`.")
    assistant_key: str = flag("gpt", "Name of the assistant in the `from` field of `conversations`.")
    field_messages: str = flag("messages", "Name of the field that contains the messages.")
    columns: list[str] | None = flag(
        None,
        "Rename fields of the data: question=query image=jpg reads `query` as `question` and `jpg` as `image`; url= "
        "ignores the field `url` (docs/dataset.md#other-names).",
    )
    prompt: str | None = flag(None, "Question for every row, if the data has only answers.")
    system_prompt: str | None = flag(None, "System prompt for every row.")
    image_folder: str | None = flag(None, "Base folder of relative image paths. Default: the data file's folder.")
    video_folder: str | None = flag(None, "Base folder of relative video paths. Default: the data file's folder.")
    allow_outside: bool = flag(False, "Allow paths in the data that point outside the image and video folders.")
    allow_urls: bool = flag(False, "Fetch media from http(s) URLs (no private addresses) and hf:// paths on the Hub.")
    data_cache: str | None = flag(None, "Folder of indexes and downloads. Default: $FINELMM_CACHE or ~/.cache/finelmm.")
    image_size: str | None = flag(None, "Resize each image to a square (512) or a width and height (640x480).")
    image_resize_algorithm: str = flag("bicubic", f"How images are resized: {', '.join(FILTERS)}.")
    min_pixels: int | None = flag(None, "Enlarge images with fewer pixels, keeping their aspect ratio.")
    max_pixels: int_or_auto = flag(
        None, "Shrink images with more pixels, keeping their aspect ratio. auto: until samples fit --model_max_length."
    )
    keep_processor_config: bool | None = flag(
        None,
        "Keep the processor's own pixel bounds, and resize images before the processor gets them. By default, "
        "--min_pixels and --max_pixels replace these bounds if the processor has any.",
    )
    jpeg_draft: bool = flag(False, "Decode a large JPEG at 1/2, 1/4 or 1/8 before it is resized: faster, less sharp.")
    num_frames: int = flag(8, "Number of frames per video, evenly spaced from the first to the last; or use --fps.")
    fps: float | None = flag(None, "Number of frames per second of video, instead of --num_frames.")
    max_frames: int | None = flag(None, "Use at most N frames of a video; needs --fps.")
    video_max_pixels: int | None = flag(None, "Shrink video frames with more pixels, keeping their aspect ratio.")
    image_pixel_limit: int = flag(179_000_000, "Largest image, in pixels: a larger one may be a decompression bomb.")
    media_megabytes_limit: int = flag(2_000, "Largest media file to download, in megabytes.")
    video_seconds_limit: int = flag(4 * 3600, "Longest video to accept, in seconds.")
    video_pixel_limit: int = flag(2_000_000_000, "Largest video to accept, in pixels of all decoded frames together.")
    processor_kwargs: str | None = flag(None, "Options for the checkpoint's processor, as a JSON object.")
    box_format: str | None = flag(
        None,
        f"Coordinates for the boxes and points of the data: {', '.join(BOX_FORMATS)}. Default: those of the family's "
        "checkpoints (docs/boxes.md).",
        BOX_FORMATS,
    )
    template_kwargs: str | None = flag(None, "Chat template variables as JSON, such as '{\"enable_thinking\": true}'.")

    def __post_init__(self):
        checks.check_reading(self)


@dataclass
class DataArguments(ReadingArguments):
    data_path: list[str] | None = flag(
        None,
        "Training data: JSON, JSONL, Parquet, CSV and TSV files, folders, globs, Hub data sets, each written "
        "PATH[:SPLIT][SLICE][:WEIGHT] (docs/dataset.md).",
    )
    eval_data_path: list[str] | None = flag(
        None, "Evaluation data, written like --data_path; each path is also evaluated separately."
    )
    eval_split: float | None = flag(None, "Hold out this fraction (0.05) or number (200) of training rows to evaluate.")
    sample_rows: int | None = flag(None, "Use only N rows of the training data, drawn with --seed.")
    balance: str | None = flag(None, "Field with the class of each row. All classes are drawn equally often.")
    model_max_length: int = flag(1024, "Maximum tokens of a sample, including media; longer ones are cut on the right.")
    chat_template: str | None = flag(
        None,
        "Chat template for training and answers: a Jinja file; or, if the checkpoint's template differs from the "
        "family's, which of the two to use: checkpoint or family (docs/chat_formats.md).",
    )
    add_tokens: str | None = flag(
        None, "File of words to add as tokens, one per line. Their embeddings train too (docs/lora.md#new-words)."
    )
    padding_free: bool | None = flag(None, "Concatenate samples instead of padding them. Default: True if possible.")
    packing: bool = flag(
        False, "Pack samples into rows of up to --model_max_length tokens; --per_device_train_batch_size counts rows."
    )
    mask_question_tokens: bool = flag(True, "Train on replies only. False: on all text, but not on media or padding.")
    train_thoughts: bool = flag(True, "Train on the thoughts in replies too. False: train only on the text after them.")
    train_replies: str = flag(
        "all",
        "Replies to train on. all: every reply, in one sample. last: only what follows the last question. each: every "
        "reply in a separate sample, with the history that a server would show (docs/conversations.md).",
        ("all", "last", "each"),
    )
    drop_overlong: bool = flag(
        False, "Drop samples whose first exchange exceeds --model_max_length. By default, they are an error."
    )
    allow_empty_answers: bool = flag(False, "Train on empty replies, which teach silence. Otherwise they are errors.")
    on_bad_sample: str = flag("error", "At an unusable sample, error ends the run; skip omits it.", ("error", "skip"))
    max_bad_samples: int = flag(100, "With --on_bad_sample skip: end the run after more than N unusable samples.")

    def __post_init__(self):
        super().__post_init__()
        checks.check_data(self)
        self.new_tokens = read_tokens(self.add_tokens) if self.add_tokens else None


@dataclass
class LoraArguments:
    use_lora: bool = flag(False, "Train LoRA adapters on the language model instead of all its weights.")
    use_vision_lora: bool = flag(False, "Train LoRA adapters on the vision encoder; implies --train_vision_encoder.")
    q_lora: bool = flag(False, "Quantize the frozen language model to 4 bits (nf4, double quantization) under LoRA.")
    load_in_8bit: bool = flag(False, "Quantize the frozen language model to 8 bits (LLM.int8) under LoRA.")
    lora_r: int = flag(8, "Rank of the adapters.")
    lora_alpha: int = flag(16, "Scale: the adapter's output is multiplied by lora_alpha / lora_r.")
    lora_dropout: float = flag(0.05, "Dropout before the adapters.")
    lora_bias: str = flag("none", "Biases that train too: none, lora_only or all.", ("none", "lora_only", "all"))
    lora_target_modules: list[str] | None = flag(
        None, "Linear layers with an adapter: names, ends of names, or regexes of whole names. Default: all of them."
    )
    lora_init: str = flag("default", f"Initial weights of adapters: {', '.join(checks.LORA_INITS)}.", checks.LORA_INITS)
    use_dora: bool = flag(False, "DoRA: train the magnitudes of the adapted weights as well as their directions.")
    use_rslora: bool = flag(False, "Scale by lora_alpha / sqrt(lora_r) instead, so that high ranks learn well too.")
    lora_weight_path: str | None = flag(None, "Folder of an adapter to continue training, with its rank and layers.")
    lora_experts: bool = flag(False, "Put adapters on the experts of a mixture of experts too; needs --lora_dropout 0.")
    lora_router: bool = flag(False, "Put adapters on the router of a mixture of experts too; needs --lora_dropout 0.")

    def __post_init__(self):
        checks.check_lora(self)


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    do_train: bool = flag(True, "Kept True: train.py always trains.")
    do_eval: bool = flag(True, "Kept True: use --eval_data_path or --eval_split to evaluate.")
    # The dataset returns whole samples, so the Trainer must not remove any of their columns.
    remove_unused_columns: bool = flag(False, "Kept False: the collator needs every field of a sample.")
    # If this is True, the Trainer (5.23) replaces a nan or infinite loss in the log with the mean of previous steps.
    logging_nan_inf_filter: bool = flag(False, "If the loss is nan or infinite, log a mean of earlier losses instead.")
    dataloader_num_workers: int | None = flag(
        None, "Processes that prepare samples, per training process. Default: up to 4 with a GPU, 0 on a CPU."
    )
    dataloader_persistent_workers: bool | None = flag(
        None, "Keep the data loader's processes between epochs. Default: True if there are any."
    )
    # Replaces the Trainer's choices, one of which is not supported here. Users may add samplers.
    train_sampling_strategy: str = flag("random", "Order of the samples (training/sampling.py).", SAMPLERS)
    # With the Trainer's defaults, a run of fewer than 500 steps would log nothing before its end.
    logging_steps: float = flag(0.01, "Log every N steps; below 1, N is a fraction of the run.")
    logging_first_step: bool = flag(True, "Log the first step too.")
    eval_steps: float | None = flag(
        None,
        "With --eval_strategy steps: evaluate every N steps; below 1, N is a fraction of the run. Default: 0.1, "
        "or --save_steps with --load_best_model_at_end.",
    )
    bf16: bool | None = flag(None, "Compute in bfloat16. Default: if the GPU can, unless --fp16 is given.", **BARE)
    # The Trainer's type, dict[str, bool], cannot be parsed from the command line (5.23).
    liger_kernel_config: str | None = flag(None, "Set automatically by --use_liger_kernel; do not pass it.")
    fsdp: bool = flag(False, "FSDP2: shard weights, gradients and optimizer (--fsdp_config fsdp_configs/fsdp2.json).")

    eval_generate: int = flag(0, "Answer N evenly spaced rows per file, before step 1 and at each evaluation.")
    eval_max_new_tokens: int = flag(128, "Maximum length of generated answers, in tokens.")
    metric: list[str] | None = flag(
        None, f"Extra metrics for answers: {', '.join(METRICS)}, or FILE.py:FUNCTION (docs/evaluation.md#evaluation)."
    )
    probe: str | None = flag(
        None,
        "Questions to answer before and after training, to measure what the model forgot: a file, or 24 plain "
        "questions if no value is given (docs/evaluation.md#what-did-it-forget).",
        **BARE | {"const": PLAIN},
    )
    early_stopping_patience: int | None = flag(
        None, "Stop after N evaluations that do not improve --metric_for_best_model (by default, the loss)."
    )
    overwrite_output_dir: bool = flag(False, "If --output_dir contains another run, rename that folder first.")
    trust_checkpoint: bool = flag(
        False, "Also resume from a checkpoint that calls functions which torch and DeepSpeed do not need."
    )
    on_nonfinite: str = flag(
        "error",
        "If gradients are not finite: error ends the run, skip skips the update (20 in a row also end the run).",
        ("error", "skip"),
    )
    peak_tflops: float | None = flag(
        None, "Peak TFLOP/s of one device at the run's precision. Logs mfu, the fraction of this peak that is used."
    )

    def __post_init__(self):
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = default_workers(self.use_cpu)
        if self.dataloader_persistent_workers is None:
            self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        if self.bf16 is None:
            self.bf16 = not self.fp16 and has_bf16(self.use_cpu)
        folder = self.resume_from_checkpoint
        self.resume_from_checkpoint = {"true": True, "false": None}.get(str(folder).lower(), folder)
        checks.check_training(self)
        self.logging_first_step &= self.logging_strategy != "no"
        if self.greater_is_better is None and (kind := kind_of(self.metric_for_best_model)) in METRICS:
            self.greater_is_better = METRICS[kind].higher_is_better
        self.eval_on_start |= self.eval_generate > 0
        self.load_best_model_at_end |= self.early_stopping_patience is not None
        if self.eval_steps is None and self.eval_strategy == "steps":
            self.eval_steps = self.save_steps if self.load_best_model_at_end else 0.1
        try:
            super().__post_init__()
        except (ValueError, TypeError, OSError) as error:
            wrong = [f"--{name} {value}" for name in CONFIGURATIONS if is_no_json(value := getattr(self, name))]
            raise ValueError(f"transformers refuses {', '.join(wrong) or 'the training flags'}: {error}") from error
        checks.check_machine(self)
        # trackio 0.43 ends its run after training. Under the same name, the final evaluation is added to that run.
        if self.report_to:
            self.run_name = self.run_name or os.path.basename(os.path.abspath(self.output_dir))
        if self.use_liger_kernel:
            self.liger_kernel_config = checks.LIGER_KERNELS
        self.dataloader_pin_memory &= self.device.type == "cuda"  # without CUDA, every data loader would warn
        # A blocking copy would wait until the GPU is done, and that time would be logged as waiting for data.
        self.accelerator_config.non_blocking |= self.dataloader_pin_memory
        check_writable("--output_dir", self.output_dir)

    def __getstate__(self):
        """Drop the Hub token, since the Trainer pickles these arguments next to the weights and uploads both."""
        return vars(self) | {"hub_token": None}


def default_workers(use_cpu: bool) -> int:
    """Return the default of --dataloader_num_workers: the number of CPU cores per GPU, at most 4.

    Without a GPU it is 0, since the workers would take cores from the training.
    """
    if use_cpu or not torch.accelerator.is_available():
        return 0
    return max(1, min(4, os.cpu_count() // torch.accelerator.device_count()))


def has_bf16(use_cpu: bool) -> bool:
    return not use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


FLAG_PARTS = (ModelArguments, DataArguments, TrainingArguments, LoraArguments)


@dataclass
class Arguments:
    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    lora: LoraArguments
    given: set[str] = field(default_factory=set)  # names of the flags that the user wrote
    words: list[str] = field(default_factory=list)  # the command line

    def __post_init__(self):
        if "train_vision_encoder" not in self.given:
            self.model.train_vision_encoder |= self.lora.use_vision_lora
        if self.lora.lora_weight_path:
            checks.take_from_adapter(self.lora, self.given, self.model.model_path)
        checks.check_together(self)
        settle_resize(self.data, self.model.family)

    def as_dict(self) -> dict:
        """Return the contents of `args.yaml`: model, data and LoRA flags, and the training flags the user wrote."""
        values = {}
        for part in (self.model, self.data, self.lora):
            values |= {f.name: getattr(part, f.name) for f in fields(part)}
        # `to_dict` turns enums and configurations into plain values. Hub tokens must not be written to a file.
        values |= {n: v for n, v in self.training.to_dict().items() if n in self.given and not n.endswith("_token")}
        return {name: value for name, value in values.items() if value not in (None, [])}


def yaml_to_flags(path: str) -> list[str]:
    """Turn a YAML file, which maps flags to values, into a list of command-line words."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):  # aliases can fill the memory
            raise ValueError(f"{path} has an alias (*name): write the value instead.")
        node, values = yaml.compose(text), yaml.safe_load(text)
        names = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{path} sets {twice[0]} twice: leave one out.")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a mapping of flags to values, such as `model_id: llava-1.5-7b`.")
    words = []
    for name, value in values.items():
        if value is False and str(name).endswith("_strategy"):
            value = "no"  # YAML 1.1 reads a bare `no` as false
        if isinstance(value, dict):
            value = json.dumps(value)
        if value not in (None, []):
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


class Parser(FlagParser, HfArgumentParser):
    """Turns the fields of dataclasses into flags."""

    more = "`python {} --help_all` lists all flags; docs/coming_from.md has those of other tools."


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Prints each default after its help text, and keeps the line breaks of the description."""


def split_flags(words: list[str], names: Collection[str]) -> tuple[list[str], list[str]]:
    """Split command-line words in two: flags that are not in `names`, and flags that are, each with its values."""
    others, found = [], []
    for name, own in by_flag(words):
        (found if name in names else others).extend(own)
    return others, found


def without_null(words: list[str]) -> list[str]:
    """Drop each `--flag null` and all earlier values of that flag, so that null unsets a value of the YAML file.

    `--bf16 auto`, which axolotl's recipes contain, is dropped in the same way.
    """
    kept = []
    for name, own in by_flag(words):
        option, _, value = "=".join(own).partition("=")
        if option.startswith("--") and (value == "null" or (name, value) == ("bf16", "auto")):
            kept = [(other, its) for other, its in kept if other != name]
        else:
            kept.append((name, own))
    return [word for _, own in kept for word in own]


def parse_arguments(
    words: list[str] | None = None, description: str | None = None, extend=None, defaults: Collection[str] = ()
):
    """Parse command-line words into `Arguments`.

    Args:
        words: the command-line words; the first may be a YAML file. Default: `sys.argv[1:]`.
        description: head of the `--help` text.
        extend: called with the parser to add the flags of a tool that does not train. If given, `HARDWARE_FLAGS` are
            ignored, so that the tool runs on any machine, and `(Arguments, namespace)` is returned.
            `namespace.passed_over` contains the ignored words.
        defaults: words with default values, put before the user's words.

    Raises:
        ValueError: a flag is unknown, was renamed, contradicts another flag or has no effect.
    """
    command = words = list(sys.argv[1:] if words is None else words)
    usage = "%(prog)s [run.yaml] [--flag value ...]"  # argparse would list all flags before every help text
    parser = Parser(FLAG_PARTS, usage=usage, description=description, formatter_class=HelpFormatter)
    parser.refused = checks.KEPT_FLAGS
    if extend:
        extend(parser)
    if words and words[0].endswith((".yaml", ".yml")):
        words = yaml_to_flags(words[0]) + words[1:]
    words = without_null(words)
    if extend:
        words, passed_over = split_flags(words, HARDWARE_FLAGS)
    *parts, rest = parser.parse_args_into_dataclasses(
        [*defaults, *words], look_for_args_file=False, return_remaining_strings=True
    )
    if rest:
        hint = "; put the YAML file first" if rest[0].endswith((".yaml", ".yml")) else ""
        raise ValueError(f"{' '.join(rest)!r} does not belong to any flag{hint}.")
    arguments = Arguments(*parts[:4], parser.given(words), command)
    if not extend:
        return arguments
    parts[4].passed_over = passed_over
    return arguments, parts[4]
