"""Samples -> batches: render the training template, tokenize, place the labels, cut, pad.

The way of one sample, `ChatCollator.encode`:

    messages --render--> text and the character spans to train
             --processor--> tokens, with each medium expanded, and pixels
             --labels--> -100 everywhere but on the tokens that overlap a span
             --cut--> at most `model_max_length` tokens, never through a medium
"""

import hashlib
import inspect
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from contextlib import contextmanager
from difflib import SequenceMatcher
from functools import cached_property, partial
from itertools import chain, islice
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
import transformers
from jinja2 import TemplateError
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from transformers import BatchFeature
from transformers.utils.chat_template_utils import render_jinja_template

from collators.any_template import UnfitTemplate, find_replies, find_string_roles
from collators.channels_last import channels_last
from collators.lengths import media_tokens, remembered, text_tokens
from datasets import IGNORE_INDEX
from reading.row_index import ChangedFile
from reading.rows import RESERVED_CHARACTER, content_parts

GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")

WHOLE, CUT = 1, 2  # what becomes of a long row
# Options of processors that are settled by how media are opened and batches made.
SETTLED_OPTIONS = {
    *("return_tensors", "device", "data_format", "input_data_format", "do_convert_rgb", "disable_grouping"),
    *("do_sample_frames", "num_frames", "fps", "min_frames", "max_frames", "video_metadata", "return_metadata"),
}


class OverlongSample(ValueError):
    """A sample that cannot be cut to the token budget without cutting through a medium or losing every label."""


class TemplateException(NamedTuple):
    """A documented difference between our training text and the checkpoint's template."""

    ours: str
    official: str
    reason: str
    where: str = "everywhere"  # or "end": where a conversation ends; or "history": before its last exchange


class ChatFormat(NamedTuple):
    """A training template of a family that has several."""

    template: str
    exceptions: tuple[TemplateException, ...] = ()


class Encoded(NamedTuple):
    inputs: dict[str, torch.Tensor]  # what the model gets, and labels; a batch of one row, unpadded
    text: str  # the rendered training text, media not expanded, BOS included
    cut: int  # tokens removed to fit the budget


