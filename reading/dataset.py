"""Turn rows on disk into samples.

reading/rows.py accepts many formats of rows and converts them to the canonical format, which all other modules use:

    {"messages": [{"role": "system" | "user" | "assistant", "content": [
        {"type": "text", "text": str} | {"type": "image", "image": ...} |
        {"type": "video", "video": ..., "clip": {...}}],    # "clip" only if it is given, see reading/clips.py
        "train": False,             # only if a reply is left out of the loss
        "references": [str, ...]}], # only if there are several correct replies
     "index": int,    # the position of the row in its file, from 0
     "source": str}   # "train.json, sample 7", for error messages

`dataset.rows[i]` contains references to media. `dataset[i]` contains the opened media: a PIL image, or the frames of a
video as a uint8 array (num_frames, height, width, 3) with a "metadata" entry. Rows and media are not kept in memory.
Instead, an index on disk (reading/row_index.py) stores the position of each row and the sizes of its media.
"""

import copy
import hashlib
import os
import re
import sys
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from reading import boxes, replaced
from reading.files import resolve_in
from reading.images import seen_size
from reading.mapping import Mapping
from reading.media import open_part
from reading.options import ROOT, MediaOptions
from reading.row_index import ChangedFile, Layout, RowIndex, open_index
from reading.rows import WEIGHT, RowForm, media_in
from reading.sources import TABLES, find_source, has_ending, names_of, usual_names
from reading.weights import WeightedRows

# The label of tokens that are not trained, which is the default `ignore_index` of PyTorch's cross entropy.
IGNORE_INDEX = -100
# Flags that set how rows are read.
FORM_FLAGS = "user_key assistant_key field_messages allow_outside prompt system_prompt".split()
FORM_FLAGS += "allow_empty_answers train_replies".split()
# Name of a counter in the index -> the note for the user about the counted rows.
COUNT_NOTES = {
    "empty_answers": "have an empty reply: only its end token is trained",
    "several_answers": "have several answers: the reply is the most frequent one",
    "clips": "choose clips or frames of their videos (docs/moments.md)",
    "places": "have <image>, <video> or <audio> in a text but no media for the tag: the tag is trained as text",
}
SHOWN_FAULTS = 10  # at most this many faults are printed


