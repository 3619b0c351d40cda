"""A tiny Ministral 3."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TinyModel, padded_size, tekken_tokenizer
from tiny_checkpoints.mistral_small_3_1 import mistral3
from tiny_checkpoints.pixtral import MISTRAL_TEXT

# The default system prompt has a date that is never filled in, as in the real one, which is 2,000 characters longer. If
# a message has two parts, the image comes first.
MINISTRAL_TEMPLATE = """
{%- set default = 'You are Ministral-3-3B-Instruct-2512.\nThe current date is {today}.' %}
{{- bos_token }}
{%- if messages[0]['role'] != 'system' %}{{ '[SYSTEM_PROMPT]' + default + '[/SYSTEM_PROMPT]' }}{% endif %}
{%- for message in messages %}
    {%- set parts = message['content'] %}
    {%- if message['role'] == 'user' and parts | length == 2 %}
        {%- set parts = parts | sort(attribute='type') %}
    {%- endif %}
    {%- set text %}
        {%- for part in parts %}{{ '[IMG]' if part['type'] == 'image' else part['text'] }}{% endfor %}
    {%- endset %}
    {%- if message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' }}{% endif %}
    {%- if message['role'] == 'user' %}{{ '[INST]' + text + '[/INST]' }}{% endif %}
    {%- if message['role'] == 'assistant' %}{{ text + eos_token }}{% endif %}
{%- endfor %}"""


@register_tiny("ministral-3")
def ministral_3() -> TinyModel:
    """As Mistral Small 3.1, with a tied head and stretched rotary positions."""
    from transformers import Ministral3Config

    tokenizer = tekken_tokenizer()
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
    text = MISTRAL_TEXT | {
        "max_position_embeddings": 262144,
        "rope_parameters": yarn,
        "tie_word_embeddings": True,
        "vocab_size": padded_size(tokenizer),
    }
    return mistral3(tokenizer, Ministral3Config(**text), MINISTRAL_TEMPLATE)
