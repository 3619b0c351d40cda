"""Tests of a loaded model without a family of its own (`--model_id auto`), on the probes of its collator.

They go through it alone, in a padded batch and in one row. A model that reads its place in the row, or carries a state
from token to token, gives other losses there: then samples are padded. One whose padded batch is wrong is refused.
"""

import torch
from torch.nn.functional import cross_entropy

from collators.probes import encoded_probes
from loaders import attention
from reading.dataset import IGNORE_INDEX
from training.adapters import base_name, largest_modules, shortened
from training.loss import label_losses
from training.trainable import compute_dtype

REFUSALS = (ValueError, LookupError, TypeError, RuntimeError, AttributeError)


def probe_rows(collator) -> list[dict[str, torch.Tensor]]:
    """Encoded probes of texts and pictures, also of several sizes; each token that may be one is a label.

    No video: of some checkpoints, only pictures can be trained (GLM-4.1V's videos are refused in transformers 5.23).
    """
    rows, probes = [], (row for row, _ in encoded_probes(collator))
    for row in (row for row in probes if not any("video" in name for name in row)):
        labels = row["input_ids"].masked_fill(collator.is_media(row["input_ids"]), IGNORE_INDEX)
        labels[:, 0] = IGNORE_INDEX
        rows.append(row | {"labels": labels})
    return rows


def check_batches(model, loader, collator, arguments) -> str:
    """Compare the losses of probes in a batch with those of each alone; pad the run's where one row mixes samples.

    Returns:
        Why samples are padded that could be concatenated, or an empty text.

    Raises:
        ValueError: the model refuses the probes, or its padded batches are wrong; or `--padding_free True` or
            `--packing True` would mix samples.
    """
    if arguments.training.deepspeed or arguments.training.fsdp:
        return ""  # whose model is whole only in training; is_padding_free knows
    rows, home = probe_rows(collator), model.device
    if "device_map" not in loader.model_kwargs:
        model.to(arguments.training.device)
    # LLM.int8 rounds as coarsely as bfloat16, and which columns it spares depends on all tokens of a batch.
    allowed = 4 * torch.finfo(torch.bfloat16 if arguments.lora.load_in_8bit else model.dtype).eps ** 0.5
    what = "its processor's output for a probe"
    try:
        alone = torch.cat([all_losses(model, collator.pad([row])) for row in rows])
        few = torch.cat([losses(model, collator.pad([row])) for row in rows])
        blind = torch.cat([losses(model, collator.pad([with_another_end(row)])) for row in rows])
        what = "a padded batch of its processor's probes"
        padded = losses(model, collator.pad(rows))
    except REFUSALS as error:
        raise ValueError(
            f"{loader.model_path}: {type(model).__name__} refuses {what}: {str(error).rstrip('.')}. Add a family "
            "(docs/add_new_model.md)."
        ) from error
    seen = {"the positions that are trained": few, "tokens before another end": blind, "a padded batch": padded}
    for what, found in seen.items():
        if not (difference := (found - alone).abs().max()) <= allowed:  # nan too
            raise ValueError(
                f"{loader.model_path}: {type(model).__name__} computes other losses for {what} than for each sample "
                f"alone: they differ by {difference:.2g}, more than rounding allows ({allowed:.2g}). Add a family "
                "(docs/add_new_model.md)."
            )
    reason = leak(model, loader, collator, rows, alone, allowed) if collator.is_padding_free else ""
    if "device_map" not in loader.model_kwargs:
        model.to(home)  # adapters start there, alike on every device
    if not reason:
        return ""
    for flag in ("padding_free", "packing"):
        if getattr(arguments.data, flag):
            raise ValueError(f"--{flag} True cannot be used with {loader.model_path}: {reason}. Leave it out.")
    model.get_decoder().set_attn_implementation(loader.text_attention)
    collator.is_padding_free = False
    return f"Samples are padded, not concatenated: {reason}."


def with_another_end(row: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A row with another last token, on which no loss may depend; the label in its place stays."""
    ids = row["input_ids"].clone()
    ids[:, -1] = ids[:, 0]
    return row | {"input_ids": ids}


def leak(model, loader, collator, rows: list[dict], alone: torch.Tensor, allowed: float) -> str:
    """Why samples in one row are not what they are alone, or an empty text."""
    attention.separate_samples(model, loader)
    try:
        difference = (losses(model, collator.concatenate_samples(rows)) - alone).abs().max()
    except REFUSALS as error:
        return f"the model refuses them in one row ({error})"
    if difference <= allowed:
        return ""
    return f"in one row they affect each other: a sample's loss differs by {difference:.2g} from its loss alone"


@torch.no_grad()
def losses(model, batch: dict) -> torch.Tensor:
    """The loss of each label, as in training."""
    return label_losses(model, on_device(model, batch))[0]


@torch.no_grad()
def all_losses(model, batch: dict) -> torch.Tensor:
    """The same from the logits of all positions."""
    batch = on_device(model, batch)
    targets = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits
    if logits.shape[1] != targets.shape[1] + 1:
        raise ValueError(f"for {targets.shape[1] + 1} tokens, it gives {logits.shape[1]} logits")
    logits = logits[:, :-1].float().transpose(1, 2)
    return cross_entropy(logits, targets, reduction="none")[targets != IGNORE_INDEX]


def on_device(model, batch: dict) -> dict:
    return {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}


def allow_unreached(model, collator, training) -> str:
    """Let DDP allow parameters without a gradient if a backward pass of the probes leaves some without.

    Returns:
        Which, or an empty text.
    """
    is_ddp = training.world_size > 1 and not (training.deepspeed or training.fsdp)
    if not is_ddp or training.ddp_find_unused_parameters is not None:
        return ""
    dtype = compute_dtype(training)
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        for row in probe_rows(collator):
            label_losses(model, on_device(model, collator.collate([row])))[0].sum().backward()
    trained = {base_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = {name for name, parameter in trained.items() if parameter.grad is None}
    model.zero_grad(set_to_none=True)
    if not missing:
        return ""
    training.ddp_find_unused_parameters = True
    modules = shortened(largest_modules(missing, [base_name(name) for name, _ in model.named_parameters()]))
    return f"No gradient of the probes reaches {modules}; DDP looks for such parameters in each step."
