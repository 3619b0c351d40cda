"""A tiny LLaVA-NeXT-Video."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import PAPER, TinyModel, llama_tokenizer
from tiny_checkpoints.llava_1_5 import LLAVA_TEMPLATE, tiny_clip
from tiny_checkpoints.llava_1_6 import (
    GRID,
    LLAVA_MISTRAL_TEMPLATE,
    PATCH,
    TILE,
    llama_text,
    mistral_text,
    tiled_image_processor,
)

LLAVA_YI_TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}
    {%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def with_videos(template: str) -> str:
    """The template with a message's videos after its images."""
    images = "{%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    assert images in template
    return template.replace(images, images + images.replace("image", "video"))


@register_tiny("llava-next-video")
def llava_next_video(checkpoint: str = "llava-next-video-7b") -> TinyModel:
    """LLaVA 1.6 and videos of 4 tokens a frame. The checkpoints differ in language model, tokenizer and template."""
    from transformers import LlavaNextVideoConfig, LlavaNextVideoProcessor, LlavaNextVideoVideoProcessor

    make_text, template = {
        "llava-next-video-7b": (llama_text, LLAVA_TEMPLATE),
        "llava-next-video-7b-32k": (mistral_text, LLAVA_TEMPLATE),
        "llava-next-video-7b-32k-mistral": (mistral_text, LLAVA_MISTRAL_TEMPLATE),
        "llava-next-video-34b": (llama_text, LLAVA_YI_TEMPLATE),
    }[checkpoint]
    media = ["<video>", "<image>"]
    if template == LLAVA_YI_TEMPLATE:  # writes no BOS
        control = ["<|startoftext|>", "<|im_start|>", "<|im_end|>"]
        special = {"bos_token": control[0], "eos_token": control[2], "add_bos_token": False}
    else:
        control, special = [], {}
    tokenizer = llama_tokenizer([*control, *media], pad_token="<unk>", padding_side="left", **special)
    video_token_id, image_token_id = tokenizer.convert_tokens_to_ids(media)
    config = LlavaNextVideoConfig(
        vision_config=tiny_clip(),
        text_config=make_text(tokenizer),
        image_token_index=image_token_id,
        video_token_index=video_token_id,
        image_grid_pinpoints=GRID,
        image_seq_length=(TILE // PATCH) ** 2,
        video_seq_length=2 * (TILE // PATCH // 2) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    processor = LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor(
            size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, **PAPER
        ),
        image_processor=tiled_image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=with_videos(template),
    )
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return TinyModel(config, processor, generation)
