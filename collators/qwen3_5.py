"""Qwen3.5, 3.6 and 3.8 without thinking: ChatML with trimmed messages and an empty thought before each reply."""

from collators import register_collator
from collators.qwen3_vl import Qwen3VLCollator
from collators.template import TemplateException

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


@register_collator("qwen3.5")
class Qwen35Collator(Qwen3VLCollator):
    chat_template = (
        "{% for message in messages %}"
        "<|im_start|>{{ message.role }}{{ '\n' }}"
        "{% if message.role == 'assistant' %}"
        f"{EMPTY_THOUGHT}"
        "{% generation %}{{ message.content | map(attribute='text') | join | trim }}<|im_end|>{% endgeneration %}"
        "{% else %}"
        "{% filter trim %}{% for part in message.content %}"
        "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
        "{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endfilter %}"
        "<|im_end|>"
        "{% endif %}"
        "{{ '\n' }}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}<|im_start|>assistant\n{EMPTY_THOUGHT}{{% endif %}}"
    )
    other_formats = ()
    # Sizes of 4B and more think by default.
    template_kwargs = {"enable_thinking": False}
    template_exceptions = (
        TemplateException(
            EMPTY_THOUGHT,
            "",
            "Up to Qwen3.6, the template writes the empty thought in the generation prompt and before the last reply, "
            "not in the history. We write it before every reply, as in the prompt and as Qwen3.8's template does.",
            where="history",
        ),
    )
