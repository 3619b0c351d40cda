"""Tests of a model that is loaded with `--model_id auto`, on the test conversations in collators/label_check.py.

Each conversation must have the same losses alone as in a padded batch, or the model is refused. If the losses differ if
all conversations are concatenated in one row, samples are padded in training instead of concatenated.
"""

import torch
from torch.nn.functional import cross_entropy

from collators.label_check import encoded_examples
from loaders import attention
from reading.dataset import IGNORE_INDEX
from training.adapters import base_name, largest_modules, shortened
from training.loss import label_losses
from training.trainable import compute_dtype

REFUSALS = (ValueError, LookupError, TypeError, RuntimeError, AttributeError)


def example_rows(collator) -> list[dict[str, torch.Tensor]]:
    """Return encoded test conversations with images. All tokens are labels, except the first one and media tokens.

    Videos are left out, since some checkpoints can train on images only (transformers 5.23 refuses GLM-4.1V's videos).
    """
    rows, examples = [], (row for row, _ in encoded_examples(collator))
    for row in (row for row in examples if not any("video" in name for name in row)):
        labels = row["input_ids"].masked_fill(collator.is_media(row["input_ids"]), IGNORE_INDEX)
        labels[:, 0] = IGNORE_INDEX
        rows.append(row | {"labels": labels})
    return rows


def check_batches(model, loader, collator, arguments) -> str:
    """Check that samples have the same losses in a batch as alone. Turn padding-free off if it would mix samples.

    Returns:
        A message on why samples are padded instead of concatenated, or an empty text.

    Raises:
        ValueError: the model fails on the test conversations, its padded batches are wrong, or `--padding_free True`
            or `--packing True` would mix samples.
    """
    if arguments.training.deepspeed or arguments.training.fsdp:
        return ""  # these engines shard the model, so `is_padding_free` decides without a test
    rows, home = example_rows(collator), model.device
    if "device_map" not in loader.model_kwargs:
        model.to(arguments.training.device)
    # LLM.int8 rounds as coarsely as bfloat16. Which columns it leaves unrounded depends on all tokens of a batch.
    allowed = 4 * torch.finfo(torch.bfloat16 if arguments.lora.load_in_8bit else model.dtype).eps ** 0.5
    what = "a test conversation from its processor"
    try:
        alone = torch.cat([all_losses(model, collator.pad([row])) for row in rows])
        few = torch.cat([losses(model, collator.pad([row])) for row in rows])
        blind = torch.cat([losses(model, collator.pad([with_another_end(row)])) for row in rows])
        what = "a padded batch of test conversations from its processor"
        padded = losses(model, collator.pad(rows))
    except REFUSALS as error:
        raise ValueError(
            f"{loader.model_path}: {type(model).__name__} fails on {what}: {str(error).rstrip('.')}. Add a family "
            "(docs/add_new_model.md)."
        ) from error
    seen = {"with logits only for labels": few, "with a different last token": blind, "in a padded batch": padded}
    for what, found in seen.items():
        if not (difference := (found - alone).abs().max()) <= allowed:  # true for nan too
            raise ValueError(
                f"{loader.model_path}: {type(model).__name__} computes other losses {what}: they differ by "
                f"{difference:.2g} from those of each sample alone, more than rounding allows ({allowed:.2g}). "
                "Add a family (docs/add_new_model.md)."
            )
    reason = leak(model, loader, collator, rows, alone, allowed) if collator.is_padding_free else ""
    if "device_map" not in loader.model_kwargs:
        model.to(home)  # adapters are initialized here, with the same values on every device
    if not reason:
        return ""
    for flag in ("padding_free", "packing"):
        if getattr(arguments.data, flag):
            raise ValueError(f"--{flag} True cannot be used with {loader.model_path}: {reason}. Leave it out.")
    model.get_decoder().set_attn_implementation(loader.text_attention)
    collator.is_padding_free = False
    return f"Samples are padded, because {reason}."


def with_another_end(row: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Replace the last token of a row and keep all labels. This must not change any loss of a causal model."""
    ids = row["input_ids"].clone()
    ids[:, -1] = ids[:, 0]
    return row | {"input_ids": ids}


def leak(model, loader, collator, rows: list[dict], alone: torch.Tensor, allowed: float) -> str:
    """Return why concatenated samples have other losses than each sample alone, or an empty text if they do not."""
    attention.separate_samples(model, loader)
    try:
        difference = (losses(model, collator.concatenate_samples(rows)) - alone).abs().max()
    except REFUSALS as error:
        return f"the model fails on concatenated samples ({error})"
    if difference <= allowed:
        return ""
    return f"concatenated samples affect each other: a loss differs by {difference:.2g} from that of the sample alone"


@torch.no_grad()
def losses(model, batch: dict) -> torch.Tensor:
    """Return the loss of each label, computed as in training."""
    return label_losses(model, on_device(model, batch))[0]


@torch.no_grad()
def all_losses(model, batch: dict) -> torch.Tensor:
    """Return the loss of each label, computed from the logits of all positions."""
    batch = on_device(model, batch)
    targets = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits
    if logits.shape[1] != targets.shape[1] + 1:
        raise ValueError(f"it returns {logits.shape[1]} logits for {targets.shape[1] + 1} tokens")
    logits = logits[:, :-1].float().transpose(1, 2)
    return cross_entropy(logits, targets, reduction="none")[targets != IGNORE_INDEX]


def on_device(model, batch: dict) -> dict:
    return {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}


def allow_unreached(model, collator, training) -> str:
    """Set `ddp_find_unused_parameters` if some trained parameters get no gradient from the test conversations.

    Returns:
        A message that names these parameters, or an empty text.
    """
    is_ddp = training.world_size > 1 and not (training.deepspeed or training.fsdp)
    if not is_ddp or training.ddp_find_unused_parameters is not None:
        return ""
    dtype = compute_dtype(training)
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        for row in example_rows(collator):
            label_losses(model, on_device(model, collator.collate([row])))[0].sum().backward()
    trained = {base_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = {name for name, parameter in trained.items() if parameter.grad is None}
    model.zero_grad(set_to_none=True)
    if not missing:
        return ""
    training.ddp_find_unused_parameters = True
    modules = shortened(largest_modules(missing, [base_name(name) for name, _ in model.named_parameters()]))
    return f"Test conversations give {modules} no gradient, so DDP looks for unused parameters in each step."
