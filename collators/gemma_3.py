"""Gemma 3: the system prompt begins the first user turn. Images stay in place; the texts around them are trimmed."""

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from collators.template import Template


def gemma_template(image: str) -> str:
    return (
        "{{ bos_token }}"
        "{% for message in messages if message.role != 'system' %}"
        "{% if message.role == 'assistant' %}"
        "<start_of_turn>model\n"
        "{% generation %}{% for part in message.content %}{{ part.text | trim }}{% endfor %}"
        "<end_of_turn>{% endgeneration %}{{ '\n' }}"
        "{% else %}"
        "<start_of_turn>user\n"
        "{% if loop.first and messages[0].role == 'system' %}"
        "{% for part in messages[0].content %}{{ part.text }}{% endfor %}{{ '\n\n' }}"
        "{% endif %}"
        "{% for part in message.content %}"
        f"{{% if part.type == 'image' %}}{image}{{% else %}}{{{{ part.text | trim }}}}{{% endif %}}"
        "{% endfor %}"
        "<end_of_turn>\n"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )


class TrimmingTemplate(Template):
    """The template of the Gemma families, which trims each text part of a user or assistant message."""

    def _render(self, messages, *args, **kwargs):
        """Trim the parts before frame tokens are marked: once trimmed, two adjacent parts may form a frame token."""
        trimmed = [
            message
            if message["role"] not in ("user", "assistant")
            else message | {"content": [*map(trim, message["content"])]}
            for message in messages
        ]
        return super()._render(trimmed, *args, **kwargs)


def trim(part: dict) -> dict:
    return part | {"text": part["text"].strip()} if part["type"] == "text" else part


class Gemma3Budget(Budget):
    def _pieces(self, messages):
        """Add the line breaks and tokens that the processor writes around the pixels of an image."""
        around = self.processor.full_image_sequence.replace(self.processor.tokenizer.image_token, "")
        return [text.replace(self.processor.image_token, around) for text in super()._pieces(messages)]


@register_collator("gemma-3")
class Gemma3Collator(ChatCollator):
    chat_template = gemma_template("<start_of_image>")
    string_roles = ("system",)  # the template uses only the first part of a list
    # 1 for the tokens of an image, which attend to each other in both directions, 0 for all others.
    sequence_padding = ChatCollator.sequence_padding | {"token_type_ids": 0}
    placeholder_tokens = 0
    template_class = TrimmingTemplate
    budget_class = Gemma3Budget
