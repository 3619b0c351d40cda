"""GLM-OCR: the format of GLM-4.6V without `/nothink` and without the empty thought."""

from collators import register_collator
from collators.glm_4_6v import Glm46VCollator, glm_4_6v_template
from collators.template import TemplateException


@register_collator("glm-ocr")
class GlmOcrCollator(Glm46VCollator):
    chat_template = glm_4_6v_template("", "")
    template_kwargs = {}
    template_exceptions = (
        TemplateException(
            "<|assistant|>\n",
            "<|assistant|>\n<think></think>\n",
            "The template writes <think></think> before each reply, but not in the generation prompt. We never write "
            "it, as in the prompt.",
        ),
        *Glm46VCollator.template_exceptions,
    )
