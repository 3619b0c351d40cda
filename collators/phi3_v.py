"""Phi-3-vision: `<|role|>` headers. Images are tags, numbered through the whole conversation."""

import re
from itertools import count

import torch

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from collators.frame_tokens import FrameTokens
from collators.template import Template, TemplateException
from reading.rows import content_parts

IMAGE_TAG = re.compile(r"<\|image_\d+\|>")


class Phi3VFrameTokens(FrameTokens):
    def find(self, *args):
        super().find(*args)
        # The numbered tags are not tokens, but text that the processor searches for.
        self._frame_token = re.compile(rf"{self._frame_token.pattern}|<(?=\|image_\d+\|>)")


class Phi3VTemplate(Template):
    frame_class = Phi3VFrameTokens

    def _plain_messages(self, messages, frame):
        plain, numbers = super()._plain_messages(messages, frame), count(1)
        for part in content_parts({"messages": plain}):
            if part["type"] == "image":
                part["text"] = f"<|image_{next(numbers)}|>\n"
        return plain


class Phi3VBudget(Budget):
    def count_media_tokens(self, row, media_sizes):
        images = [media_sizes["image", part["image"]] for part in content_parts(row) if part["type"] == "image"]
        return sum(self.processor.calc_num_image_tokens_from_image_size(width, height) for height, width in images)

    def _pieces(self, messages):
        return IMAGE_TAG.split(self.template.render(messages)[0])


@register_collator("phi3-v")
class Phi3VCollator(ChatCollator):
    chat_template = (
        "{% for message in messages %}"
        "<|{{ message.role }}|>{{ '\n' }}"
        "{% if message.role == 'assistant' %}{% generation %}"
        "{% for part in message.content %}{{ part.text }}{% endfor %}<|end|>"
        "{% if loop.last %}{{ '\n' }}<|endoftext|>{% endif %}"
        "{% endgeneration %}{% if not loop.last %}{{ '\n' }}{% endif %}"
        "{% else %}"
        "{% for part in message.content %}{{ part.text }}{% endfor %}<|end|>{{ '\n' }}"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{{ '\n' }}{% endif %}"
    )
    template_exceptions = (
        TemplateException(
            "<|end|>\n<|endoftext|>",
            "<|end|>\n",
            "The template has no <|endoftext|>. We end training texts with it, as the checkpoint's sample code does.",
            where="end",
        ),
    )
    string_roles = ("system", "user", "assistant")
    fixed_format = "the processor of Phi-3-vision numbers the images in the text"
    template_class = Phi3VTemplate
    budget_class = Phi3VBudget

    def is_media(self, input_ids, kind=None):
        """Find negative ids: the tokens of image N have the id -N."""
        return input_ids < 0 if kind != "video" else torch.zeros_like(input_ids, dtype=torch.bool)

    placeholder_tokens = 0

    def _process(self, text, spans, messages):
        """Tokenize the text between images again to get offsets, which the processor does not return."""
        images = [part["image"] for part in self._media(messages)["image"]]
        inputs = dict(self.processor(text, images or None, return_tensors="pt"))
        ids = inputs["input_ids"][0].tolist()
        offsets = []
        start = 0
        for tag in [*IMAGE_TAG.finditer(text), None]:
            piece = self._tokenizer(text[start : tag and tag.start()], return_offsets_mapping=True)
            assert ids[len(offsets) : len(offsets) + len(piece.input_ids)] == piece.input_ids
            offsets += [(start + a, start + b) for a, b in piece.offset_mapping]
            if tag:
                start = tag.end()
                while len(offsets) < len(ids) and ids[len(offsets)] < 0:
                    offsets.append(tag.span())
        assert len(offsets) == len(ids)
        return self._with_labels(inputs, offsets, spans)
