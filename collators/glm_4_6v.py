"""GLM-4.6V-Flash without thinking: the format of GLM-4.1V, with `/nothink` after each question and an empty thought
before each reply. White space around a reply is removed."""

from collators import register_collator
from collators.glm_4_1v import Glm41VCollator


def glm_4_6v_template(suffix: str, thought: str) -> str:
    """
    Args:
        suffix: text to append to each question that does not already end with it.
        thought: text to write before each reply.
    """
    return (
        "[gMASK]<sop>"
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}"
        f"<|assistant|>\n{thought}"
        "{% generation %}{{ message.content | map(attribute='text') | join | trim }}<|user|>{% endgeneration %}"
        "{% else %}"
        "{% if not loop.previtem or loop.previtem.role != 'assistant' %}<|{{ message.role }}|>{% endif %}"
        "{{ '\n' }}"
        "{% set content %}{% for part in message.content %}"
        "{% if part.type == 'text' %}{{ part.text }}"
        "{% else %}<|begin_of_{{ part.type }}|><|{{ part.type }}|><|end_of_{{ part.type }}|>{% endif %}"
        "{% endfor %}{% endset %}"
        "{{ content }}"
        f"{{% if message.role == 'user' and not content.endswith('{suffix}') %}}{suffix}{{% endif %}}"
        "{% endif %}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}<|assistant|>\n{thought}{{% endif %}}"
    )


@register_collator("glm-4.6v")
class Glm46VCollator(Glm41VCollator):
    chat_template = glm_4_6v_template("/nothink", "<think></think>\n")
    reply_tokens = ("<think>", "</think>", "</answer>")
    template_kwargs = {"enable_thinking": False}
    thought_format = ""  # the template writes thoughts
    string_roles = ()
    frame_text = "<|begin_of_image|><|end_of_image|>99999.9 seconds"
