"""Turn samples into batches: render the chat template, tokenize, set the labels, cut to the budget, pad.

The steps for one sample, in `ChatCollator.encode`:

    messages --template.render--> text and the character spans to train (template.py)
             --processor--> tokens, with each media placeholder expanded, and pixels
             --labels--> -100 except on tokens that overlap a span
             --cut--> at most `budget.max_length` tokens, never within the tokens of an image or video (budget.py)

The data loader's workers encode the samples (`EncodedDataset` in reading/dataset.py, which also does packing) and then
make batches of the encoded samples (`ChatCollator.collate`).
"""

from bisect import bisect_left, bisect_right
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

import torch
from transformers import BatchFeature

from collators.batch import by_name, concatenate, with_all_sequences
from collators.boxes import BOX_FORMATS, Boxes, BoxFormat
from collators.budget import Budget, OverlongSample, fewest_frames
from collators.channels_last import channels_last
from collators.label_check import encoded_examples, opened
from collators.template import UNTIMED, ChatFormat, Template, TemplateException, naming
from reading.dataset import IGNORE_INDEX
from reading.rows import content_parts


class Encoded(NamedTuple):
    inputs: dict[str, torch.Tensor]  # the model's inputs and the labels, as an unpadded batch of one row
    text: str  # the rendered training text with BOS; placeholders of media are not expanded
    cut: int  # number of tokens removed to fit the budget


