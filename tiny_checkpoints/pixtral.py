"""A tiny Pixtral."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import PAPER, TEXT, TinyModel, padded_size, tekken_tokenizer

# The system text is a string. It is written before the last message if that is the user's, and otherwise dropped.
PIXTRAL_TEMPLATE = """
{%- set has_system = messages[0]['role'] == 'system' %}
{{- bos_token }}
{%- for message in (messages[1:] if has_system else messages) %}
    {%- if message['role'] == 'user' %}
        {{- '[INST]' }}
        {%- if loop.last and has_system %}{{ messages[0]['content'] + '\n\n' }}{% endif %}
    {%- endif %}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}{{ '[IMG]' if part['type'] == 'image' else part['text'] }}{% endfor %}
    {%- endif %}
    {{- '[/INST]' if message['role'] == 'user' else eos_token }}
{%- endfor %}"""

MISTRAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11}
# Rotary positions in two dimensions; more heads' width than the hidden size in the language model, as in the real one.
PIXTRAL_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.15,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
MISTRAL_TEXT = TEXT | {
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e9},
    "sliding_window": None,
    "tie_word_embeddings": False,
}


@register_tiny("pixtral")
def pixtral() -> TinyModel:
    """An image token is 16x16 pixels, at most 6x6 of them, and one more ends each row."""
    from transformers import (
        LlavaConfig,
        MistralConfig,
        PixtralImageProcessor,
        PixtralProcessor,
        PixtralVisionConfig,
    )

    tokenizer = tekken_tokenizer()
    config = LlavaConfig(
        vision_config=PixtralVisionConfig(**PIXTRAL_VISION, image_size=96, patch_size=16),
        text_config=MistralConfig(**MISTRAL_TEXT, vocab_size=padded_size(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        image_seq_length=1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 96}, patch_size=16, **PAPER),
        tokenizer=tokenizer,
        patch_size=16,
        chat_template=PIXTRAL_TEMPLATE,
    )
    return TinyModel(config, processor, MISTRAL_IDS)
