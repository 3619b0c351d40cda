"""A tiny MiniCPM-V 4.6."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, padded_size, qwen_tokenizer
from tiny_checkpoints.qwen3_5 import HYBRID, QWEN3_5_TEMPLATE
from tiny_checkpoints.qwen3_vl import QWEN3_PLAIN_TOKENS

# Qwen3.5's template, except for the separator of a message's parts, and without tokens around media.
PART = "{{- part['text'] }}\n            {%- endif %}"
MINICPM_V_4_6_TEMPLATE = (
    QWEN3_5_TEMPLATE.replace("<|vision_start|>", "")
    .replace("<|vision_end|>", "")
    .replace(PART, PART + "{% if not loop.last %}{{ '\n' }}{% endif %}")
)
MEDIA = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}


@register_tiny("minicpm-v-4.6")
def minicpm_v_4_6() -> TinyModel:
    """A token is 16 patches of 14x14 pixels; an image of more than 112x112 is also cut into slices."""
    from transformers import (
        MiniCPMV4_6Config,
        MiniCPMV4_6ImageProcessor,
        MiniCPMV4_6Processor,
        MiniCPMV4_6VideoProcessor,
    )

    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *MEDIA.values()]
    tokenizer = qwen_tokenizer(control, QWEN3_PLAIN_TOKENS, extra_special_tokens=MEDIA)
    end_of_text, end_of_turn, image, video = tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
    )
    text = TEXT | HYBRID | {"model_type": "qwen3_5_text", "head_dim": 32, "vocab_size": padded_size(tokenizer)}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
    text |= {"max_position_embeddings": 262144, "tie_word_embeddings": True, "eos_token_id": end_of_turn}
    vision = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 112,
        "patch_size": 14,
    }
    config = MiniCPMV4_6Config(
        text_config=text,
        vision_config=vision,
        insert_layer_id=1,
        image_size=112,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=True,
    )
    pixels = {"scale_resolution": 112, "max_slice_nums": 4, "patch_size": 14}
    processor = MiniCPMV4_6Processor(
        image_processor=MiniCPMV4_6ImageProcessor(**pixels),
        video_processor=MiniCPMV4_6VideoProcessor(**pixels),
        tokenizer=tokenizer,
        chat_template=MINICPM_V_4_6_TEMPLATE,
    )
    ids = {"eos_token_id": [end_of_turn, end_of_text], "pad_token_id": end_of_text}
    return TinyModel(config, processor, ids)
