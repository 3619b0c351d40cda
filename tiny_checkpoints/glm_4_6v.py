"""A tiny GLM-4.6V-Flash."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TinyModel
from tiny_checkpoints.glm_4_1v import glm_vision_model

# A thought, maybe empty, comes before each reply. Replies are trimmed. `/nothink` ends a question if thinking is off.
# The official instructions about tools are omitted.
GLM_4_6V_TEMPLATE = """[gMASK]<sop>
{%- macro text_of(content) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content %}
            {%- if part['type'] in ('image', 'video') %}
                {{- '<|begin_of_' + part['type'] + '|><|' + part['type'] + '|><|end_of_' + part['type'] + '|>' }}
            {%- else %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- set untold = enable_thinking is defined and not enable_thinking %}
{%- set last = namespace(question=-1) %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{% set last.question = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = text_of(message['content']) %}
    {{- '<|' + message['role'] + '|>\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- set thought = '' %}
        {%- if message['reasoning_content'] is string %}
            {%- set thought = message['reasoning_content'] | trim if loop.index0 > last.question else '' %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1] | trim %}
            {%- set thought = thought if loop.index0 > last.question else '' %}
            {%- set content = content.split('</think>')[-1] %}
        {%- endif %}
        {{- '<think>' + thought + '</think>' }}
        {%- if content | trim %}{{ '\n' + content | trim }}{% endif %}
    {%- else %}
        {{- content }}
        {%- if message['role'] == 'user' and untold and not content.endswith('/nothink') %}{{ '/nothink' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% if untold %}{{ '<think></think>\n' }}{% endif %}{% endif %}"""


@register_tiny("glm-4.6v")
def glm_4_6v() -> TinyModel:
    from transformers import Glm46VConfig, Glm46VImageProcessor, Glm46VProcessor, Glm46VVideoProcessor

    processors = Glm46VImageProcessor, Glm46VVideoProcessor, Glm46VProcessor
    return glm_vision_model(Glm46VConfig, processors, GLM_4_6V_TEMPLATE)
