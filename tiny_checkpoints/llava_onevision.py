"""A tiny LLaVA-OneVision."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, padded_size, qwen_tokenizer, tiny_siglip

# After the role come a space, images, videos, then each text on a new line. The prompt does not have that space.
LLAVA_ONEVISION_TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + ' ' }}
    {%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}
    {%- for part in message['content'] if part['type'] == 'video' %}{{ '<video>' }}{% endfor %}
    {%- for part in message['content'] if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endfor %}
    {{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@register_tiny("llava-onevision")
def llava_onevision() -> TinyModel:
    """SigLIP, projector, Qwen2. Tiles of 42x42 pixels are 3x3 tokens: an odd side, as the 27x27 of the real one."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
    )

    tokenizer = qwen_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"])
    end_of_text, end_of_turn, image_token_id, video_token_id = tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|im_end|>", "<image>", "<video>"]
    )
    tile, patch = 42, 14
    grid = [[height * tile, width * tile] for height in (1, 2) for width in (1, 2)]
    vision = tiny_siglip(tile, patch)
    text = Qwen2Config(
        **TEXT,
        vocab_size=padded_size(tokenizer),
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=end_of_text,
        eos_token_id=end_of_turn,
        tie_word_embeddings=True,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        video_token_index=video_token_id,
        image_grid_pinpoints=grid,
        vision_aspect_ratio="anyres_max_9",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    pixels = {"size": {"height": tile, "width": tile}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=grid, **pixels),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=(tile // patch) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=LLAVA_ONEVISION_TEMPLATE,
    )
    generation = {"bos_token_id": end_of_text, "eos_token_id": end_of_turn, "pad_token_id": end_of_text}
    return TinyModel(config, processor, generation)
