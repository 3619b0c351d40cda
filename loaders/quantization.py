"""Weights of 4 or 8 bits, the same for training, answers and merging."""

import torch

from loaders.base import BaseLoader


def quantized_bits(q_lora: bool | None, load_in_8bit: bool | None) -> int | None:
    return 4 if q_lora else 8 if load_in_8bit else None


def quantization_config(loader: BaseLoader, dtype: torch.dtype, bits: int = 4):
    """For the language model alone: nf4 with double quantization (https://arxiv.org/abs/2305.14314), or LLM.int8
    (https://arxiv.org/abs/2208.07339).

    bitsandbytes matches the skipped names from the start of a module's full name (transformers 5.23), and a list
    of ours replaces its default, so the head is named too.
    """
    from transformers import BitsAndBytesConfig  # imports bitsandbytes, which only a quantized run needs

    routers = [name.removesuffix(".weight") for name in loader.routers]  # small, and their choices decide
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return BitsAndBytesConfig(
        **({"load_in_4bit": True} | nf4 if bits == 4 else {"load_in_8bit": True}),
        llm_int8_skip_modules=[
            *(*loader.vision_encoder, *loader.vision_projector, *loader.other),
            *(*routers, *loader.bare_weights, "lm_head"),
        ],
    )
