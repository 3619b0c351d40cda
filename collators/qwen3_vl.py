"""Qwen3-VL: ChatML without a default system prompt; every two frames of a video are preceded by their time."""

from collators import register_collator
from collators.qwen2_vl import MESSAGES, Qwen2VLCollator


@register_collator("qwen3-vl")
class Qwen3VLCollator(Qwen2VLCollator):
    chat_template = MESSAGES
    frame_text = "<99999.9 seconds><|vision_start|><|vision_end|>"
