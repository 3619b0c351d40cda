"""Forecast how much memory a training run needs on each device.

Accepts all flags of train.py, also those that require a GPU in training. Loads no weights and needs no GPU.

    python estimate.py --model_id qwen2.5-vl-3b-instruct --data_path train.json --bf16 True --gpu_memory 24
    python estimate.py run.yaml --use_lora True --model_max_length 2048
    python estimate.py run.yaml --deepspeed ds_configs/zero3.json --num_devices 8 --json

It runs one step with tensors that have no values (training/step_memory.py), on the longest rows of the data. Without
--data_path, it uses rows of --model_max_length tokens with one image each. With --json, stdout is one object: the bytes
of each kind, "total", "assumptions", and, if --gpu_memory is given, "fits".
"""

if __name__ == "__main__":
    import entry

    entry.begin(__file__)  # answers --help: the imports below take seconds

import os
import sys
from collections import Counter
from contextlib import redirect_stdout
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.quantizers.quantizers_utils import should_convert_module

from arguments import HARDWARE_FLAGS, Arguments, ModelArguments, Parser, TrainingArguments, has_bf16, parse_arguments
from entry import cli
from loaders import LOADERS, attention
from loaders.quantization import quantization_config, quantized_bits
from reading.dataset import IGNORE_INDEX, MultimodalDataset
from reading.options import MediaOptions
from reading.split import make_datasets
from reading.strict_json import strict_json
from training import checks, engines, trainable
from training.make_collator import make_collator
from training.step_memory import MEMORY_PARTS, QuantizedLinear, Shares, measure_step

GB = 1e9
# The fraction of a GPU's memory that is left for the CUDA context and for fragmentation.
RESERVE = 0.1
# Without data: the size of the image in each row, and the fraction of the text that is trained.
IMAGE_SIZE, LABEL_SHARE = (640, 480), 0.5
# Defaults of DeepSpeed 0.19, in elements.
BUCKET, LIVE_PARAMETERS = 500_000_000, 1_000_000_000
# Rows are ranked by a rough count of tokens. The first CANDIDATES x batch size rows are encoded to find the longest.
CANDIDATES = 4


class Forecast(NamedTuple):
    sizes: dict[str, float]  # kind of memory -> bytes on one device at the peak
    samples: int  # in the batch
    tokens: int  # in the batch, including padding
    labels: int  # in the batch

    @property
    def total(self) -> float:
        return sum(self.sizes.values())


def main(words: list[str] | None = None) -> None:
    arguments, own = parse(words)
    num_devices = own.num_devices or int(os.environ.get("WORLD_SIZE", 1))
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):  # libraries may print too
        forecast = forecast_run(arguments, num_devices)
    report = {kind: round(size) for kind, size in forecast.sizes.items()} | {"total": round(forecast.total)}
    report |= {"devices": num_devices} | {name: getattr(forecast, name) for name in ("samples", "tokens", "labels")}
    report["assumptions"] = assumptions(arguments, num_devices)
    if own.gpu_memory:
        report["fits"] = forecast.total <= own.gpu_memory * GB * (1 - RESERVE)
    if own.json:
        print(strict_json(report), file=stdout)
    else:
        print_forecast(report, own.gpu_memory, stdout)


# ---- flags ----


def parse(words: list[str] | None):
    """Parse the command line into the `Arguments` of train.py and the flags of `add_flags`."""
    arguments, own = parse_arguments(words, __doc__, add_flags, defaults=["--data_path", ""])
    for name in ("gpu_memory", "num_devices"):
        if (value := getattr(own, name)) is not None and not value > 0:
            raise ValueError(f"--{name} is {value}; it must be more than 0.")
    set_hardware(arguments, own.passed_over)
    if arguments.training.deepspeed:
        engines.check_deepspeed(arguments, deepspeed_config(arguments.training))
    return arguments, own


def add_flags(parser) -> None:
    parser.add_argument("--gpu_memory", type=float, metavar="GB", help="Memory of one GPU, to check if the run fits.")
    parser.add_argument("--num_devices", type=int, help="Number of processes. Default: WORLD_SIZE, or 1.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")


def set_hardware(arguments: Arguments, words: list[str]) -> None:
    """Apply the hardware flags, which the parser skipped because this machine may not support them, and check them."""
    model, training = arguments.model, arguments.training
    parser, optimizers = Parser((ModelArguments, TrainingArguments)), type(training.optim)
    found = parser.parse_args(words)
    for part in (model, training):
        for name in HARDWARE_FLAGS & part.__dataclass_fields__.keys():
            setattr(part, name, getattr(found, name))
    if training.bf16 is None:
        training.bf16 = not training.fp16 and has_bf16(training.use_cpu)
    arguments.given |= parser.given(words)
    if training.bf16 and training.fp16:
        raise ValueError("--bf16 True and --fp16 True are mutually exclusive: leave one out.")
    if model.use_flash_attn:
        model.attn_implementation = "flash_attention_2"
    training.optim = optimizers(training.optim)
    checks.check_optimizer_name(training)
    checks.check_together(arguments)


