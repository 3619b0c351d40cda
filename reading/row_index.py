"""The index of a data file: where each row is, its layout, and the sizes of its images and videos.

A "place" is the number of a sample in the index. A row that gives several samples (--train_replies each) has several
places. The index of a file is made once, in one pass that checks every row and the header of every image and video,
and is kept in the cache folder. Processes map it into memory and share it, so their memory does not grow with the rows.
"""

import contextlib
import glob
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property, lru_cache
from typing import BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from reading import boxes, clips, copies, picture_folders, sources, tars
from reading.files import is_hub_blob, is_within
from reading.mapping import field_of
from reading.media import read_header
from reading.options import MediaOptions
from reading.references import is_url
from reading.rows import WEIGHT, RowForm, is_empty, media_in, trained_replies
from reading.strict_json import strict_json
from reading.unread import PLACES

INDEX_VERSION = 13  # of the format of the files below
DAYS_KEPT = 7  # how long the indexes of older versions of a file are kept
SECONDS_CURRENT = 10  # for this time after a check of faulty rows, other processes do not repeat the check
BATCH, BATCH_BYTES = 1024, 2**26  # limits of rows, and of bytes of JSON, whose media headers are read together
OF_ROWS = {"offsets": "q", "lengths": "q", "layouts": "i", "text_bytes": "q", "first_medium": "q", "hashes": "Q"}
OF_ROWS |= {"sampling_weights": "d", "classes": "Q", "numbers": "q"}  # `numbers`: the number of the row in the file
ARRAYS = OF_ROWS | {"media": "i", "file_sizes": "q", "file_times": "q", "media_hashes": "Q"}  # these four: per medium
NPY_HEADER = 128  # bytes of the header of a .npy file
UNUSABLE = -1  # layout of a row that cannot be used


class Layout(str):
    """The roles and content parts of a row. Rows with the same layout differ only in texts and references.

    In "UitA-t", U and A begin messages (LETTERS lists the roles), "-" marks a message as not trained, and i and t are
    content parts. FIELD_SIGNS stand for fields of the message. "v?" is a list of images without times.
    """

    LETTERS = {"system": "S", "user": "U", "assistant": "A", "tool": "T", "text": "t", "image": "i", "video": "v"}
    FIELD_SIGNS = {"reasoning_content": "~", "typed_thought": "^", "tool_calls": "*", "tools": "#", "objects": "%"}
    SIGNS = {"thoughts": "~", "tools": "#", "calls": "*", "results": "T"}  # name in texts for users -> sign
    VALUES = {"~": "x", "^": "<think>x</think>", "*": [{"function": {"name": "x", "arguments": {}}}], "#": [], "%": []}

    @classmethod
    def of(cls, messages: list[dict]) -> "Layout":
        def letters(message: dict) -> str:
            parts = [cls.LETTERS[part["type"]] + "?" * clips.is_untimed(part) for part in message["content"]]
            fields = cls.FIELD_SIGNS.items() if len(message) > 2 else ()
            signs = [sign for name, sign in fields if message.get(name)]
            return "".join([cls.LETTERS[message["role"]], "-" * ("train" in message), *signs, *parts])

        return cls("".join(map(letters, messages)))

    @cached_property
    def messages(self) -> list[dict]:
        """Example messages with this layout. Every text is "x", and the references are the numbers 0, 1, 2, ..."""
        names = {letter: name for name, letter in (self.LETTERS | self.FIELD_SIGNS).items()}
        messages, number = [], 0
        for letter in self:
            if letter.isupper():
                messages.append({"role": names[letter], "content": []})
            elif letter == "-":
                messages[-1]["train"] = False
            elif letter == "?":
                messages[-1]["content"][-1]["untimed"] = True
            elif letter in self.VALUES:
                messages[-1][names[letter]] = self.VALUES[letter]
            elif letter == "t":
                messages[-1]["content"].append({"type": "text", "text": "x"})
            else:
                messages[-1]["content"].append({"type": names[letter], names[letter]: number})
                number += 1
        return messages

    @cached_property
    def media(self) -> list[str]:
        """The kind of each image or video ("image" or "video"), in order."""
        return [kind for kind, *_ in media_in(self.messages)]

    @property
    def shape(self) -> "Layout":
        """What templates depend on: the layout up to the last reply, with repeated parts and exchanges cut to two."""
        known = re.sub("[SU][^A]*$", "", self.replace("-", ""))
        known = re.sub("([SA])t+", r"\1t", known)  # several texts of these roles count as one
        return Layout(re.sub(r"(U[^U]*)\1+", r"\1\1", re.sub(r"([tiv])\1+", r"\1\1", known)))

    @property
    def kind(self) -> str:
        """One of "text", "image", "several images", "video" and "mixed"."""
        if len({*self.media}) > 1:
            return "mixed"
        return "several images" if self.media[1:] and self.media[0] == "image" else next(iter(self.media), "text")

    def media_sizes(self, sizes: np.ndarray) -> dict[tuple[str, int], tuple[int, ...]]:
        """Map (kind, reference in `messages`) to a size. `sizes`: (frames, height, width) per image or video."""
        return {
            (kind, i): tuple(size[1:] if kind == "image" else size)
            for i, (kind, size) in enumerate(zip(self.media, sizes.tolist()))
        }