class MultimodalDataset(WeightedRows):
    """The samples of one or more paths.

    Args:
        data_path: one or more paths `PATH[:SPLIT][SLICE][:WEIGHT]` (reading/sources.py). Arguments not listed here work
            like the flags of the same names.
        check: if True, raise a ValueError that lists the unusable rows. If False, keep their messages in
            `errors` (position -> message), and None in `rows`.
        max_bad_samples: if given, `check` drops up to this many unusable rows instead of raising the error.
        weighted: whether weights of paths and rows set how often an epoch uses a row. If False, use each row once.
        form: values of the flags in FORM_FLAGS, which are fields of reading.rows.RowForm.
    """

    def __init__(
        self,
        data_path: str | list[str],
        image_folder: str | None = None,
        video_folder: str | None = None,
        media: MediaOptions | None = None,
        max_samples: int | None = None,
        check: bool = True,
        max_bad_samples: int | None = None,
        columns: Sequence[str] | None = None,
        weighted: bool = True,
        balance: str | None = None,
        **form,
    ):
        self.media = media or MediaOptions()
        self.paths = [data_path] if isinstance(data_path, str) else list(data_path)
        self.name = ", ".join(self.paths[:3]) + (f" and {len(self.paths) - 3} more" if len(self.paths) > 3 else "")
        self.weighted, self.balance = weighted, balance
        self.files: list[RowIndex] = []
        self.starts = [0]  # the number of each file's first sample, counted over all files
        self.weights, self.path_starts, chosen = [], [0], []  # one entry per path; samples are numbered as in `starts`
        root = os.environ.get(ROOT)
        for source in map(find_source, self.paths):
            first, before = self.starts[-1], len(self.files)
            for file in source.files:
                own = source.folder or (file if os.path.isdir(file) else os.path.dirname(os.path.abspath(file)))
                roots = (root, own) if root and source.from_hub else (root,) if root else ()
                if roots:
                    resolve_in(file, roots, file)
                of_file = RowForm(
                    {"image": os.path.abspath(image_folder or own), "video": os.path.abspath(video_folder or own)},
                    allow_urls=self.media.allow_urls,
                    allow_absolute=not source.from_hub,
                    mapping=Mapping.of(
                        [*source.columns, *(columns or [])], has_ending(file, *TABLES), usual_names(file)
                    ),
                    balance=balance.lower() if balance and has_ending(file, *TABLES) else balance,
                    roots=roots,
                    **form | source.keys,
                )
                self.files.append(open_index(file, of_file, self.media))
                self.starts.append(self.starts[-1] + len(self.files[-1]))
            files = self.files[before:]
            rows = source.select(sum(index.num_rows for index in files))[:max_samples]
            chosen.append(range(*(first + first_sample(files, row) for row in (rows.start, rows.stop))))
            self.weights.append(source.weight)
            self.path_starts.append(self.starts[-1])
        if not weighted and {*self.weights} != {1}:
            raise ValueError(f"{self.name}: only training data (--data_path) can have weights: remove the weights.")
        # Position -> number of the sample, counted over all files, in ascending order.
        self.numbers = np.fromiter(chain(*chosen), np.int64, sum(map(len, chosen)))
        self.rows = Rows(self)
        if not len(self):
            raise ValueError(f"{self.name} contains no samples.")
        # If no row has a field that --columns names, the name is probably wrong, and data would silently be missing.
        found = {column.lower() for index in self.files for column in index.mapped}
        for name, field in Mapping.of(columns).sources:
            if f"{name}={field}".lower() not in found:
                raise ValueError(f"--columns {name}={field}: no row of {self.name} has a field `{field}`.")
        pairs = zip(self.starts, self.files)
        faults = {start + place: fault for start, index in pairs for place, fault in index.errors.items()}
        positions = np.flatnonzero(np.isin(self.numbers, [*faults])).tolist()
        self.errors = {position: faults[int(self.numbers[position])] for position in positions}
        self.max_bad_samples, self.num_bad = max_bad_samples, 0
        self.is_held_out = False  # set by reading/split.py
        if check and self.errors:
            if max_bad_samples is None:
                raise ValueError(
                    f"{len(self.errors)} of {len(self)} samples of {self.name} cannot be used:\n{condense(self.errors)}"
                )
            self.leave_out(self.errors)
            self.errors = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> dict:
        """Return the sample with its media opened."""
        row = self.rows[position]
        if row is None:
            raise ValueError(self.errors[position])
        try:
            messages = [
                {**message, "content": [open_part(part, self.media) for part in message["content"]]}
                for message in row["messages"]
            ]
        except ValueError as error:
            raise ValueError(f"{row['source']}: {error}") from error
        return {**row, "messages": messages}

    def locate(self, position: int) -> tuple[RowIndex, int]:
        """Return the index of a row's file, and the place of the row in that index."""
        number = int(self.numbers[position])
        file = bisect_right(self.starts, number) - 1
        return self.files[file], number - self.starts[file]

    def raw(self, position: int) -> object:
        """Return a row as it is in its file."""
        index, place = self.locate(position)
        return index.raw(place)

    def source(self, position: int) -> str:
        """Return the name of a row for error messages."""
        index, place = self.locate(position)
        return index.source(place)

    def in_pixels(self, position: int, boxes: list[dict], back: bool = False) -> list[dict]:
        """Convert boxes and points from fractions of an image's sides (`collators.boxes.Boxes.told`) to pixels of the
        original image after EXIF rotation. With `back`, convert pixels to fractions."""
        images = [reference for kind, reference, _ in media_in(self.rows[position]["messages"]) if kind == "image"]
        found = []
        for box in boxes:
            pairs = [*zip(box["at"], seen_size(images[box["image"]], self.media) * 2)]
            found.append(box | {"at": [at / side if back else round(at * side, 1) for at, side in pairs]})
        return found

    def select(self, positions: Sequence[int]) -> None:
        """Keep only the rows at these positions, given in ascending order."""
        self.numbers = self.numbers[positions]

    def leave_out(self, faults: dict[int, str], also: Collection[int] = ()) -> None:
        """Drop the samples in `faults` (position -> message) and print the messages. Drop those in `also` silently."""
        self.num_bad += len(faults)
        if self.num_bad > self.max_bad_samples:
            raise ValueError(
                f"{self.num_bad} samples of {self.name} cannot be used, more than --max_bad_samples "
                f"{self.max_bad_samples}:\n{condense(faults)}"
            )
        kept = np.setdiff1d(np.arange(len(self)), [*faults, *also])
        if not len(kept):
            raise ValueError(f"None of the {len(self)} samples of {self.name} can be used:\n{condense(faults)}")
        if faults and int(os.environ.get("RANK", 0)) == 0:
            print(f"{self.name}: left out {len(faults)} of {len(self)} samples:\n{condense(faults)}", flush=True)
        self.select(kept)

    def by_file(self, positions: np.ndarray | None = None) -> Iterator[tuple[RowIndex, np.ndarray, np.ndarray]]:
        """Yield each file's index, the places of the chosen rows in it, and indices into `positions` (default: all)."""
        numbers = self.numbers if positions is None else self.numbers[positions]
        for start, end, index in zip(self.starts, self.starts[1:], self.files):
            members = np.flatnonzero((numbers >= start) & (numbers < end))
            yield index, numbers[members] - start, members

    def layouts(self) -> dict[Layout, int]:
        """Return each layout that occurs, with the position of the first row that has this layout."""
        found = {}
        for index, places, positions in self.by_file():
            numbers, firsts = np.unique(index.layouts[places], return_index=True)
            for number, first in zip(numbers.tolist(), positions[firsts].tolist()):
                if number >= 0:  # otherwise the row is unusable
                    found.setdefault(index.layouts_used[number], first)
        return found

    def groups(self) -> Iterator[tuple[Layout, np.ndarray, np.ndarray]]:
        """Group the rows that differ only in texts and references. For each group, yield the layout, the size of each
        image or video (media, 3) int32, and the positions of the rows (rows,) in ascending order."""
        for index, places, positions in self.by_file():
            for layout, sizes, members in index.groups(places):
                yield layout, sizes, positions[members]

    def of_rows(self, name: str) -> np.ndarray:
        """Return the index's array of this name for all rows (rows,). The hash and the class of unusable rows are 0."""
        return np.concatenate([getattr(index, name)[places] for index, places, _ in self.by_file()])

    def row_numbers(self) -> np.ndarray:
        """Return the id of each sample's row (samples,). With --train_replies each, several samples can have one id."""
        files = zip(self.starts, self.by_file())
        return np.concatenate([start + index.numbers[places] for start, (index, places, _) in files])

    def num_parts(self, letters: str = "tiv") -> np.ndarray:
        """Return each row's number of content parts (rows,) int64, of the kinds in `letters`: text, image and video."""
        found = []
        for index, places, _ in self.by_file():
            parts = [sum(map(layout.count, letters)) for layout in index.layouts_used]
            found.append(np.array([*parts, 0])[index.layouts[places]])  # rows without a layout (-1) get the last one, 0
        return np.concatenate(found)

    @property
    def media_kinds(self) -> set[str]:
        """Which of "image" and "video" occur in the data set."""
        return {kind for layout in self.layouts() for kind in layout.media}

    @property
    def digest(self) -> str:
        """A hash of the texts of all rows, of their order, and of how many rows an epoch uses."""
        found = hashlib.sha256("".join(index.digest for index in self.files).encode())
        found.update(self.numbers.tobytes() + repr([self._ends(), self._shares()]).encode())
        if self.is_drawn:
            found.update(self.of_rows("sampling_weights").tobytes() + self.of_rows("classes").tobytes())
        return found.hexdigest()

    def summary(self) -> str:
        """Return one line per path: its number of samples, and how many an epoch uses if that differs."""
        ends, lines = self._ends(), []
        for path, first, end, share in zip(self.paths, ends, ends[1:], self._shares()):
            of_epoch = "" if self.is_drawn or share == end - first else f", {share:,} an epoch"
            lines.append(f"{path}: {end - first:,} samples{of_epoch}")
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """Return notes about the data to show to the user, one per line."""
        if self.is_held_out:
            return []  # the training data is from the same files and has these notes
        unread, outside, counts = Counter(), Counter(), Counter()
        for index in self.files:
            unread.update(index.unread)
            outside.update(index.outside)
            counts.update(index.counts)
        fields = ", ".join(f"{name} ({count:,} rows)" for name, count in unread.most_common())
        notes = [self.how_drawn()] if self.is_drawn else []
        notes += [f"{self.name}: fields that are not read: {fields}"] if unread else []
        if outside:
            named = [f"{folder} ({count:,})" for folder, count in outside.most_common(3)]
            more = [f"{len(outside) - 3:,} more"] if len(outside) > 3 else []
            notes.append(f"{self.name}: media outside of the data folders: {', '.join([*named, *more])}")
        notes += [f"{self.name}: {counts[name]:,} rows {what}." for name, what in COUNT_NOTES.items() if counts[name]]
        # The rows of an image folder are sorted by class, so a slice may contain only one class.
        some = evenly_spread(range(len(self)), 1000) if all(os.path.isdir(index.path) for index in self.files) else []
        if some[1:] and len(answers := {self.raw(position)["answer"] for position in some}) == 1:
            notes.append(
                f"WARNING: every reply of {self.name} is {answers.pop()!r}, so the model would learn this reply for "
                "any image: pass the parent folder of all classes, without a slice."
            )
        if (layouts := self.layouts()) and not any(layout.media for layout in layouts):
            notes.append(f"WARNING: {self.name} contains only text, so the model sees no images or videos from it.")
        return notes

    def part(self, positions: Sequence[int]) -> "MultimodalDataset":
        """Return a copy of this data set with only the rows at these positions, given in ascending order."""
        chosen = copy.copy(self)
        chosen.rows = Rows(chosen)
        chosen.errors = {i: self.errors[p] for i, p in enumerate(positions) if p in self.errors}
        chosen.select(positions)
        return chosen

    def parts(self) -> dict[str, range]:
        """Map metric prefixes to positions: "" to all rows and, with several paths, "NAME_" to each path's rows."""
        ends, parts = self._ends(), {"": range(len(self))}
        names = names_of(self.paths) if self.paths[1:] and not self.is_held_out else []
        return parts | {f"{name}_": range(*map(int, rows)) for name, rows in zip(names, pairwise(ends))}


