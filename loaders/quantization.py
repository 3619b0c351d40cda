"""The quantization to 4 or 8 bits, shared by training, prediction and merging."""

import torch

from loaders.base import BaseLoader


def quantized_bits(q_lora: bool | None, load_in_8bit: bool | None) -> int | None:
    return 4 if q_lora else 8 if load_in_8bit else None


def quantization_config(loader: BaseLoader, dtype: torch.dtype, bits: int = 4):
    """Quantize only the language model: to nf4 with double quantization (https://arxiv.org/abs/2305.14314) or with
    LLM.int8 (https://arxiv.org/abs/2208.07339).

    transformers 5.23 skips modules whose full name starts with a listed name. Our list replaces the default list, so
    it also contains the head.
    """
    from transformers import BitsAndBytesConfig  # imports bitsandbytes, which only a quantized run needs

    routers = [name.removesuffix(".weight") for name in loader.routers]  # small, but sensitive to rounding
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return BitsAndBytesConfig(
        **({"load_in_4bit": True} | nf4 if bits == 4 else {"load_in_8bit": True}),
        llm_int8_skip_modules=[
            *(*loader.vision_encoder, *loader.vision_projector, *loader.other),
            *(*routers, *loader.bare_weights, "lm_head"),
        ],
    )
