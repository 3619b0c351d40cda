"""LLaVA-NeXT-Interleave: ChatML with a line break before every text; a message's images come first."""

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from reading.rows import content_parts


class LlavaInterleaveBudget(Budget):
    def count_media_tokens(self, row, media_sizes):
        """The processor of transformers 5.23 counts by `crop_size`, which SigLIP's images do not have."""
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
