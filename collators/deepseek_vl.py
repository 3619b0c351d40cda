"""DeepSeek-VL: a default system prompt, then `User: ` and `Assistant:`. Messages are trimmed; images stay in place."""

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from collators.template import TemplateException
from reading.rows import content_parts

PARTS = (
    "{% filter trim %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image_placeholder>"
    "{% else %}"
    "{% if loop.index0 and message.content[loop.index0 - 1].type == 'text' %} {% endif %}{{ part.text }}"
    "{% endif %}"
    "{% endfor %}{% endfilter %}"
)


class DeepseekVLBudget(Budget):
    def count_media_tokens(self, row, media_sizes):
        """Count here, since the processor cannot (transformers 5.23). All images have the same number of tokens."""
        return self.processor.num_image_tokens * sum(part["type"] == "image" for part in content_parts(row))


@register_collator("deepseek-vl")
class DeepseekVLCollator(ChatCollator):
    chat_template = (
        "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
        "provides, and assist the user with a variety of tasks using natural language.\n\n"
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}"
        "Assistant:{% generation %} " + PARTS + "<｜end▁of▁sentence｜>{% endgeneration %}"
        "{% elif message.role == 'user' %}"
        "User: " + PARTS + "{{ '\n\n' }}"
        "{% else %}"
        "System: " + PARTS + "<｜end▁of▁sentence｜>"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    template_exceptions = (
        TemplateException(
            "<｜end▁of▁sentence｜>",
            "",
            "The template writes an end token after every reply except the last; we write one after the last, too.",
            where="end",
        ),
    )
    # By default, the processor returns text as tensors, which breaks finding the labels.
    processor_kwargs = {"text_kwargs": {"return_tensors": None}}
    budget_class = DeepseekVLBudget
