"""Gemma 4: each turn begins with `<|turn>role`, and media stay in place.

We train without thinking. E2B and E4B then answer immediately. The generation prompt of 26B-A4B and 31B ends with an
empty thought, and the answer follows it.
"""

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from collators.gemma_3 import TrimmingTemplate
from collators.template import ChatFormat, TemplateException
from reading.rows import content_parts

EMPTY_THOUGHT = "<|channel>thought\n<channel|>"


def gemma_4_template(thought: str) -> str:
    return (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}"
        f"<|turn>model\n{thought}"
        "{% generation %}{% for part in message.content %}{{ part.text | trim }}{% endfor %}"
        "<turn|>{% endgeneration %}{{ '\n' }}"
        "{% else %}"
        "<|turn>{{ message.role }}{{ '\n' }}"
        "{% if message.role == 'system' %}{{ message.content | map(attribute='text') | join | trim }}"
        "{% else %}{% for part in message.content %}"
        "{% if part.type == 'text' %}{{ part.text | trim }}{% else %}<|{{ part.type }}|>{% endif %}"
        "{% endfor %}{% endif %}"
        "<turn|>\n"
        "{% endif %}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}<|turn>model\n{thought}{{% endif %}}"
    )


class Gemma4Budget(Budget):
    def count_media_tokens(self, row, media_sizes):
        """Add the tokens that the processor writes: two around each image, nine around each frame of a video.

        The nine are the tokens of `00:07 <|image>` and `<image|> `.
        """
        kinds = [part["type"] for part in content_parts(row)]
        frames = sum(media_sizes["video", part["video"]][0] for part in content_parts(row) if part["type"] == "video")
        return super().count_media_tokens(row, media_sizes) + 2 * kinds.count("image") + 9 * frames

    def count_frame_text_tokens(self, row, media_sizes):
        """Allow for one more token per frame, since times have one more digit from 100 minutes on."""
        return sum(media_sizes["video", part["video"]][0] for part in content_parts(row) if part["type"] == "video")


@register_collator("gemma-4")
class Gemma4Collator(ChatCollator):
    chat_template = gemma_4_template("")
    other_formats = (
        ChatFormat(gemma_4_template(EMPTY_THOUGHT)),
        ChatFormat(
            gemma_4_template(EMPTY_THOUGHT),
            (
                TemplateException(
                    f"<|turn>model\n{EMPTY_THOUGHT}",
                    "<|turn>model\n",
                    "The first templates of 26B-A4B and 31B write the empty thought only in the generation prompt; "
                    "later ones also write it in the history. We always write it before a reply, as in the prompt.",
                ),
            ),
        ),
    )
    thought_format = "<|channel>thought\n{}\n<channel|>"  # the template writes it only before tool calls
    reply_tokens = ("<|channel>", "<channel|>")
    string_roles = ("system",)  # the template adds a space after each part of a list
    template_class = TrimmingTemplate
    budget_class = Gemma4Budget
    told_times = True
