"""The frame tokens of a conversation, and how they stay plain text inside a message.

Frame tokens are headers, ends of turns and placeholders for pixels. If a user types one in a message, it is meant as
text. But the tokenizer would turn `</s>` into the token that ends a reply, and the processor would need an image for
`<image>`. So we insert a reserved character into each of these strings before rendering. In `<` + U+FDD0 + `/s>`,
neither the processor nor the tokenizer finds a token. After its search for tokens, the tokenizer removes the character
and tokenizes the remaining `</s>` as ordinary text. The model may write all other added tokens, such as
`<|box_start|>`, in its replies, so they are tokenized as the checkpoint's tokenizer does.
"""

import re
from collections.abc import Iterable
from copy import copy
from functools import cached_property

from tokenizers import pre_tokenizers

from reading.rows import RESERVED_CHARACTER

NOTHING = re.compile(r"(?!)")
UNUSED_TOKENS = {"mask_token", "cls_token", "sep_token"}  # tokenizers have these, but conversations do not


class FrameTokens:
    """The frame tokens of a family, found by `find`. A family that tokenizes with its own code has a subclass.

    Args:
        processor: the checkpoint's processor. Its tokenizer gets modified (`adapt_tokenizer`).
        stop_tokens: the tokens that end generation.
    """

    def __init__(self, processor, stop_tokens: list[str]):
        self.processor, self.tokenizer, self.stop_tokens = processor, processor.tokenizer, stop_tokens
        self.tokens: set[str] = set()
        self.thought: set[str] = set()  # tokens of a thought that the format writes before replies
        self._frame_token = NOTHING
        self.adapt_tokenizer()

    def adapt_tokenizer(self) -> None:
        """Make the tokenizer split a text at reserved characters and remove these characters."""
        backend = self.tokenizer.backend_tokenizer
        steps = [pre_tokenizers.Split(RESERVED_CHARACTER, "removed")]
        if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
            steps.insert(0, backend.pre_tokenizer)  # before the split, since it may add a space to each piece
        elif backend.pre_tokenizer:
            steps.append(backend.pre_tokenizer)
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)

    @cached_property
    def added_tokens(self) -> dict[int, str]:
        """Map ids of added tokens to their strings. The tokenizer finds added tokens before it splits the text."""
        return {id: token.content for id, token in self.tokenizer.added_tokens_decoder.items()}

    def find(self, seen: set[int], reply_tokens: Iterable[str]) -> None:
        """Find the frame tokens. From now on, a frame token inside a message is plain text.

        Args:
            seen: the token ids that occur in encoded examples.
            reply_tokens: tokens that the model may write in replies. They are never frame tokens.
        """
        named = {**self.tokenizer.special_tokens_map, **vars(self.processor)}
        tokens = [named[name] for name in named.keys() - UNUSED_TOKENS if name.endswith("_token")]
        tokens += [*self.processor.all_special_multimodal_tokens, *self.stop_tokens]
        written = {token for id, token in self.added_tokens.items() if id in seen}
        # If the examples contain `<row_1_col_2>`, then `<row_5_col_6>` is also a frame token.
        numberless = {re.sub(r"\d+", "0", token) for token in written}
        tokens += [token for token in self.added_tokens.values() if re.sub(r"\d+", "0", token) in numberless]
        self.take({*tokens} - {*reply_tokens})
        self.thought = written.intersection(reply_tokens)

    def with_tokens(self, tokens: Iterable[str]) -> "FrameTokens":
        """Return a copy with additional tokens that are plain text inside a message."""
        frame = copy(self)
        frame.__dict__.pop("_other_tokens", None)
        frame.take({*self.tokens, *tokens})
        return frame

    def take(self, tokens: set) -> None:
        self.tokens = {t for t in tokens if isinstance(t, str) and not (t + " ").isspace()}
        self._frame_token = control_pattern(self.tokens)

    @cached_property
    def _other_tokens(self) -> re.Pattern:
        """A pattern of the added tokens that are not frame tokens. Like the tokenizer, it prefers the longest match."""
        tokens = self.tokenizer.added_tokens_decoder.values()
        found = {t.content for t in tokens if not (t.normalized or t.single_word)} - self.tokens
        return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True))) or NOTHING.pattern)

    def marks(self, text: str) -> list[int]:
        """Return where to insert reserved characters: in each frame token, or after a longer token that contains it."""
        places = [match.end() for match in self._frame_token.finditer(text)]
        others = [match.span() for match in self._other_tokens.finditer(text)] if places else []
        return [next((end for start, end in others if start < place < end), place) for place in places]

    def marked(self, value: object) -> object:
        """Insert the reserved characters into a text, or into all texts of nested lists and objects."""
        if isinstance(value, dict):
            return {self.marked(name): self.marked(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [*map(self.marked, value)]
        if not isinstance(value, str):
            return value
        cuts = [0, *self.marks(value), len(value)]
        return RESERVED_CHARACTER.join(value[i:j] for i, j in zip(cuts, cuts[1:]))

    def decode(self, tokens: Iterable[int] | int, **_) -> str:
        """Decode an answer without its frame tokens. Tokens that the model may write in replies stay visible."""
        tokens = [tokens] if isinstance(tokens, int) else tokens
        kept = [id for id in map(int, tokens) if self.added_tokens.get(id) not in self.tokens]
        return self.tokenizer.decode(kept)


def control_pattern(tokens: Iterable[str]) -> re.Pattern:
    """Return a pattern that matches the first character of each string, so that it also finds overlapping strings."""
    rests: dict[str, list[str]] = {}  # first character -> what may follow it
    for token in sorted({token for token in tokens if len(token) > 1}):
        rests.setdefault(token[0], []).append(re.escape(token[1:]))
    return re.compile("|".join(f"{re.escape(c)}(?={'|'.join(rest)})" for c, rest in rests.items()))