def deepspeed_config(training):
    from accelerate.utils import HfDeepSpeedConfig

    try:
        return HfDeepSpeedConfig(training.deepspeed)
    except ValueError as error:
        raise ValueError(f"--deepspeed {training.deepspeed} is neither a file nor JSON: {error}") from error


# ---- a forecast ----


def forecast_run(arguments: Arguments, num_devices: int) -> Forecast:
    training, lora = arguments.training, arguments.lora
    dtype = trainable.compute_dtype(training)
    loader = make_loader(arguments)
    batch, samples = make_batch(arguments, loader)
    model = loader.meta_model()
    if "sample_lengths" in batch:
        attention.separate_samples(model, loader)
    model.set_experts_implementation("eager")  # other kernels require a GPU or 16-bit weights
    if bits := quantized_bits(lora.q_lora, lora.load_in_8bit):
        skipped = quantization_config(loader, dtype, bits).llm_int8_skip_modules
        for name, module in list(model.named_modules()):
            if isinstance(module, torch.nn.Linear) and should_convert_module(name, skipped):
                model.set_submodule(name, QuantizedLinear(module, bits))
    model = trainable.make_trainable(model, loader, arguments)
    shares = engine_shares(model, training, dtype, num_devices)
    sizes = measure_step(model, batch, training, dtype, lambda parameters: optimizer(training, parameters), shares)
    labels = int((batch["labels"] != IGNORE_INDEX).sum())
    return Forecast(sizes, samples, batch["input_ids"].numel(), labels)


def make_loader(arguments: Arguments):
    """Make the loader of train.py. sdpa replaces FlashAttention, which may not run here. Neither stores the scores."""
    model = arguments.model
    family = LOADERS.get(model.family)
    name = model.attn_implementation or family.attention
    if name.startswith(("fla", "flex")):
        family(model.model_path, model.trust_remote_code, attn_implementation=name)  # raises if the family refuses it
        name = "sdpa"
    dtype = trainable.compute_dtype(arguments.training) if arguments.training.deepspeed else "auto"
    return family(model.model_path, model.trust_remote_code, dtype=dtype, attn_implementation=name)


def optimizer(training, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Make the run's optimizer. A paged optimizer is replaced by the unpaged one, as if its state stayed on the GPU."""
    training = copy(training)
    training.optim = type(training.optim)(training.optim.value.removeprefix("paged_"))
    try:
        optimizer_class, kwargs = transformers.Trainer.get_optimizer_cls_and_kwargs(training)
        return optimizer_class(parameters, **kwargs)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"--optim {training.optim.value} cannot be created with these flags: {error}") from error


def engine_shares(model, training, dtype: torch.dtype, num_devices: int) -> Shares:
    """Return which share of the memory the engine keeps on one device, and the sizes of its buffers.

    DDP (torch 2.14) copies all gradients into buckets. DeepSpeed 0.19 reduces gradients in buckets of
    `reduce_bucket_size` elements, two of them with `overlap_comm`; ZeRO-3 keeps up to `stage3_max_live_parameters`
    elements gathered. FSDP2 gathers two layers at a time, and everything outside the layers.
    """
    whole = sum(parameter.nbytes for parameter in model.parameters())
    in_gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    width, share = dtype.itemsize, 1 / num_devices
    if training.deepspeed:
        zero = deepspeed_config(training).config.get("zero_optimization", {})
        stage = zero.get("stage", 0)
        shares = Shares({"gradients": share if stage >= 2 else 1, "optimizer": share if stage else 1})
        if "device" in zero.get("offload_optimizer", {}):
            shares.share |= {"gradients": 0, "optimizer": 0}
        bucket = zero.get("reduce_bucket_size", BUCKET)
        if bucket == "auto":
            bucket = model.config.get_text_config().hidden_size ** 2
        shares.more["gradients"] = min(in_gradients, bucket * width * (2 if zero.get("overlap_comm") else 1))
        if stage == 3:
            shares.share["weights"] = 0 if "device" in zero.get("offload_param", {}) else share
            shares.more["weights"] = min(whole, zero.get("stage3_max_live_parameters", LIVE_PARAMETERS) * width)
        return shares
    if training.fsdp:
        number = {module: sum(p.numel() for p in module.parameters()) for module in model.modules()}
        layers = [number[module] for module in number if type(module).__name__ in model._no_split_modules]
        outside, largest = number[model] - sum(layers), max(layers)
        more = Counter(weights=(outside + 2 * largest) * width, gradients=largest * 4)
        return Shares(dict.fromkeys(("weights", "gradients", "optimizer"), share) | {"copies": 0}, more)
    return Shares(more=Counter(gradients=in_gradients if num_devices > 1 else 0))


# ---- the batch ----


def make_batch(arguments: Arguments, loader) -> tuple[dict[str, torch.Tensor], int]:
    """Return the largest batch of a step, as the collator makes it, and its number of samples. A pack contains as many
    of the longest rows as fit."""
    data, seed = arguments.data, arguments.training.seed
    datasets = [make_datasets(data, seed, evaluation=False, check=False)[0]] if any(data.data_path) else []
    collator = make_collator(arguments.model.family, loader, data, *datasets)
    if attention.is_padding_free(arguments, loader) and not loader.is_tested_on_loading:  # there are no weights to test
        collator.make_padding_free(loader)
    number = arguments.training.per_device_train_batch_size
    rows = longest_rows(*datasets, collator, number) if datasets else [made_row(arguments, collator)]
    if data.packing:
        number *= data.model_max_length // rows[0]["input_ids"].shape[1]
    return collator.collate([rows[i % len(rows)] for i in range(number)]), number


