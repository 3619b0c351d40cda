"""PaliGemma: images, a prefix (the question) and a suffix (the reply). Attention is bidirectional up to the suffix.

A sample is one exchange without a system prompt. The question begins with one or more images.
"""

from collators import register_collator
from collators.base import ChatCollator
from collators.boxes import BoxFormat
from collators.budget import Budget
from collators.template import Template


class PaliGemmaTemplate(Template):
    def check_layout(self, messages):
        super().check_layout(messages)
        check_form(messages)


class PaliGemmaBudget(Budget):
    def _pieces(self, messages):
        """Split the text into prefix and suffix, which the processor tokenizes as a pair."""
        text, spans = self.template.render(messages)
        return [text[: spans[0][0]], text[spans[0][0] :]]


@register_collator("paligemma")
class PaliGemmaCollator(ChatCollator):
    chat_template = (
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{% for part in message.content %}{{ part.text }}{% endfor %}{{ eos_token }}{% endgeneration %}"
        "{% else %}"
        "{% for part in message.content if part.type == 'image' %}<image>{% endfor %}"
        "{{ bos_token }}{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}{{ '\n' }}"
        "{% endif %}"
        "{% endfor %}"
    )
    # 0 for images and the prefix, 1 for the suffix.
    sequence_padding = ChatCollator.sequence_padding | {"token_type_ids": 0}

    # google-research/big_vision, big_vision/pp/proj/paligemma/segmentation.py.
    box_format = BoxFormat(
        1023,
        box="<loc{:04}>" * 4,
        point="<loc{:04}>" * 2,
        y_first=True,
        named="{at} {name}",
        between=" ; ",
        between_objects=" ; ",
    )
    fixed_format = "the processor of PaliGemma writes its format"
    template_class = PaliGemmaTemplate
    budget_class = PaliGemmaBudget

    def __init__(self, processor, model_max_length=None, mask_question_tokens=True, **kwargs):
        if not mask_question_tokens:
            raise ValueError(
                "--mask_question_tokens False cannot be used with PaliGemma: each token of the prompt attends to all "
                "others, also later ones, so there is nothing to predict. Remove the flag."
            )
        processor.chat_template = self.chat_template  # the checkpoint has none: its processor writes the format
        super().__init__(processor, model_max_length, **kwargs)

    def _process(self, text, spans, messages):
        """Let the processor itself place BOS, prefix, suffix and labels."""
        check_form(messages)
        images = [part["image"] for part in messages[0]["content"] if part["type"] == "image"]
        start = spans[0][0] if spans else len(text)
        placeholders, _, prefix = text[:start].partition(self._tokenizer.bos_token)
        features = self.processor(
            images=[images],
            text=[placeholders + prefix.removesuffix("\n")],  # the processor writes BOS, line break and EOS itself
            suffix=[text[start:].removesuffix(self._tokenizer.eos_token)] if spans else None,
            return_tensors="pt",
            **self.processor_kwargs,
        )
        return dict(features)


def check_form(messages: list[dict]) -> None:
    """Check that the messages are one exchange and that the question begins with its images.

    Raises:
        ValueError: the messages have another form. The error's text contains the fix.
    """
    roles = [message["role"] for message in messages]
    if "system" in roles:
        raise ValueError("PaliGemma has no system prompt; move the system text into the question.")
    if roles not in (["user"], ["user", "assistant"]):
        raise ValueError("PaliGemma supports one exchange per sample; make each exchange a separate sample.")
    kinds = [part["type"] for part in messages[0]["content"]]
    if kinds != sorted(kinds) or "image" not in kinds:  # images come first, since "image" sorts before "text"
        raise ValueError("PaliGemma needs at least one image; put all images before the text of the question.")
