"""A tiny LFM2-VL."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import LLAMA_3_SPLIT, TEXT, TinyModel, byte_level_tokenizer, padded_size

# ChatML after the begin token; content may be a string. An empty system prompt is left out.
LFM2_VL_TEMPLATE = """
{{- bos_token }}
{%- macro text_of(content) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}
    {%- endif %}
{%- endmacro %}
{%- if messages[0]['role'] == 'system' and not text_of(messages[0]['content']) %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' + text_of(message['content']) + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@register_tiny("lfm2-vl")
def lfm2_vl() -> TinyModel:
    """SigLIP 2, projector, LFM2 with a convolution and an attention layer, tied head. A token is 16x16 pixels.

    4 to 16 tokens an image; more than twice the pixels of 16 tokens become 2 to 10 tiles of 4 tokens.
    """
    from tokenizers import Regex, pre_tokenizers
    from transformers import (
        Lfm2Config,
        Lfm2VlConfig,
        Lfm2VlImageProcessor,
        Lfm2VlProcessor,
        Siglip2VisionConfig,
    )

    first = "<|pad|> <|startoftext|> <|endoftext|> <|fim_pre|> <|fim_mid|> <|fim_suf|> <|im_start|> <|im_end|>".split()
    first += ["<image>", *(f"<|img_row_{row}_col_{col}|>" for row in range(1, 11) for col in range(1, 11))]
    first += ["<|img_thumbnail|>", "<|image_start|>", "<|image_end|>"]
    split = pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), "isolated")
    tokenizer = byte_level_tokenizer(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
        first,
        [],
        writes_bos=True,
        bos_token="<|startoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        extra_special_tokens={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail": "<|img_thumbnail|>",
        },
    )
    ids = dict(zip(first, tokenizer.convert_tokens_to_ids(first)))
    patch = 8
    vision = Siglip2VisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_patches=64,
        patch_size=patch,
        vision_use_head=False,
    )
    text = Lfm2Config(
        **TEXT,
        vocab_size=padded_size(tokenizer),
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        layer_types=["conv", "full_attention"],
        block_multiple_of=64,
        bos_token_id=ids["<|startoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|pad|>"],
        tie_word_embeddings=True,
    )
    config = Lfm2VlConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["<image>"],
        projector_hidden_size=128,
        tie_word_embeddings=True,
    )
    processor = Lfm2VlProcessor(
        image_processor=Lfm2VlImageProcessor(
            encoder_patch_size=patch, tile_size=4 * patch, min_image_tokens=4, max_image_tokens=16
        ),
        tokenizer=tokenizer,
        chat_template=LFM2_VL_TEMPLATE,
    )
    generation = {
        "bos_token_id": ids["<|startoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|pad|>"],
    }
    return TinyModel(config, processor, generation)
