"""A tiny Granite Vision."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, byte_level_tokenizer, padded_size

# Has a default system prompt. Uses only the first text of system messages and replies. A user's images come first.
GRANITE_VISION_TEMPLATE = """
{%- if not messages | selectattr('role', 'equalto', 'system') | list %}
    {{- '<|system|>\nA chat between a curious user and an artificial intelligence assistant. ' }}
    {{- "The assistant gives helpful, detailed, and polite answers to the user's questions.\n" }}
{%- endif %}
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\n' }}
    {%- if message['role'] == 'user' %}
        {%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}
        {%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + '\n' }}{% endfor %}
    {%- else %}
        {{- message['content'][0]['text'] + ('\n' if message['role'] == 'system' else '<|end_of_text|>') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""


@register_tiny("granite-vision")
def granite_vision() -> TinyModel:
    """SigLIP, a projector that reads all four layers, and Granite with a tied head. Tiles have 3x3 tokens."""
    from tokenizers import pre_tokenizers
    from transformers import (
        GraniteConfig,
        LlavaNextConfig,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        SiglipVisionConfig,
    )

    first = "<|end_of_text|> <fim_prefix> <fim_middle> <fim_suffix> <fim_pad>".split()
    tokenizer = byte_level_tokenizer(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        first,
        ["<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>", "<image>"],
        unk_token="<|end_of_text|>",
        bos_token="<|end_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|end_of_text|>",
        model_max_length=16384,
    )
    tile, patch = 42, 14
    grid = [[height * tile, width * tile] for height, width in ([1, 2], [2, 1], [2, 2], [1, 3], [3, 1])]
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=tile,
        patch_size=patch,
        vision_use_head=False,
    )
    text = GraniteConfig(
        **TEXT,
        vocab_size=padded_size(tokenizer),
        max_position_embeddings=16384,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.125,
        logits_scaling=8.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        image_seq_length=(tile // patch) ** 2,
        vision_feature_layer=[-4, -3, -2, -1],
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    image_processor = LlavaNextImageProcessor(
        size={"shortest_edge": tile},
        crop_size={"height": tile, "width": tile},
        image_grid_pinpoints=grid,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="full",
        chat_template=GRANITE_VISION_TEMPLATE,
    )
    return TinyModel(config, processor, {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0})
