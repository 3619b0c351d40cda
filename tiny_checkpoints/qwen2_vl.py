"""A tiny Qwen2-VL."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import PAPER, TEXT, TinyModel, padded_size, qwen_tokenizer

# ChatML with a default system prompt; parts in their order; content may be a string.
QWEN_TEMPLATE = """
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'text' %}
                {{- part['text'] }}
            {%- elif part['type'] in ('image', 'image_url') %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part['type'] == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


QWEN_VISION_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()


def qwen_vl(config_class, processor_class, tokenizer, vision: dict) -> TinyModel:
    """The common part of Qwen2-VL and Qwen2.5-VL: a token is 28x28 pixels; 4 to 16,384 tokens an image."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    ids = dict(zip(QWEN_VISION_TOKENS, tokenizer.convert_tokens_to_ids(QWEN_VISION_TOKENS)))
    end_of_text, end_of_turn = ids["<|endoftext|>"], ids["<|im_end|>"]
    text = TEXT | {
        "vocab_size": padded_size(tokenizer),
        "max_position_embeddings": 32768,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_turn,
        # Half of a head's 32 dimensions, shared out in the real ratio 16 : 24 : 24 to time, height and width.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    }
    config = config_class(
        text_config=text,
        vision_config=vision | {"depth": 2, "num_heads": 4, "initializer_range": 0.15},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    size = {"shortest_edge": 56 * 56, "longest_edge": 16384 * 28 * 28}  # of the Hub, so that a picture has its tokens
    processor = processor_class(
        image_processor=Qwen2VLImageProcessor(size=size, **PAPER),
        tokenizer=tokenizer,
        # Pixels of one frame; two frames share a token.
        video_processor=Qwen2VLVideoProcessor(size=size, **PAPER),
        chat_template=QWEN_TEMPLATE,
    )
    generation = {
        "bos_token_id": end_of_text,
        "eos_token_id": [end_of_turn, end_of_text],
        "pad_token_id": end_of_text,
    }
    return TinyModel(config, processor, generation)


@register_tiny("qwen2-vl")
def qwen2_vl() -> TinyModel:
    """Dynamic resolution, rotary positions in three dimensions."""
    from transformers import Qwen2VLConfig, Qwen2VLProcessor

    vision = {"embed_dim": 96, "hidden_size": TEXT["hidden_size"]}
    return qwen_vl(Qwen2VLConfig, Qwen2VLProcessor, qwen_tokenizer(QWEN_VISION_TOKENS), vision)
