"""What is known of each row of a file without reading it: where it is, its layout, the sizes of its media.

A row that gives several samples (--train_replies each) is in the index once for each: a place there is a sample's.

The index of a file is made once, in one pass that checks every row and the header of every medium, and is kept in the
cache folder. It is mapped into memory, so processes share it and none grows with the number of rows.
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

VERSION = 13  # of the files below
DAYS_KEPT = 7  # an index of a file that was written again since
SECONDS_CURRENT = 10  # in which several processes of one run look at faulty rows once
BATCH, BATCH_BYTES = 1024, 2**26  # rows, and bytes of JSON, whose media headers are read at a time
OF_ROWS = {"offsets": "q", "lengths": "q", "layouts": "i", "text_bytes": "q", "first_medium": "q", "hashes": "Q"}
OF_ROWS |= {"sampling_weights": "d", "classes": "Q", "numbers": "q"}  # the last, of the row in its file
ARRAYS = OF_ROWS | {"media": "i", "file_sizes": "q", "file_times": "q", "media_hashes": "Q"}  # these of media
HEADER = 128  # bytes of one that NumPy writes in front of an array
UNUSABLE = -1  # layout of a row that cannot be used


class Layout(str):
    """The roles and parts of a row: rows of one layout differ only in texts and references.

    A capital letter begins a message of that role, a minus one that is not trained; t, i and v are its parts: "UitA-t".
    Other signs stand for its fields: a thought, calls of tools, boxes; "v?" is a list of images without their times.
    """

    LETTERS = {"system": "S", "user": "U", "assistant": "A", "tool": "T", "text": "t", "image": "i", "video": "v"}
    FIELD_SIGNS = {"reasoning_content": "~", "typed_thought": "^", "tool_calls": "*", "tools": "#", "objects": "%"}
    SIGNS = {"thoughts": "~", "tools": "#", "calls": "*", "results": "T"}  # what rows may hold, as people name it
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
        """A row of this layout: every text is "x", every reference its place among the row's media."""
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
        """The kind of each medium, in order."""
        return [kind for kind, *_ in media_in(self.messages)]

    @property
    def shape(self) -> "Layout":
        """What a chat template may see of it, up to the last reply: of equal neighbours (parts, exchanges), two."""
        known = re.sub("[SU][^A]*$", "", self.replace("-", ""))
        known = re.sub("([SA])t+", r"\1t", known)  # of a role whose texts are one
        return Layout(re.sub(r"(U[^U]*)\1+", r"\1\1", re.sub(r"([tiv])\1+", r"\1\1", known)))

    @property
    def kind(self) -> str:
        """text, image, several images, video, or mixed."""
        if len({*self.media}) > 1:
            return "mixed"
        return "several images" if self.media[1:] and self.media[0] == "image" else next(iter(self.media), "text")

    def media_sizes(self, sizes: np.ndarray) -> dict[tuple[str, int], tuple[int, ...]]:
        """(kind, reference in `messages`) -> size, from the index's (frames, height, width) of each medium."""
        return {
            (kind, i): tuple(size[1:] if kind == "image" else size)
            for i, (kind, size) in enumerate(zip(self.media, sizes.tolist()))
        }


class Medium(NamedTuple):
    """What is known of a medium by its header."""

    size: tuple[int, int, int]  # frames, height, width; of an image 0 frames
    file_size: int  # bytes; -1 of a URL
    file_time: int  # of its last change, in nanoseconds; -1 of what is no local file
    outside: str | None  # the folder of its file, if that is none of the data's


