"""LFM2-VL and LFM2.5-VL: ChatML after <|startoftext|>. The processor cuts large images into tiles."""

from collators import register_collator
from collators.base import ChatCollator
from collators.idefics3 import TiledImageBudget


class Lfm2VLBudget(TiledImageBudget):
    def _count_image_tokens(self, height, width):
        """Count an image. It is shrunk if its tokens are up to about twice `max_image_tokens`, else cut into tiles."""
        images = self.processor.image_processor
        options = {n: getattr(images, n) for n in ("downsample_factor", "encoder_patch_size", "max_image_tokens")}
        shrunk = images.smart_resize(height, width, min_image_tokens=images.min_image_tokens, **options)
        rows = cols = 1
        tiles = (images.min_tiles, images.max_tiles)
        splits = images.do_image_splitting and tiles != (1, 1)
        tolerance = images.max_pixels_tolerance
        if splits and images._is_image_too_large(height, width, max_pixels_tolerance=tolerance, **options):
            cols, rows, *_ = images._get_grid_layout(height, width, *tiles, images.tile_size)
        if shrunk[0] * shrunk[1] > images.max_num_patches * images.encoder_patch_size**2:  # the pixels of one tile
            raise ValueError(f"an image of {width}x{height} pixels is too narrow to be resized")
        written = {"image_rows": [rows], "image_cols": [cols], "image_sizes": [shrunk[::-1]]}
        special = self.processor.use_image_special_tokens
        return self._count_tokens(self.processor.replace_image_token(written, 0, use_image_special_tokens=special))


@register_collator("lfm2-vl")
class Lfm2VLCollator(ChatCollator):
    chat_template = (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{% set content %}{% for part in message.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% else %}<{{ part.type }}>{% endif %}"
        "{% endfor %}{% endset %}"
        "{% if message.role == 'assistant' %}"
        "<|im_start|>assistant\n{% generation %}{{ content }}<|im_end|>{% endgeneration %}{{ '\n' }}"
        "{% elif content or message.role == 'user' or not loop.first %}"  # omits an empty system prompt
        "<|im_start|>{{ message.role + '\n' + content }}<|im_end|>\n"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    budget_class = Lfm2VLBudget

    def _process(self, text, spans, messages):
        inputs = super()._process(text, spans, messages)
        if "pixel_values" in inputs and inputs["pixel_values"].shape[1] > inputs["pixel_attention_mask"].shape[1]:
            raise ValueError("an image is too narrow to be resized")  # it has more patches than a tile
        return inputs
