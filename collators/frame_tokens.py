"""Which tokens frame a conversation, and how they stay plain text inside a message.

These are headers, ends of turns, and placeholders for pixels. Typed in a message, such a token stays text: `</s>` in a
question would be the token that ends a reply, and `<image>` would ask for pixels. So a reserved character is put inside
each such string before the text is rendered: in `<` + U+FDD0 + `/s>` neither processor nor tokenizer sees a token. Once
tokens are split off, the tokenizer removes the character, and what is left is tokenized as the four ordinary characters
`</s>`. All other added tokens are the model's own words, such as the `<|box_start|>` of a reply: they are tokenized as
the checkpoint's tokenizer does.
"""

import re
from collections.abc import Iterable
from copy import copy
from functools import cached_property

from tokenizers import pre_tokenizers

from reading.rows import RESERVED_CHARACTER

NOTHING = re.compile(r"(?!)")
UNUSED_TOKENS = {"mask_token", "cls_token", "sep_token"}  # named by tokenizers, but no part of a conversation


class FrameTokens:
    """The frame tokens of a family; none until `find`. A family whose own code makes its tokens has a subclass.

    Args:
        processor: the checkpoint's. Its tokenizer is adapted (`adapt_tokenizer`).
        stop_tokens: what ends generation.
    """

    def __init__(self, processor, stop_tokens: list[str]):
        self.processor, self.tokenizer, self.stop_tokens = processor, processor.tokenizer, stop_tokens
        self.tokens: set[str] = set()
        self.thought: set[str] = set()  # what the format writes of a thought before each reply
        self._frame_token = NOTHING
        self.adapt_tokenizer()

    def adapt_tokenizer(self) -> None:
        """Have the tokenizer split a text at reserved characters, and remove them."""
        backend = self.tokenizer.backend_tokenizer
        steps = [pre_tokenizers.Split(RESERVED_CHARACTER, "removed")]
        if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
            steps.insert(0, backend.pre_tokenizer)  # it may put a space before every piece that it gets
        elif backend.pre_tokenizer:
            steps.append(backend.pre_tokenizer)
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)

    @cached_property
    def added_tokens(self) -> dict[int, str]:
        """Id -> string of the tokens that are found in a text before it is split into others."""
        return {id: token.content for id, token in self.tokenizer.added_tokens_decoder.items()}

    def find(self, seen: set[int], reply_tokens: Iterable[str]) -> None:
        """From now on, a frame token inside a message is plain text.

        Args:
            seen: ids of the tokens of encoded probes.
            reply_tokens: what the model writes in replies, also where the format writes it too.
        """
        named = {**self.tokenizer.special_tokens_map, **vars(self.processor)}
        tokens = [named[name] for name in named.keys() - UNUSED_TOKENS if name.endswith("_token")]
        tokens += [*self.processor.all_special_multimodal_tokens, *self.stop_tokens]
        written = {token for id, token in self.added_tokens.items() if id in seen}
        # `<row_1_col_2>` was seen, so `<row_5_col_6>` frames an image of another shape.
        numberless = {re.sub(r"\d+", "0", token) for token in written}
        tokens += [token for token in self.added_tokens.values() if re.sub(r"\d+", "0", token) in numberless]
        self.take({*tokens} - {*reply_tokens})
        self.thought = written.intersection(reply_tokens)

    def with_tokens(self, tokens: Iterable[str]) -> "FrameTokens":
        """The same with further tokens that are plain text inside a message."""
        frame = copy(self)
        frame.__dict__.pop("_other_tokens", None)
        frame.take({*self.tokens, *tokens})
        return frame

    def take(self, tokens: set) -> None:
        self.tokens = {t for t in tokens if isinstance(t, str) and not (t + " ").isspace()}
        self._frame_token = control_pattern(self.tokens)

    @cached_property
    def _other_tokens(self) -> re.Pattern:
        """Matches the added tokens that may be typed, as the tokenizer finds them: the longest of the leftmost."""
        tokens = self.tokenizer.added_tokens_decoder.values()
        found = {t.content for t in tokens if not (t.normalized or t.single_word)} - self.tokens
        return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True))) or NOTHING.pattern)

    def marks(self, text: str) -> list[int]:
        """Where reserved characters go: inside each frame token, but not inside another token, such as `[</s>]`."""
        places = [match.end() for match in self._frame_token.finditer(text)]
        others = [match.span() for match in self._other_tokens.finditer(text)] if places else []
        return [next((end for start, end in others if start < place < end), place) for place in places]

    def marked(self, value: object) -> object:
        """A text with control strings marked; or all texts in a value that lists and objects hold."""
        if isinstance(value, dict):
            return {self.marked(name): self.marked(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [*map(self.marked, value)]
        if not isinstance(value, str):
            return value
        cuts = [0, *self.marks(value), len(value)]
        return RESERVED_CHARACTER.join(value[i:j] for i, j in zip(cuts, cuts[1:]))

    def decode(self, tokens: Iterable[int] | int, **_) -> str:
        """An answer's text, without the tokens that frame it; those that the model writes in replies stay visible."""
        tokens = [tokens] if isinstance(tokens, int) else tokens
        kept = [id for id in map(int, tokens) if self.added_tokens.get(id) not in self.tokens]
        return self.tokenizer.decode(kept)


def control_pattern(tokens: Iterable[str]) -> re.Pattern:
    """Matches the first character of each of these strings, so that overlapping strings are all found."""
    rests: dict[str, list[str]] = {}  # first character -> what may follow it
    for token in sorted({token for token in tokens if len(token) > 1}):
        rests.setdefault(token[0], []).append(re.escape(token[1:]))
    return re.compile("|".join(f"{re.escape(c)}(?={'|'.join(rest)})" for c, rest in rests.items()))
