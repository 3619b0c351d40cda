"""A tiny checkpoint of a family that has no files of its own (Cohere2 Vision), for `--model_id auto`."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, padded_size, qwen_tokenizer, tiny_siglip

# The role is on a separate line. A system message is a string; other messages are lists of parts.
TEMPLATE = """
{%- for message in messages %}
    {{- '<|START_OF_TURN_TOKEN|>' + message['role'] + '\n' }}
    {%- if message['role'] == 'system' %}{{ message['content'] + '\n' }}{% else %}
        {%- for part in message['content'] %}
            {{- part['text'] if part['type'] == 'text' else '<|IMG_PATCH|>' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|>assistant\n' }}{% endif %}"""


@register_tiny("auto")
def cohere2_vision() -> TinyModel:
    """SigLIP, a projector that merges 2x2 patches, Cohere2. Tiles of 32x32 pixels: 4 tokens each."""
    from transformers import (
        Cohere2Config,
        Cohere2VisionConfig,
        Cohere2VisionImageProcessor,
        Cohere2VisionProcessor,
    )

    control = ["<|endoftext|>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"]
    image = {
        "image_token": "<|IMG_PATCH|>",
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    tokenizer = qwen_tokenizer(
        [*control, *image.values()], extra_special_tokens=image, eos_token="<|END_OF_TURN_TOKEN|>"
    )
    end_of_turn, image_token_id = tokenizer.convert_tokens_to_ids(["<|END_OF_TURN_TOKEN|>", "<|IMG_PATCH|>"])
    vision = tiny_siglip(32, 8)
    text = Cohere2Config(
        **TEXT,
        vocab_size=padded_size(tokenizer),
        max_position_embeddings=8192,
        sliding_window=1024,
        layer_types=["sliding_attention", "full_attention"],
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=end_of_turn,
    )
    config = Cohere2VisionConfig(
        vision_config=vision,
        text_config=text,
        downsample_factor=2,
        alignment_intermediate_size=128,
        image_token_id=image_token_id,
    )
    processor = Cohere2VisionProcessor(
        image_processor=Cohere2VisionImageProcessor(size={"height": 32, "width": 32}, patch_size=2, max_patches=4),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
    )
    return TinyModel(config, processor, {"eos_token_id": end_of_turn, "pad_token_id": tokenizer.pad_token_id})
