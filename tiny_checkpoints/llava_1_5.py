"""A tiny LLaVA 1.5."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import PAPER, TEXT, TinyModel, llama_tokenizer, padded_size

# "USER: <image>\nquestion ASSISTANT: answer ". Images come first. A reply has no </s>, not even the last one.
LLAVA_TEMPLATE = """
{%- for message in messages %}
    {%- if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}
    {%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}
    {%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""


def tiny_clip():
    """Two layers of CLIP, of which the last one is never used: `vision_feature_layer` is -2. 4x4 patches an image."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        projection_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
        initializer_factor=3.0,
    )


@register_tiny("llava-1.5")
def llava_1_5() -> TinyModel:
    """CLIP, two-layer projector, Llama. 64x64 images: 16 tokens each. Large enough to learn to name drawn shapes."""
    from transformers import CLIPImageProcessor, LlamaConfig, LlavaConfig, LlavaProcessor

    tokenizer = llama_tokenizer(["<image>", "<pad>"], pad_token="<pad>", padding_side="left")
    image_token_id, pad_token_id = tokenizer.convert_tokens_to_ids(["<image>", "<pad>"])
    text = LlamaConfig(
        **TEXT | {"num_key_value_heads": 4}, vocab_size=padded_size(tokenizer), max_position_embeddings=4096
    )
    config = LlavaConfig(
        vision_config=tiny_clip(),
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, **PAPER),
        tokenizer=tokenizer,
        patch_size=16,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE,
    )
    return TinyModel(config, processor, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": pad_token_id})