class ChangedFile(ValueError):
    """A file that has changed since its index was made."""


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
        # Field that is not read, column that --columns names, and what else is counted -> number of rows.
        self.unread, self.mapped, self.counts = about["unread"], about["mapped"], about["counts"]
        self.outside = about["outside"]  # folder that is none of the data's -> number of media
        for name in ARRAYS:
            setattr(self, name, np.load(os.path.join(folder, f"{name}.npy"), mmap_mode="r"))
        self.media = self.media.reshape(-1, 3)
        # Held as long as the index is, so that no other run takes it away.
        self.arrow = copies.open_arrow(arrow_copy(folder, form)) if copies.is_copied(path) else None

    def __reduce__(self):  # another process maps the files itself
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
        """A row as the file has it; of Parquet and tables, without the columns that are ignored.

        Raises:
            ChangedFile: a JSON or tar file that was written again since.
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
        """A canonical row."""
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
        """(frames, height, width) of each medium of a row, int32; -1 where it is not known."""
        return self.media[self._media_of(place)]

    def file_states(self, place: int) -> list[tuple[int, int]]:
        """`media_state` of each medium of a row, when it was indexed."""
        media = self._media_of(place)
        return list(zip(self.file_sizes[media].tolist(), self.file_times[media].tolist()))

    def _media_of(self, place: int) -> slice:
        first = self.first_medium[place]
        return slice(first, first + len(self.layout(place).media))

    def of_media(self, places: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of each medium of some rows: which of `positions` its row has, its number there; frames, height, width and
        bytes (media, 4); a hash of its name, or of its bytes where they are in the row.
        """
        counts = np.array([*(len(layout.media) for layout in self.layouts_used), 0])[self.layouts[places]]
        numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        media = np.repeat(self.first_medium[places], counts) + numbers
        sizes = np.column_stack([self.media[media], self.file_sizes[media]])
        return np.repeat(positions, counts), numbers, sizes, self.media_hashes[media]

    def groups(self, places: np.ndarray) -> Iterator[tuple[Layout, np.ndarray, np.ndarray]]:
        """Those of `places` that are alike in layout and media sizes: both, and where in `places` they are."""
        of_place = self.layouts[places]
        for number, layout in enumerate(self.layouts_used):
            members = np.flatnonzero(of_place == number)
            if not len(members):
                continue
            width = len(layout.media)
            firsts = self.first_medium[places[members]]
            sizes = self.media[firsts[:, None] + np.arange(width)].reshape(len(members), -1)
            distinct, group = np.unique(sizes, axis=0, return_inverse=True)
            group = group.ravel()  # numpy 2.0 gives it two dimensions
            order = np.argsort(group, kind="stable")
            for values, alike in zip(distinct, np.split(order, np.cumsum(np.bincount(group))[:-1])):
                yield layout, values.reshape(width, 3), members[alike]


def open_index(path: str, form: RowForm, options: MediaOptions) -> RowIndex:
    """The index of a file: from the cache folder, or made again where the file, its media or how they are read differ.

    Raises:
        ValueError: the file is broken as a whole. What is wrong with single rows is in `errors`.
    """
    state = state_of(path)
    # cache/rows/<path>/<state of the file>/<how it is read>
    of_path = os.path.join(os.path.expanduser(options.cache_folder), "rows", name_of(os.path.realpath(path)))
    of_state = os.path.join(of_path, name_of(VERSION, state))
    folder = os.path.join(of_state, name_of(os.path.basename(path), asdict(form), asdict(options)))
    with naming_cache(options.cache_folder):
        os.makedirs(of_state, exist_ok=True)
        with FileLock(os.path.join(of_path, "lock")):  # of several processes, one makes it
            for outdated in set(glob.glob(os.path.join(of_path, "*", ""))) - {os.path.join(of_state, "")}:
                if time.time() - os.path.getmtime(outdated) > DAYS_KEPT * 86_400:  # another run may still use it
                    shutil.rmtree(outdated)
            try:
                index = RowIndex(path, folder, form)
                if is_current(index, options):
                    return index
                shutil.rmtree(folder)
            except FileNotFoundError:  # there is none, or not all of it
                shutil.rmtree(folder, ignore_errors=True)
            except (OSError, EOFError, ValueError, KeyError):  # it was damaged
                shutil.rmtree(of_state)
            IndexMaker(path, form, options).make(folder)
            return RowIndex(path, folder, form)


