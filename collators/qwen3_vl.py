"""Qwen3-VL: ChatML without a default system prompt; every two frames of a video are preceded by their time."""

from collators import register_collator
from collators.base import ChatCollator


@register_collator("qwen3-vl")
class Qwen3VLCollator(ChatCollator):
    chat_template = (
        "{% for message in messages %}"
        "<|im_start|>{{ message.role }}{{ '\n' }}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>{% endgeneration %}"
        "{% else %}"
        "{% for part in message.content %}"
        "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
        "{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}"
        "<|im_end|>"
        "{% endif %}"
        "{{ '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    # As AutoProcessor does by default in transformers 5.23, which warns when it is left out.
    processor_kwargs = {"cap_pixels_per_frame": False}
    frame_text = "<99999.9 seconds><|vision_start|><|vision_end|>"
