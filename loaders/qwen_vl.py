"""Qwen-VL-Chat: a vision transformer with its projector (`attn_pool`) inside, and Qwen. The remote code is from 2023
and cannot use the key-value cache of transformers 5, so it generates long answers slowly."""

import math
import sys
from types import ModuleType

import torch
from torchvision import transforms
from transformers import AutoTokenizer, PreTrainedModel

from loaders import register_loader
from loaders.remote_code import RemoteCodeLoader, RemoteModel


class QwenVLModel(RemoteModel):
    # The remote code's version has the signature of transformers 4.
    _set_gradient_checkpointing = PreTrainedModel._set_gradient_checkpointing

    def disable_input_require_grads(self):
        """Do nothing, since the code's reentrant gradient checkpointing needs embeddings that require gradients."""

    def forward(self, *args, pixel_values=None, **kwargs):
        """Call the checkpoint's `forward`, but pass pixels. Its code would open files named by the image tokens."""
        visual = self.transformer.visual
        if self.training:
            # Evaluating a row of over 2,048 tokens rescales the rotary positions, and the code would keep that scale.
            self.transformer.rotary_emb(1, ntk_alpha=1.0)
        if pixel_values is not None:
            visual.encode = lambda names: visual(pixel_values)  # in the order of the image tokens
        try:
            return super().forward(*args, **kwargs)
        finally:
            vars(visual).pop("encode", None)

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, pixel_values=None, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)
        return inputs | {"pixel_values": pixel_values}


class QwenVLProcessor:
    """A substitute for the missing processor: the checkpoint's tokenizer and the image transform of its model code."""

    chat_template = None
    image_token_ids = video_token_ids = all_special_multimodal_tokens = ()

    def __init__(self, tokenizer, image_size: int):
        self.tokenizer = tokenizer
        self.transform = transforms.Compose(
            [
                transforms.Resize((image_size, image_size), interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
            ]
        )


@register_loader("qwen-vl")
class QwenVLLoader(RemoteCodeLoader):
    model_type = "qwen"
    packages = dict.fromkeys(["tiktoken", "einops", "matplotlib", "requests"], "which the checkpoint's code imports")
    model_shim = QwenVLModel
    end_tokens = ["<|im_end|>", "<|endoftext|>"]
    vision_encoder = ["transformer.visual"]
    vision_projector = ["transformer.visual.attn_pool"]
    language_model = ["transformer.wte", "transformer.h", "transformer.ln_f", "lm_head"]

    def __init__(self, model_path: str, trust_remote_code: bool = False, **model_kwargs):
        super().__init__(model_path, trust_remote_code, **model_kwargs)
        # By default, the remote code chooses a dtype by the hardware. With "fp32" it keeps the given dtype.
        self.model_kwargs |= {"fp32": True, "fp16": False, "bf16": False}

    @classmethod
    def fits(cls, config) -> bool:
        return super().fits(config) and hasattr(config, "visual")  # Qwen-7B has the same model_type

    def load_processor(self, path=None):
        tokenizer = self.load_with(AutoTokenizer, path or self.model_path)
        tokenizer.pad_token = "<|endoftext|>"  # the checkpoint's tokenizer has no pad token
        return QwenVLProcessor(tokenizer, self.config.visual["image_size"])

    def model_class(self):
        # Loading requires this package, which is only used for streaming and is broken on transformers 5.
        sys.modules.setdefault("transformers_stream_generator", ModuleType("transformers_stream_generator"))
        model_class = super().model_class()
        # It reinitializes `attn.c_proj` after loading (5.23), since a module with a buffer does not count as loaded.
        next(cls for cls in model_class.__mro__ if "_init_weights" in vars(cls))._init_weights = lambda *_: None
        return model_class

    def load_model(self):
        model = super().load_model()
        transformer, config = model.transformer, model.config
        # `__init__` makes these as plain tensors, so on the meta device they get no values.
        positions = torch.arange(1, 32768, dtype=torch.float64)
        scale = (positions.log() / math.log(config.seq_length)).clamp_min(1).float()[None, :, None, None]
        for block in transformer.h:
            block.attn.logn_tensor = scale
        rotary = transformer.rotary_emb
        rotary.inv_freq = 1.0 / (rotary.base ** (torch.arange(0, rotary.dim, 2).float() / rotary.dim))
        # The remote code freezes this sinusoidal table, but loading unfreezes it.
        transformer.visual.attn_pool.pos_embed.requires_grad_(False)
        # transformers 5 no longer has this method.
        transformer.get_head_mask = lambda head_mask, num_layers: [None] * num_layers
        # The remote code writes image features into this tensor, which gradient checkpointing may make a graph leaf.
        transformer.drop.register_forward_hook(lambda _, inputs, hidden: hidden.clone())
        # The tokenizer fails on a generated `<img>` without `</img>`.
        first = config.visual["image_start_id"]
        model.generation_config.suppress_tokens = [first, first + 1, first + 2]
        return model

    def unused_modules(self, model):
        return ["transformer.visual.attn_pool.pos_embed"]  # a constant table