class Medium(NamedTuple):
    """What the index stores about an image or video."""

    size: tuple[int, int, int]  # frames, height, width; an image has 0 frames
    file_size: int  # bytes; -1 for a URL
    file_time: int  # of the last change, in nanoseconds; -1 if there is no local file
    outside: str | None  # the file's folder, if outside of the data folders


class ChangedFile(ValueError):
    """Raised when a file has changed since its index was made."""


class RowIndex:
    """The index of one file, and its rows."""

    def __init__(self, path: str, folder: str, form: RowForm):
        self.path, self.folder, self.form = path, folder, form
        self.name = os.path.basename(path)
        with open(os.path.join(folder, "index.json"), encoding="utf-8") as file:
            about = json.load(file)
        self.layouts_used = [Layout(layout) for layout in about["layouts"]]
        self.errors = {int(place): fault for place, fault in about["errors"].items()}
        self.digest, self.media_folders, self.state = about["digest"], about["media_folders"], about["state"]
        # Numbers of rows: with each unread field, with each NAME=FIELD of --columns, and for each other counter.
        self.unread, self.mapped, self.counts = about["unread"], about["mapped"], about["counts"]
        self.outside = about["outside"]  # folder outside of the data folders -> number of media
        for name in ARRAYS:
            setattr(self, name, np.load(os.path.join(folder, f"{name}.npy"), mmap_mode="r"))
        self.media = self.media.reshape(-1, 3)
        # Kept open as long as the index, so that the data stays readable if another run deletes the file.
        self.arrow = copies.open_arrow(arrow_copy(folder, form)) if copies.is_copied(path) else None

    def __reduce__(self):  # another process maps the files again instead of receiving the arrays
        return RowIndex, (self.path, self.folder, self.form)

    def __len__(self) -> int:
        return len(self.layouts)

    @property
    def num_rows(self) -> int:
        return int(self.numbers[-1]) + 1 if len(self) else 0

    def first(self, number: int) -> int:
        """The place of the first sample of a row."""
        return int(np.searchsorted(self.numbers, number))

    def raw(self, place: int) -> object:
        """Return a row as it is in the file. Rows of Parquet files and tables lack ignored columns.

        Raises:
            ChangedFile: A JSON or tar file was rewritten after it was indexed.
        """
        offset, length = int(self.offsets[place]), int(self.lengths[place])
        if self.arrow:
            return copies.to_rows(self.arrow.get_batch(offset).slice(length, 1))[0]
        if state_of(self.path) != self.state:
            raise ChangedFile(f"{self.path} changed while in use; start again.")
        with open(self.path, "rb", buffering=0) as file:
            file.seek(offset)
            data = file.read(length)
        return tars.row_in(data) if sources.has_ending(self.path, ".tar") else sources.PARSER.decode(data.decode())

    def row(self, place: int) -> dict:
        """Return a row in canonical form."""
        samples, number = self.form.samples(self.form.named(self.raw(place))), int(self.numbers[place])
        messages = samples[place - self.first(number) if samples[1:] else 0]
        return {"messages": messages, "index": number, "source": self.source(place)}

    def source(self, place: int) -> str:
        number = int(self.numbers[place])
        reply = f", reply {place - self.first(number) + 1}" if self.form.train_replies == "each" else ""
        return f"{self.name}, sample {number}{reply}"

    def layout(self, place: int) -> Layout:
        return self.layouts_used[self.layouts[place]]

    def sizes(self, place: int) -> np.ndarray:
        """Return (frames, height, width) of each image or video of a row, int32."""
        return self.media[self._media_of(place)]

    def file_states(self, place: int) -> list[tuple[int, int]]:
        """Return the `media_state` of each image or video of a row, as it was indexed."""
        media = self._media_of(place)
        return list(zip(self.file_sizes[media].tolist(), self.file_times[media].tolist()))

    def _media_of(self, place: int) -> slice:
        first = self.first_medium[place]
        return slice(first, first + len(self.layout(place).media))

    def of_media(self, places: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return four arrays with an entry per image or video of these rows: the row's entry in `positions`; the number
        in the row; frames, height, width and bytes (media, 4); a hash of the path, the URL or bytes in the row."""
        counts = np.array([*(len(layout.media) for layout in self.layouts_used), 0])[self.layouts[places]]
        numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        media = np.repeat(self.first_medium[places], counts) + numbers
        sizes = np.column_stack([self.media[media], self.file_sizes[media]])
        return np.repeat(positions, counts), numbers, sizes, self.media_hashes[media]

    def groups(self, places: np.ndarray) -> Iterator[tuple[Layout, np.ndarray, np.ndarray]]:
        """Group `places` by layout and media sizes. Yield the layout, the sizes, and indices into `places`."""
        of_place = self.layouts[places]
        for number, layout in enumerate(self.layouts_used):
            members = np.flatnonzero(of_place == number)
            if not len(members):
                continue
            width = len(layout.media)
            firsts = self.first_medium[places[members]]
            sizes = self.media[firsts[:, None] + np.arange(width)].reshape(len(members), -1)
            distinct, group = np.unique(sizes, axis=0, return_inverse=True)
            group = group.ravel()  # NumPy 2.0 returns two dimensions
            order = np.argsort(group, kind="stable")
            for values, alike in zip(distinct, np.split(order, np.cumsum(np.bincount(group))[:-1])):
                yield layout, values.reshape(width, 3), members[alike]


def open_index(path: str, form: RowForm, options: MediaOptions) -> RowIndex:
    """Return the index of a file from the cache folder. Rebuild it if the file, its media or the options have changed.

    Raises:
        ValueError: The file as a whole is broken. Faults of single rows are in `errors`.
    """
    state = state_of(path)
    # <cache folder>/rows/<path>/<version, state of the file>/<name, form, options>
    of_path = os.path.join(os.path.expanduser(options.cache_folder), "rows", name_of(os.path.realpath(path)))
    of_state = os.path.join(of_path, name_of(INDEX_VERSION, state))
    folder = os.path.join(of_state, name_of(os.path.basename(path), asdict(form), asdict(options)))
    with naming_cache(options.cache_folder):
        os.makedirs(of_state, exist_ok=True)
        with FileLock(os.path.join(of_path, "lock")):  # the lock lets only one process make the index
            for outdated in set(glob.glob(os.path.join(of_path, "*", ""))) - {os.path.join(of_state, "")}:
                if time.time() - os.path.getmtime(outdated) > DAYS_KEPT * 86_400:  # another run may still use it
                    shutil.rmtree(outdated)
            try:
                index = RowIndex(path, folder, form)
                if is_current(index, options):
                    return index
                shutil.rmtree(folder)
            except FileNotFoundError:  # the index is missing or incomplete
                shutil.rmtree(folder, ignore_errors=True)
            except (OSError, EOFError, ValueError, KeyError):  # the index is damaged
                shutil.rmtree(of_state)
            IndexMaker(path, form, options).make(folder)
            return RowIndex(path, folder, form)


@contextlib.contextmanager
def naming_cache(folder: str) -> Iterator[None]:
    """Turn an OSError in the `with` block into a ValueError that names --data_cache."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"--data_cache {folder} cannot be written: {error}.") from error


def name_of(*values) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def state_of(path: str) -> list[int]:
    """Return the size and modification time of a file; for a folder, see `picture_folders.state_of_folder`."""
    try:
        state = os.stat(path)
        if stat.S_ISDIR(state.st_mode):
            return picture_folders.state_of_folder(path)
    except OSError as error:
        raise ChangedFile(f"{path} cannot be read: {error.strerror}.") from error
    return [state.st_size, state.st_mtime_ns]


def media_state(reference: object) -> tuple[int, int]:
    """Return (size, time) of an image or video; for a list of frames, total size and mean time. -1: see `Medium`."""
    parts = reference if isinstance(reference, list) else [reference]
    states = [[len(part), -1] if isinstance(part, bytes) else state_of(part) for part in parts if not is_url(part)]
    if not states:
        return -1, -1
    sizes, times = zip(*states)
    return sum(sizes), sum(times) // len(times)


def arrow_copy(folder: str, form: RowForm) -> str:
    """Return the path of a file's Arrow copy, next to the folder of the index."""
    return os.path.join(os.path.dirname(folder), f"{name_of(asdict(form.mapping))}.arrow")


def is_current(index: RowIndex, options: MediaOptions) -> bool:
    """Whether the media folders are unchanged since the index was made, and all faulty rows are still faulty."""
    if any(modified(folder) != time for folder, time in index.media_folders.items()):
        return False
    looked_at = os.path.join(index.folder, "index.json")
    if time.time() - os.path.getmtime(looked_at) < SECONDS_CURRENT:
        return True
    rows, maker = [], IndexMaker(index.path, index.form, options)
    for place in index.errors:
        with contextlib.suppress(ValueError, RecursionError):  # skip rows of invalid JSON, which stay faulty
            rows.append((place, (0, 0, index.raw(place))))
    with ThreadPoolExecutor(8) as pool:
        maker.add(rows, pool)
    if len(maker.errors) < len(rows):
        return False
    os.utime(looked_at)
    return True


def hash_of_row(said: bytes, references: list[tuple]) -> int:
    """Return an 8-byte hash of a row's content, and of its media by path, URL or bytes."""
    names = repr([name_or_hash(reference) for _, reference, _ in references]).encode()
    return int.from_bytes(hashlib.blake2b(said + names, digest_size=8).digest())


def name_or_hash(value: object) -> object:
    if isinstance(value, list):  # the frames of a video
        return [*map(name_or_hash, value)]
    return hashlib.blake2b(value).digest() if isinstance(value, bytes) else value


def modified(folder: str) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


def write_headers(files: dict[str, BinaryIO]) -> None:
    """Write the headers of the files of ARRAYS, or update the lengths in them. NumPy leaves room for longer ones."""
    for name, file in files.items():
        kind = np.dtype(ARRAYS[name])
        length = max(file.tell() - NPY_HEADER, 0) // kind.itemsize
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {"descr": kind.str, "fortran_order": False, "shape": (length,)})


