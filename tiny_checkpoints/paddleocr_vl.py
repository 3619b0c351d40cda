"""A tiny PaddleOCR-VL."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import PAPER, TEXT, TinyModel, llama_tokenizer, padded_size

# Nothing but </s> is between a reply and the next question; content may be a string.
PADDLEOCR_VL_TEMPLATE = """
{%- macro texts_of(message, end) %}
    {%- if message['content'] is string %}
        {{- message['content'] + end }}
    {%- else %}
        {%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + end }}{% endfor %}
    {%- endif %}
{%- endmacro %}
{{- cls_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- 'User: ' }}
        {%- for part in message['content'] if part['type'] == 'image' %}
            {{- '<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}
        {%- endfor %}
        {{- texts_of(message, '') + '\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- 'Assistant:\n' + texts_of(message, '') + eos_token }}
    {%- else %}
        {{- texts_of(message, '\n') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"""


@register_tiny("paddleocr-vl")
def paddleocr_vl() -> TinyModel:
    """A token is 28x28 pixels; 4 to 3,009 tokens an image."""
    from transformers import PaddleOCRVLConfig, PaddleOCRVLImageProcessor, PaddleOCRVLProcessor

    media = ["<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>"]
    tokenizer = llama_tokenizer(
        ["<|begin_of_sentence|>", "<|end_of_sentence|>", *media],
        add_bos_token=False,
        add_prefix_space=False,
        cls_token="<|begin_of_sentence|>",
        pad_token="<unk>",
        extra_special_tokens={"image_token": media[0]},
    )
    image, start, end = tokenizer.convert_tokens_to_ids(media)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = (
        TEXT
        | ids
        | {
            "head_dim": 32,
            "vocab_size": padded_size(tokenizer),
            "max_position_embeddings": 131072,
            # A head's 32 dimensions, shared out in the real ratio 16 : 24 : 24.
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [4, 6, 6]},
        }
    )
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
    }
    config = PaddleOCRVLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    processor = PaddleOCRVLProcessor(
        image_processor=PaddleOCRVLImageProcessor(
            size={"shortest_edge": 4 * 28 * 28, "longest_edge": 1536 * 1536}, **PAPER
        ),
        tokenizer=tokenizer,
        chat_template=PADDLEOCR_VL_TEMPLATE,
    )
    return TinyModel(config, processor, ids)