def cost_of_replies(dataset: MultimodalDataset, tokens: np.ndarray) -> str:
    """Return a note on the extra tokens of rows that give several samples, or "". `tokens`: per sample (samples,)."""
    _, of_row = np.unique(dataset.row_numbers(), return_inverse=True)
    longest = np.zeros(of_row.max() + 1, np.int64)
    np.maximum.at(longest, of_row, tokens)
    if len(longest) == len(dataset):
        return ""
    times, conversations = tokens.sum() / max(longest.sum(), 1), f"{len(longest):,} conversations"
    return f"{dataset.name}: {len(dataset):,} replies of {conversations} take {times:.1f} times as many tokens."


def first_sample(files: list[RowIndex], row: int) -> int:
    """Return the number of a row's first sample. Rows and samples are counted over all of these files."""
    place = 0
    for index in files:
        if row < index.num_rows:
            return place + index.first(row)
        row, place = row - index.num_rows, place + len(index)
    return place


def condense(faults: dict[int, str]) -> str:
    """List faults, one per line. Faults that differ only in numbers, paths or quoted words share a line."""
    alike = defaultdict(list)
    for fault in faults.values():
        alike[re.sub(r"'[^']*'|\S*[\d/\\]\S*", "", fault.partition(": ")[2])].append(fault)
    lines = [
        f"  {first}" + (f" ({len(others)} more like this, such as {others[0].partition(': ')[0]})" if others else "")
        for first, *others in alike.values()
    ]
    more = [f"  and {len(lines) - SHOWN_FAULTS} more kinds"] if lines[SHOWN_FAULTS:] else []
    return "\n".join(lines[:SHOWN_FAULTS] + more)