class IndexMaker:
    """Builds the index of a file in one pass over its rows."""

    def __init__(self, path: str, form: RowForm, options: MediaOptions):
        self.path, self.form, self.options, self.name = path, form, options, os.path.basename(path)
        self.columns, self.state = {*form.columns} - {*clips.NAMES}, state_of(path)
        self.arrays = {name: array(code) for name, code in ARRAYS.items()}  # values not yet written to the files
        self.num_media = 0
        self.layouts: dict[Layout, int] = {}
        self.errors: dict[int, str] = {}  # row number -> message
        self.digest, self.media_folders = hashlib.sha256(), set()
        self.unread, self.mapped, self.outside, self.counts = Counter(), Counter(), Counter(), Counter()
        self.own_folders = {*map(os.path.realpath, (os.path.dirname(path) or ".", *form.folders.values()))}
        self.outside_folder = lru_cache(4096)(self._outside_folder)
        self.header_of_file = lru_cache(100_000)(self.header)  # also for URLs

    def make(self, folder: str) -> None:
        """Write the index into a folder. The folder appears only once the index is complete."""
        unfinished = f"{folder}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        os.makedirs(unfinished)
        try:
            progress = tqdm(desc=f"Indexing {self.name}", unit=" rows", delay=2, mininterval=1)
            with ThreadPoolExecutor(8) as pool, progress, contextlib.ExitStack() as opened:
                paths = {name: os.path.join(unfinished, f"{name}.npy") for name in ARRAYS}
                files = {name: opened.enter_context(open(path, "wb")) for name, path in paths.items()}
                write_headers(files)
                found = enumerate(self.scan(folder))
                while batch := self.next_batch(found):
                    self.add(batch, pool)
                    for name, file in files.items():
                        self.arrays[name].tofile(file)
                        del self.arrays[name][:]
                    progress.update(len(batch))
                write_headers(files)
            self.write(unfinished)
            os.rename(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def scan(self, folder: str) -> Iterator[tuple[int, int, object]]:
        """Yield the same as `sources.scan`. For an Arrow copy, yield (batch, position of the row in the batch, row)."""
        if not copies.is_copied(self.path):
            return (tars if sources.has_ending(self.path, ".tar") else sources).scan(self.path)
        copy = arrow_copy(folder, self.form)
        if not os.path.isfile(copy):
            copies.copy_rows(self.path, self.form, f"{copy}.unfinished")
            os.rename(f"{copy}.unfinished", copy)
        batches = copies.open_arrow(copy)
        rows = (copies.to_rows(batches.get_batch(number)) for number in range(batches.num_record_batches))
        return ((number, place, row) for number, batch in enumerate(rows) for place, row in enumerate(batch))

    def next_batch(self, found: Iterator) -> list[tuple[int, tuple[int, int, object]]]:
        """Return the next rows, whose media headers are read together. Their total size is limited to save memory."""
        batch, size = [], 0
        for row in itertools.islice(found, copies.ARROW_ROWS if copies.is_copied(self.path) else BATCH):
            batch.append(row)
            size += row[1][1]  # for JSON, the bytes of the row
            if size >= BATCH_BYTES:
                break
        return batch

    def add(self, batch: list[tuple[int, tuple[int, int, object]]], pool: ThreadPoolExecutor) -> None:
        # For each row a list of its samples, and for each sample the values of OF_ROWS.
        rows = [[[offset, length, UNUSABLE, 0, 0, 0, 1, 0, number]] for number, (offset, length, _) in batch]
        usable = []
        for (number, (*_, raw)), known in zip(batch, rows):
            try:
                if isinstance(raw, ValueError):
                    raise raw
                row = self.form.named(raw, self.mapped)
                samples = self.form.samples(row, self.unread)
                usable.append((raw, row, samples, media_in(samples[-1]), known))
            except ValueError as error:
                self.errors[number] = f"{self.name}, sample {number}: {error}"
        # Headers of files and URLs are read in parallel, each once.
        media = {medium for *_, references, _ in usable for medium in references if isinstance(medium[1], str)}
        for _ in pool.map(self.medium, media):
            pass
        for raw, row, samples, references, known in usable:
            offset, length, *_, number = known[0]
            media = [*map(self.medium, references)]
            try:
                if faults := [medium for medium in media if isinstance(medium, ValueError)]:
                    raise faults[0]
                boxes.located(samples[-1], self.options)
            except ValueError as error:
                self.errors[number] = f"{self.name}, sample {number}: {error}"
                continue
            # The digest covers everything, also unknown fields, except references to media, since media may be moved.
            others = {name: value for name, value in row.items() if name not in self.columns}
            if self.form.allow_empty_answers:
                self.counts["empty_answers"] += any(map(is_empty, itertools.chain(*map(trained_replies, samples))))
            self.counts["several_answers"] += "references" in samples[-1][-1]
            self.counts["clips"] += any(clip for *_, clip in references)
            its_class = field_of(raw, self.form.balance)[0] if self.form.balance else None
            drawn = row.get(WEIGHT, 1.0), hash_of_row(repr(its_class).encode(), [])
            known.clear()
            for messages in samples:  # each sample is the beginning of the next one
                layout = Layout.of(messages)
                texts = [part["text"] for message in messages for part in message["content"] if "text" in part]
                named = [m[name] for m in messages if len(m) > 2 for name in Layout.FIELD_SIGNS if name in m]
                named += [clip for *_, clip in references[: len(layout.media)] if clip]
                said = repr([layout.replace("-", ""), texts, *named]).encode()  # ignores which replies are trained
                self.digest.update(said + repr([layout, others]).encode())
                text_bytes = sum(len(text.encode()) for text in texts)
                place = self.layouts.setdefault(layout, len(self.layouts)), text_bytes, self.num_media
                hashed = hash_of_row(said, references[: len(layout.media)])
                known.append([offset, length, *place, hashed, *drawn, number])
            self.num_media += len(media)
            self.counts["places"] += any(place in text for text in texts for place in PLACES)
            for reference, medium in zip(references, media):
                self.arrays["media_hashes"].append(hash_of_row(b"", [reference]))
                self.arrays["media"].extend(medium.size)
                self.arrays["file_sizes"].append(medium.file_size)
                self.arrays["file_times"].append(medium.file_time)
                if medium.outside:
                    self.outside[medium.outside] += 1
        for name, values in zip(OF_ROWS, zip(*itertools.chain(*rows))):
            self.arrays[name].extend(values)

    def medium(self, medium: tuple[str, object, tuple]) -> Medium | ValueError:
        """Return what the index stores about an item of `media_in`, or the error."""
        return (self.header_of_file if isinstance(medium[1], str) else self.header)(*medium)

    def header(self, kind: str, reference: object, clip: tuple) -> Medium | ValueError:
        parts = reference if isinstance(reference, list) else [reference]
        paths = [part for part in parts if isinstance(part, str) and not is_url(part)]
        self.media_folders.update(map(os.path.dirname, paths))
        try:
            size = read_header(kind, reference, self.options, dict(clip))
            size = size if kind == "video" else (0, *size)
            return Medium(size, *media_state(reference), next(filter(None, map(self.outside_of, paths)), None))
        except ValueError as error:
            return error

    def outside_of(self, path: str) -> str | None:
        """Return the folder of a file, with links resolved, or None if it is in the data folders or the Hub's cache."""
        return self.outside_folder(os.path.dirname(os.path.realpath(path) if os.path.islink(path) else path))

    def _outside_folder(self, folder: str) -> str | None:
        folder = os.path.realpath(folder)
        is_own = any(is_within(folder, own) for own in self.own_folders)
        return None if is_own or is_hub_blob(os.path.join(folder, "blob")) else folder

    def write(self, folder: str) -> None:
        places = np.searchsorted(np.load(os.path.join(folder, "numbers.npy"), mmap_mode="r"), [*self.errors]).tolist()
        errors = dict(zip(places, self.errors.values()))
        about = {name: getattr(self, name) for name in ("state", "unread", "mapped", "counts", "outside")}
        about |= {"layouts": list(self.layouts), "errors": errors, "digest": self.digest.hexdigest()}
        about["media_folders"] = {name: modified(name) for name in sorted(self.media_folders)}
        with open(os.path.join(folder, "index.json"), "w", encoding="utf-8") as file:
            file.write(strict_json(about))
