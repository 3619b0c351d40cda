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
    # Thoughts and calls of tools, as checkpoints of several makers write them.
    reply_tokens = (
        *("<think>", "</think>", "[THINK]", "[/THINK]", "◁think▷", "◁/think▷", "<|channel>", "<channel|>"),
        *("<|START_THINKING|>", "<|END_THINKING|>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"),
    )
    budget_class = AutoBudget
    told_times = True  # for all that is known

    def __init__(self, processor, *args, chat_template: str | None = None, **kwargs):
        if chat_template == "family":
            raise ValueError("--chat_template family: --model_id auto has no template of its own. Leave it out.")
        super().__init__(processor, *args, chat_template=chat_template or official_template(processor), **kwargs)