@contextlib.contextmanager
def naming_cache(folder: str) -> Iterator[None]:
    """Turns an error of the disk into a ValueError that names the flag."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"--data_cache {folder} cannot be written: {error}.") from error


def name_of(*values) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def state_of(path: str) -> list[int]:
    """Size and time of the last change of a file; of a folder as `picture_folders` has it."""
    try:
        state = os.stat(path)
        if stat.S_ISDIR(state.st_mode):
            return picture_folders.state_of_folder(path)
    except OSError as error:
        raise ChangedFile(f"{path} cannot be read: {error.strerror}.") from error
    return [state.st_size, state.st_mtime_ns]


def media_state(reference: object) -> tuple[int, int]:
    """As `state_of`, of a medium; of the frames of a video, all bytes and the mean time; see `Medium` for -1."""
    parts = reference if isinstance(reference, list) else [reference]
    states = [[len(part), -1] if isinstance(part, bytes) else state_of(part) for part in parts if not is_url(part)]
    if not states:
        return -1, -1
    sizes, times = zip(*states)
    return sum(sizes), sum(times) // len(times)


def arrow_copy(folder: str, form: RowForm) -> str:
    """The copy of a Parquet file or a table, next to the folder of its index."""
    return os.path.join(os.path.dirname(folder), f"{name_of(asdict(form.mapping))}.arrow")


def is_current(index: RowIndex, options: MediaOptions) -> bool:
    """Whether media and their folders are as when the index was made, as far as a quick look shows."""
    if any(modified(folder) != time for folder, time in index.media_folders.items()):
        return False
    looked_at = os.path.join(index.folder, "index.json")
    if time.time() - os.path.getmtime(looked_at) < SECONDS_CURRENT:
        return True
    rows, maker = [], IndexMaker(index.path, index.form, options)
    for place in index.errors:
        with contextlib.suppress(ValueError, RecursionError):  # it is no JSON, and stays so
            rows.append((place, (0, 0, index.raw(place))))
    with ThreadPoolExecutor(8) as pool:
        maker.add(rows, pool)
    if len(maker.errors) < len(rows):
        return False
    os.utime(looked_at)
    return True


def hash_of_row(said: bytes, references: list[tuple]) -> int:
    """8-byte hashes of what a row says, and of its media by their path, URL or bytes."""
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
    """Begin the files of ARRAYS, or say how long they are by now, for which NumPy leaves room."""
    for name, file in files.items():
        kind = np.dtype(ARRAYS[name])
        length = max(file.tell() - HEADER, 0) // kind.itemsize
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {"descr": kind.str, "fortran_order": False, "shape": (length,)})


class IndexMaker:
    """Goes once over the rows of a file."""

    def __init__(self, path: str, form: RowForm, options: MediaOptions):
        self.path, self.form, self.options, self.name = path, form, options, os.path.basename(path)
        self.columns, self.state = {*form.columns} - {*clips.NAMES}, state_of(path)
        self.arrays = {name: array(code) for name, code in ARRAYS.items()}  # what is not in the files yet
        self.num_media = 0
        self.layouts: dict[Layout, int] = {}
        self.errors: dict[int, str] = {}  # by the row's number, as below
        self.digest, self.media_folders = hashlib.sha256(), set()
        self.unread, self.mapped, self.outside, self.counts = Counter(), Counter(), Counter(), Counter()
        self.own_folders = {*map(os.path.realpath, (os.path.dirname(path) or ".", *form.folders.values()))}
        self.outside_folder = lru_cache(4096)(self._outside_folder)
        self.header_of_file = lru_cache(100_000)(self.header)  # or of a URL

    def make(self, folder: str) -> None:
        """Write the index into a folder, which appears only when it is complete."""
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
        """As `sources.scan`; of an Arrow copy the batch and the place in it of each row."""
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
        """Rows whose media headers are read together: no more than fit into memory with all their bytes."""
        batch, size = [], 0
        for row in itertools.islice(found, copies.ARROW_ROWS if copies.is_copied(self.path) else BATCH):
            batch.append(row)
            size += row[1][1]  # of JSON, the bytes of the row
            if size >= BATCH_BYTES:
                break
        return batch

    def add(self, batch: list[tuple[int, tuple[int, int, object]]], pool: ThreadPoolExecutor) -> None:
        # Of each row its samples, each as OF_ROWS.
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
        # Headers of files and URLs are read side by side, each once.
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
            # The digest is of all but the references of media, which may move: also of fields of somebody's own.
            others = {name: value for name, value in row.items() if name not in self.columns}
            if self.form.allow_empty_answers:
                self.counts["empty_answers"] += any(map(is_empty, itertools.chain(*map(trained_replies, samples))))
            self.counts["several_answers"] += "references" in samples[-1][-1]
            self.counts["clips"] += any(clip for *_, clip in references)
            its_class = field_of(raw, self.form.balance)[0] if self.form.balance else None
            drawn = row.get(WEIGHT, 1.0), hash_of_row(repr(its_class).encode(), [])
            known.clear()
            for messages in samples:  # of which each begins the next
                layout = Layout.of(messages)
                texts = [part["text"] for message in messages for part in message["content"] if "text" in part]
                named = [m[name] for m in messages if len(m) > 2 for name in Layout.FIELD_SIGNS if name in m]
                named += [clip for *_, clip in references[: len(layout.media)] if clip]
                said = repr([layout.replace("-", ""), texts, *named]).encode()  # trained or not
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
        """What is known of a medium, as `media_of` has it, or what is wrong with it."""
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
        """The folder of a file, links resolved, if it is none of the data's and no blob of the Hub's cache."""
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
