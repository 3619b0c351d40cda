"""What a run prints about the tokens that it adds, and about tokens added earlier whose embeddings do not train."""

import re
from collections import Counter

from collators.template import Template, joined_text
from loaders.base import BaseLoader
from reading.dataset import MultimodalDataset, evenly_spread
from training.trainable import training_modes

SEARCHED_ROWS = 10_000  # that are searched, spread over the data


def added_tokens(loader: BaseLoader, template: Template) -> str:
    """The result of --add_tokens in a line, or an empty text."""
    known = loader.pieces.keys() - loader.new_tokens.keys()
    names = ", ".join(sorted(map(template.frame.tokenizer.convert_ids_to_tokens, known)))
    kept = f"; already tokens, so their embeddings are kept: {names}" if known else ""
    return f"--add_tokens: {len(loader.new_tokens):,} new tokens{kept}." if loader.pieces else ""


def untrained_tokens(loader: BaseLoader, arguments, template: Template, dataset: MultimodalDataset) -> str:
    """A warning that lists those tokens, or an empty text."""
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
        f"WARNING: the labels hold tokens that were added to the model's original {loader.vocabulary:,}: "
        f"{', '.join(found)}. LoRA alone does not train their embeddings, so the model cannot learn to write them: "
        "name them in an --add_tokens file, or train the language model in full (--use_lora False)."
    )
