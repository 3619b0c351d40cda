"""Gemma 4: turns of `<|turn>role`; media stay where they are in the text. The two large sizes answer after a thought.

We train without thinking. E2B and E4B then answer at once; 26B-A4B and 31B after an empty thought, which their
generation prompt ends with.
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
        """With what the processor writes around each image, two tokens, and around each frame of a video, nine.

        The latter are `00:07 <|image>` and `<image|> `.
        """
        kinds = [part["type"] for part in content_parts(row)]
        frames = sum(media_sizes["video", part["video"]][0] for part in content_parts(row) if part["type"] == "video")
        return super().count_media_tokens(row, media_sizes) + 2 * kinds.count("image") + 9 * frames

    def count_frame_text_tokens(self, row, media_sizes):
        """From 100 minutes on, a time has a digit more."""
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
                    "The first templates of 26B-A4B and 31B write the empty thought in the generation prompt alone, "
                    "the later ones in the history too; replies are trained after the prompt's form.",
                ),
            ),
        ),
    )
    thought_format = "<|channel>thought\n{}\n<channel|>"  # the template writes it before calls alone
    reply_tokens = ("<|channel>", "<channel|>")
    string_roles = ("system",)  # of a list, the template puts a space after each part
    template_class = TrimmingTemplate
    budget_class = Gemma4Budget
    told_times = True
