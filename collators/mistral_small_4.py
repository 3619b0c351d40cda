"""Mistral Small 4: the format of Small 3.2 with a block before the first question that sets the reasoning effort.

The default is "none". Replies with thoughts need `--template_kwargs '{"reasoning_effort": "high"}'` and a chat template
that supports thoughts, such as mistral-common's.
"""

from collators import register_collator
from collators.mistral_small_3_1 import IMAGE_FIRST, MistralSmall31Collator, mistral_template
from collators.template import Template
from collators.thoughts_and_tools import has_thought
from collators.untagged_template import UnfitTemplate

SETTINGS = '[MODEL_SETTINGS]{"reasoning_effort": "{{ reasoning_effort }}"}[/MODEL_SETTINGS]'


class MistralSmall4Template(Template):
    def render(self, messages):
        """Render the messages, but refuse a thought if the prompt tells the model not to think."""
        rendered = super().render(messages)
        if self.kwargs["reasoning_effort"] == "none" and has_thought(self.thoughts_and_tools.placed(messages)):
            raise UnfitTemplate(
                "has a thought (`reasoning_content`), but the prompt tells the model not to think: add "
                '--template_kwargs \'{"reasoning_effort": "high"}\''
            )
        return rendered


@register_collator("mistral-small-4")
class MistralSmall4Collator(MistralSmall31Collator):
    chat_template = "<s>{% if messages[0].role != 'system' %}" + SETTINGS + "{% endif %}"
    chat_template += mistral_template(IMAGE_FIRST).replace("[/SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]" + SETTINGS)
    other_formats = ()
    template_kwargs = {"reasoning_effort": "none"}
    template_class = MistralSmall4Template
