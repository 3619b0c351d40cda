"""Granite Vision: a default system prompt, and `<|user|>` on a separate line. A message's images come first."""

from collators import register_collator
from collators.base import ChatCollator


@register_collator("granite-vision")
class GraniteVisionCollator(ChatCollator):
    chat_template = (
        "{% if messages[0].role != 'system' %}"
        "<|system|>\nA chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.\n"
        "{% endif %}"
        "{% for message in messages %}"
        "<|{{ message.role }}|>{{ '\n' }}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{% for part in message.content %}{{ part.text }}{% endfor %}<|end_of_text|>{% endgeneration %}"
        "{% else %}"
        "{% for part in message.content if part.type == 'image' %}<image>\n{% endfor %}"
        "{% for part in message.content if part.type == 'text' %}{{ part.text + '\n' }}{% endfor %}"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
