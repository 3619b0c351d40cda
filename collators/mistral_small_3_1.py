"""Mistral Small 3.1 and 3.2: the format of Pixtral with a system block. 3.1 has a default system prompt with a date.

We use the release date of 3.1. In a message with one image and one text, 3.2 puts the image first.
"""

from collators import register_collator
from collators.pixtral import PixtralBudget, PixtralCollator
from collators.template import ChatFormat, Template
from reading.rows import content_parts

DATE = "2025-03-17"  # the release date, in training and in prompts
DEFAULT_SYSTEM = (
    "You are Mistral Small 3, a Large Language Model (LLM) created by Mistral AI, a French startup headquartered in "
    "Paris.\nYour knowledge base was last updated on 2023-10-01. The current date is " + DATE + "."
    "\n\nWhen you're not sure about some information, you say that you don't have the information and don't make up "
    "anything.\nIf the user's question is not clear, ambiguous, or does not provide enough context for you to "
    "accurately answer the question, you do not try to answer it right away and you rather ask the user to clarify "
    'their request (e.g. "What are some good restaurants around me?" => "Where are you?" or "When is the next flight '
    'to Tokyo" => "Where do you travel from?")'
)


def mistral_template(user_parts: str = "message.content") -> str:
    """Return the template for all messages. `user_parts` is the Jinja expression for the parts of a user message."""
    return (
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{% for part in message.content %}{{ part.text }}{% endfor %}</s>{% endgeneration %}"
        "{% elif message.role == 'user' %}"
        "[INST]"
        "{% for part in " + user_parts + " %}"
        "{% if part.type == 'image' %}[IMG]{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}"
        "[/INST]"
        "{% else %}"
        "[SYSTEM_PROMPT]{% for part in message.content %}{{ part.text }}{% endfor %}[/SYSTEM_PROMPT]"
        "{% endif %}"
        "{% endfor %}"
    )


# Put the image first in a message of two parts.
IMAGE_FIRST = "(message.content | sort(attribute='type') if message.content | length == 2 else message.content)"
# The format of mistral-common: without a system text, there is no system block.
WITHOUT_DEFAULT_SYSTEM = "<s>" + mistral_template(IMAGE_FIRST)


class MistralSmall31Template(Template):
    @property
    def official(self):
        # transformers 5.23 replaces a function among the template's variables by its name, so we use a macro.
        return "{% macro strftime_now(format) %}" + DATE + "{% endmacro %}" + super().official

    def _render(self, messages, *args, **kwargs):
        """Merge the parts of system messages and replies: the checkpoint's template uses only the first part."""
        return super()._render([whole(message) for message in messages], *args, **kwargs)


class MistralSmall31Budget(PixtralBudget):
    def count_media_tokens(self, row, media_sizes):
        """Like Pixtral, but refuse one-token images: transformers 5.23 fails if a batch has no larger ones."""
        token = self.processor.patch_size * self.processor.spatial_merge_size
        for part in content_parts(row):
            if part["type"] == "image" and max(size := media_sizes["image", part["image"]]) <= token:
                raise ValueError(f"an image of {size[1]}x{size[0]} pixels is too small: one side must exceed {token}")
        return super().count_media_tokens(row, media_sizes)


@register_collator("mistral-small-3.1")
class MistralSmall31Collator(PixtralCollator):
    chat_template = (
        "<s>{% if messages[0].role != 'system' %}[SYSTEM_PROMPT]" + DEFAULT_SYSTEM + "[/SYSTEM_PROMPT]{% endif %}"
    ) + mistral_template()
    other_formats = (ChatFormat(WITHOUT_DEFAULT_SYSTEM),)
    template_exceptions = ()
    string_roles = ()
    template_class = MistralSmall31Template
    budget_class = MistralSmall31Budget

    def _process(self, text, spans, messages):
        inputs, token = super()._process(text, spans, messages), self.processor.patch_size
        token *= self.processor.spatial_merge_size
        if "image_sizes" in inputs and inputs["image_sizes"].amax(1).min() <= token:
            raise ValueError(f"an image is too small (one token): one side must exceed {token} pixels")
        return inputs


def whole(message: dict) -> dict:
    """Merge the text parts of a system message or a reply into one part."""
    if message["role"] in ("user", "tool"):
        return message
    return message | {"content": [{"type": "text", "text": "".join(part["text"] for part in message["content"])}]}
