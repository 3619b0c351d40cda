"""A tiny InternVL3."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, padded_size, qwen_tokenizer
from tiny_checkpoints.qwen2_5_vl import QWEN_2_5_PLAIN_TOKENS
from tiny_checkpoints.qwen2_vl import QWEN_VISION_TOKENS

# ChatML; a line break after every image and video; content may be a string.
INTERNVL_TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}
                {{- '<IMG_CONTEXT>\n' }}
            {%- elif part['type'] == 'video' %}
                {{- '<video>\n' }}
            {%- elif part['type'] == 'text' %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@register_tiny("internvl3")
def internvl3() -> TinyModel:
    """InternViT with layer scales, projector, Qwen2 with an untied head. Tiles of 32x32 pixels are 2x2 tokens."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLProcessor,
        InternVLVideoProcessor,
        InternVLVisionConfig,
        Qwen2Config,
    )

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    others = "<quad> </quad> <ref> </ref> <box> </box>".split()
    control = [*QWEN_VISION_TOKENS, "<img>", "</img>", "<IMG_CONTEXT>", *others, "<video>"]
    tokenizer = qwen_tokenizer(control, QWEN_2_5_PLAIN_TOKENS, extra_special_tokens=named)
    end_of_text, end_of_turn, image_token_id = tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|im_end|>", "<IMG_CONTEXT>"]
    )
    tile, patch = 32, 8
    vision = InternVLVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        attention_bias=True,
        image_size=tile,
        patch_size=patch,
        initializer_range=0.15,
    )
    text = Qwen2Config(
        **TEXT,
        vocab_size=padded_size(tokenizer),
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=end_of_text,
        eos_token_id=end_of_turn,
    )
    image_tokens = (tile // patch // 2) ** 2
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=image_token_id,
        image_seq_length=image_tokens,
        tie_word_embeddings=False,
    )
    pixels = {"size": {"height": tile, "width": tile}}
    pixels |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(**pixels),
        image_seq_length=image_tokens,
        chat_template=INTERNVL_TEMPLATE,
    )
    return TinyModel(config, processor, {"bos_token_id": end_of_text, "eos_token_id": end_of_turn})
