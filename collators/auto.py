"""Any other checkpoint: its own chat template is the training template."""

from collators import register_collator
from collators.base import ChatCollator


@register_collator("auto")
class AutoCollator(ChatCollator):
    def __init__(self, processor, *args, chat_template: str | None = None, **kwargs):
        self.processor = processor
        super().__init__(processor, *args, chat_template=chat_template or self.official_template, **kwargs)