def longest_rows(dataset: MultimodalDataset, collator, number: int) -> list[dict[str, torch.Tensor]]:
    """Return the longest rows, encoded. Rows are ranked by text bytes and media sizes. Only the first are opened."""
    tokens = dataset.of_rows("text_bytes") / 4
    for layout, sizes, positions in dataset.groups():
        try:
            collator.template.check_layout(layout.messages)
            row = {"messages": layout.messages}
            tokens[positions] += collator.budget.count_media_tokens(row, layout.media_sizes(sizes))
        except ValueError:
            tokens[positions] = -1  # for example, a video for a model without videos; train.py refuses it
    encoded, faults = [], []
    for position in np.argsort(-tokens, kind="stable").tolist():
        try:
            encoded.append(collator.encode(dataset[position]).inputs)
        except ValueError as error:
            faults.append(str(error))
        if len(encoded) == CANDIDATES * number or len(faults) > 100:
            break
    if not encoded:
        raise ValueError(f"No row of {dataset.name} can be used. The first error: {faults[0]}")
    return sorted(encoded, key=lambda inputs: inputs["input_ids"].shape[1], reverse=True)[:number]


def made_row(arguments: Arguments, collator) -> dict[str, torch.Tensor]:
    """Return a row of --model_max_length tokens: an image, a question, and an answer (LABEL_SHARE of the text)."""
    image = Image.new("RGB", MediaOptions.of(arguments.data).target_size(*IMAGE_SIZE))

    def encode(question: int, answer: int) -> dict[str, torch.Tensor]:
        parts = [{"type": "image", "image": image}, {"type": "text", "text": "word" + " word" * question}]
        answer = [{"type": "text", "text": "word" + " word" * answer}]
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
        return collator.encode({"messages": messages, "source": "a row with an image"}).inputs

    budget = arguments.data.model_max_length
    length = encode(0, 0)["input_ids"].shape[1]
    per_word = (encode(0, 8)["input_ids"].shape[1] - length) / 8 or 1
    words = int((budget - length) / per_word)
    return encode(int(words * (1 - LABEL_SHARE)), budget)


# ---- the report ----


def assumptions(arguments: Arguments, num_devices: int) -> list[str]:
    data, training, model = arguments.data, arguments.training, arguments.model
    found = ["The batch has the longest rows of the data. Most steps need less memory."]
    if not any(data.data_path):
        found = [
            f"Without --data_path, each row has {data.model_max_length} tokens and an image of "
            f"{IMAGE_SIZE[0]}x{IMAGE_SIZE[1]} pixels. {LABEL_SHARE:.0%} of its text is trained."
        ]
    if training.deepspeed or training.fsdp or num_devices > 1:
        found.append("The shards and buffers of the engine are computed, not measured.")
    if any(kind in (model.attn_implementation or "") for kind in ("flash", "flex")):
        found.append(f"{model.attn_implementation} is counted as sdpa.")
    if training.torch_compile or training.use_liger_kernel:
        found.append("The memory that --torch_compile and --use_liger_kernel save is not subtracted.")
    if (training.activation_checkpointing_kwargs or {}).get("offload"):
        found.append("Activations that --activation_checkpointing_kwargs offloads are still counted.")
    precision = str(trainable.compute_dtype(training)).removeprefix("torch.")
    found.append(f"Weights are loaded in their stored precision; a step computes in {precision} (--bf16, --fp16).")
    return [*found, f"{RESERVE:.0%} of a GPU is left for CUDA."]


def print_forecast(report: dict, gpu_memory: float | None, file) -> None:
    """Print the report as text. On a terminal, it has colours."""
    from rich.table import Table

    from reports.terminal import terminal

    console = terminal(file, soft_wrap=True)
    batch = f"{report['samples']} samples, {report['tokens']:,} tokens, {report['labels']:,} labels"
    where = f"On each of {report['devices']} devices" if report["devices"] > 1 else "On the device"
    console.print(f"{where}, at the peak of a step with a batch of {batch}:\n")
    table = Table("", "GB", box=None)
    table.columns[1].justify = "right"
    for kind in (*MEMORY_PARTS, "total"):
        table.add_row(kind, f"{report[kind] / GB:.2f}", style="bold" if kind == "total" else "")
    console.print(table)
    console.print("\n" + "\n".join(f"- {text}" for text in report["assumptions"]))
    if gpu_memory and report["fits"]:
        console.print(f"\nIt fits into {gpu_memory:g} GB.", style="green")
    elif gpu_memory:
        console.print(f"\nIt does not fit into {gpu_memory:g} GB.", style="red")
        console.print("How to save memory: docs/memory.md#will-it-fit-estimatepy")


if __name__ == "__main__":
    cli(main)
