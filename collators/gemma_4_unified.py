"""Gemma 4 12B: the format of Gemma 4 26B-A4B and 31B. We train without thinking: the generation prompt ends with an
empty thought, and the answer follows it."""

from collators import register_collator
from collators.gemma_4 import EMPTY_THOUGHT, Gemma4Collator, gemma_4_template
from collators.template import TemplateException


@register_collator("gemma-4-unified")
class Gemma4UnifiedCollator(Gemma4Collator):
    chat_template = gemma_4_template(EMPTY_THOUGHT)
    other_formats = ()
    template_exceptions = (
        TemplateException(
            f"<|turn>model\n{EMPTY_THOUGHT}",
            "<|turn>model\n",
            "The template writes the empty thought only in the generation prompt. We write it before every reply, as "
            "in the prompt.",
        ),
    )
