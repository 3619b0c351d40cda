"""LLaVA-OneVision: ChatML without line breaks between messages. A message's images come first, then its videos."""

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from collators.template import TemplateException
from reading.rows import content_parts


class LlavaOnevisionBudget(Budget):
    def count_media_tokens(self, row, media_sizes):
        """Count each of several images as one tile and a line break, since only a single image is split into tiles."""
        images = [part for part in content_parts(row) if part["type"] == "image"]
        if len(images) < 2:
            return super().count_media_tokens(row, media_sizes)
        others = {"messages": [{"content": [part for part in content_parts(row) if part["type"] == "video"]}]}
        return len(images) * (self.processor.num_image_tokens + 1) + super().count_media_tokens(others, media_sizes)


@register_collator("llava-onevision")
class LlavaOnevisionCollator(ChatCollator):
    chat_template = (
        "{% for message in messages %}"
        "<|im_start|>{{ message.role }}"
        "{% if message.role == 'assistant' %}"
        "{{ '\n' }}{% generation %}"
        "{% for part in message.content %}{{ part.text }}{{ '' if loop.last else '\n' }}{% endfor %}"
        "<|im_end|>{% endgeneration %}"
        "{% else %} "
        "{% for part in message.content if part.type == 'image' %}<image>{% endfor %}"
        "{% for part in message.content if part.type == 'video' %}<video>{% endfor %}"
        "{% for part in message.content if part.type == 'text' %}{{ '\n' + part.text }}{% endfor %}"
        "<|im_end|>"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template_exceptions = (
        TemplateException(
            "<|im_start|>assistant\n",
            "<|im_start|>assistant \n",
            "The template writes `assistant \\n` in the history but `assistant\\n` in the generation prompt. We always "
            "write `assistant\\n`, as in the prompt.",
        ),
    )
    budget_class = LlavaOnevisionBudget

    def of_all(self, name, values):
        """Refuse videos with different numbers of frames in one batch: the model adds a token after each video."""
        if name == "pixel_values_videos" and len(numbers := {value.shape[1] for value in values}) > 1:
            raise ValueError(
                f"LLaVA-OneVision cannot put videos of {min(numbers)} and {max(numbers)} frames into one batch. Use "
                "--num_frames instead of --fps, or batches of one sample."
            )
        return super().of_all(name, values)
