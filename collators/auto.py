"""Any other checkpoint, trained with its own chat template."""

import torch

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from collators.label_check import encoded_examples
from collators.template import official_template
from reading.rows import content_parts


class AutoBudget(Budget):
    def count_media_tokens(self, row, media_sizes):
        """Return inf for rows with a video. The processor may add text, such as times, so these rows are opened."""
        if any(part["type"] == "video" for part in content_parts(row)):
            return float("inf")
        return super().count_media_tokens(row, media_sizes)


@register_collator("auto")
class AutoCollator(ChatCollator):
    # Tokens of thoughts and tool calls in the checkpoints of several makers.
    reply_tokens = (
        *("<think>", "</think>", "[THINK]", "[/THINK]", "◁think▷", "◁/think▷", "<|channel>", "<channel|>"),
        *("<|START_THINKING|>", "<|END_THINKING|>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"),
    )
    budget_class = AutoBudget
    told_times = True  # assumed, since it is unknown what the processor does
    # Some processors return text as tensors, which breaks finding the labels. Ovis2 needs tiles as a tensor.
    processor_kwargs = {"text_kwargs": {"return_tensors": None}, "images_kwargs": {"return_tensors": "pt"}}

    def __init__(self, processor, *args, chat_template: str | None = None, **kwargs):
        if chat_template == "family":
            raise ValueError("--chat_template family: --model_id auto has no family template. Remove the flag.")
        super().__init__(processor, *args, chat_template=chat_template or official_template(processor), **kwargs)
        rows = [inputs for inputs, _ in encoded_examples(self)]
        for row in rows:
            has_pixels = any(torch.is_tensor(value) and value.is_floating_point() for value in row.values())
            if has_pixels and not self.is_media(row["input_ids"]).any():
                raise ValueError(
                    f"{type(processor).__name__} does not tell which tokens stand for an image, so these tokens could "
                    "be cut or trained by mistake. Add a family (docs/add_new_model.md)."
                )
        # Tensors with one value per token in every example, such as `token_type_ids`, are sequences, padded with 0.
        tensors = [{name: value for name, value in row.items() if torch.is_tensor(value)} for row in rows]
        of_tokens = [{n for n, value in row.items() if value.shape[:2] == row["input_ids"].shape} for row in tensors]
        self.sequence_padding = dict.fromkeys(set.intersection(*of_tokens), 0) | self.sequence_padding
