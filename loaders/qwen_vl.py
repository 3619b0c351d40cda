"""Qwen-VL-Chat: a vision transformer with its projector (`attn_pool`) inside, and Qwen; remote code of 2023, which
generates without a cache here, so that long answers are slow."""

import math
import sys
from types import ModuleType

import torch
from torchvision import transforms
from transformers import AutoTokenizer, PreTrainedModel

from loaders import register_loader
from loaders.remote_code import RemoteCodeLoader, RemoteModel


class QwenVLModel(RemoteModel):
    # The code has the signature of transformers 4.
    _set_gradient_checkpointing = PreTrainedModel._set_gradient_checkpointing

    def disable_input_require_grads(self):
        """They stay: the code checkpoints in the reentrant way, and only the embeddings of text ask for gradients."""

    def forward(self, *args, pixel_values=None, **kwargs):
        """As the checkpoint's, which would open files: it reads their names out of the slots of images."""
        visual = self.transformer.visual
        if self.training:
            # Evaluating a row of more than 2,048 tokens scales its positions, and the code would train on with that.
            self.transformer.rotary_emb(1, ntk_alpha=1.0)
        if pixel_values is not None:
            visual.encode = lambda names: visual(pixel_values)  # in the order of the slots
        try:
            return super().forward(*args, **kwargs)
        finally:
            vars(visual).pop("encode", None)

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, pixel_values=None, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)
        return inputs | {"pixel_values": pixel_values}


class QwenVLProcessor:
    """Stands for the processor that the checkpoint has not: its tokenizer, and the transform in its model code."""

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
    packages = dict.fromkeys(["tiktoken", "einops", "matplotlib", "requests"], "which its Python files import")
    model_shim = QwenVLModel
    end_tokens = ["<|im_end|>", "<|endoftext|>"]
    vision_encoder = ["transformer.visual"]
    vision_projector = ["transformer.visual.attn_pool"]
    language_model = ["transformer.wte", "transformer.h", "transformer.ln_f", "lm_head"]

    def __init__(self, model_path: str, trust_remote_code: bool = False, **model_kwargs):
        super().__init__(model_path, trust_remote_code, **model_kwargs)
        # The code would choose a precision by what the machine can do. "fp32" means: leave it alone.
        self.model_kwargs |= {"fp32": True, "fp16": False, "bf16": False}

    @classmethod
    def fits(cls, config) -> bool:
        return super().fits(config) and hasattr(config, "visual")  # Qwen-7B has the same model_type

    def load_processor(self, path=None):
        tokenizer = self.load_with(AutoTokenizer, path or self.model_path)
        tokenizer.pad_token = "<|endoftext|>"  # it has none
        return QwenVLProcessor(tokenizer, self.config.visual["image_size"])

    def model_class(self):
        # Imported for streamed answers only, but required on loading, and broken on transformers 5.
        sys.modules.setdefault("transformers_stream_generator", ModuleType("transformers_stream_generator"))
        model_class = super().model_class()
        # It draws `attn.c_proj` again after the weights are loaded (5.23), as a module with a buffer is not "loaded".
        next(cls for cls in model_class.__mro__ if "_init_weights" in vars(cls))._init_weights = lambda *_: None
        return model_class

    def load_model(self):
        model = super().load_model()
        transformer, config = model.transformer, model.config
        # Made in `__init__` as plain tensors, which are left without values on the meta device.
        positions = torch.arange(1, 32768, dtype=torch.float64)
        scale = (positions.log() / math.log(config.seq_length)).clamp_min(1).float()[None, :, None, None]
        for block in transformer.h:
            block.attn.logn_tensor = scale
        rotary = transformer.rotary_emb
        rotary.inv_freq = 1.0 / (rotary.base ** (torch.arange(0, rotary.dim, 2).float() / rotary.dim))
        # The code freezes this table of sines, which loading forgets.
        transformer.visual.attn_pool.pos_embed.requires_grad_(False)
        # Gone in transformers 5.
        transformer.get_head_mask = lambda head_mask, num_layers: [None] * num_layers
        # The code writes image features into this, which may be a leaf of the graph under gradient checkpointing.
        transformer.drop.register_forward_hook(lambda _, inputs, hidden: hidden.clone())
        # Its tokenizer fails on an image that is opened and not closed.
        first = config.visual["image_start_id"]
        model.generation_config.suppress_tokens = [first, first + 1, first + 2]
        return model

    def unused_modules(self, model):
        return ["transformer.visual.attn_pool.pos_embed"]  # a parameter in name only
