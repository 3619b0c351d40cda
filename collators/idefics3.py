"""Idefics3 and the first SmolVLM: `User: text<end_of_utterance>`. The processor cuts images into tiles."""

from functools import cache

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from collators.template import ChatFormat
from reading.rows import content_parts


def speakers(bos: str) -> str:
    """Return the format of Idefics3 and SmolVLM2. An image that begins a message has no space before it."""
    return (
        bos + "{% for message in messages %}"
        "{{ message.role | capitalize }}:"
        "{% if message.role == 'assistant' %}"
        "{% generation %} {% for part in message.content %}{{ part.text }}{% endfor %}"
        "<end_of_utterance>{% endgeneration %}"
        "{% else %}"
        "{% if message.content[0].type != 'image' %} {% endif %}"
        "{% for part in message.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% else %}<{{ part.type }}>{% endif %}"
        "{% endfor %}"
        "<end_of_utterance>"
        "{% endif %}"
        "{{ '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )


class TiledImageBudget(Budget):
    """Counts tokens of images that are cut into fixed-size tiles with position markers, then the whole image."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._count_tokens = cache(self._count_tokens)  # many images have the same text

    def count_media_tokens(self, row, media_sizes):
        images = [part["image"] for part in content_parts(row) if part["type"] == "image"]
        return sum(self._count_image_tokens(*media_sizes["image", image]) for image in images)

    def _count_image_tokens(self, height: int, width: int) -> int:
        _, rows, cols = self.processor.image_processor.get_number_of_image_patches(height, width)
        return self._count_tokens(self.processor.replace_image_token({"rows": [[rows]], "cols": [[cols]]}, 0))

    def _count_tokens(self, expanded: str) -> int:
        return len(self.tokenizer(expanded, add_special_tokens=False).input_ids)


@register_collator("idefics3")
class Idefics3Collator(ChatCollator):
    chat_template = speakers("<|begin_of_text|>")
    other_formats = (ChatFormat(speakers("<|im_start|>")),)  # SmolVLM
    budget_class = TiledImageBudget
