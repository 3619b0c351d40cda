"""A tiny Gemma 3."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, gemma_tokenizer, padded_size, tiny_siglip

# Writes <bos>. The system prompt begins the first turn. Texts are trimmed, except the system prompt.
GEMMA_3_TEMPLATE = """
{{- bos_token }}
{%- set first = messages[0] %}
{%- set opening = '' %}
{%- if first['role'] == 'system' %}
    {%- set messages = messages[1:] %}
    {%- set text = first['content'] if first['content'] is string else first['content'][0]['text'] %}
    {%- set opening = text + '\n\n' %}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index % 2 == 1) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}
    {%- if loop.first %}{{ opening }}{% endif %}
    {%- if message['content'] is string %}
        {{- message['content'] | trim }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}{{ '<start_of_image>' }}
            {%- elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""


@register_tiny("gemma-3")
def gemma_3() -> TinyModel:
    """SigLIP, pooling, Gemma 3 with a sliding window in every other layer. 64x64 images: 16 tokens each."""
    from transformers import Gemma3Config, Gemma3ImageProcessor, Gemma3Processor, Gemma3TextConfig

    side, image_tokens = 64, 16
    tokenizer = gemma_tokenizer(
        ["<start_of_turn>", "<end_of_turn>"],
        ["<start_of_image>", "<end_of_image>", "<image_soft_token>"],
        extra_special_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        padding_side="left",
    )
    pad, end, begin, end_of_turn = tokenizer.convert_tokens_to_ids(["<pad>", "<eos>", "<bos>", "<end_of_turn>"])
    ids = {"pad_token_id": pad, "bos_token_id": begin}
    vision = tiny_siglip(side, 8)
    text = Gemma3TextConfig(
        **TEXT,
        **ids,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"],
        vocab_size=padded_size(tokenizer),
        eos_token_id=end,
    )
    config = Gemma3Config(
        vision_config=vision,
        text_config=text,
        mm_tokens_per_image=image_tokens,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        eos_token_id=[end, end_of_turn],
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": side, "width": side}, image_seq_length=image_tokens),
        tokenizer=tokenizer,
        image_seq_length=image_tokens,
        chat_template=GEMMA_3_TEMPLATE,
    )
    return TinyModel(config, processor, ids | {"eos_token_id": [end, end_of_turn]})
