"""Qwen3-VL: ChatML without a default system prompt; every two frames of a video are preceded by their time."""

from collators import register_collator
from collators.boxes import FORMATS
from collators.qwen2_vl import MESSAGES, Qwen2VLCollator


@register_collator("qwen3-vl")
class Qwen3VLCollator(Qwen2VLCollator):
    chat_template = MESSAGES
    box_format = FORMATS["thousand"]  # QwenLM/Qwen3-VL, cookbooks/2d_grounding.ipynb and omni_recognition.ipynb
    frame_text = "<99999.9 seconds><|vision_start|><|vision_end|>"
    told_times = True
