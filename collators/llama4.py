"""Llama 4: the template writes BOS. An image becomes tiles of patches with separators, and the whole image."""

import torch
from transformers.models.llama4.image_processing_llama4 import find_supported_resolutions, get_best_fit

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from reading.rows import content_parts


class Llama4Budget(Budget):
    def count_media_tokens(self, row, media_sizes):
        """Count the tokens here, since the processor cannot (transformers 5.23)."""
        images = self.processor.image_processor
        canvases = torch.tensor(find_supported_resolutions(images.max_patches, images.size))
        side = images.size.height
        patches = (side // self.processor.patch_size) ** 2 // self.processor.downsample_ratio
        total = 0
        for part in content_parts(row):
            if part["type"] == "image":
                size = media_sizes["image", part["image"]]
                height, width = (get_best_fit(size, canvases, images.resize_to_max_canvas) // side).tolist()
                # The tiles (if several) with a separator after each, the whole image, and three more tokens.
                total += (height * width > 1) * height * width * (patches + 1) + patches + 3
        return total


@register_collator("llama4")
class Llama4Collator(ChatCollator):
    chat_template = (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "<|header_start|>{{ message.role }}<|header_end|>\n\n"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{% for part in message.content %}{{ part.text }}{% endfor %}<|eot|>{% endgeneration %}"
        "{% elif message.role == 'system' %}"
        "{{ message.content | map(attribute='text') | join | trim }}<|eot|>"
        "{% else %}"
        "{% for part in message.content %}{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}<|eot|>"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|header_start|>assistant<|header_end|>\n\n{% endif %}"
    )
    # The checkpoint's template uses only the first part of a list.
    string_roles = ("system",)
    # Without this option, the tiles of several images stay in a list (transformers 5.23).
    processor_kwargs = {"images_kwargs": {"return_tensors": "pt"}}
    budget_class = Llama4Budget

    def __init__(self, processor, *args, **kwargs):
        frame = [processor.start_of_img_token, processor.tile_token, processor.tile_global_token]
        frame += [processor.img_patch_token, processor.end_of_img_token]
        processor.image_token_ids = processor.tokenizer.convert_tokens_to_ids([processor.image_token, *frame])
        super().__init__(processor, *args, **kwargs)
