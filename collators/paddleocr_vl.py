"""PaddleOCR-VL 1.5 and 1.6: `User: ` and `Assistant:` with a line break. A message's images come first."""

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from reading.rows import content_parts


class PaddleOCRVLBudget(Budget):
    def count_media_tokens(self, row, media_sizes):
        """Count the tokens here, since the processor cannot (transformers 5.23)."""
        images = self.processor.image_processor
        sizes = [media_sizes["image", part["image"]] for part in content_parts(row) if part["type"] == "image"]
        return sum(images.get_number_of_image_patches(*size) // images.merge_size**2 for size in sizes)


@register_collator("paddleocr-vl")
class PaddleOCRVLCollator(ChatCollator):
    chat_template = (
        "<|begin_of_sentence|>"
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}"
        "Assistant:\n"
        "{% generation %}{% for part in message.content %}{{ part.text }}{% endfor %}</s>{% endgeneration %}"
        "{% elif message.role == 'user' %}"
        "User: "
        "{% for part in message.content if part.type == 'image' %}"
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"
        "{% endfor %}"
        "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
        "{{ '\n' }}"
        "{% else %}"
        "{% for part in message.content %}{{ part.text + '\n' }}{% endfor %}"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}Assistant:\n{% endif %}"
    )
    frames_in_bounds = 1
    budget_class = PaddleOCRVLBudget
