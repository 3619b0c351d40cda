"""The token budget of a run: count the tokens of each sample without opening its media, and handle long samples.

A text's token count is cached next to its file's index. The tokens of an image or video are computed from its size,
with the processor's own arithmetic. Only samples that may exceed the budget are opened. Example: a text of 3,000 bytes
has at most 3,000 tokens, so with an image of 600 tokens it fits `--model_max_length 4096`. For a limit of 2048, the
text is tokenized. If it has 1,500 tokens, the sample is too long, and it is encoded to find where to cut.
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

WHOLE, CUT = 1, 2  # the result for a long row
PIXEL_STEP = 1024  # suggested values of --max_pixels are multiples of this


class OverlongSample(ValueError):
    """A sample cannot be cut to the token budget without cutting through an image or video, or losing all labels."""


class MediaTokens(NamedTuple):
    """The media tokens of each sample of a data set, computed from the sizes of the media alone."""

    media: np.ndarray  # (rows,) float; inf if unknown
    in_videos: np.ndarray  # (rows,) float: upper bound on the tokens of text that the processor adds to videos
    refused: dict[int, ValueError]  # position -> why the model cannot use the sample


class Budget:
    """Counts tokens without opening media, and fits a data set to `max_length`.

    A family has a subclass if its processor cannot count the tokens of media, or counts them wrong.

    Args:
        family: the collator class, which has the facts about the processor.
        max_length: maximum number of tokens of a sample, media included; None for no limit.
    """

    def __init__(self, processor, family: type, template: Template, max_length: int | None = None):
        self.processor, self.tokenizer, self.template = processor, processor.tokenizer, template
        self.family, self.max_length = family, max_length

    # ---- one sample ----

    def count_text_tokens(self, rows: list[dict]) -> list[int]:
        """Count the tokens of each sample except those that stand for media. Opens no file.

        Raises:
            ValueError: the template cannot render a sample. The message names the sample.
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
        """Return the training text, split into pieces that the processor tokenizes separately."""
        return [self.template.render(messages)[0]]

    def _lengths_of(self, texts: list[str]) -> list[int]:
        """Count the tokens of each text as the processor would tokenize it."""
        lengths, writes_bos = np.zeros(len(texts), int), np.array([*map(self.template.writes_bos, texts)], bool)
        for mask in (writes_bos, ~writes_bos):
            some = [texts[i] for i in np.flatnonzero(mask)]
            encoded = self._backend.encode_batch_fast(some, add_special_tokens=mask is not writes_bos)
            lengths[mask] = [len(tokens) for tokens in encoded]
        return lengths.tolist()

    @property
    def _backend(self) -> Tokenizer:
        """The underlying tokenizer, without truncation or padding. It is several times faster than its wrapper."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return backend

    def count_media_tokens(self, row: dict, media_sizes: dict) -> float:
        """Compute the tokens of a sample's media from their sizes, or inf if the processor cannot compute them.

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
        if not hasattr(self.processor, "_get_num_multimodal_tokens"):  # private, but vLLM uses it too
            return float("inf")
        counts = self.processor._get_num_multimodal_tokens(**sizes, **self.family.processor_kwargs)
        return sum(sum(counts[name]) for name in ("num_image_tokens", "num_video_tokens") if name in counts)

    def count_frame_text_tokens(self, row: dict, media_sizes: dict) -> int:
        """Return an upper bound on the tokens of text that the processor adds to a sample's videos. Opens no file."""
        if not (frame_text := self.family.frame_text):
            return 0
        frames = [media_sizes["video", part["video"]][0] for part in content_parts(row) if part["type"] == "video"]
        tokens = self.tokenizer(frame_text, add_special_tokens=False).input_ids
        return len(tokens) * sum((number + 1) // 2 for number in frames)

    def media_do_not_fit(self, source: str, num_tokens: int) -> OverlongSample:
        return OverlongSample(
            f"{source}: the media of the first exchange need {num_tokens} tokens, more than --model_max_length "
            f"{self.max_length}. Raise --model_max_length, use smaller images or fewer frames, or drop these "
            "samples with --drop_overlong True."
        )

    # ---- a data set ----

    def token_lengths(self, dataset) -> np.ndarray:
        """Count the tokens of each sample before cutting. Opens no media.

        The counts are exact, except for videos: they are upper bounds if the processor adds times or cannot count.

        Returns:
            (rows,) int32.

        Raises:
            ValueError: the model or the template cannot use a sample. `fit` reports all of these samples.
        """
        media, in_videos, refused = self.media_tokens(dataset)
        text, unfit = self.text_tokens(dataset, np.arange(len(dataset)))
        if faults := refused | unfit:
            raise next(iter(faults.values()))
        return np.minimum(text + media + in_videos, np.iinfo(np.int32).max).astype(np.int32)

    def media_tokens(self, dataset) -> MediaTokens:
        """Count the media tokens of all samples. Samples with the same kinds and sizes of media are counted once."""
        tokens, in_videos, faults = np.zeros(len(dataset)), np.zeros(len(dataset)), {}
        counted = {}  # (kinds and sizes of media) -> token counts, which do not depend on the rest of the layout
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
        """Return the number of text tokens per sample (len(positions),), and position -> why it cannot be rendered."""
        # The cache is outside the index's folder, which depends on the flags for reading media. Text tokens do not.
        folder_of = lambda index: os.path.dirname(index.folder)  # noqa: E731
        find, key = partial(self._count_texts, dataset), [self.fingerprint]
        if self.template.boxes.in_pixels and dataset.num_parts(Layout.FIELD_SIGNS["objects"]).any():
            key.append(asdict(dataset.media))  # box coordinates depend on the image's size
        return cached_counts(dataset, positions, find, folder_of, "texts", key, "Counting")

    def _count_texts(self, dataset, positions: Sequence[int]) -> list[int | ValueError]:
        rows = [dataset.rows[position] for position in positions]
        try:
            return self.count_text_tokens(rows)
        except ValueError as error:
            return [error] if len(rows) == 1 else [self._count_texts(dataset, [p])[0] for p in positions]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that affects token counts, our code included, except the sample and the budget."""
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
        """Return the tokenizer and the processor as loaded from the checkpoint's files, as text."""
        return [self._backend.to_str(), self.processor.to_json_string()]

    # ---- what is too long ----

    def pixels_that_fit(self, dataset, positions: np.ndarray) -> tuple[int | None, int]:
        """Return the largest --max_pixels with which all samples that can fit do fit, and the number of these samples.

        Returns (None, 0) if no value helps: texts or videos alone are too long, or image tokens do not depend on size.
        """
        room = np.full(len(dataset), -np.inf)
        room[positions] = self.max_length - self.text_tokens(dataset, positions)[0]
        # If the run already resizes images before the processor, the suggested value would change that resize.
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
        """Return `count_media_tokens` for this --max_pixels, applied in the processor (`bounded`) or before it."""
        if not bounded:
            shrunk = lambda kind, size: scaled_size(*size, None, max_pixels) if kind == "image" else size  # noqa: E731
            return lambda row, sizes: self.count_media_tokens(row, {key: shrunk(key[0], sizes[key]) for key in sizes})
        other = copy(self)
        other.processor = copy(self.processor)
        images = other.processor.image_processor = copy(self.processor.image_processor)
        images.size = dict(images.size) | {"longest_edge": max_pixels * self.family.frames_in_bounds}
        return other.count_media_tokens

    def advice(self, dataset, positions: Sequence[int]) -> str:
        """Suggest a --max_pixels with which overlong samples fit. Return "" if no value helps."""
        pixels, helped = self.pixels_that_fit(dataset, np.sort(positions))
        number = "all" if helped == len(positions) else f"{helped:,}"
        return f"--max_pixels {pixels} makes {number} of them fit" if pixels else ""

    def fit(self, dataset, encode: Callable, drop_overlong: bool) -> tuple[int, int]:
        """Find the samples that exceed the budget. With `drop_overlong`, drop those that cannot be cut.

        Args:
            encode: `ChatCollator.encode`, which turns a sample with loaded media into an Encoded.

        Returns:
            The number of samples that will be cut, and the number that were dropped.

        Raises:
            ValueError: a sample cannot be cut and `drop_overlong` is False, or no sample is left.
        """
        # The text that the template adds to every conversation, such as a default system prompt.
        empty, template = conversation(("user", ""), ("assistant", "")), self.template
        written = template.render(empty)[0] if template.is_tagged else template.render_official(empty)
        media, in_videos, broken = self.media_tokens(dataset)
        allow(dataset, broken)
        # A token is at least one byte of text. A template adds fewer than 64 bytes per message.
        text_bytes = dataset.of_rows("text_bytes") + len(written.encode()) + 64 * dataset.num_parts()
        is_doubtful = text_bytes + media + in_videos > self.max_length
        is_doubtful |= dataset.num_parts(Layout.FIELD_SIGNS.values()) > 0  # text_bytes omits these fields
        # If the template may refuse texts, every row is rendered once.
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
        # Errors other than length, such as a media file that is damaged after its header.
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
        """Return WHOLE, CUT or an error for each of these long rows."""
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
    """Raise the first of these errors, unless bad samples are allowed (--max_bad_samples)."""
    if faults and dataset.max_bad_samples is None:
        raise next(iter(faults.values()))


def fewest_frames(processor) -> int:
    """Return the number of frames per patch. Processors of Qwen3-VL and GLM-4.1V refuse fewer frames (5.23)."""
    return getattr(getattr(processor, "video_processor", None), "temporal_patch_size", 1)
