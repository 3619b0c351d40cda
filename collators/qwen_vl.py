"""Qwen-VL-Chat: ChatML. An image is `Picture N: <img>name</img>`, and N starts at 1 in each message. The checkpoint has
no Jinja template: its functions `make_context` and `from_list_format` build the prompt. (Its finetuning page instead
counts N through the whole conversation.)"""

import re
import unicodedata
from functools import cached_property
from itertools import count

import torch

from collators import register_collator
from collators.base import ChatCollator
from collators.boxes import BoxFormat
from collators.budget import Budget
from collators.frame_tokens import FrameTokens
from collators.template import Template
from reading.rows import RESERVED_CHARACTER, content_parts

# Headers, images and ends of messages are tokenized separately, as in `make_context`. All else is text.
CONTROL = re.compile(r"(<\|im_start\|>)(\w+)(\n)|(<\|im_end\|>)(\n)?|(<img>\w+\.jpg</img>)")


class QwenVLFrameTokens(FrameTokens):
    @cached_property
    def added_tokens(self):
        return {id: token for token, id in self.tokenizer.special_tokens.items()}

    def adapt_tokenizer(self):
        """Do nothing: `tokenize` below replaces the tokenizer."""

    def tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of a rendered text and, for each id, the span of the piece that contains it."""
        pieces, begin = [], 0
        for match in CONTROL.finditer(text):
            groups = [i for i in range(1, CONTROL.groups + 1) if match[i]]
            pieces += [(begin, match.start(), False), *((*match.span(i), True) for i in groups)]
            begin = match.end()
        ids, offsets, may_be_typed = [], [], {*self.tokenizer.IMAGE_ST} - self.tokens  # as in `make_context`
        for start, end, is_control in [*pieces, (begin, len(text), False)]:
            piece = text[start:end]
            if is_control:
                tokens = self.tokenizer.encode(piece)
            else:
                piece = unicodedata.normalize("NFC", piece.replace(RESERVED_CHARACTER, ""))
                tokens = self.tokenizer.tokenizer.encode(piece, allowed_special=may_be_typed, disallowed_special=())
            ids += tokens
            offsets += [(start, end)] * len(tokens)
        return ids, offsets


class QwenVLTemplate(Template):
    frame_class = QwenVLFrameTokens

    @property
    def official(self):
        return self.text  # `make_context` writes the prompts in the same format

    def _plain_messages(self, messages, frame):
        plain, files = super()._plain_messages(messages, frame), count(1)
        for message in plain:
            numbers = count(1)
            for part in message["content"]:
                if part["type"] == "image":
                    part["text"] = f"Picture {next(numbers)}: <img>img_{next(files)}.jpg</img>\n"
        return plain


class QwenVLBudget(Budget):
    def count_media_tokens(self, row, media_sizes):
        return sum(part["type"] == "image" for part in content_parts(row)) * self._image_tokens

    @property
    def _image_tokens(self) -> int:
        """The number of tokens of an image, which is the same for all images and names."""
        return len(self.tokenizer.encode("<img>_</img>"))

    def count_text_tokens(self, rows):
        texts = [self.template.render(row["messages"])[0] for row in rows]
        lengths = [len(self.template.frame.tokenize(text)[0]) for text in texts]
        return [length - self.count_media_tokens(row, {}) for length, row in zip(lengths, rows)]

    def _files(self):
        return [repr(self.tokenizer.mergeable_ranks), repr(self.tokenizer.special_tokens)]


@register_collator("qwen-vl")
class QwenVLCollator(ChatCollator):
    chat_template = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
        "{% for message in messages %}"
        "<|im_start|>{{ message.role }}{{ '\n' }}"
        "{% if message.role == 'assistant' %}{% generation %}"
        "{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>{% endgeneration %}"
        "{% else %}"
        "{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>"
        "{% endif %}"
        "{{ '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
    )

    # QwenLM/Qwen-VL, TUTORIAL.md.
    box_format = BoxFormat(1000, "<box>({},{}),({},{})</box>", "<box>({},{})</box>", name="<ref>{}</ref>")
    fixed_format = "Python code of Qwen-VL-Chat writes its format"
    template_class = QwenVLTemplate
    budget_class = QwenVLBudget

    def is_media(self, input_ids, kind=None):
        """Find the tokens from `<img>` to `</img>`. Between them is a file name, one token per byte."""
        if kind == "video":
            return torch.zeros_like(input_ids, dtype=torch.bool)
        is_end = input_ids == self._tokenizer.img_end_id
        opened = (input_ids == self._tokenizer.img_start_id).cumsum(-1)
        return (opened - is_end.cumsum(-1) > 0) | is_end

    def _process(self, text, spans, messages):
        images = [self.processor.transform(part["image"]) for part in self._media(messages)["image"]]
        ids, offsets = self.template.frame.tokenize(text)
        inputs = {"input_ids": torch.tensor([ids])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if images:
            inputs["pixel_values"] = torch.stack(images)
        return self._with_labels(inputs, offsets, spans)
