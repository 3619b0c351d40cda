"""Model cards: the code that training and merging share, and the card of a merged model."""

import os
from contextlib import contextmanager

from huggingface_hub import ModelCard
from tqdm import tqdm

from reports.html_page import render

CARD, TAG = "README.md", "finelmm"


@contextmanager
def forgiven(what: str):
    """Only print a warning if a page cannot be written, because the run must go on and save its weights."""
    try:
        yield
    except Exception as error:
        tqdm.write(f"WARNING: the {what} could not be written: {type(error).__name__}: {error}")


@forgiven("model card")
def write_merged_card(adapter: str, merged: str) -> None:
    """Convert an adapter's card into the card of the merged model. Ignore a card that `write_card` did not write."""
    path = os.path.join(adapter, CARD)
    card = ModelCard.load(path) if os.path.isfile(path) else None
    if card is None or TAG not in (card.data.tags or []):
        return
    card.data.library_name, card.data.tags = "transformers", [TAG]
    card.data.base_model_relation = card.data.base_model and "finetune"
    head, _, tail = card.text.partition("## Use\n")
    head = head.replace("\nAdapter of", "\nMerged weights of", 1)
    card.text = head + str(render("model_card_use.md", is_adapter=False)) + tail.partition("```\n")[2]
    card.save(os.path.join(merged, CARD))
