"""Split the tokens of a row into runs of one kind (trained, context, media, cut), as `preview.py` shows them."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import accumulate, takewhile
from typing import NamedTuple

import torch

from collators.base import ChatCollator
from reading.dataset import IGNORE_INDEX, MultimodalDataset
from reading.rows import trained_replies


class Run(NamedTuple):
    """Neighbouring tokens of one kind: "trained", "context", "image" or "video"."""

    kind: str
    ids: list[int]
    is_cut: bool = False  # cut by --model_max_length, so the model does not get these tokens

    @property
    def is_text(self) -> bool:
        return self.kind in ("trained", "context")

    @property
    def style(self) -> str:
        return "cut" if self.is_cut else self.kind

    @property
    def folded(self) -> str:
        return f"[{self.kind}: {len(self.ids)} tokens]"


class Piece(NamedTuple):
    """A token of text, or several tokens that only together decode to a character."""

    ids: list[int]
    text: str
    part: str = ""  # "thought", "answer" or "call", in trained replies that have a thought or calls


class Preview(NamedTuple):
    row: dict  # what --json prints
    sample: dict | None = None  # with opened media; an unusable row has neither this nor the fields below
    runs: tuple[Run, ...] = ()
    boxes: Sequence[dict] = ()  # boxes and points in the trained text


def examine(dataset: MultimodalDataset, collator: ChatCollator, index: int) -> Preview:
    """Open and encode a row as in training. For an unusable row, return its error."""
    try:
        sample = dataset[index]
        encoded = collator.encode(sample)
    except ValueError as error:
        return Preview({"index": index, "error": str(error)})
    ids, labels = encoded.inputs["input_ids"][0], encoded.inputs["labels"][0]
    runs = split_runs(collator, ids, labels)
    counts = count(runs)
    row = {
        "index": index,
        "text": encoded.text,
        "trained": [decode(collator, run.ids) for run in runs if run.kind == "trained"],
        "num_tokens": len(ids),
        "num_trained": counts["trained"],
        "num_image_tokens": counts["image"],
        "num_video_tokens": counts["video"],
        "cut": encoded.cut,
        "token_ids": ids.tolist(),
        "labels": labels.tolist(),
    }
    messages = sample["messages"]
    tellers = trained_replies(messages) if collator.template.replies_only else messages
    return Preview(row, sample, runs, collator.template.boxes.told("\n".join(row["trained"]), messages, tellers))


def split_runs(collator: ChatCollator, ids: torch.Tensor, labels: torch.Tensor, is_cut=False) -> tuple[Run, ...]:
    """Split the token ids and labels of a row, each of shape (tokens,), into runs."""
    kinds = ["context" if label == IGNORE_INDEX else "trained" for label in labels.tolist()]
    for kind in ("image", "video"):
        for i in collator.is_media(ids, kind).nonzero()[:, 0].tolist():
            kinds[i] = kind
    edges = [0, *(i for i in range(1, len(ids)) if kinds[i] != kinds[i - 1]), len(ids)]
    return tuple(Run(kinds[a], ids[a:b].tolist(), is_cut) for a, b in zip(edges, edges[1:]) if a < b)


def cut_runs(collator: ChatCollator, preview: Preview) -> tuple[Run, ...]:
    """Return the tokens that --model_max_length cuts away."""
    if not preview.row["cut"]:
        return ()
    inputs = collator.encode(preview.sample, within_budget=False).inputs
    ids, labels = inputs["input_ids"][0], inputs["labels"][0]
    begin = 0
    for kept, run in zip(preview.runs, split_runs(collator, ids, labels)):
        if run.is_text or kept.is_text:
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(kept.ids, run.ids)))
        else:  # in a cut conversation, an image may have a different number of tokens
            same = len(run.ids)
        begin += same
        if same < len(run.ids):
            break
    return split_runs(collator, ids[begin:], labels[begin:], is_cut=True)


def count(runs: Iterable[Run]) -> Counter:
    """Count the tokens of each `Run.style`."""
    return Counter(run.style for run in runs for _ in run.ids)


def decode(collator: ChatCollator, ids: list[int]) -> str:
    return collator.processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def pieces(collator: ChatCollator, ids: list[int], before: list[int]) -> list[Piece]:
    """Split token ids into pieces of text, decoded with the white space that they have when they follow `before`."""
    known = before[-1:]  # decode after this token, because some tokenizers drop the space of the first token
    anchor, read, ids, found = 0, len(known), [*known, *ids], []
    for end in range(read + 1, len(ids) + 1):
        text = decode(collator, ids[anchor:end])
        if text.endswith("\ufffd") and end < len(ids):
            continue  # part of a character that the next tokens complete
        found.append(Piece(ids[read:end], text[len(decode(collator, ids[anchor:read])) :]))
        anchor, read = read, end
    return found


def with_pieces(collator: ChatCollator, runs: Iterable[Run]) -> Iterator[tuple[Run, list[Piece]]]:
    """Yield each run with its pieces (none for media). `Piece.part` is set in trained replies."""
    before = []
    for run in runs:
        found = pieces(collator, run.ids, before) if run.is_text else []
        yield run, with_parts(collator, found) if run.kind == "trained" else found
        before = run.ids if run.is_text else before  # image ids of Phi-3 Vision are negative and cannot be decoded


def with_parts(collator: ChatCollator, reply: list[Piece]) -> list[Piece]:
    """Return the pieces of a trained reply with `Piece.part` set, or unchanged if the reply is only an answer."""
    parts = collator.template.thoughts_and_tools.parts_of("".join(piece.text for piece in reply))
    of_characters = [part for part, text in parts for _ in text if parts[1:] or part != "answer"]
    starts = accumulate((len(piece.text) for piece in reply), initial=0)
    return [piece._replace(part="".join(of_characters[start : start + 1])) for piece, start in zip(reply, starts)]


def inline_difference(ours: str, official: str) -> list[tuple[str, str]]:
    """Compare two texts. Return (tag, text) pairs: "" is text in both, "ins" only in ours, "del" only in official."""
    ours, official = (re.findall(r"<[^<>\s]+>|\w+|\W", text) for text in (ours, official))
    found = []
    for tag, a, b, c, d in SequenceMatcher(None, official, ours).get_opcodes():
        if tag == "equal":
            found.append(("", "".join(ours[c:d])))
        else:
            found += [(name, "".join(words)) for name, words in (("del", official[a:b]), ("ins", ours[c:d])) if words]
    return found
