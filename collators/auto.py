"""Any other checkpoint: its own chat template is the training template."""

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from collators.template import official_template
from reading.rows import content_parts


class AutoBudget(Budget):
    def count_media_tokens(self, row, media_sizes):
        """Some processors write text into videos, such as times, so a sample with one is opened before training."""
        if any(part["type"] == "video" for part in content_parts(row)):
            return float("inf")
        return super().count_media_tokens(row, media_sizes)


@register_collator("auto")
class AutoCollator(ChatCollator):
    budget_class = AutoBudget

    def __init__(self, processor, *args, chat_template: str | None = None, **kwargs):
        super().__init__(processor, *args, chat_template=chat_template or official_template(processor), **kwargs)
