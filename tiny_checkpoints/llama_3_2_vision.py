"""A tiny Llama 3.2 Vision."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, llama_3_tokenizer

# Writes BOS, and a date block unless there are images but no system message. System messages are trimmed strings.
LLAMA_3_2_TEMPLATE = """
{{- bos_token }}
{%- if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- set seen = namespace(image=false) %}
{%- for message in messages %}
    {%- for part in message['content'] if part['type'] == 'image' %}{% set seen.image = true %}{% endfor %}
{%- endfor %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- if system is defined or not seen.image %}
    {{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' }}
    {{- 'Today Date: ' + date_string + '\n\n' + (system or '') + '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {{- '<|image|>' if part['type'] == 'image' else part['text'] }}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

CONTROL = (
    "<|begin_of_text|> <|end_of_text|> <|finetune_right_pad_id|> <|step_id|> <|start_header_id|> <|end_header_id|> "
    "<|eom_id|> <|eot_id|> <|python_tag|> <|image|>"
).split()


@register_tiny("llama-3.2-vision")
def llama_3_2_vision() -> TinyModel:
    """Three layers, the second of which attends to the images: up to four tiles of 56x56 pixels, one token of text."""
    from transformers import MllamaConfig, MllamaImageProcessor, MllamaProcessor

    tokenizer = llama_3_tokenizer(
        CONTROL, eos_token="<|eot_id|>", pad_token="<|finetune_right_pad_id|>", model_max_length=131072
    )
    ids = dict(zip(CONTROL, tokenizer.convert_tokens_to_ids(CONTROL)))
    special = {"bos_token_id": ids["<|begin_of_text|>"], "pad_token_id": ids["<|finetune_right_pad_id|>"]}
    special["eos_token_id"] = [ids["<|end_of_text|>"], ids["<|eom_id|>"], ids["<|eot_id|>"]]
    tile = 56
    text = TEXT | {
        "vocab_size": ids["<|image|>"],  # the head cannot generate <|image|>
        "max_position_embeddings": 131072,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "cross_attention_layers": [1],
        "rope_parameters": {
            **{"rope_type": "llama3", "rope_theta": 500000.0, "original_max_position_embeddings": 8192},
            **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        },
        **special,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "image_size": tile,
        "patch_size": 14,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 64 * 3,  # of the last layer and two others
        "initializer_range": 0.1,
    }
    config = MllamaConfig(text_config=text, vision_config=vision, image_token_index=ids["<|image|>"])
    images = MllamaImageProcessor(size={"height": tile, "width": tile}, max_image_tiles=4)
    processor = MllamaProcessor(image_processor=images, tokenizer=tokenizer, chat_template=LLAMA_3_2_TEMPLATE)
    return TinyModel(config, processor, special, gates=0.5)
