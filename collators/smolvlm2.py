"""SmolVLM2: the format of Idefics3. The processor adds a sentence about each video, and the time of each frame.

A sample may contain images or videos, but not both.
"""

from types import SimpleNamespace

import numpy as np
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

from collators import register_collator
from collators.base import ChatCollator
from collators.idefics3 import TiledImageBudget, speakers
from collators.template import Template
from reading.rows import content_parts


class SmolVLM2Template(Template):
    def _render(self, messages, template, *args, **kwargs):
        """For videos, use the processor's default template: the checkpoint's does not support videos (5.23)."""
        has_video = any(part["type"] == "video" for part in content_parts({"messages": messages}))
        if has_video and template == self.processor.chat_template and not self.is_replaced:
            template = DEFAULT_CHAT_TEMPLATE
        return super()._render(messages, template, *args, **kwargs)


class SmolVLM2Budget(TiledImageBudget):
    def count_media_tokens(self, row, media_sizes):
        refuse_mixed_media(row)
        videos = [part["video"] for part in content_parts(row) if part["type"] == "video"]
        frames = sum(self._count_video_tokens(media_sizes["video", video][0]) for video in videos)
        return frames + super().count_media_tokens(row, media_sizes)

    def count_frame_text_tokens(self, row, media_sizes):
        """Allow for one more digit per frame (from 100 minutes on) and per video (from ten hours on)."""
        videos = [part["video"] for part in content_parts(row) if part["type"] == "video"]
        return sum(media_sizes["video", video][0] + 1 for video in videos)

    def _count_video_tokens(self, num_frames: int) -> int:
        """Count with zeros as times. Each digit is one token, so times up to 99:59 have equal numbers of tokens."""
        metadata = SimpleNamespace(fps=1.0, duration=0.0, timestamps=[0.0] * num_frames)
        frames = {"pixel_values": np.empty((1, num_frames)), "video_metadata": [metadata]}
        return self._count_tokens(self.processor.replace_video_token(frames, 0))


@register_collator("smolvlm2")
class SmolVLM2Collator(ChatCollator):
    chat_template = speakers("<|im_start|>")
    processor_kwargs = {"videos_kwargs": {"return_tensors": "pt"}}  # frames are counted from the tensor
    template_class = SmolVLM2Template
    budget_class = SmolVLM2Budget
    told_times = True

    def _process(self, text, spans, messages):
        refuse_mixed_media({"messages": messages})
        return super()._process(text, spans, messages)


def refuse_mixed_media(row: dict) -> None:
    """Refuse samples with images and videos, since the processor would lose the images (transformers 5.23)."""
    if {"image", "video"} <= {part["type"] for part in content_parts(row)}:
        raise ValueError("a sample may contain images or videos, not both")
