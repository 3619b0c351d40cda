"""LLaVA 1.5: the Vicuna format. A message's media come first."""

from collators import register_collator
from collators.base import ChatCollator
from collators.template import TemplateException


@register_collator("llava-1.5")
class Llava15Collator(ChatCollator):
    chat_template = (
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}"
        "ASSISTANT:{% generation %}{% for part in message.content %} {{ part.text }}{% endfor %}</s>{% endgeneration %}"
        "{% else %}"
        "{% if message.role == 'user' %}USER: {% endif %}"
        "{% for part in message.content if part.type == 'image' %}<image>\n{% endfor %}"
        "{% for part in message.content if part.type == 'video' %}<video>\n{% endfor %}"  # LLaVA-NeXT-Video
        "{% for part in message.content if part.type == 'text' %}{{ part.text }} {% endfor %}"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    template_exceptions = (
        TemplateException(
            "</s>",
            " ",
            "The template ends replies with a space, which teaches no stop. We write </s>, as in the model's training.",
        ),
    )
