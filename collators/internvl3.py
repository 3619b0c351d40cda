"""InternVL3 and InternVL3.5: ChatML, with a line break after each image and video. A video becomes numbered images."""

import numpy as np

from collators import register_collator
from collators.base import ChatCollator
from collators.boxes import BoxFormat
from collators.budget import Budget
from reading.rows import content_parts


class InternVL3Budget(Budget):
    def count_media_tokens(self, row, media_sizes):
        """Count videos here, since the processor counts only images (transformers 5.23)."""
        images = {"messages": [{"content": [part for part in content_parts(row) if part["type"] == "image"]}]}
        videos = [part["video"] for part in content_parts(row) if part["type"] == "video"]
        frames = [np.empty(media_sizes["video", video][0]) for video in videos]
        written = [self.processor.replace_video_token({"pixel_values_videos": [video]}, 0) for video in frames]
        in_videos = sum(len(self.tokenizer(text, add_special_tokens=False).input_ids) for text in written)
        return super().count_media_tokens(images, media_sizes) + in_videos


@register_collator("internvl3")
class InternVL3Collator(ChatCollator):
    chat_template = (
        "{% for message in messages %}"
        "<|im_start|>{{ message.role }}{{ '\n' }}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>{% endgeneration %}"
        "{% else %}"
        "{% for part in message.content %}"
        "{% if part.type == 'image' %}<IMG_CONTEXT>\n{% elif part.type == 'video' %}<video>\n"
        "{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}"
        "<|im_end|>"
        "{% endif %}"
        "{{ '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    # Without this option, the processor cannot concatenate an image with the frames of a video (transformers 5.23).
    processor_kwargs = {"images_kwargs": {"return_tensors": "pt"}}
    # OpenGVLab/InternVL, internvl_chat/eval/refcoco/evaluate_grounding.py.
    box_format = BoxFormat(1000, name="<ref>{}</ref>", around="<box>[{}]</box>", between=", ")
    budget_class = InternVL3Budget