def evenly_spread(rows: range, number: int) -> list[int]:
    """Return at most `number` of these rows, evenly spaced from the first to the last."""
    return np.linspace(rows.start, rows.stop - 1, min(number, len(rows))).round().astype(int).tolist()


def shared_rows(train: MultimodalDataset, held_out: MultimodalDataset) -> list[tuple[int, int]]:
    """Return (position in `train`, position in `held_out`) of each evaluation row that equals a training row."""
    of_train, of_held_out = train.of_rows("hashes"), held_out.of_rows("hashes")
    order = np.argsort(of_train, kind="stable")
    twins = order[np.searchsorted(of_train, of_held_out, sorter=order) % len(order)]
    shared = np.flatnonzero((of_train[twins] == of_held_out) & (of_held_out > 0))
    return list(zip(twins[shared].tolist(), shared.tolist()))


class Rows(Sequence):
    """The canonical rows of a data set, read from their files on access."""

    def __init__(self, dataset: MultimodalDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict | None:
        position = range(len(self))[position]
        index, place = self.dataset.locate(position)
        if place in index.errors:
            return None
        row = index.row(place)
        return row | {"messages": boxes.located(row["messages"], self.dataset.media)}


@contextmanager
def of_flag(name: str):
    """Put the name of a flag before the message of a ValueError that is raised in the `with` block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"--{name}: {error}") from error


def make_dataset(
    data, flag: str, paths: str | list[str] | None, check=True, weighted=False, max_bad_samples: int | None = None
) -> MultimodalDataset | None:
    """Return the data set that a `flag` reads from `paths`, or None without paths. `data` has the other flags."""
    if not paths:
        return None
    columns = data.columns
    if columns and not weighted:  # evaluation data may lack the field with sampling weights
        columns = [re.sub(rf"\A{WEIGHT}=(.+)", r"\1=", column) for column in columns]
    form = {name: getattr(data, name) for name in FORM_FLAGS}
    form |= {"columns": columns, "weighted": weighted, "balance": data.balance if weighted else None}
    checked = {"max_samples": data.max_samples, "check": check, "max_bad_samples": max_bad_samples}
    with of_flag(flag):
        return MultimodalDataset(paths, data.image_folder, data.video_folder, MediaOptions.of(data), **checked, **form)


class EncodedDataset(Dataset):
    """The samples of a data set as tensors (`ChatCollator.encode`), for training and evaluation.

    If the data set allows bad samples, a sample that fails is reported and replaced by a random one, seeded by its
    position. In evaluation, the replacement has no labels, since counting a sample twice would change the loss.
    """

    def __init__(self, dataset: MultimodalDataset, collator, num_workers: int = 0, is_training: bool = True):
        self.dataset, self.collator, self.is_training = dataset, collator, is_training
        self.skips = dataset.max_bad_samples is not None
        # Shared with the data loader's workers: which samples failed, and each worker's (process id, current position).
        self.failed = torch.zeros(len(dataset) if self.skips else 0, dtype=torch.bool).share_memory_()
        self.at_work = torch.full((max(num_workers, 1), 2), -1).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int | tuple[int, ...]) -> dict:
        """Return the tensors of a sample as a batch of one. If `position` is a tuple, concatenate its samples."""
        if isinstance(position, tuple):
            for one in position:
                replaced.check_row(self.dataset, one)  # with a larger image, the samples might not fit together
            return self.collator.concatenate_samples([self[one] for one in position])
        worker = get_worker_info()
        if worker:
            self.at_work[worker.id] = torch.tensor([os.getpid(), position])
        draw, taken = np.random.default_rng(position), position
        while True:
            try:
                inputs = self.collator.encode(self.dataset[taken]).inputs
                break
            except ValueError as error:
                if isinstance(error, ChangedFile) or not self.skips:
                    raise
                self._count(taken, error)
                if self.failed.all():
                    raise
            taken = int(draw.integers(len(self.dataset)))
        if taken != position and not self.is_training:
            inputs["labels"] = torch.full_like(inputs["labels"], IGNORE_INDEX)
        return inputs

    def can_open(self, position: int) -> bool:
        """Whether the media of a sample can be opened. Always True unless the data set allows bad samples."""
        if self.skips:
            try:
                self.dataset[position]
            except ValueError:
                return False
        return True

    def _count(self, position: int, error: ValueError) -> None:
        if self.failed[position]:
            return
        self.failed[position] = True
        number, limit = int(self.failed.sum()), self.dataset.max_bad_samples
        if number <= SHOWN_FAULTS:
            print(f"Skipped: {error}", file=sys.stderr, flush=True)
        if (number := self.dataset.num_bad + number) > limit:
            raise ValueError(f"{number} samples cannot be used, more than --max_bad_samples {limit}; the last: {error}")

    def explain(self, error: Exception) -> ValueError | None:
        """Return a data loader worker's ValueError, or one that names the sample on which the worker died, or None."""
        if isinstance(error, ValueError):  # the traceback ends with the error's type and message
            raised = re.match(r"Caught \w+ in DataLoader worker.*\n[\w.]+: (.+)\Z", str(error), re.DOTALL)
            return ValueError(raised[1].strip()) if raised else None
        for process, position in self.at_work.tolist():
            if process > 0 and re.search(rf"worker \(pid(\(s\))? [\d, ]*\b{process}\b", str(error)):
                return ValueError(
                    f"{self.dataset.source(position)}: the data loader's worker died on this sample "
                    f"({str(error).strip()}). Either memory ran out, or a decoder crashed: check the media of this "
                    "sample, or pass --dataloader_num_workers 0."
                )
        return None
