"""Load base and adapter as one model, to merge what cannot be merged shard by shard, and to check the logits."""

import glob
import os

import torch
from peft import PeftConfig, PeftModel, get_peft_model, load_peft_weights
from PIL import Image
from safetensors import SafetensorError

from loaders.base import BaseLoader, local_folder
from loaders.new_tokens import trained_rows
from loaders.output_folder import adapter_config, fill_adapter

CHECKPOINT_WEIGHTS = ["model*.safetensors", "pytorch_model*.bin"]


def memory_needed(loader: BaseLoader) -> float:
    """Return the bytes of the model in float32, plus a third for the adapter and intermediate results."""
    folder = local_folder(loader.model_path, CHECKPOINT_WEIGHTS)
    paths = [path for pattern in CHECKPOINT_WEIGHTS for path in glob.glob(os.path.join(folder, pattern))]
    return sum(map(os.path.getsize, paths)) * 4 / loader.dtype.itemsize * 4 / 3


def load_with_adapter(loader: BaseLoader, adapter_path: str, seen_as) -> PeftModel:
    """Load base and adapter in float32. If `seen_as` is given, quantize the base with it and dequantize."""
    loader.model_kwargs["dtype"], loader.pieces = torch.float32, trained_rows(adapter_config(adapter_path))
    if seen_as:
        loader.model_kwargs |= {"dtype": loader.dtype, "quantization_config": seen_as}
    model = loader.load_model()
    model = (model.dequantize() if seen_as else model).float()
    return with_adapter(model, adapter_path, loader.model_path).eval()


def with_adapter(model, adapter_path: str, base_path: str) -> PeftModel:
    """Return a base model with an adapter on it.

    Raises:
        ValueError: the adapter does not fit the base (peft only warns).
    """
    try:
        model = get_peft_model(model, PeftConfig.from_pretrained(adapter_path))
        fill_adapter(model, load_peft_weights(adapter_path, device="cpu"))
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{adapter_path} is not an adapter of {base_path}: {error}") from error
    return model


def merge_whole(loader: BaseLoader, adapter_path: str, seen_as, dtype: torch.dtype):
    return load_with_adapter(loader, adapter_path, seen_as).merge_and_unload(safe_merge=True).to(dtype)


@torch.no_grad()
def check_logits(loader, adapter_path: str, seen_as, merged: BaseLoader, collator, dtype: torch.dtype | None) -> str:
    """Compare the logits of base + adapter with those of the merged model, both in float32, for a prompt with an image.

    Raises:
        ValueError: the logits differ by over four times the effect of random weight changes of the size of rounding.
    """
    torch.manual_seed(0)
    image = Image.fromarray(torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy())
    question = [{"type": "image", "image": image}, {"type": "text", "text": "What is in the image?"}]
    answer = [{"type": "text", "text": "Nothing but noise."}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    batch = collator([{"messages": messages}])
    del batch["labels"]

    model = load_with_adapter(loader, adapter_path, seen_as)
    adapted = model(**batch).logits
    with model.disable_adapter():
        moved = adapted - model(**batch).logits
    for name, parameter in model.named_parameters():
        if dtype or "base_layer" in name or "modules_to_save" in name:
            parameter *= 1 + torch.finfo(dtype or loader.dtype).eps * (torch.rand_like(parameter) - 0.5)
    rounding = adapted - model(**batch).logits
    del model
    difference = adapted - merged.load_model().eval()(**batch).logits

    moved, rounding, difference = (x.square().mean().sqrt().item() for x in (moved, rounding, difference))
    found = (
        f"the logits of base + adapter and of the merged model differ by {difference:.2g} (root mean square, "
        f"{batch['input_ids'].numel()} tokens); rounding alone moves them by {rounding:.2g}, the adapter by {moved:.2g}"
    )
    if not difference <= 4 * rounding + 1e-6 * adapted.abs().max():
        raise ValueError(f"Self-check failed: {found}. Do not use {merged.model_path}.")
    return f"Self-check of the logits: {found}."
