"""Fixed test conversations with known replies, which every run encodes when it starts.

Their tokens show which tokens frame a conversation. Their labels show whether the processor changes the rendered text.
"""

from copy import copy
from itertools import groupby

import numpy as np
import torch
from PIL import Image

from collators.template import EXAMPLES, conversation
from reading.dataset import IGNORE_INDEX

# (messages, the exact replies)
EXPECTED = [
    *zip(EXAMPLES, (["Red."], ["A cat."], ["The first.", "It is grey."], ["A ball rolls."]), strict=True),
    (conversation(("user", "image", "What is it?"), ("assistant", "A dog.")), ["A dog."]),
]


def opened(kind: str, number: int = 0) -> dict:
    """Return a part with a small loaded image or video. If `number` is odd, the image is large enough for tiles."""
    if kind == "video":
        metadata = {"fps": 1.0, "duration": 2.0, "total_num_frames": 2, "frames_indices": [0, 1]}
        return {"type": kind, kind: np.zeros((2, 28, 28, 3), np.uint8), "metadata": metadata}
    # Not 28x28: Mistral3 fails on a batch whose only image is one token (transformers 5.23).
    return {"type": kind, kind: Image.new("RGB", (840, 640) if number % 2 else (56, 56))}


def encoded_examples(collator) -> list[tuple[dict[str, torch.Tensor], list[str]]]:
    """Return (tensors, expected replies) of each example that the format supports."""
    found, error = [], None
    for messages, replies in EXPECTED:
        numbers = iter(range(10))
        content = [
            [opened(part["type"], next(numbers)) if part["type"] != "text" else part for part in message["content"]]
            for message in messages
        ]
        sample = {"messages": [message | {"content": parts} for message, parts in zip(messages, content)]}
        try:
            collator.template.check_layout(messages)
            found.append(
                (collator.encode(sample | {"source": "a test conversation"}, within_budget=False).inputs, replies)
            )
        except ValueError as refused:  # such as a format without system messages
            error = refused
    if not found:
        raise error
    return found


def check_labels(collator) -> None:
    """Encode the examples as a run does, with a dummy row, and check that exactly the expected replies are trained.

    Raises:
        ValueError: the processor changes the text, or the replies cannot be found in the template's text.
    """
    if not collator.template.replies_only:
        return  # all text is trained
    rows, expected = zip(*encoded_examples(collator))
    trial = copy(collator)
    if any(collator.is_media(row["input_ids"]).any() for row in rows):  # otherwise the format supports no images
        trial.media_in_every_batch = {"image"}
    batches = [(trial.collate([row]), replies) for row, replies in zip(rows, expected)]
    batches.append((trial.collate([*rows]), sum(expected, [])))
    for batch, replies in batches:
        trained = trained_texts(collator, batch["labels"])
        if trained != replies:
            raise ValueError(
                f"{type(collator.processor).__name__} or its chat template does not work with this collator: it should "
                f"train the replies {replies}, each with an end token, but would train {trained}. Add a family "
                "(docs/add_new_model.md)."
            )


def trained_texts(collator, labels: torch.Tensor) -> list[str]:
    """Return the text of each run of labels without its end tokens. Add "(without an end)" if it has none."""
    ends, texts = collator.template.stop_tokens, []
    for row in labels.tolist():
        for is_trained, run in groupby(row, key=lambda label: label != IGNORE_INDEX):
            if is_trained:
                text = collator.processor.tokenizer.decode([*run], clean_up_tokenization_spaces=False)
                for token in collator.template.frame.thought:  # remove an empty thought
                    text = text.rpartition(token)[2]
                text = whole = text.strip()
                while end := next((end for end in ends if text.endswith(end)), None):
                    text = text.removesuffix(end).strip()
                texts.append(text if text != whole else f"{text} (without an end)")
    return texts
