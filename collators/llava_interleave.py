"""LLaVA-NeXT-Interleave: ChatML with a line break before every text. A message's images come first."""

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from reading.rows import content_parts


class LlavaInterleaveBudget(Budget):
    def count_media_tokens(self, row, media_sizes):
        """Count here: the processor's count needs `crop_size`, which SigLIP's image processor lacks (5.23)."""
        image, patch = self.processor.image_processor.size, self.processor.patch_size
        num_images = sum(part["type"] == "image" for part in content_parts(row))
        return num_images * (image.height // patch) * (image.width // patch)


@register_collator("llava-interleave")
class LlavaInterleaveCollator(ChatCollator):
    chat_template = (
        "{% for message in messages %}"
        "<|im_start|>{{ message.role + '\n' }}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}"
        "{% for part in message.content %}{{ '\n' + part.text }}{% endfor %}<|im_end|>"
        "{% endgeneration %}"
        "{% else %}"
        "{% for part in message.content if part.type == 'image' %}<image>{% endfor %}"
        "{% for part in message.content if part.type == 'text' %}{{ '\n' + part.text }}{% endfor %}"
        "<|im_end|>"
        "{% endif %}"
        "{{ '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    budget_class = LlavaInterleaveBudget
