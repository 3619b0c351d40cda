"""Ministral 3: the format of Mistral Small 3.2 with a default system prompt that contains the checkpoint's name."""

from collators import register_collator
from collators.mistral_small_3_1 import IMAGE_FIRST, MistralSmall31Collator, MistralSmall31Template, mistral_template
from collators.template import EXAMPLES


class Ministral3Template(MistralSmall31Template):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.processor.chat_template:  # each size has another default system prompt
            text = self.render_official(EXAMPLES[0])
            self.kwargs = {"default_system": text.partition("[SYSTEM_PROMPT]")[2].partition("[/SYSTEM_PROMPT]")[0]}


@register_collator("ministral-3")
class Ministral3Collator(MistralSmall31Collator):
    chat_template = (
        "<s>"
        "{% if messages[0].role != 'system' and default_system %}"
        "[SYSTEM_PROMPT]{{ default_system }}[/SYSTEM_PROMPT]"
        "{% endif %}"
    ) + mistral_template(IMAGE_FIRST)
    other_formats = ()
    template_kwargs = {"default_system": ""}
    template_class = Ministral3Template