class ChatCollator:
    """Base of all families: a family adds its `chat_template` and what its processor needs beyond that.

    Args:
        processor: the checkpoint's own. Its tokenizer is adapted (see `_keep_typed_control_strings_text`), so load
            one for the collator alone.
        model_max_length: token budget of a sample, media included.
        mask_question_tokens: True trains replies only; False all text, never media or padding.
        chat_template: replaces the family's and the checkpoint's. Without {% generation %} tags, the replies are found
            by rendering (`collators/any_template.py`).
        stop_tokens: what ends generation, for such a template; by default the tokenizer's end token.
    """

    # Training template: the checkpoint's, with {% generation %} around each reply and its end-of-turn token. The tag
    # opens where the generation prompt ends: after `ASSISTANT:`, the model itself writes the space before its reply.
    chat_template: str
    template_exceptions: tuple[TemplateException, ...] = ()
    # Where a family's checkpoints differ in format: the one nearest to the checkpoint's template is taken.
    other_formats: tuple[ChatFormat, ...] = ()
    # Variables of the templates, ours and the checkpoint's, such as a date, which would otherwise be today's.
    template_kwargs: dict = {}
    # Roles whose content the checkpoint's template takes as a string, not as a list of parts.
    string_roles: tuple[str, ...] = ()
    # Tensors of shape (batch, tokens, ...), with their padding value; all others are concatenated over samples.
    sequence_padding = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE_INDEX, "mm_token_type_ids": 0}
    # Why no --chat_template can replace the format, where code of the checkpoint writes it.
    fixed_format: str = ""
    # Options of every processor call, such as {"cap_pixels_per_frame": False}.
    processor_kwargs: dict = {}
    # Tokens of a medium's placeholder in the rendered text, in whose place its own come.
    placeholder_tokens: int = 1
    # The longest text that the processor writes beside every two frames of a video, such as their time.
    frame_text: str = ""

    def __init__(
        self,
        processor,
        model_max_length: int | None = None,
        mask_question_tokens: bool = True,
        chat_template: str | None = None,
        stop_tokens: list[str] | None = None,
    ):
        if chat_template and self.fixed_format:
            raise ValueError(f"--chat_template cannot be used, since {self.fixed_format}. Leave it out.")
        self.is_replaced = bool(chat_template)
        if chat_template:
            processor.chat_template = chat_template
            formats = [ChatFormat(chat_template)]
        else:
            formats = [ChatFormat(self.chat_template, self.template_exceptions), *self.other_formats]
            if not all(GENERATION_TAG.search(format.template) for format in formats):
                raise ValueError(
                    f"{type(self).__name__}.chat_template has no {{% generation %}} tag, so no token would be trained; "
                    "put the tag around each reply and its end-of-turn token."
                )
        self.processor = processor
        if hasattr(processor, "image_processor"):
            processor.image_processor = channels_last(processor.image_processor)
        self._tokenizer = processor.tokenizer  # not `tokenizer`: Trainer would save that, adapted, beside the weights
        self.model_max_length = model_max_length
        self.mask_question_tokens = mask_question_tokens
        self.media_in_every_batch: set[str] = set()  # kinds of media of which a batch that has none gets a dummy
        self.joins_samples = False  # by `join_samples`
        self.rope_index = None
        ids = {"image": processor.image_token_ids, "video": processor.video_token_ids}
        self.media_token_ids = {
            k: torch.tensor([i for i in v if i is not None], dtype=torch.long) for k, v in ids.items()
        }
        self._keep_typed_control_strings_text("".join(format.template for format in formats))
        self.chat_template, self.template_exceptions = formats[0]
        self.stop_tokens = stop_tokens or [self._tokenizer.eos_token]
        if chat_template:
            self.string_roles = find_string_roles(lambda *args: self._render(args[0], chat_template, args[1])[0])
        elif len(formats) > 1:
            self.chat_template, self.template_exceptions = min(formats, key=self._distance)

    def set_processor_options(self, options: dict) -> None:
        """Have the checkpoint's image and video processors made with other options.

        Raises:
            ValueError: they have no such option, or do not take its value; the message lists those that there are.
        """
        parts = {name: getattr(self.processor, name, None) for name in ("image_processor", "video_processor")}
        known = {
            name: part.valid_kwargs.__annotations__.keys() - SETTLED_OPTIONS
            for name, part in parts.items()
            if hasattr(part, "valid_kwargs")
        }
        of_all = set().union(*known.values())
        if unknown := options.keys() - of_all:
            raise ValueError(
                f"--processor_kwargs: {type(self.processor).__name__} has no option {min(unknown)!r}; it has "
                f"{', '.join(sorted(of_all)) or 'none'}."
            )
        if not options:
            return
        probe = _conversation(("user", "image", "?"), ("assistant", "."))
        probe[0]["content"][0]["image"] = image = Image.new("RGB", (300, 200))
        try:
            for name, own in known.items():
                mine = {option: options[option] for option in options.keys() & own}
                setattr(self.processor, name, type(parts[name]).from_dict(parts[name].to_dict(), **mine))
            made = self.is_media(self._process(*self.render(probe), probe)["input_ids"]).sum()
            probe[0]["content"][0]["image"] = 0
            counted = self.count_media_tokens({"messages": probe}, {("image", 0): image.size[::-1]})
        except Exception as error:  # on a value of a wrong type they raise nearly any
            raise ValueError(f"--processor_kwargs {options}: {type(self.processor).__name__}: {error}") from error
        if made > counted:  # it counts without heeding the option (transformers 5.23)
            raise ValueError(
                f"--processor_kwargs {options}: {type(self.processor).__name__} makes {made} tokens of an image but "
                f"counts {counted:g}, so no budget could be kept."
            )

    @property
    def is_tagged(self) -> bool:
        """Whether the training template marks the replies itself."""
        return bool(GENERATION_TAG.search(self.chat_template))

    @property
    def takes_videos(self) -> bool:
        return getattr(self.processor, "video_processor", None) is not None

    # ---- a batch ----

    def join_samples(self, loader) -> None:
        """From now on, lay the samples of a batch in one row instead of padding them."""
        self.joins_samples = True
        self.rope_index = loader.rope_index() if loader.mrope else None

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        """Opened samples -> one batch."""
        return self.collate([self.encode(sample).inputs for sample in samples])

    def collate(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Encoded samples -> one batch, padded on the right to its longest row, or all in one row (`join_samples`).

        Returns:
            input_ids, attention_mask, labels (batch, tokens) and the family's own tensors; a dummy row, where one is
            needed, comes last and has no label. Of samples in one row: as `join`.
        """
        present = {kind for kind in self.vision_calls for row in rows if self.is_media(row["input_ids"], kind).any()}
        rows = rows + [self.dummy_rows[kind] for kind in sorted(self.vision_calls - present)]
        return self.join(rows) if self.joins_samples else self.pad(rows)

    def join(self, rows: list[dict]) -> dict:
        """Rows of batch size 1, each of one sample or joined before -> one such row of all their samples.

        Returns:
            input_ids, labels (1, tokens), no attention_mask; `position_ids` (1, tokens), from 0 in each sample, or with
            mrope (4, 1, tokens): these, and those of time, height and width; `sample_lengths`: the tokens of each.
        """
        rows = [row if "sample_lengths" in row else self._as_row_of_samples(row) for row in rows]
        lengths = [length for row in rows for length in row["sample_lengths"]]
        rows = [{name: value for name, value in row.items() if name != "sample_lengths"} for row in rows]
        sequences = {"position_ids", *self.sequence_padding}
        batch = {
            name: torch.cat(values, dim=-1) if name in sequences else _concatenate(values)
            for name, values in _by_name(rows).items()
        }
        return batch | {"sample_lengths": lengths}

    def _as_row_of_samples(self, row: dict[str, torch.Tensor]) -> dict:
        """One sample as `join` gives it."""
        number = row["input_ids"].shape[1]
        positions = torch.arange(number)[None]
        if self.rope_index:
            grids = {name: value for name, value in row.items() if name not in ("attention_mask", "labels")}
            positions = torch.cat([positions[None], self.rope_index(**grids)[0]])
        inputs = {name: value for name, value in row.items() if name != "attention_mask"}
        return inputs | {"position_ids": positions, "sample_lengths": [number]}

    @property
    def vision_calls(self) -> set[str]:
        """The kinds of `media_in_every_batch`; a video without tokens of its own comes to the model as images."""
        frames_are_images = not len(self.media_token_ids["video"])
        return {"image"} if frames_are_images and self.media_in_every_batch else self.media_in_every_batch

    def pad(self, rows: list[dict[str, torch.Tensor]], side: str = "right") -> dict[str, torch.Tensor]:
        """Rows of batch size 1 -> one batch. Sequences are padded; pixels and grids of all rows are concatenated."""
        padding = self.sequence_padding | {"input_ids": self._tokenizer.pad_token_id or 0}
        return {
            name: _concatenate(values, padding[name], side) if name in padding else _concatenate(values)
            for name, values in _by_name(rows).items()
        }

    @cached_property
    def dummy_rows(self) -> dict[str, dict[str, torch.Tensor]]:
        """Per kind of medium, a row with one small medium and no label: it costs a vision call and teaches nothing."""
        frames = {"metadata": {"fps": 1.0, "duration": 2.0, "total_num_frames": 2, "frames_indices": [0, 1]}}
        opened = {
            # Mistral3 fails on a batch whose only image is one token, of 28x28 pixels (transformers 5.23).
            "image": {"image": Image.new("RGB", (56, 56))},
            "video": {"video": np.zeros((2, 28, 28, 3), np.uint8), **frames},
        }
        rows = {}
        for kind in self.vision_calls:
            content = [{"type": kind, **opened[kind]}, {"type": "text", "text": "."}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content[1:]}]
            inputs = self._process(*self.render(messages), messages)
            rows[kind] = inputs | {"labels": torch.full_like(inputs["labels"], IGNORE_INDEX)}
        return rows

    # ---- a sample ----

    def encode(self, sample: dict) -> Encoded:
        """One opened sample -> tensors with labels, within the token budget.

        Raises:
            OverlongSample: what must stay does not fit.
            ValueError: media that the family cannot take; the message names the sample.
        """
        messages, source = sample["messages"], sample.get("source", "sample")
        text, inputs = self._encode_messages(messages, source)
        full_length = inputs["input_ids"].shape[1]
        budget = self.model_max_length or full_length
        while (media_end := self._media_end(inputs)) > budget and len(messages) > 3:
            messages = messages[:-2]  # without its last exchange
            _, inputs = self._encode_messages(messages, source)
        if media_end > budget:
            raise self._media_do_not_fit(source, media_end)
        inputs = {k: v[:, :budget] if k in self.sequence_padding else v for k, v in inputs.items()}
        if not (inputs["labels"] != IGNORE_INDEX).any():
            raise OverlongSample(
                f"{source}: no reply is left within the --model_max_length of {budget} (it has {full_length} tokens). "
                "Raise --model_max_length, or drop such samples with --drop_overlong True."
            )
        return Encoded(inputs, self._with_bos(text), full_length - inputs["input_ids"].shape[1])

    def _media_do_not_fit(self, source: str, num_tokens: int) -> OverlongSample:
        return OverlongSample(
            f"{source}: the media of its first exchange need {num_tokens} tokens, more than the --model_max_length of "
            f"{self.model_max_length}. Raise --model_max_length, use smaller images or fewer frames, or drop such "
            "samples with --drop_overlong True."
        )

    def _encode_messages(self, messages: list[dict], source: str) -> tuple[str, dict[str, torch.Tensor]]:
        with self._naming(source):
            text, spans = self.render(messages)
            return text, self._process(text, spans, messages)

    @contextmanager
    def _naming(self, source: str):
        """What template and processor raise becomes a ValueError that names the sample."""
        try:
            yield
        except UnfitTemplate as error:
            raise ValueError(f"{source}: {error}") from error
        except (ValueError, IndexError, TypeError, RuntimeError) as error:
            raise ValueError(f"{source}: {type(self.processor).__name__} refuses it: {error}") from error

    def _media_end(self, inputs: dict[str, torch.Tensor]) -> int:
        """The position after the last token that stands for pixels; 0 without media."""
        positions = self.is_media(inputs["input_ids"]).nonzero()[:, 1]
        return positions[-1].item() + 1 if len(positions) else 0

    def fit(self, dataset, drop_overlong: bool) -> tuple[int, int]:
        """Find the samples that exceed the budget, opening only those; drop what cannot be cut if told so.

        Returns:
            The numbers of samples that will be cut, and that were dropped.

        Raises:
            ValueError: samples that cannot be cut, without `drop_overlong`; or no sample is left.
        """
        # What a template writes unasked, such as a default system prompt.
        empty = _conversation(("user", ""), ("assistant", ""))
        template_bytes = len((self.render(empty)[0] if self.is_tagged else self.render_official(empty)).encode())
        media, beside, broken = media_tokens(dataset, self)
        self._allow(dataset, broken)
        # A token is at least a byte of text; 64 is more than any template adds to a further message.
        text_bytes = dataset.text_bytes() + template_bytes + 64 * dataset.num_parts()
        is_doubtful = text_bytes + media + beside > self.model_max_length
        # Every row is rendered once by a template that nobody prepared.
        doubtful = np.setdiff1d(np.arange(len(dataset)) if self.is_replaced else np.flatnonzero(is_doubtful), [*broken])
        text, unfit = text_tokens(dataset, self, doubtful)
        self._allow(dataset, unfit)
        long = np.setdiff1d(doubtful[text + (media + beside)[doubtful] > self.model_max_length], [*unfit])
        key = [self.fingerprint, self.model_max_length, self.mask_question_tokens]
        find = partial(self._fates, dataset, media)
        fates, failed = remembered(
            dataset, long, find, lambda index: index.folder, "fates", key, "Encoding long rows of"
        )
        faults = {position: error for position, error in failed.items() if isinstance(error, OverlongSample)}
        # Such as a medium that is broken behind its header.
        late = {position: error for position, error in failed.items() if position not in faults}
        self._allow(dataset, late)
        if faults and not (drop_overlong and len(faults) < len(dataset)):
            listed = "\n".join(f"  {fault}" for fault in list(faults.values())[:10])
            raise ValueError(f"{len(faults)} of {len(dataset)} samples do not fit:\n{listed}")
        if broken := broken | unfit | late:
            dataset.leave_out({position: str(error) for position, error in broken.items()}, also=faults)
        elif faults:
            dataset.select(np.setdiff1d(np.arange(len(dataset)), list(faults)))
        return int((fates == CUT).sum()), len(faults)

    @staticmethod
    def _allow(dataset, faults: dict[int, ValueError]) -> None:
        """Raise the first fault, unless the data set may have some."""
        if faults and dataset.max_bad_samples is None:
            raise next(iter(faults.values()))

    def _fates(self, dataset, media: np.ndarray, positions: list[int]) -> list[int | ValueError]:
        """WHOLE or CUT for each of some long rows, or why it cannot be used."""
        fates = []
        for position in positions:
            try:
                fates.append(self._fate(dataset, position, media[position]))
            except ChangedFile:
                raise
            except ValueError as error:
                fates.append(error)
        return fates

    def _fate(self, dataset, position: int, media: float) -> int:
        row = dataset.rows[position]
        if self.model_max_length < media < float("inf") and len(row["messages"]) <= 3:
            raise self._media_do_not_fit(row["source"], int(media))
        return CUT if self.encode(dataset[position]).cut else WHOLE

    def check_layout(self, messages: list[dict]) -> None:
        """Refuse what the format has no place for: videos, a reply that nobody asked for, or one left out of all text.

        Raises:
            ValueError: it goes on behind "train.json, sample 7: ".
        """
        self._media(messages)
        if any("train" in message for message in messages) and not self.mask_question_tokens:
            raise ValueError('"train": false has no effect with --mask_question_tokens False, which trains all text')
        if [m["role"] for m in messages if m["role"] != "system"][0] == "assistant" and not self.begins_with_replies:
            raise ValueError("begins with a reply, for which the chat template has no place; put a user message before")

    @cached_property
    def begins_with_replies(self) -> bool:
        """Whether a conversation may begin with the assistant: the checkpoint's template takes it, and ours alike."""
        messages = _conversation(("assistant", "Hello."), ("user", "Name a colour."), ("assistant", "Red."))
        try:
            text, spans = self.render(messages)
            official = self.render_official(messages)
        except UnfitTemplate:
            return False
        return len(spans) == 2 and self._as_official(text[: spans[0][1]], text[spans[0][1] :]) == official

    def check_rendering(self, messages: list[dict]) -> None:
        """Raise an UnfitTemplate where a template that nobody prepared hides a reply or leaves a medium out."""
        text, _ = self.render(messages)
        kinds = [part["type"] for part in content_parts({"messages": messages})]
        for kind in {*kinds} - {"text"}:
            token = getattr(self.processor, f"{kind}_token")
            if (found := text.count(token)) != (number := kinds.count(kind)):
                raise UnfitTemplate(f"the chat template writes {found} {token} for {number} {kind}(s).")

    def count_text_tokens(self, rows: list[dict]) -> list[int]:
        """Tokens of each sample without those that stand for its media; opens no file.

        Raises:
            ValueError: the template cannot render one; the message names it.
        """
        pieces, placeholders = [], []
        for row in rows:
            with self._naming(row.get("source", "sample")):
                if self.is_replaced:
                    self.check_rendering(row["messages"])
                pieces.append(self._pieces(row["messages"]))
            num_media = sum(part["type"] != "text" for part in content_parts(row))
            placeholders.append(num_media * self.placeholder_tokens)
        lengths = iter(self._lengths_of([*chain(*pieces)]))
        return [sum(islice(lengths, len(of_row))) - number for of_row, number in zip(pieces, placeholders)]

    def _pieces(self, messages: list[dict]) -> list[str]:
        """The training text, in the pieces that the processor tokenizes apart, each medium a placeholder."""
        return [self.render(messages)[0]]

    def _lengths_of(self, texts: list[str]) -> list[int]:
        """Tokens of each text, as the processor tokenizes it."""
        lengths, writes_bos = np.zeros(len(texts), int), np.array([*map(self._writes_bos, texts)], bool)
        for mask in (writes_bos, ~writes_bos):
            some = [texts[i] for i in np.flatnonzero(mask)]
            encoded = self._backend.encode_batch_fast(some, add_special_tokens=mask is not writes_bos)
            lengths[mask] = [len(tokens) for tokens in encoded]
        return lengths.tolist()

    @property
    def _backend(self) -> Tokenizer:
        """The tokenizer itself, several times as fast as through transformers; made to neither cut nor pad."""
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return backend

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that the tokens of a sample depend on beside the sample and the budget, our code included."""
        code = [inspect.getsource(inspect.getmodule(cls)) for cls in type(self).__mro__[:-1]]
        templates = [self.chat_template, self.processor.chat_template, self.template_kwargs, self.string_roles]
        tokens = [self.stop_tokens, self._tokenizer.special_tokens_map]
        settings = [code, templates, tokens, self.processor_kwargs, *self._files(), transformers.__version__]
        return hashlib.sha256(repr(settings).encode()).hexdigest()

    def _files(self) -> list[str]:
        """What the checkpoint's files make of tokenizer and processor."""
        return [self._backend.to_str(), self.processor.to_json_string()]

    def count_media_tokens(self, row: dict, media_sizes: dict) -> float:
        """Tokens of a sample's media, from their sizes alone by the processor's own arithmetic; inf if it has none.

        Args:
            media_sizes: (kind, path) -> (height, width) or (frames, height, width).
        """
        sizes = {}
        for part in content_parts(row):
            if (kind := part["type"]) != "text":
                sizes.setdefault(f"{kind}_sizes", []).append(media_sizes[kind, part[kind]])
        if not sizes:
            return 0
        if not hasattr(self.processor, "_get_num_multimodal_tokens"):  # private, but what vLLM plans with
            return float("inf")
        counts = self.processor._get_num_multimodal_tokens(**sizes, **self.processor_kwargs)
        return sum(sum(counts[name]) for name in ("num_image_tokens", "num_video_tokens") if name in counts)

    def count_frame_text_tokens(self, row: dict, media_sizes: dict) -> int:
        """At most how many tokens of text the processor writes into the videos of a sample; opens no file."""
        if not self.frame_text:
            return 0
        frames = [media_sizes["video", part["video"]][0] for part in content_parts(row) if part["type"] == "video"]
        tokens = self._tokenizer(self.frame_text, add_special_tokens=False).input_ids
        return len(tokens) * sum((number + 1) // 2 for number in frames)

    def encode_prompt(self, messages: list[dict], source: str = "sample") -> dict[str, torch.Tensor]:
        """Messages that end with the user's -> the inputs that the checkpoint's own template gives for generation."""
        with self._naming(source):
            text = self.render_official(messages, add_generation_prompt=True)
            inputs = self._process(text, [], messages)
        del inputs["labels"]
        return inputs

    def render(self, messages: list[dict]) -> tuple[str, list[tuple[int, int]]]:
        """Messages -> (training text, character spans to train); control strings typed in a message are marked."""
        if self.is_tagged:
            roles = self.string_roles if self.is_replaced else ()  # ours take lists of parts for every role
            text, spans = self._render(messages, self.chat_template, roles, return_assistant_tokens_mask=True)
        else:
            text, spans = find_replies(messages, self.render_official, self.stop_tokens)
        replies = [message for message in messages if message["role"] == "assistant"]
        spans = [span for span, reply in zip(spans, replies, strict=True) if reply.get("train", True)]
        # A reply that begins with a line break must not merge it with the one that ends the generation prompt.
        for start, _ in reversed(spans):
            if text[start - 1 : start + 1].isspace():
                text = text[:start] + RESERVED_CHARACTER + text[start:]
                spans = [(s + (s > start), e + (e > start)) for s, e in spans]
        return text, spans

    def render_official(self, messages: list[dict], add_generation_prompt: bool = False) -> str:
        """Messages -> the text of the checkpoint's own template."""
        return self._render(messages, self.official_template, self.string_roles, add_generation_prompt)[0]

    def _render(self, messages, template: str, string_roles=(), add_generation_prompt=False, **kwargs):
        plain = self._plain_messages(messages)
        for message in plain:
            if message["role"] in string_roles:
                if any("text" not in part for part in message["content"]):
                    raise UnfitTemplate(f"the chat template has no place for media in a {message['role']} message.")
                message["content"] = "".join(part["text"] for part in message["content"])
        try:
            texts, spans = render_jinja_template(
                conversations=[plain],
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                **kwargs,
                **self._tokenizer.special_tokens_map,
                **self.template_kwargs,
            )
        except (TemplateError, TypeError) as error:  # such as roles that the template refuses
            raise UnfitTemplate(f"the chat template cannot render the conversation: {error}") from error
        return texts[0], spans[0] if spans else []

    def _process(self, text: str, spans: list, messages: list[dict]) -> dict[str, torch.Tensor]:
        """Rendered text and opened media -> the processor's tensors and labels, as a batch of one."""
        media = self._media(messages)
        kwargs = dict(self.processor_kwargs)
        if media["image"]:
            kwargs["images"] = [[part["image"] for part in media["image"]]]
        if media["video"]:
            kwargs |= {"videos": [[part["video"] for part in media["video"]]], "do_sample_frames": False}
            kwargs["video_metadata"] = [[part["metadata"] for part in media["video"]]]
        features = self.processor(
            text=[text],
            add_special_tokens=not self._writes_bos(text),
            return_offsets_mapping=True,
            return_text_replacement_offsets=True,
            **kwargs,
        )
        offsets = features.pop("offset_mapping")[0]
        # Without an entry where nothing was expanded, and for a processor that never expands.
        replacements = next(iter(features.pop("text_replacement_offsets", [])), [])
        inputs = dict(BatchFeature(dict(features), tensor_type="pt"))
        return self._with_labels(inputs, offsets, _expanded(spans, replacements))

    def _media(self, messages: list[dict]) -> dict[str, list[dict]]:
        """The opened images and videos, in order.

        Raises:
            ValueError: a video, and the model takes none.
        """
        parts = content_parts({"messages": messages})
        media = {kind: [part for part in parts if part["type"] == kind] for kind in ("image", "video")}
        if media["video"] and not self.takes_videos:
            raise ValueError("the model takes no videos")
        return media

    def _with_labels(self, inputs: dict, offsets: list[tuple[int, int]], spans: list) -> dict[str, torch.Tensor]:
        """Tensors of one row, the characters that each token stands for, and those to train -> labels too."""
        trained = _overlaps(offsets, spans)[None]
        if not self.mask_question_tokens:
            trained = ~self.is_media(inputs["input_ids"])
        inputs["labels"] = inputs["input_ids"].masked_fill(~trained, IGNORE_INDEX)
        inputs["labels"][:, 0] = IGNORE_INDEX  # nothing predicts the first token
        return inputs

    def is_media(self, input_ids: torch.Tensor, kind: str | None = None) -> torch.Tensor:
        """Which tokens stand for pixels, of "image", "video" or both; the shape of `input_ids`."""
        ids = self.media_token_ids[kind] if kind else torch.cat(list(self.media_token_ids.values()))
        return torch.isin(input_ids, ids)

    # ---- control strings ----

    def _keep_typed_control_strings_text(self, templates: str) -> None:
        """Make `</s>` or `<image>` in a message tokenize as the ordinary characters that were typed.

        A reserved character is put inside such a string before the text is rendered, so that neither processor nor
        tokenizer takes it for a control token; once control tokens are split off, the tokenizer removes the character.
        """
        templates += str(self.processor.chat_template)
        tokens = [
            t.content for t in self._tokenizer.added_tokens_decoder.values() if t.special or t.content in templates
        ]
        self.control_string = control_pattern([*tokens, *self.processor.all_special_multimodal_tokens])
        backend = self._tokenizer.backend_tokenizer
        steps = [pre_tokenizers.Split(RESERVED_CHARACTER, "removed")]
        if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
            steps.insert(0, backend.pre_tokenizer)  # it may put a space before every piece that it gets
        elif backend.pre_tokenizer:
            steps.append(backend.pre_tokenizer)
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)

    def _plain_messages(self, messages: list[dict]) -> list[dict]:
        """Messages for a template: without pixels, control strings marked."""
        return [{"role": m["role"], "content": self._plain_parts(m["content"])} for m in messages]

    def _plain_parts(self, content: list[dict]) -> list[dict]:
        """A message's parts for the template: media without their pixels, texts with control strings marked.

        The texts are searched as one, since a template may join them.
        """
        joined = "".join(part.get("text", "") for part in content)
        marks = [match.end() for match in self.control_string.finditer(joined)]
        plain, begin = [], 0
        for part in content:
            if part["type"] != "text":
                plain.append({"type": part["type"]})
                continue
            end = begin + len(part["text"])
            cuts = [begin, *(mark for mark in marks if begin < mark <= end), end]
            plain.append({"type": "text", "text": RESERVED_CHARACTER.join(joined[i:j] for i, j in zip(cuts, cuts[1:]))})
            begin = end
        return plain

    # ---- BOS and the checkpoint's own template ----

    def _writes_bos(self, text: str) -> bool:
        return bool(self._tokenizer.bos_token) and text.startswith(self._tokenizer.bos_token)

    def _with_bos(self, text: str) -> str:
        return ("" if self._writes_bos(text) else self._tokenizers_bos) + text.replace(RESERVED_CHARACTER, "")

    @cached_property
    def _tokenizers_bos(self) -> str:
        """The BOS that the tokenizer puts before a text that has none."""
        return self._tokenizer.bos_token if self._tokenizer("").input_ids[:1] == [self._tokenizer.bos_token_id] else ""

    @property
    def official_template(self) -> str:
        template = self.processor.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not template:
            raise ValueError("the checkpoint ships no chat template; give one by --chat_template.")
        return template

    def _distance(self, format: ChatFormat) -> float:
        """Take the format; how unlike its texts are to the checkpoint's, summed over those that differ."""
        self.chat_template, self.template_exceptions = format
        return sum(1 - SequenceMatcher(None, *pair).ratio() for pair in self.template_differences())

    def template_differences(self) -> list[tuple[str, str]]:
        """Hold the training template against the checkpoint's.

        Returns:
            (our text, the checkpoint's) for each probe conversation that differs by more than `template_exceptions`.
        """
        differences = []
        for messages in PROBES:
            if not hasattr(self.processor, "video_token") and any(p["type"] == "video" for p in messages[0]["content"]):
                continue
            try:
                differences += self.differences_in(messages)
            except UnfitTemplate:
                continue  # a --chat_template need not take what the data may not hold
        return differences

    def differences_in(self, messages: list[dict]) -> list[tuple[str, str]]:
        """Hold the training text of one conversation, and the prompts of its replies, against the checkpoint's.

        Returns:
            (our text, the checkpoint's) of the whole and of each prompt, where they differ by more than
            `template_exceptions`; nothing for a template without tags, whose text is the checkpoint's.

        Raises:
            UnfitTemplate: the training template cannot render the conversation.
        """
        if not self.is_tagged:
            return []
        text, spans = self.render(messages)
        history_ends = [0, *(end for _, end in spans)]
        ours = self._as_official(text[: history_ends[-2]], text[history_ends[-2] :])
        pairs = [(ours, self._official(messages))]
        replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for i, (start, _), history_end in zip(replies, spans, history_ends):
            ours = self._as_official(text[:history_end]) + text[history_end:start].replace(RESERVED_CHARACTER, "")
            pairs.append((ours, self._official(messages[:i], add_generation_prompt=True)))
        return [pair for pair in pairs if pair[0] != pair[1]]

    def _official(self, messages: list[dict], **kwargs) -> str:
        """The checkpoint's text, or why its template refuses the conversation, such as one with a system message."""
        try:
            return self.render_official(messages, **kwargs).replace(RESERVED_CHARACTER, "")
        except UnfitTemplate as error:
            return f"[{error}]"

    def _as_official(self, history: str, last: str = "") -> str:
        """Our text with the documented differences undone; `last`: the last exchange of a whole conversation."""
        for ours, official, _, where in self.template_exceptions:
            if where != "end":
                history = history.replace(ours, official)
            if where == "everywhere":
                last = last.replace(ours, official)
            elif where == "end" and last.endswith(ours):
                last = last.removesuffix(ours) + official
        # Only now: a control string that was typed is none of ours, and stays.
        return (history + last).replace(RESERVED_CHARACTER, "")


def control_pattern(tokens: Iterable[str]) -> re.Pattern:
    """Matches the first character of each of these strings, so that strings which overlap are all found."""
    rests: dict[str, list[str]] = {}  # first character -> what may follow it
    for token in sorted({token for token in tokens if len(token) > 1 and not token.isspace()}):
        rests.setdefault(token[0], []).append(re.escape(token[1:]))
    return re.compile("|".join(f"{re.escape(c)}(?={'|'.join(rest)})" for c, rest in rests.items()))


def _conversation(*turns: tuple[str, str | list[str]]) -> list[dict]:
    part = lambda p: {"type": p} if p in ("image", "video") else {"type": "text", "text": p}  # noqa: E731
    return [{"role": role, "content": [part(p) for p in parts]} for role, *parts in turns]


PROBES = [
    _conversation(("user", "Name a colour."), ("assistant", "Red.")),
    _conversation(("system", "Be brief."), ("user", "image", "What is it?"), ("assistant", "A cat.")),
    _conversation(
        ("user", "First", "image", "second", "image", "Which is older?"),
        ("assistant", "The first."),
        ("user", "Why?"),
        ("assistant", "It is grey."),
    ),
    _conversation(("user", "video", "What happens?"), ("assistant", "A ball rolls.")),
]


def _expanded(spans: list, replacements: list[dict]) -> list[tuple[int, int]]:
    """Spans of the rendered text -> spans of the text with each medium's placeholder expanded."""
    ends = [r["span"][1] for r in replacements]
    gained = [0] + [r["new_span"][1] - r["span"][1] for r in replacements]
    return [tuple(char + gained[bisect_right(ends, char)] for char in span) for span in spans]


def _overlaps(offsets: list[tuple[int, int]], spans: list) -> torch.Tensor:
    """Which tokens, by their ascending character offsets, overlap a span: two bisections a span, no loop."""
    last = len(offsets)
    while last and offsets[last - 1][1] == 0:  # a special token that the tokenizer appends is at (0, 0)
        last -= 1
    mask = torch.zeros(len(offsets), dtype=torch.bool)
    for start, end in spans:
        first = bisect_right(offsets, start, hi=last, key=itemgetter(1))
        mask[first : bisect_left(offsets, end, lo=first, hi=last, key=itemgetter(0))] = True
    return mask


def _by_name(rows: list[dict]) -> dict[str, list]:
    """The values of each name, from the rows that have it."""
    return {name: [row[name] for row in rows if name in row] for name in dict.fromkeys(n for row in rows for n in row)}


def _concatenate(values: list[torch.Tensor], fill=0, side: str = "right") -> torch.Tensor:
    """Tensors along the first dimension, the others padded to the largest: images differ in their number of patches."""
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values))]
    values = [_pad_to(value, shape, fill, side) for value in values]
    return torch.cat(values) if len(values) > 1 else values[0]


def _pad_to(value: torch.Tensor, shape: list[int], fill, side: str) -> torch.Tensor:
    """Pad the dimensions after the first to `shape`: the second at the given side, the others at the right."""
    if list(value.shape[1:]) == shape:
        return value  # padding by nothing would copy the pixels
    pads = [0, 0] * len(shape)  # from the last dimension on: before, behind
    pads[1::2] = [target - size for size, target in zip(reversed(value.shape[1:]), reversed(shape))]
    if side == "left":
        pads[-2:] = reversed(pads[-2:])
    return torch.nn.functional.pad(value, pads, value=fill)
