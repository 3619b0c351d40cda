"""Qwen2-VL: ChatML with a default system prompt. Media stay in place."""

from collators import register_collator
from collators.base import ChatCollator
from collators.boxes import BoxFormat

# The messages in ChatML.
MESSAGES = (
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


@register_collator("qwen2-vl")
class Qwen2VLCollator(ChatCollator):
    chat_template = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
        + MESSAGES
    )
    frames_in_bounds = 1
    # QwenLM/Qwen3-VL, qwen-vl-finetune/tools/process_bbox.ipynb; the tokens are from arXiv 2409.12191, section 2.2.
    box_format = BoxFormat(
        1000,
        box="<|box_start|>({},{}),({},{})<|box_end|>",
        point="<|box_start|>({},{})<|box_end|>",
        name="<|object_ref_start|>{}<|object_ref_end|>",
    )
    # The default in transformers 5.23, which warns if the option is omitted.
    processor_kwargs = {"cap_pixels_per_frame": False}
