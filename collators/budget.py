"""The token budget of a run: the length of each sample, found without opening it, and what to do with those too long.

A text is tokenized once, and its number of tokens is kept next to the index of its file. A medium is counted from its
size, by the processor's own arithmetic. Only samples that may exceed the budget are opened: an image of 600 tokens and
a text of 3,000 bytes are at most 3,600 tokens, which always fit `--model_max_length 4096`; with 2048 the text is
tokenized, and if it has 1,500 tokens, the sample is encoded to find where it is cut.
"""

import hashlib
import inspect
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict
from functools import cached_property, partial
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import transformers
from tokenizers import Tokenizer

from collators.cached_counts import cached_counts
from collators.template import Template, conversation, naming
from reading.options import scaled_size
from reading.row_index import ChangedFile, Layout
from reading.rows import content_parts

WHOLE, CUT = 1, 2  # what becomes of a long row
PIXEL_STEP = 1024  # in which --max_pixels is proposed


class OverlongSample(ValueError):
    """A sample that cannot be cut to the token budget without cutting through a medium or losing every label."""


class MediaTokens(NamedTuple):
    """Of each sample of a data set, from the sizes of its media alone."""

    media: np.ndarray  # (rows,) float; inf where it is not known
    in_videos: np.ndarray  # (rows,) float: an upper bound on the tokens of text that the processor writes into videos
    refused: dict[int, ValueError]  # position -> why the model refuses the sample


