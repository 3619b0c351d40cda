"""Messages about tokens that a run adds, and about tokens that were added earlier but whose embeddings do not train."""

import re
from collections import Counter

from collators.template import Template, joined_text
from loaders.base import BaseLoader
from reading.dataset import MultimodalDataset, evenly_spread
from training.trainable import training_modes

SEARCHED_ROWS = 10_000  # evenly spaced rows of the data that are searched


def added_tokens(loader: BaseLoader, template: Template) -> str:
    """Return a line on how many tokens --add_tokens has added, or an empty text without the flag."""
    known = loader.pieces.keys() - loader.new_tokens.keys()
    names = ", ".join(sorted(map(template.frame.tokenizer.convert_ids_to_tokens, known)))
    kept = f"; these are tokens already and keep their embeddings: {names}" if known else ""
    return f"--add_tokens: {len(loader.new_tokens):,} new tokens{kept}." if loader.pieces else ""


def untrained_tokens(loader: BaseLoader, arguments, template: Template, dataset: MultimodalDataset) -> str:
    """Return a warning that lists tokens in the labels whose embeddings should train but do not, or an empty text."""
    if not loader.vocabulary or training_modes(arguments)["language_model"] == "full":
        return ""
    others = {id: token for id, token in template.frame.added_tokens.items() if id not in loader.pieces}
    added = {token for id, token in others.items() if id >= loader.vocabulary}
    if not (added := added - template.frame.tokens):
        return ""
    pattern, found = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True)))), Counter()
    for place in evenly_spread(range(len(dataset)), SEARCHED_ROWS):
        for message in (dataset.rows[place] or {"messages": []})["messages"]:
            if message["role"] == "assistant" or not template.replies_only:
                found.update(pattern.findall(joined_text(message["content"])))
    if not found:
        return ""
    return (
        f"WARNING: the labels contain tokens that were added to the original vocabulary of {loader.vocabulary:,}: "
        f"{', '.join(found)}. LoRA alone does not train the embeddings of added tokens, so the model cannot learn to "
        "write them. Name them in an --add_tokens file, or train in full (--use_lora False)."
    )
