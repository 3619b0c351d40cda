"""LLaVA 1.6: the Vicuna format of LLaVA 1.5, Mistral's format, or ChatML (34B). A message's media come first."""

from collators import register_collator
from collators.llava_1_5 import Llava15Collator
from collators.template import ChatFormat


@register_collator("llava-1.6")
class Llava16Collator(Llava15Collator):
    other_formats = (
        ChatFormat(
            "{% for message in messages %}"
            "{% if message.role == 'assistant' %}"
            "{% generation %}"
            " {% for part in message.content %}{{ part.text }}{% endfor %}</s>"
            "{% endgeneration %}"
            "{{ ' ' }}"
            "{% elif message.role == 'system' %}"
            "<<SYS>>\n{% for part in message.content %}{{ part.text }}{% endfor %}{{ '\n<</SYS>>\n\n' }}"
            "{% else %}"
            "[INST] "
            "{% for part in message.content if part.type == 'image' %}<image>\n{% endfor %}"
            "{% for part in message.content if part.type == 'video' %}<video>\n{% endfor %}"  # LLaVA-NeXT-Video
            "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
            " [/INST]"
            "{% endif %}"
            "{% endfor %}"
        ),
        ChatFormat(
            "{% for message in messages %}"
            "<|im_start|>{{ message.role + '\n' }}"
            "{% if message.role == 'assistant' %}"
            "{% generation %}{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>{% endgeneration %}"
            "{% else %}"
            "{% for part in message.content if part.type == 'image' %}<image>\n{% endfor %}"
            "{% for part in message.content if part.type == 'video' %}<video>\n{% endfor %}"
            "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
            "<|im_end|>"
            "{% endif %}"
            "{{ '\n' }}"
            "{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        ),
    )
