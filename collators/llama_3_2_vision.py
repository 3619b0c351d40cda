"""Llama 3.2 Vision: the template writes BOS and a date. An image is one token; cross-attention reads its tiles.

The date is omitted if there is no system prompt and an image comes before the first reply.
"""

import torch

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from collators.template import TemplateException
from reading.rows import content_parts


class Llama32VisionBudget(Budget):
    def count_media_tokens(self, row, media_sizes):
        """Count the tokens here, since the processor cannot (transformers 5.23). Each image is one token."""
        return sum(part["type"] == "image" for part in content_parts(row))


@register_collator("llama-3.2-vision")
class Llama32VisionCollator(ChatCollator):
    chat_template = (
        "{{ bos_token }}"
        "{% set seen = namespace(image=false, reply=false, system='') %}"
        "{% for message in messages %}"
        "{% if message.role == 'system' %}"
        "{% set seen.system = message.content | map(attribute='text') | join | trim %}"
        "{% elif message.role == 'assistant' %}{% set seen.reply = true %}"
        "{% elif not seen.reply and 'image' in message.content | map(attribute='type') %}"
        "{% set seen.image = true %}"
        "{% endif %}"
        "{% endfor %}"
        "{% if messages[0].role == 'system' or not seen.image %}"
        "<|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: {{ date_string }}\n\n{{ seen.system }}<|eot_id|>"
        "{% endif %}"
        "{% for message in messages if message.role != 'system' %}"
        "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{% for part in message.content %}{{ part.text }}{% endfor %}<|eot_id|>{% endgeneration %}"
        "{% else %}"
        "{% for part in message.content %}{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}"
        "<|eot_id|>"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )
    template_exceptions = (
        TemplateException(
            "<|start_header_id|>system<|end_header_id|>\n\n"
            "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>",
            "",
            "If any message has an image, the template drops the date block from the conversation. We drop it only if "
            "an image comes before the first reply, as in the prompt for that reply.",
            "history",
        ),
    )
    template_kwargs = {"date_string": "26 Jul 2024"}  # the template's default if it cannot get the date
    string_roles = ("system",)
    reply_tokens = ("<|python_tag|>",)  # an attribute of the processor
    sequence_padding = ChatCollator.sequence_padding | {"cross_attention_mask": 0}
    budget_class = Llama32VisionBudget

    def pad(self, rows, side="right"):
        """Add a masked image to rows without images, since the model needs images in every row or in none."""
        images = next((row for row in rows if "pixel_values" in row), None)
        if images:
            rows = [row if "pixel_values" in row else row | masked_image(row, images) for row in rows]
        return super().pad(rows, side)


def masked_image(row: dict, images: dict) -> dict[str, torch.Tensor]:
    """Return image tensors for a row without images, with the shapes of another row's first image."""
    empty = {name: torch.zeros_like(images[name][:, :1]) for name in images.keys() - row.keys()}
    tokens = row["input_ids"].shape[1]
    return empty | {"cross_attention_mask": empty["cross_attention_mask"][:, :, :1].repeat(1, tokens, 1, 1)}
