"""A tiny LLaVA-NeXT-Interleave."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, padded_size, qwen_tokenizer, tiny_siglip

# A line break after the role, the images, then every text on a new line.
LLAVA_INTERLEAVE_TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}
    {%- for part in message['content'] if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@register_tiny("llava-interleave")
def llava_interleave() -> TinyModel:
    """SigLIP, two-layer projector, Qwen2. Images of 44x44 pixels: 3x3 tokens, and two pixels that no patch covers, as
    the real 384 pixels are 27 patches of 14 and six pixels."""
    from transformers import LlavaConfig, LlavaProcessor, Qwen2Config, SiglipImageProcessor

    tokenizer = qwen_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"])
    end_of_text, end_of_turn, image_token_id = tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|im_end|>", "<image>"]
    )
    size, patch = 44, 14
    vision = tiny_siglip(size, patch)
    text = Qwen2Config(
        **TEXT | {"num_key_value_heads": 4},
        vocab_size=padded_size(tokenizer),
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=end_of_text,
        eos_token_id=end_of_turn,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=(size // patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessor(size={"height": size, "width": size}),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_INTERLEAVE_TEMPLATE,
    )
    generation = {"bos_token_id": end_of_text, "eos_token_id": end_of_turn, "pad_token_id": end_of_text}
    return TinyModel(config, processor, generation)
