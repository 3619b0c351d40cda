"""A tiny Ovis2."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import PAPER, TEXT, TinyModel, padded_size, qwen_tokenizer
from tiny_checkpoints.qwen2_5_vl import QWEN_2_5_PLAIN_TOKENS
from tiny_checkpoints.qwen2_vl import QWEN_VISION_TOKENS

# The system prompt opens every conversation, also one that has its own; content may be a string.
OVIS2_TEMPLATE = """
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@register_tiny("ovis2")
def ovis2() -> TinyModel:
    """Tiles of 32x32 pixels are 2x2 tokens, each a mixture of 59 visual words; up to nine tiles and the whole."""
    from transformers import Ovis2Config, Ovis2ImageProcessor, Ovis2Processor, Ovis2VisionConfig, Qwen2Config

    indicators = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    control = [*QWEN_VISION_TOKENS, "<IMG_ATOM>", *indicators]
    tokenizer = qwen_tokenizer(control, QWEN_2_5_PLAIN_TOKENS)
    end_of_text, end_of_turn, image, *indicators = tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|im_end|>", "<IMG_ATOM>", *indicators]
    )
    tile, patch = 32, 8
    vision = Ovis2VisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=tile,
        patch_size=patch,
        vocab_size=64,
        hidden_stride=2,
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
    config = Ovis2Config(
        vision_config=vision,
        text_config=text,
        image_token_id=image,
        visual_indicator_token_ids=indicators,
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        tie_word_embeddings=False,
    )
    processor = Ovis2Processor(
        image_processor=Ovis2ImageProcessor(
            size={"height": tile, "width": tile}, crop_to_patches=True, max_patches=9, **PAPER
        ),
        tokenizer=tokenizer,
        image_seq_length=(tile // patch // vision.hidden_stride) ** 2,
        chat_template=OVIS2_TEMPLATE,
    )
    return TinyModel(config, processor, {"bos_token_id": end_of_text, "eos_token_id": end_of_turn})