class ChatCollator:
    """Base class of all collators. A model family's subclass sets `chat_template` and what else its processor needs.

    Args:
        processor: the checkpoint's processor. frame_tokens.py modifies its tokenizer, so do not use it elsewhere.
        model_max_length: maximum number of tokens of a sample, media tokens included; None for no limit.
        mask_question_tokens: True trains only replies. False trains all text, but never media or padding.
        chat_template: replaces the templates of the family and the checkpoint. If it has no {% generation %} tags, the
            replies are found by rendering message by message (`collators/untagged_template.py`).
        stop_tokens: the tokens that end generation; by default the tokenizer's end token.
        template_kwargs: variables to pass to the chat templates, in addition to the family's.
        train_thoughts: False trains only the text of a reply that follows its thought.
        box_format: a key of collators.boxes.BOX_FORMATS, which replaces the family's format.
    """

    # The checkpoint's template, plus {% generation %} tags around each reply and its end-of-turn token. A tag opens
    # where the generation prompt ends. The model writes what follows, such as the space after `ASSISTANT:`.
    chat_template: str = ""
    template_exceptions: tuple[TemplateException, ...] = ()
    # Further formats, if a family's checkpoints differ. The format most similar to the checkpoint's template is used.
    other_formats: tuple[ChatFormat, ...] = ()
    # Variables for our template and the checkpoint's, such as a fixed date instead of today's.
    template_kwargs: dict = {}
    # Roles whose content the checkpoint's template expects as a string, not as a list of parts.
    string_roles: tuple[str, ...] = ()
    # Padding values of the tensors of shape (batch, tokens, ...). All other tensors are concatenated over samples.
    sequence_padding = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE_INDEX, "mm_token_type_ids": 0}
    # Tokens that may appear in replies, although the template also writes them or they end generation.
    reply_tokens: tuple[str, ...] = ()
    # How the model writes a thought ("<think>{}</think>"), if the checkpoint's template drops thoughts.
    thought_format: str = ""
    # How the checkpoints write boxes and points, if they were trained to do so.
    box_format: BoxFormat | None = None
    # Why --chat_template cannot be used, if the checkpoint's code or processor writes the prompt; otherwise "".
    fixed_format: str = ""
    # Options to pass to every processor call, such as {"cap_pixels_per_frame": False}.
    processor_kwargs: dict = {}
    # Number of tokens of an image's or video's placeholder in the rendered text, which the media tokens replace.
    placeholder_tokens: int = 1
    # The longest text, such as a time, that the processor may add for each pair of video frames.
    frame_text: str = ""
    # Whether the model gets the times of a video's frames, as text or as positions.
    told_times: bool = False
    # Number of frames that an image counts as in the processor's pixel bounds (pixel_bounds.py); 0 without bounds.
    frames_in_bounds: int = 0
    # The classes that render texts and count tokens. A family replaces them if its processor needs special code.
    template_class: type[Template] = Template
    budget_class: type[Budget] = Budget

    def __init__(
        self,
        processor,
        model_max_length: int | None = None,
        mask_question_tokens: bool = True,
        chat_template: str | None = None,
        stop_tokens: list[str] | None = None,
        template_kwargs: dict | None = None,
        train_thoughts: bool = True,
        box_format: str | None = None,
    ):
        if chat_template and self.fixed_format:
            raise ValueError(f"--chat_template cannot be used, since {self.fixed_format}. Remove the flag.")
        self.processor = processor
        if hasattr(processor, "image_processor"):
            processor.image_processor = channels_last(processor.image_processor)
        boxes = Boxes(processor, BOX_FORMATS[box_format] if box_format else self.box_format)
        told = {"replies_only": mask_question_tokens, "given": template_kwargs, "train_thoughts": train_thoughts}
        self.template = self.template_class(processor, type(self), boxes, chat_template, stop_tokens, **told)
        self.budget = self.budget_class(processor, type(self), self.template, model_max_length)
        self.image_size: dict[str, int] | None = None  # the pixel bounds set by flags, saved with the processor
        self._tokenizer = processor.tokenizer  # not `tokenizer`: the Trainer would save the modified tokenizer
        self.media_in_every_batch: set[str] = set()  # kinds of media; a batch without one of them gets a dummy row
        self.is_padding_free = False
        self.rope_index = None
        ids = {"image": processor.image_token_ids, "video": processor.video_token_ids}
        known = {kind: [id for id in found if id is not None] for kind, found in ids.items()}
        self.media_token_ids = {kind: torch.tensor(found, dtype=torch.long) for kind, found in known.items()}
        seen = {id for inputs, _ in encoded_examples(self) for id in inputs["input_ids"].unique().tolist()}
        self.template.frame.find(seen, self.reply_tokens)

    # ---- a sample ----

    def encode(self, sample: dict, within_budget: bool = True) -> Encoded:
        """Encode a sample with loaded media to tensors and labels, cut to the token budget if there is one.

        Raises:
            OverlongSample: the budget is too small for the media of the first exchange or for any trained token.
            ValueError: the family does not support the media. The message names the sample.
        """
        messages, source = sample["messages"], sample.get("source", "sample")
        text, inputs = self._encode_messages(messages, source)
        full_length = inputs["input_ids"].shape[1]
        budget = (self.budget.max_length if within_budget else None) or full_length
        while (media_end := self._media_end(inputs)) > budget and _ends_with_an_exchange(messages):
            messages = messages[:-2]
            _, inputs = self._encode_messages(messages, source)
        if media_end > budget:
            raise self.budget.media_do_not_fit(source, media_end)
        inputs = {k: v[:, :budget] if k in self.sequence_padding else v for k, v in inputs.items()}
        if not (inputs["labels"] != IGNORE_INDEX).any():
            raise OverlongSample(
                f"{source}: no reply fits in --model_max_length {budget} (the sample has {full_length} tokens). "
                "Raise --model_max_length, or drop these samples with --drop_overlong True."
            )
        return Encoded(inputs, self.template.as_tokenized(text), full_length - inputs["input_ids"].shape[1])

    def _encode_messages(self, messages: list[dict], source: str) -> tuple[str, dict[str, torch.Tensor]]:
        with naming(source, self.processor):
            text, spans = self.template.render(messages)
            return text, self._process(text, spans, messages)

    def _media_end(self, inputs: dict[str, torch.Tensor]) -> int:
        """Return the position after the last token that stands for pixels, or 0 without media."""
        positions = self.is_media(inputs["input_ids"]).nonzero()[:, 1]
        return positions[-1].item() + 1 if len(positions) else 0

    def encode_prompt(self, messages: list[dict], source: str = "sample") -> dict[str, torch.Tensor]:
        """Encode messages that await a reply as inputs for generation, using the checkpoint's own template."""
        with naming(source, self.processor):
            text = self.template.render_prompt(messages)
            inputs = self._process(text, [], messages)
        del inputs["labels"]
        return inputs

    def _process(self, text: str, spans: list, messages: list[dict]) -> dict[str, torch.Tensor]:
        """Turn a rendered text and opened media into the processor's tensors and labels, as a batch of one."""
        media = self._media(messages)
        kwargs = dict(self.processor_kwargs)
        if media["image"]:
            kwargs["images"] = [[part["image"] for part in media["image"]]]
        if media["video"]:
            kwargs |= {"videos": [[part["video"] for part in media["video"]]], "do_sample_frames": False}
            kwargs["video_metadata"] = [[part["metadata"] for part in media["video"]]]
        features = self.processor(
            text=[text],
            add_special_tokens=not self.template.writes_bos(text),
            return_offsets_mapping=True,
            return_text_replacement_offsets=True,
            **kwargs,
        )
        offsets = features.pop("offset_mapping")[0]
        # The list is empty if no placeholder was expanded, and missing if the processor never expands placeholders.
        replacements = next(iter(features.pop("text_replacement_offsets", [])), [])
        inputs = dict(BatchFeature(dict(features), tensor_type="pt"))
        return self._with_labels(inputs, offsets, _expanded(spans, replacements))

    def _media(self, messages: list[dict]) -> dict[str, list[dict]]:
        """Return the loaded images and videos, in their order in the messages."""
        parts = content_parts({"messages": messages})
        media = {kind: [part for part in parts if part["type"] == kind] for kind in ("image", "video")}
        if media["video"] and not self.template.takes_videos:
            raise ValueError("the model does not support videos")
        if self.told_times and any(part["metadata"]["fps"] is None for part in media["video"]):
            raise ValueError(UNTIMED)
        least = fewest_frames(self.processor)
        media["video"] = [_with_frames(part, least) for part in media["video"]]
        return media

    def _with_labels(self, inputs: dict, offsets: list[tuple[int, int]], spans: list) -> dict[str, torch.Tensor]:
        """Add labels to the tensors of one row, given the character offsets of its tokens and the spans to train."""
        replies_only = self.template.replies_only
        trained = _overlaps(offsets, spans)[None] if replies_only else ~self.is_media(inputs["input_ids"])
        inputs["labels"] = inputs["input_ids"].masked_fill(~trained, IGNORE_INDEX)
        inputs["labels"][:, 0] = IGNORE_INDEX  # no token predicts the first one
        return inputs

    def is_media(self, input_ids: torch.Tensor, kind: str | None = None) -> torch.Tensor:
        """Return a mask of the tokens that stand for pixels of images, of videos, or of both if `kind` is None."""
        ids = self.media_token_ids[kind] if kind else torch.cat(list(self.media_token_ids.values()))
        return torch.isin(input_ids, ids)

    # ---- a batch ----

    def make_padding_free(self, loader) -> None:
        """Make this collator concatenate the samples of a batch instead of padding them."""
        self.is_padding_free = True
        self.rope_index = loader.rope_index() if loader.mrope else None

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        """Encode opened samples and make one batch of them. (Training uses `EncodedDataset`, then `collate`.)"""
        return self.collate([self.encode(sample).inputs for sample in samples])

    def collate(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Make one batch of encoded samples: pad them on the right to the longest, or concatenate them in one row.

        Returns:
            input_ids, attention_mask, labels (batch, tokens) and the family's own tensors. Dummy rows, if
            needed, come last and have no labels. A padding-free batch is that of `concatenate_samples`.
        """
        present = {kind for kind in self.vision_calls for row in rows if self.is_media(row["input_ids"], kind).any()}
        rows = rows + [self.dummy_rows[kind] for kind in sorted(self.vision_calls - present)]
        return self.concatenate_samples(rows) if self.is_padding_free else self.pad(rows)

    def concatenate_samples(self, rows: list[dict]) -> dict:
        """Concatenate rows of batch size 1, each with one or several samples, into one row.

        Returns:
            input_ids, labels, `position_ids` (1, tokens); and `sample_lengths`, the number of tokens of each sample.
            Positions start at 0 in each sample. With mrope, time, height, width are added: (4, 1, tokens).
        """
        rows = [row if "sample_lengths" in row else self._as_row_of_samples(row) for row in rows]
        lengths = [length for row in rows for length in row["sample_lengths"]]
        apart = [{n: v for n, v in row.items() if n not in ("sample_lengths", "position_ids")} for row in rows]
        batch = {
            name: torch.cat(values, dim=1) if name in self.sequence_padding else self.of_all(name, values)
            for name, values in by_name(with_all_sequences(apart, self.sequence_padding)).items()
        }
        positions = torch.cat([row["position_ids"] for row in rows], dim=-1)
        return batch | {"position_ids": positions, "sample_lengths": lengths}

    def _as_row_of_samples(self, row: dict[str, torch.Tensor]) -> dict:
        """Convert one encoded sample to the form that `concatenate_samples` returns."""
        number = row["input_ids"].shape[1]
        positions = torch.arange(number)[None]
        if self.rope_index:
            of_model = {name: value for name, value in row.items() if name not in ("attention_mask", "labels")}
            positions = torch.cat([positions[None], self.rope_index(**of_model)[0]])
        inputs = {name: value for name, value in row.items() if name != "attention_mask"}
        return inputs | {"position_ids": positions, "sample_lengths": [number]}

    @property
    def vision_calls(self) -> set[str]:
        """The kinds of media that each batch must contain. A model that gets videos as images needs only images."""
        frames_are_images = not len(self.media_token_ids["video"])
        return {"image"} if frames_are_images and self.media_in_every_batch else self.media_in_every_batch

    def pad(self, rows: list[dict[str, torch.Tensor]], side: str = "right") -> dict[str, torch.Tensor]:
        """Combine rows of batch size 1 into a batch: pad the per-token tensors; concatenate others, such as pixels."""
        padding = self.sequence_padding | {"input_ids": self._tokenizer.pad_token_id or 0}
        return {
            name: concatenate(values, padding[name], side) if name in padding else self.of_all(name, values)
            for name, values in by_name(with_all_sequences(rows, padding)).items()
        }

    def of_all(self, name: str, values: list[torch.Tensor]) -> torch.Tensor:
        """Combine the pixels or image sizes of several rows into the tensor that the model expects for a batch."""
        return concatenate(values)

    @cached_property
    def dummy_rows(self) -> dict[str, dict[str, torch.Tensor]]:
        """For each of `vision_calls`, a row with a small image or video and no labels. It makes the encoder run."""
        rows = {}
        for kind in self.vision_calls:
            content = [opened(kind), {"type": "text", "text": "."}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content[1:]}]
            inputs = self._process(*self.template.render(messages), messages)
            rows[kind] = inputs | {"labels": torch.full_like(inputs["labels"], IGNORE_INDEX)}
        return rows


def _ends_with_an_exchange(messages: list[dict]) -> bool:
    """Return whether the last question and reply follow an earlier exchange and can be dropped."""
    *rest, question, _ = (message["role"] for message in messages)
    return question == "user" and "user" in rest and rest[-1] == "assistant"


def _with_frames(part: dict, least: int) -> dict:
    """Repeat the last frame of an opened video until it has at least `least` frames."""
    there, metadata = len(part["video"]), part["metadata"]
    if there >= least:
        return part
    taken = [*range(there), *[there - 1] * (least - there)]
    told = [metadata["frames_indices"][i] for i in taken]
    return part | {"video": part["video"][taken], "metadata": metadata | {"frames_indices": told}}


def _expanded(spans: list, replacements: list[dict]) -> list[tuple[int, int]]:
    """Convert spans of the rendered text to spans of the text after the placeholders of media are expanded."""
    ends = [r["span"][1] for r in replacements]
    gained = [0] + [r["new_span"][1] - r["span"][1] for r in replacements]
    return [tuple(char + gained[bisect_right(ends, char)] for char in span) for span in spans]


def _overlaps(offsets: list[tuple[int, int]], spans: list) -> torch.Tensor:
    """Return a mask of the tokens that overlap a span. Two bisections per span search the ascending offsets."""
    last = len(offsets)
    while last and offsets[last - 1][1] == 0:  # a special token that the tokenizer appends has the offsets (0, 0)
        last -= 1
    mask = torch.zeros(len(offsets), dtype=torch.bool)
    for start, end in spans:
        first = bisect_right(offsets, start, hi=last, key=itemgetter(1))
        mask[first : bisect_left(offsets, end, lo=first, hi=last, key=itemgetter(0))] = True
    return mask
