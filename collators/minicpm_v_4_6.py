"""MiniCPM-V 4.6: ChatML with trimmed messages, one line per part, and an empty thought before each reply.

An image becomes a number, the whole image, and slices if it is large. Videos are refused because they need
other options than the processor's defaults (no numbers, no slices). With the defaults, slices would be miscounted.
"""

import torch

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from collators.qwen3_5 import EMPTY_THOUGHT
from collators.template import Template, TemplateException
from reading.rows import content_parts


class MiniCPMV46Template(Template):
    takes_videos = False


class MiniCPMV46Budget(Budget):
    def count_media_tokens(self, row, media_sizes):
        """Count the tokens here, since the processor cannot (transformers 5.23)."""
        sizes = [media_sizes["image", part["image"]] for part in content_parts(row) if part["type"] == "image"]
        return sum(self._of_image(*size) + len(str(number)) for number, size in enumerate(sizes))

    def _of_image(self, height: int, width: int) -> int:
        """Count the tokens of an image, except those of its number."""
        images = self.processor.image_processor
        token = (images.patch_size * 4) ** 2
        options = (images.scale_resolution, images.patch_size, images.downsample_mode)
        grid = images.get_sliced_grid((height, width), images.max_slice_nums, images.scale_resolution)
        rows, columns = images.find_best_resize((height, width), *options, allow_upscale=grid is None)
        total = rows * columns // token + 4
        if grid:  # slices, with tokens before and after each, and line breaks between rows
            rows, columns = images.get_refine_size((height, width), grid, *options, allow_upscale=True)
            total += rows * columns // token + 2 * grid[0] * grid[1] + grid[0] - 1
        return total


@register_collator("minicpm-v-4.6")
class MiniCPMV46Collator(ChatCollator):
    chat_template = (
        "{% for message in messages %}"
        "<|im_start|>{{ message.role }}{{ '\n' }}"
        "{% if message.role == 'assistant' %}"
        f"{EMPTY_THOUGHT}"
        "{% generation %}{{ message.content | map(attribute='text') | join('\n') | trim }}<|im_end|>{% endgeneration %}"
        "{% else %}"
        "{% filter trim %}{% for part in message.content %}"
        "{% if part.type == 'image' %}<|image_pad|>"
        "{% elif part.type == 'video' %}<|video_pad|>"
        "{% else %}{{ part.text }}{% endif %}"
        "{% if not loop.last %}{{ '\n' }}{% endif %}"
        "{% endfor %}{% endfilter %}"
        "<|im_end|>"
        "{% endif %}"
        "{{ '\n' }}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}<|im_start|>assistant\n{EMPTY_THOUGHT}{{% endif %}}"
    )
    template_kwargs = {"enable_thinking": False}
    template_exceptions = (
        TemplateException(
            EMPTY_THOUGHT,
            "",
            "The template writes the empty thought in the generation prompt and before the last reply, not in the "
            "history. We write it before every reply, as in the prompt.",
            where="history",
        ),
    )
    reply_tokens = ("<think>", "</think>")
    # By default, the processor returns text as tensors, which breaks finding the labels.
    processor_kwargs = {"text_kwargs": {"return_tensors": None}, "images_kwargs": {"return_tensors": "pt"}}
    template_class = MiniCPMV46Template
    budget_class = MiniCPMV46Budget

    def __init__(self, processor, *args, **kwargs):
        around = [processor.image_start_token, processor.image_end_token, processor.slice_start_token]
        around += [processor.slice_end_token, processor.image_id_start_token, processor.image_id_end_token]
        processor.image_token_ids = processor.tokenizer.convert_tokens_to_ids([processor.image_token, *around])
        super().__init__(processor, *args, **kwargs)

    def of_all(self, name, values):
        """Concatenate patches into one strip: (1, channels, height of a patch, width of all patches)."""
        return torch.cat(values, dim=-1) if name.startswith("pixel_values") else super().of_all(name, values)
