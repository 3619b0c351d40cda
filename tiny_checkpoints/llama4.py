"""A tiny Llama 4."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, llama_3_tokenizer, padded_size

# Writes BOS. Of a system message, only the first part is used, and it is trimmed. Content may be a string.
LLAMA_4_TEMPLATE = """
{{- bos_token }}
{%- for message in messages %}
    {{- '<|header_start|>' + message['role'] + '<|header_end|>\n\n' }}
    {%- if message['role'] == 'system' %}
        {{- (message['content'] if message['content'] is string else message['content'][0]['text']) | trim }}
    {%- elif message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {{- '<|image|>' if part['type'] == 'image' else part['text'] }}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\n\n' }}{% endif %}"""

CONTROL = (
    "<|begin_of_text|> <|end_of_text|> <|header_start|> <|header_end|> <|eom|> <|eot|> <|step|> "
    "<|finetune_right_pad|> <|image_start|> <|image_end|> <|tile_x_separator|> <|tile_y_separator|> <|image|> <|patch|>"
).split()


@register_tiny("llama4")
def llama4() -> TinyModel:
    """Four experts per layer and one per token; one layer with chunked and one with full attention.

    A tile of 56x56 pixels is four tokens. An image is at most four tiles plus the whole image.
    """
    from transformers import Llama4Config, Llama4ImageProcessor, Llama4Processor

    tokenizer = llama_3_tokenizer(
        CONTROL, eos_token="<|eot|>", pad_token="<|finetune_right_pad|>", padding_side="left", model_max_length=10485760
    )
    ids = dict(zip(CONTROL, tokenizer.convert_tokens_to_ids(CONTROL)))
    special = {"bos_token_id": ids["<|begin_of_text|>"], "pad_token_id": ids["<|finetune_right_pad|>"]}
    special["eos_token_id"] = [ids["<|end_of_text|>"], ids["<|eom|>"], ids["<|eot|>"]]
    tile = 56
    text = TEXT | {
        "vocab_size": padded_size(tokenizer),
        "head_dim": 32,
        "intermediate_size": 96,  # of an expert
        "intermediate_size_mlp": 192,
        "num_local_experts": 4,
        "no_rope_layer_interval": 2,
        "attention_chunk_size": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        **special,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 256,  # four patches, which the adapter concatenates
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": tile,
        "patch_size": 14,
        "projector_input_dim": 96,
        "projector_output_dim": 96,
        "vision_output_dim": 96,
        "initializer_range": 0.1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = Llama4Config(
        text_config=text,
        vision_config=vision,
        boi_token_index=ids["<|image_start|>"],
        eoi_token_index=ids["<|image_end|>"],
        image_token_index=ids["<|patch|>"],
    )
    images = Llama4ImageProcessor(size={"height": tile, "width": tile}, max_patches=4)
    processor = Llama4Processor(image_processor=images, tokenizer=tokenizer, chat_template=LLAMA_4_TEMPLATE)
    return TinyModel(config, processor, special)
