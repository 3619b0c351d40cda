"""Qwen3-VL: ChatML without a default system prompt. The time of each pair of video frames comes before the pair.

The generation prompt of the Thinking models begins a thought. A reply without a thought ends it immediately.
"""

from collators import register_collator
from collators.boxes import BOX_FORMATS
from collators.qwen2_vl import MESSAGES, Qwen2VLCollator
from collators.template import ChatFormat, TemplateException
from reading.rows import RESERVED_CHARACTER

THOUGHT = "<think>\n"
THINKING = MESSAGES.replace("{% generation %}", THOUGHT + "{% generation %}{{ '\n' }}</think>\n\n").replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n" + THOUGHT + "{% endif %}"
)


@register_collator("qwen3-vl")
class Qwen3VLCollator(Qwen2VLCollator):
    chat_template = MESSAGES
    other_formats = (
        ChatFormat(
            THINKING,
            (
                TemplateException(
                    f"{THOUGHT}{RESERVED_CHARACTER}\n</think>\n\n",  # keeps the two line breaks separate
                    "",
                    "The template begins a thought in the generation prompt and before the last reply, not in the "
                    "history. We begin one before every reply, as in the prompt.",
                    where="history",
                ),
            ),
        ),
    )
    reply_tokens = ("<think>", "</think>")
    box_format = BOX_FORMATS["thousand"]  # QwenLM/Qwen3-VL, cookbooks/2d_grounding.ipynb and omni_recognition.ipynb
    frame_text = "<99999.9 seconds><|vision_start|><|vision_end|>"
    told_times = True
