"""A tiny Mistral Small 4."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, padded_size, tekken_tokenizer
from tiny_checkpoints.mistral_small_3_1 import mistral3

# The settings come after the system text; of a user's two parts the image comes first.
MISTRAL_SMALL_4_TEMPLATE = """
{%- macro text_of(parts) %}
    {%- if parts is string %}{{ parts }}{% else %}
        {%- for part in parts %}{{ '[IMG]' if part['type'] == 'image' else part['text'] }}{% endfor %}
    {%- endif %}
{%- endmacro %}
{%- set settings = '[MODEL_SETTINGS]{"reasoning_effort": "' + (reasoning_effort or 'none') + '"}[/MODEL_SETTINGS]' %}
{{- bos_token }}
{%- if messages[0]['role'] != 'system' %}{{ settings }}{% endif %}
{%- for message in messages %}
    {%- set parts = message['content'] %}
    {%- if message['role'] == 'user' and parts is not string and parts | length == 2 %}
        {%- set parts = parts | sort(attribute='type') %}
    {%- endif %}
    {%- set text = text_of(parts) %}
    {%- if message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' + settings }}{% endif %}
    {%- if message['role'] == 'user' %}{{ '[INST]' + text + '[/INST]' }}{% endif %}
    {%- if message['role'] == 'assistant' %}{{ text + eos_token }}{% endif %}
{%- endfor %}"""


@register_tiny("mistral-small-4")
def mistral_small_4() -> TinyModel:
    """Eight experts per layer, two per token plus a shared one. Keys and values come from a latent vector."""
    from transformers import Mistral4Config

    tokenizer = tekken_tokenizer()
    tokenizer.add_tokens(
        ["[ARGS]", "[THINK]", "[/THINK]", "[MODEL_SETTINGS]", "[/MODEL_SETTINGS]"], special_tokens=True
    )
    text = TEXT | {
        "num_key_value_heads": 4,
        "moe_intermediate_size": 48,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "q_lora_rank": 64,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 32,
        "vocab_size": padded_size(tokenizer),
    }
    return mistral3(tokenizer, Mistral4Config(**text), MISTRAL_SMALL_4_TEMPLATE)
