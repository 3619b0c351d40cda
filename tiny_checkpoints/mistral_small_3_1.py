"""A tiny Mistral Small 3.1."""

import re

from collators.mistral_small_3_1 import DATE, DEFAULT_SYSTEM, WITHOUT_DEFAULT_SYSTEM
from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import PAPER, TinyModel, padded_size, tekken_tokenizer
from tiny_checkpoints.pixtral import MISTRAL_IDS, MISTRAL_TEXT, PIXTRAL_VISION

# Uses only the first part of system texts and replies. The default system prompt has today's date.
MISTRAL_SMALL_TEMPLATE = """
{%- set parts = messages[0]['content'] if messages[0]['role'] == 'system' else [{'text': default}] %}
{{- bos_token + '[SYSTEM_PROMPT]' + parts[0]['text'] + '[/SYSTEM_PROMPT]' }}
{%- for message in messages if message['role'] != 'system' %}
    {%- if message['role'] == 'assistant' %}
        {{- (message['content'] if message['content'] is string else message['content'][0]['text']) + eos_token }}
    {%- elif message['content'] is string %}
        {{- '[INST]' + message['content'] + '[/INST]' }}
    {%- else %}
        {{- '[INST]' }}
        {%- for part in message['content'] %}{{ '[IMG]' if part['type'] == 'image' else part['text'] }}{% endfor %}
        {{- '[/INST]' }}
    {%- endif %}
{%- endfor %}"""


def mistral3(tokenizer, text_config, chat_template: str) -> TinyModel:
    """An image token is 28x28 pixels, four patches of 14x14, at most 5x5 of them, and one more ends each row."""
    from transformers import Mistral3Config, PixtralImageProcessor, PixtralProcessor, PixtralVisionConfig

    config = Mistral3Config(
        vision_config=PixtralVisionConfig(**PIXTRAL_VISION, image_size=140, patch_size=14),
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        spatial_merge_size=2,
        multimodal_projector_bias=False,
        tie_word_embeddings=text_config.tie_word_embeddings,
    )
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 140}, patch_size=14, **PAPER),
        tokenizer=tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        chat_template=chat_template,
    )
    return TinyModel(config, processor, MISTRAL_IDS)


@register_tiny("mistral-small-3.1")
def mistral_small_3_1(checkpoint: str = "Mistral-Small-3.1") -> TinyModel:
    """Pixtral's vision, a projector that merges patches, Mistral. Of 3.2, which ships no template, the text of
    mistral-common."""
    from transformers import MistralConfig

    before, after = repr(DEFAULT_SYSTEM).split(DATE)
    default = "{%- set default = " + before + "' + strftime_now('%Y-%m-%d') + '" + after + " %}"
    tokenizer = tekken_tokenizer()
    text = MistralConfig(**MISTRAL_TEXT, vocab_size=padded_size(tokenizer))
    template = default + MISTRAL_SMALL_TEMPLATE
    if "Small-3.2" in checkpoint:
        template = re.sub(r"\{% (end)?generation %\}", "", WITHOUT_DEFAULT_SYSTEM)
    return mistral3(tokenizer, text, template)
