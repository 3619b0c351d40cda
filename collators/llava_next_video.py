"""LLaVA-NeXT-Video: the formats of LLaVA 1.6. A message's images come first, then its videos."""

import torch

from collators import register_collator
from collators.budget import Budget
from collators.llava_1_6 import Llava16Collator
from reading.rows import content_parts


class LlavaNextVideoBudget(Budget):
    def count_media_tokens(self, row, media_sizes):
        """Count videos here, since the processor counts only images (5.23). 2x2 patches of a frame are one token."""
        parts = [part for part in content_parts(row) if part["type"] == "video"]
        frames = sum(media_sizes["video", part["video"]][0] for part in parts)
        frame, patch = self.processor.video_processor.crop_size, self.processor.patch_size
        images = {"messages": [{"content": [part for part in content_parts(row) if part["type"] == "image"]}]}
        of_frame = (frame.height // patch) * (frame.width // patch) // 4
        return frames * of_frame + super().count_media_tokens(images, media_sizes)


@register_collator("llava-next-video")
class LlavaNextVideoCollator(Llava16Collator):
    # The processor returns tensors by default (transformers 5.23), which breaks finding the labels.
    processor_kwargs = {"return_tensors": None}
    budget_class = LlavaNextVideoBudget

    def of_all(self, name, values):
        """Merge videos into one, since they differ in their number of frames. The model flattens them anyway."""
        if name != "pixel_values_videos":
            return super().of_all(name, values)
        return torch.cat([frames.flatten(0, 1) for frames in values])[None]