class Budget:
    """Counts tokens without opening media, and fits a data set to `max_length`.

    A family whose processor has no arithmetic of its own, or a wrong one, has a subclass.

    Args:
        family: class of the collator whose samples are counted, with its facts about the processor.
        max_length: tokens of a sample, media included; None: no limit.
    """

    def __init__(self, processor, family: type, template: Template, max_length: int | None = None):
        self.processor, self.tokenizer, self.template = processor, processor.tokenizer, template
        self.family, self.max_length = family, max_length

    # ---- one sample ----

    def count_text_tokens(self, rows: list[dict]) -> list[int]:
        """Tokens of each sample without those that stand for its media; opens no file.

        Raises:
            ValueError: the template cannot render one; the message names it.
        """
        pieces, placeholders = [], []
        for row in rows:
            with naming(row.get("source", "sample"), self.processor):
                self.template.check_rendering(row["messages"])
                pieces.append(self._pieces(row["messages"]))
            num_media = sum(part["type"] != "text" for part in content_parts(row))
            placeholders.append(num_media * self.family.placeholder_tokens)
        lengths = iter(self._lengths_of([*chain(*pieces)]))
        return [sum(islice(lengths, len(of_row))) - number for of_row, number in zip(pieces, placeholders)]

    def _pieces(self, messages: list[dict]) -> list[str]:
        """The training text, in the pieces that the processor tokenizes separately, each medium a placeholder."""
        return [self.template.render(messages)[0]]

    def _lengths_of(self, texts: list[str]) -> list[int]:
        """Tokens of each text, as the processor tokenizes it."""
        lengths, writes_bos = np.zeros(len(texts), int), np.array([*map(self.template.writes_bos, texts)], bool)
        for mask in (writes_bos, ~writes_bos):
            some = [texts[i] for i in np.flatnonzero(mask)]
            encoded = self._backend.encode_batch_fast(some, add_special_tokens=mask is not writes_bos)
            lengths[mask] = [len(tokens) for tokens in encoded]
        return lengths.tolist()

    @property
    def _backend(self) -> Tokenizer:
        """The tokenizer underneath, several times as fast as through transformers; set to neither cut nor pad."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return backend

    def count_media_tokens(self, row: dict, media_sizes: dict) -> float:
        """Tokens of a sample's media, from their sizes alone by the processor's own arithmetic; inf if it has none.

        Args:
            media_sizes: (kind, path) -> (height, width) or (frames, height, width).
        """
        sizes = {}
        for part in content_parts(row):
            if (kind := part["type"]) != "text":
                size = media_sizes[kind, part[kind]]
                if kind == "video":
                    size = (max(size[0], fewest_frames(self.processor)), *size[1:])
                sizes.setdefault(f"{kind}_sizes", []).append(size)
        if not sizes:
            return 0
        if not hasattr(self.processor, "_get_num_multimodal_tokens"):  # private, but what vLLM plans with
            return float("inf")
        counts = self.processor._get_num_multimodal_tokens(**sizes, **self.family.processor_kwargs)
        return sum(sum(counts[name]) for name in ("num_image_tokens", "num_video_tokens") if name in counts)

    def count_frame_text_tokens(self, row: dict, media_sizes: dict) -> int:
        """At most how many tokens of text the processor writes into the videos of a sample; opens no file."""
        if not (frame_text := self.family.frame_text):
            return 0
        frames = [media_sizes["video", part["video"]][0] for part in content_parts(row) if part["type"] == "video"]
        tokens = self.tokenizer(frame_text, add_special_tokens=False).input_ids
        return len(tokens) * sum((number + 1) // 2 for number in frames)

    def media_do_not_fit(self, source: str, num_tokens: int) -> OverlongSample:
        return OverlongSample(
            f"{source}: the media of its first exchange need {num_tokens} tokens, more than the --model_max_length of "
            f"{self.max_length}. Raise --model_max_length, use smaller images or fewer frames, or drop such "
            "samples with --drop_overlong True."
        )

    # ---- a data set ----

    def token_lengths(self, dataset) -> np.ndarray:
        """Tokens of each sample as it is encoded, before it is cut; opens no media.

        Exact, except for an upper bound where the processor writes a video's times or cannot count its tokens.

        Returns:
            (rows,) int32.

        Raises:
            ValueError: a sample that the model or the template refuses; `fit` names and handles all of them.
        """
        media, in_videos, refused = self.media_tokens(dataset)
        text, unfit = self.text_tokens(dataset, np.arange(len(dataset)))
        if faults := refused | unfit:
            raise next(iter(faults.values()))
        return np.minimum(text + media + in_videos, np.iinfo(np.int32).max).astype(np.int32)

    def media_tokens(self, dataset) -> MediaTokens:
        """Count the media of all samples, once for each combination of layout and sizes that occurs."""
        tokens, in_videos, faults = np.zeros(len(dataset)), np.zeros(len(dataset)), {}
        counted = {}  # media alike, in conversations of any layout
        for layout, sizes, positions in dataset.groups():
            row, known = {"messages": layout.messages}, layout.media_sizes(sizes)
            alike = (*layout.media, sizes.tobytes())
            source = dataset.source(positions[0])
            try:
                with naming(source, self.processor):
                    self.template.check_layout(row["messages"])
                    if alike not in counted:
                        of_media = self.count_media_tokens(row, known)
                        counted[alike] = of_media, self.count_frame_text_tokens(row, known)
                tokens[positions], in_videos[positions] = counted[alike]
            except ValueError as error:
                reason = str(error).removeprefix(source)
                faults |= {place: ValueError(f"{dataset.source(place)}{reason}") for place in positions.tolist()}
        return MediaTokens(tokens, in_videos, faults)

    def text_tokens(self, dataset, positions: np.ndarray) -> tuple[np.ndarray, dict[int, ValueError]]:
        """Tokens of these samples without their media (len(positions),); position -> why it cannot be rendered."""
        # Next to the folder of the index, since flags of how media are read do not matter.
        folder_of = lambda index: os.path.dirname(index.folder)  # noqa: E731
        find, key = partial(self._count_texts, dataset), [self.fingerprint]
        if self.template.boxes.in_pixels and dataset.num_parts(Layout.FIELD_SIGNS["objects"]).any():
            key.append(asdict(dataset.media))  # their digits follow the size
        return cached_counts(dataset, positions, find, folder_of, "texts", key, "Counting")

    def _count_texts(self, dataset, positions: Sequence[int]) -> list[int | ValueError]:
        rows = [dataset.rows[position] for position in positions]
        try:
            return self.count_text_tokens(rows)
        except ValueError as error:
            return [error] if len(rows) == 1 else [self._count_texts(dataset, [p])[0] for p in positions]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that a sample's tokens depend on besides sample and budget, including our code."""
        template = self.template
        classes = (self.family, *map(type, (self, template, template.frame, template.boxes)))
        modules = dict.fromkeys(inspect.getmodule(base) for cls in classes for base in cls.__mro__[:-1])
        code = [*map(inspect.getsource, modules), template.boxes.format]
        own = template.thoughts_and_tools
        texts = [template.text, self.processor.chat_template, template.kwargs, template.given, template.string_roles]
        texts += [own.thought_format, own.train_thoughts]
        tokens = [template.stop_tokens, sorted(template.frame.tokens), self.tokenizer.special_tokens_map]
        settings = [code, texts, tokens, self.family.processor_kwargs, *self._files(), transformers.__version__]
        return hashlib.sha256(repr(settings).encode()).hexdigest()

    def _files(self) -> list[str]:
        """What the checkpoint's files make of tokenizer and processor."""
        return [self._backend.to_str(), self.processor.to_json_string()]

    # ---- what is too long ----

    def pixels_that_fit(self, dataset, positions: np.ndarray) -> tuple[int | None, int]:
        """The largest --max_pixels with which all samples fit uncut that fit at any number; and how many these are.

        None, 0 if no number helps: texts or videos alone are too long, or images of any size have as many tokens.
        """
        room = np.full(len(dataset), -np.inf)
        room[positions] = self.max_length - self.text_tokens(dataset, positions)[0]
        # Where images are resized before the processor, the flag goes on doing that.
        bounded = self.family.frames_in_bounds and not (dataset.media.min_pixels or dataset.media.max_pixels)
        lowest, highest = 1, dataset.media.image_pixel_limit // PIXEL_STEP
        if bounded:
            size, step = self.processor.image_processor.size, PIXEL_STEP * self.family.frames_in_bounds
            lowest, highest = -(-size["shortest_edge"] // step), size["longest_edge"] // step
        best, helped = highest, 0
        at_lowest, at_best = (self._counter(steps * PIXEL_STEP, bounded) for steps in (lowest, best))
        for layout, sizes, members in dataset.groups():
            if "image" not in layout.media or dataset.media.image_size or room[members].max() < 0:
                continue
            row, known = {"messages": layout.messages}, layout.media_sizes(sizes)
            rooms = room[members] - self.count_frame_text_tokens(row, known)
            rooms = rooms[rooms >= at_lowest(row, known)]
            helped += len(rooms)
            if len(rooms) and at_best(row, known) > rooms.min():
                tokens = lambda steps, of=(row, known): self._counter(steps * PIXEL_STEP, bounded)(*of)  # noqa: E731
                best = lowest + bisect_right(range(lowest, best), rooms.min(), key=tokens) - 1
                at_best = self._counter(best * PIXEL_STEP, bounded)
        return (best * PIXEL_STEP, helped) if helped else (None, 0)

    def _counter(self, max_pixels: int, bounded: bool) -> Callable:
        """`count_media_tokens` under this --max_pixels: a bound of the processor, or what images are shrunk to."""
        if not bounded:
            shrunk = lambda kind, size: scaled_size(*size, None, max_pixels) if kind == "image" else size  # noqa: E731
            return lambda row, sizes: self.count_media_tokens(row, {key: shrunk(key[0], sizes[key]) for key in sizes})
        other = copy(self)
        other.processor = copy(self.processor)
        images = other.processor.image_processor = copy(self.processor.image_processor)
        images.size = dict(images.size) | {"longest_edge": max_pixels * self.family.frames_in_bounds}
        return other.count_media_tokens

    def advice(self, dataset, positions: Sequence[int]) -> str:
        """The --max_pixels with which samples fit that now do not; "" if there is none."""
        pixels, helped = self.pixels_that_fit(dataset, np.sort(positions))
        number = "all" if helped == len(positions) else f"{helped:,}"
        return f"--max_pixels {pixels} makes {number} of them fit" if pixels else ""

    def fit(self, dataset, encode: Callable, drop_overlong: bool) -> tuple[int, int]:
        """Find the samples that exceed the budget, opening only candidates; drop those that cannot be cut, if asked to.

        Args:
            encode: opened sample -> Encoded (`ChatCollator.encode`).

        Returns:
            The numbers of samples that will be cut, and that were dropped.

        Raises:
            ValueError: samples that cannot be cut, without `drop_overlong`; or no sample is left.
        """
        # What a template writes unasked, such as a default system prompt.
        empty, template = conversation(("user", ""), ("assistant", "")), self.template
        written = template.render(empty)[0] if template.is_tagged else template.render_official(empty)
        media, in_videos, broken = self.media_tokens(dataset)
        allow(dataset, broken)
        # A token is at least a byte of text; 64 is more than any template adds to a further message.
        text_bytes = dataset.of_rows("text_bytes") + len(written.encode()) + 64 * dataset.num_parts()
        is_doubtful = text_bytes + media + in_videos > self.max_length
        is_doubtful |= dataset.num_parts(Layout.FIELD_SIGNS.values()) > 0  # not among the text bytes
        # Every row is rendered once where the template may refuse its texts.
        is_doubtful |= template.is_replaced or bool(template.frame.thought)
        doubtful = np.setdiff1d(np.flatnonzero(is_doubtful), [*broken])
        text, unfit = self.text_tokens(dataset, doubtful)
        allow(dataset, unfit)
        long = np.setdiff1d(doubtful[text + (media + in_videos)[doubtful] > self.max_length], [*unfit])
        key = [self.fingerprint, self.max_length, template.replies_only]
        find = partial(self._fit_results, dataset, encode, media)
        results, failed = cached_counts(
            dataset, long, find, lambda index: index.folder, "fit", key, "Encoding long rows of"
        )
        faults = {position: error for position, error in failed.items() if isinstance(error, OverlongSample)}
        # Such as a medium that is broken after its header.
        late = {position: error for position, error in failed.items() if position not in faults}
        allow(dataset, late)
        if faults and not (drop_overlong and len(faults) < len(dataset)):
            listed = "\n".join(f"  {fault}" for fault in list(faults.values())[:10])
            about = "; ".join(filter(None, [f"{len(faults) / len(dataset):.0%}", self.advice(dataset, [*faults])]))
            raise ValueError(f"{len(faults)} of {len(dataset)} samples do not fit ({about}):\n{listed}")
        if broken := broken | unfit | late:
            dataset.leave_out({position: str(error) for position, error in broken.items()}, also=faults)
        elif faults:
            dataset.select(np.setdiff1d(np.arange(len(dataset)), list(faults)))
        return int((results == CUT).sum()), len(faults)

    def _fit_results(self, dataset, encode, media: np.ndarray, positions: list[int]) -> list[int | ValueError]:
        """For each of some long rows, WHOLE, CUT, or why it cannot be used."""
        results = []
        for position in positions:
            try:
                row = dataset.rows[position]
                if self.max_length < media[position] < float("inf") and len(row["messages"]) <= 3:
                    raise self.media_do_not_fit(row["source"], int(media[position]))
                results.append(CUT if encode(dataset[position]).cut else WHOLE)
            except ChangedFile:
                raise
            except ValueError as error:
                results.append(error)
        return results


def allow(dataset, faults: dict[int, ValueError]) -> None:
    """Raise the first fault, unless the data set may have some."""
    if faults and dataset.max_bad_samples is None:
        raise next(iter(faults.values()))


def fewest_frames(processor) -> int:
    """How many frames a patch spans: some processors refuse fewer (transformers 5.23: Qwen3-VL, GLM-4.1V)."""
    return getattr(getattr(processor, "video_processor", None), "temporal_patch_size", 1)
