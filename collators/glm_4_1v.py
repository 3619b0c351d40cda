"""GLM-4.1V: a reply ends where the next user turn begins. A video becomes images, each with its time in seconds."""

import torch

from collators import register_collator
from collators.base import ChatCollator
from collators.template import TemplateException


@register_collator("glm-4.1v")
class Glm41VCollator(ChatCollator):
    chat_template = (
        "[gMASK]<sop>"
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}"
        "<|assistant|>\n"
        "{% generation %}{% for part in message.content %}{{ part.text }}{% endfor %}<|user|>{% endgeneration %}"
        "{% else %}"
        "{% if not loop.previtem or loop.previtem.role != 'assistant' %}<|{{ message.role }}|>{% endif %}"
        "{{ '\n' }}"
        "{% for part in message.content %}"
        "{% if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
        "{% elif part.type == 'video' %}<|begin_of_video|><|video|><|end_of_video|>"
        "{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    template_exceptions = (
        TemplateException(
            "<|user|>",
            "",
            "The template writes no end token after a reply. Generation stops at the <|user|> of the next turn, so we "
            "also write <|user|> after the last reply.",
            where="end",
        ),
    )
    reply_tokens = ("</answer>",)
    thought_format = "<think>{}</think>"
    string_roles = ("system", "assistant")
    frames_in_bounds = 2
    frame_text = "<|begin_of_image|><|end_of_image|>99999"
    told_times = True

    def is_media(self, input_ids, kind=None):
        """Find the frames of videos, which are image tokens between the tokens that begin and end a video."""
        media = super().is_media(input_ids, "image")
        if kind is None:
            return media
        begun = (input_ids == self.processor.video_start_id).cumsum(-1)
        in_video = begun > (input_ids == self.processor.video_end_id).cumsum(-1)
        return media & (in_video if kind == "video" else ~in_video)

    def _process(self, text, spans, messages):
        """Pass each time step of a video to the model as an image, which is how the model treats it anyway.

        A batch with images and videos would make the model fail: it counts all image tokens for both (5.23).
        """
        inputs = super()._process(text, spans, messages)
        if "video_grid_thw" not in inputs:
            return inputs
        media = {}
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if pixels in inputs:
                grids = inputs.pop(f"{kind}_grid_thw")
                media[kind] = zip(inputs.pop(pixels).split(grids.prod(1).tolist()), grids)
        kinds = [part["type"] for message in messages for part in message["content"] if part["type"] != "text"]
        pixels, grids = zip(*(next(media[kind]) for kind in kinds))
        grids = torch.stack(grids).repeat_interleave(torch.stack(grids)[:, 0], dim=0)
        grids[:, 0] = 1
        types = inputs["mm_token_type_ids"].clamp(max=1)
        return inputs | {"pixel_values": torch.cat(pixels), "image_grid_thw": grids, "mm_token_type_ids": types}
