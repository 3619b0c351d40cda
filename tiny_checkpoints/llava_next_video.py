"""A tiny LLaVA-NeXT-Video."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import PAPER, TinyModel
from tiny_checkpoints.llava_1_5 import tiny_clip
from tiny_checkpoints.llava_1_6 import (
    GRID,
    PATCH,
    TILE,
    llama_text,
    llava_tokenizer,
    mistral_text,
    special_ids,
    template_of,
    tiled_image_processor,
)


def with_videos(template: str) -> str:
    """The template with a message's videos after its images."""
    images = "{%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    assert images in template
    return template.replace(images, images + images.replace("image", "video"))


@register_tiny("llava-next-video")
def llava_next_video(checkpoint: str = "llava-next-video-7b") -> TinyModel:
    """LLaVA 1.6 and videos of 4 tokens a frame. The checkpoints differ in language model, tokenizer and template."""
    from transformers import LlavaNextVideoConfig, LlavaNextVideoProcessor, LlavaNextVideoVideoProcessor

    template = template_of(checkpoint)
    make_text = mistral_text if "32k" in checkpoint.lower() else llama_text
    tokenizer = llava_tokenizer(template, ["<video>", "<image>"], pad_token="<unk>")
    video_token_id, image_token_id = tokenizer.convert_tokens_to_ids(["<video>", "<image>"])
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
    return TinyModel(config, processor, special_ids(tokenizer))
