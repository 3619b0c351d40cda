"""Ovis2: ChatML, always with a default system prompt, and a line break after each image. Images may become tiles."""

from transformers.models.ovis2.image_processing_ovis2 import get_min_tile_covering_grid

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from reading.rows import content_parts


class Ovis2Budget(Budget):
    def _pieces(self, messages):
        """Replace `<image>`, which is text and not a token, by the token that the processor writes instead."""
        return [text.replace(self.processor.image_token, "<IMG_ATOM>") for text in super()._pieces(messages)]

    def count_media_tokens(self, row, media_sizes):
        """Count the tokens here, since the processor cannot (transformers 5.23)."""
        images = [part["image"] for part in content_parts(row) if part["type"] == "image"]
        return sum(self._of_image(*media_sizes["image", image]) for image in images)

    def _of_image(self, height: int, width: int) -> int:
        """Count the tiles, the whole image if there are several tiles, and the tokens around and between them."""
        images = self.processor.image_processor
        tiles = 1
        if images.crop_to_patches and images.max_patches > 1:
            rows, columns = get_min_tile_covering_grid((height, width), images.size["height"], images.max_patches)
            tiles = rows * columns
        return (tiles + (tiles > 1)) * self.processor.image_seq_length + tiles + 2


@register_collator("ovis2")
class Ovis2Collator(ChatCollator):
    chat_template = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "{% for message in messages %}"
        "<|im_start|>{{ message.role }}{{ '\n' }}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>{% endgeneration %}"
        "{% else %}"
        "{% for part in message.content %}"
        "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}"
        "<|im_end|>"
        "{% endif %}"
        "{{ '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    # To expand images, the processor needs their grids as tensors (transformers 5.23).
    processor_kwargs = {"images_kwargs": {"return_tensors": "pt"}}
    budget_class = Ovis2Budget

    def __init__(self, processor, *args, **kwargs):
        written = "<IMG_ATOM> <IMG_START> <IMG_GRID> <IMG_COL> <IMG_ROW> <IMG_END>".split()
        processor.image_token_ids = processor.tokenizer.convert_tokens_to_ids(written)
        super().__init__(processor, *args, **kwargs)
