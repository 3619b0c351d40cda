"""A tiny Qwen3.5."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TinyModel
from tiny_checkpoints.qwen3_vl import qwen3_vl_model

# Messages are trimmed. Replies after the last question have a thought, maybe empty; earlier replies have none. Sizes of
# 4B and more think by default: their last condition is `enable_thinking is not false`.
# The official instructions about tools are omitted.
QWEN3_5_TEMPLATE = """
{%- macro text_of(message) %}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part['type'] == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- else %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- set last = namespace(question=0) %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{% set last.question = loop.index0 %}{% endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n\n<tools>' }}
    {%- for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}
    {{- '\n</tools>' }}
    {%- if messages[0]['role'] == 'system' %}{{ '\n\n' + text_of(messages[0]) | trim }}{% endif %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = text_of(message) | trim %}
    {%- if message['role'] == 'tool' %}
        {%- if loop.previtem['role'] != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem['role'] != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > last.question %}
            {{- '<think>\n' + (message['reasoning_content'] or '') | trim + '\n</think>\n\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message['tool_calls'] or [] %}
            {{- '\n' if not loop.first else '\n\n' if content else '' }}
            {{- '<tool_call>\n<function=' + call['function']['name'] + '>\n' }}
            {%- for name, value in call['function']['arguments'] | items %}
                {{- '<parameter=' + name + '>\n' }}
                {{- value | tojson if value is mapping or value is sequence and value is not string else value }}
                {{- '\n</parameter>\n' }}
            {%- endfor %}
            {{- '</function>\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message['role'] != 'system' or not tools %}
        {{- '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is true %}{{ '<think>\n' }}{% else %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""


# A layer of linear attention, then one of attention with an output gate.
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    # A quarter of a head's 32 dimensions are rotated, divided in about the real ratio 11 : 11 : 10.
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}


def qwen3_5_model(config_class, text: dict, tie_word_embeddings: bool) -> TinyModel:
    """The common part of the dense model and the mixture of experts."""
    from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

    return qwen3_vl_model(
        config_class, HYBRID | text, {}, tie_word_embeddings, QWEN3_5_TEMPLATE, tokenizer_class=Qwen3_5Tokenizer
    )


@register_tiny("qwen3.5")
def qwen3_5() -> TinyModel:
    from transformers import Qwen3_5Config

    return qwen3_5_model(Qwen3_5Config, {}, tie_word_embeddings=True)
