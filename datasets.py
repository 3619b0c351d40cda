"""Rows on disk -> canonical samples.

Whatever form a row has in its file, everything after this module sees only

    {"messages": [{"role": "system" | "user" | "assistant", "content": [
        {"type": "text", "text": str} | {"type": "image", "image": ...} | {"type": "video", "video": ...}]}],
     "index": int,    # the row's place in its file, from 0
     "source": str}   # "train.json, sample 7", for error messages

`dataset.rows[i]` holds references (absolute paths), `dataset[i]` opened media: a PIL image, or a video's frames as
(num_frames, height, width, 3) uint8 with a "metadata" entry beside them.
"""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

# transformers and accelerate look for the package `datasets` on the path, find this file instead, and read
# `Dataset` (transformers 5.23) and `IterableDataset` (accelerate 1.15, two or more processes) from it.
from torch.utils.data import Dataset, IterableDataset  # noqa: F401

import media

ROLES = ("system", "user", "assistant")
PLACEHOLDER = re.compile(r"(<image>|<video>)")
LINE_BREAK_BEFORE, LINE_BREAK_BEHIND = re.compile(r"\A\r?\n"), re.compile(r"\r?\n\Z")
# Stands inside control strings typed by a user until they are tokenized (collators/base.py).
RESERVED_CHARACTER = "\ufdd0"
# Lone surrogates (a cut "\ud83d" in JSON) are no characters, and no tokenizer takes them.
UNUSABLE_CHARACTER = re.compile(f"[{RESERVED_CHARACTER}\ud800-\udfff]")
# Fields that only `conversations` reads: beside `messages` they would be ignored.
LLAVA_FIELDS = ("conversations", "image", "images", "video", "videos", "system_prompt")
# For `lengths` only: a rough number of tokens of one medium, and of characters per token.
MEDIA_TOKENS = {"image": 576, "video": 1024}
CHARACTERS_PER_TOKEN = 4


class MultimodalDataset(Dataset):
    """The samples of one JSON or JSONL file.

    Args:
        data_path: a JSON list or JSONL file.
        image_folder, video_folder: where relative paths start; by default the data file's folder.
        num_frames: frames per video.
        user_key, assistant_key: the names in the `from` field of `conversations`.
        check: True raises a ValueError that lists the rows that cannot be used; False keeps them in
            `errors` (position -> message), with None in `rows`.
    """

    def __init__(
        self,
        data_path: str,
        image_folder: str | None = None,
        video_folder: str | None = None,
        num_frames: int = 8,
        user_key: str = "human",
        assistant_key: str = "gpt",
        check: bool = True,
    ):
        own_folder = os.path.dirname(os.path.abspath(data_path))
        self.name = os.path.basename(data_path)
        self.folders = {
            "image": os.path.abspath(image_folder or own_folder),
            "video": os.path.abspath(video_folder or own_folder),
        }
        self.num_frames = num_frames
        self.roles = {"system": "system", user_key: "user", assistant_key: "assistant"}
        self.rows, self.errors = [], {}
        # (kind, path) -> (height, width) of an image, (frames, height, width) of a video, from the files' headers
        self.media_sizes: dict[tuple[str, str], tuple[int, ...]] = {}
        for index, row in enumerate(read_rows(data_path)):
            try:
                messages = self._messages(row)
            except ValueError as error:
                messages, self.errors[index] = None, f"{self._source(index)}: {error}"
            self.rows.append(messages and {"messages": messages, "index": index, "source": self._source(index)})
        self._check_media()
        if not self.rows:
            raise ValueError(f"{data_path} holds no sample.")
        if check and self.errors:
            shown = "\n".join(f"  {self.errors[i]}" for i in sorted(self.errors)[:10])
            raise ValueError(f"{len(self.errors)} of {len(self.rows)} samples of {data_path} cannot be used:\n{shown}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict:
        """The sample with its media opened.

        Raises:
            ValueError: a medium that cannot be decoded, or a row that cannot be used.
        """
        row = self.rows[position]
        if row is None:
            raise ValueError(self.errors[position])
        try:
            messages = [
                {"role": m["role"], "content": [self._open(part) for part in m["content"]]} for m in row["messages"]
            ]
        except ValueError as error:
            raise ValueError(f"{row['source']}: {error}") from error
        return {**row, "messages": messages}

    @property
    def lengths(self) -> list[int]:
        """Estimated tokens of each sample, from its text and the number of its media; opens no file."""
        return [
            sum(
                MEDIA_TOKENS.get(part["type"]) or len(part["text"]) // CHARACTERS_PER_TOKEN + 1
                for part in content_parts(row)
            )
            for row in self.rows
        ]

    @property
    def media_kinds(self) -> set[str]:
        """Which of "image" and "video" occur in the data set."""
        return {part["type"] for row in self.rows if row for part in content_parts(row)} - {"text"}

    def select(self, positions: list[int]) -> None:
        """Keep only the rows at these positions."""
        self.rows = [self.rows[position] for position in positions]

    # ---- one row -> messages ----

    def _source(self, index: int) -> str:
        return f"{self.name}, sample {index}"

    def _messages(self, row: dict) -> list[dict]:
        if not isinstance(row, dict):
            raise ValueError(f"must be a JSON object, not {type(row).__name__}")
        row = {key: value for key, value in row.items() if value is not None}
        if "messages" in row:
            if ignored := [field for field in LLAVA_FIELDS if field in row]:
                raise ValueError(
                    f"has the field `{ignored[0]}` beside `messages`, where it has no effect: make media parts of the "
                    "content (docs/dataset.md), or remove the field"
                )
            messages = [self._openai_message(turn, i) for i, turn in enumerate(_turns(row, "messages"))]
        elif "conversations" in row:
            messages = self._llava_messages(row)
        else:
            raise ValueError("has neither a `conversations` nor a `messages` field; see docs/dataset.md")
        _check_roles([message["role"] for message in messages])
        for message in messages:
            for part in message["content"]:
                if part["type"] != "text" and message["role"] != "user":
                    raise ValueError(
                        f"has {part['type']} content in role {message['role']!r}; move it to a user message"
                    )
                if match := UNUSABLE_CHARACTER.search(part.get("text", "")):
                    raise ValueError(f"has the unusable character U+{ord(match[0]):04X} in a text; remove it")
        return messages

    def _llava_messages(self, row: dict) -> list[dict]:
        """`conversations`: `<image>` and `<video>` in user turns stand for the media of the row, in order."""
        media_left = {kind: _as_list(row.get(kind), kind) for kind in ("image", "video")}
        counts = {kind: len(paths) for kind, paths in media_left.items()}
        found = dict.fromkeys(counts, 0)
        messages = []
        if "system_prompt" in row:
            messages.append({"role": "system", "content": [_text(row["system_prompt"], "system_prompt")]})
        for i, turn in enumerate(_turns(row, "conversations")):
            sender = turn.get("from")
            if not isinstance(sender, str) or sender not in self.roles:
                raise ValueError(
                    f"conversations[{i}].from is {sender!r}, expected one of {', '.join(map(repr, self.roles))} "
                    "(--user_key and --assistant_key rename them)"
                )
            role, text = self.roles[sender], _text(turn.get("value"), f"conversations[{i}].value")
            content = [text]
            if role == "user":
                content = _split_placeholders(text["text"])
                for part in content:
                    if (kind := part["type"]) != "text":
                        found[kind] += 1
                        part[kind] = self._resolve(kind, media_left[kind].pop(0)) if media_left[kind] else None
            messages.append({"role": role, "content": content})
        for kind, count in counts.items():
            if found[kind] != count:
                raise ValueError(
                    f"has {found[kind]} <{kind}> in its user turns but {count} in its `{kind}` field; they must match"
                )
        return messages

    def _openai_message(self, turn: dict, i: int) -> dict:
        """`messages`: content is a string or a list of parts; text is text, whatever stands in it."""
        where, role = f"messages[{i}]", turn.get("role")
        if role not in ROLES:
            raise ValueError(f"{where}.role is {role!r}, expected one of {', '.join(map(repr, ROLES))}")
        content = turn.get("content")
        if not isinstance(content, list):
            return {"role": role, "content": [_text(content, f"{where}.content")]}
        parts = []
        for j, part in enumerate(content):
            spot = f"{where}.content[{j}]"
            part = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {}
            kind = part.get("type")
            if kind == "text":
                parts.append(_text(part.get("text"), f"{spot}.text"))
            elif kind in ("image", "video"):
                reference = part.get("path", part.get(kind))
                if not isinstance(reference, str):
                    raise ValueError(f"{spot} has type {kind!r} but no `path`")
                parts.append({"type": kind, kind: self._resolve(kind, reference)})
            else:
                raise ValueError(f"{spot} has type {kind!r}, expected 'text', 'image' or 'video'")
        return {"role": role, "content": parts}

    # ---- media ----

    def _resolve(self, kind: str, path: str) -> str:
        return os.path.normpath(os.path.join(self.folders[kind], path))

    def _open(self, part: dict) -> dict:
        if part["type"] == "image":
            return {**part, "image": media.open_image(part["image"])}
        if part["type"] == "video":
            frames, metadata = media.open_video(part["video"], self.num_frames)
            return {**part, "video": frames, "metadata": metadata}
        return part

    def _check_media(self) -> None:
        """Read the header of every medium once; a row with a missing or unreadable one becomes an error."""

        def read_header(reference: tuple[str, str]) -> tuple[int, ...] | ValueError:
            try:
                size = media.check_media(*reference)
            except ValueError as error:
                return error
            return size if reference[0] == "image" else (self.num_frames, *size)

        references = [_references(row) for row in self.rows]
        distinct = list(dict.fromkeys(reference for of_row in references for reference in of_row))
        with ThreadPoolExecutor() as pool:
            self.media_sizes = dict(zip(distinct, pool.map(read_header, distinct)))
        for position, of_row in enumerate(references):
            faults = [self.media_sizes[r] for r in of_row if isinstance(self.media_sizes[r], ValueError)]
            if faults:
                self.rows[position], self.errors[position] = None, f"{self._source(position)}: {faults[0]}"


def content_parts(row: dict) -> list[dict]:
    """All content parts of a canonical sample, in order."""
    return [part for message in row["messages"] for part in message["content"]]


def read_rows(path: str) -> list:
    """The raw rows of a JSON list or a JSONL file (by its ending).

    Raises:
        ValueError: no such file, not a list, or broken JSON with its line.
    """
    if not os.path.isfile(path):
        raise ValueError(f"{path} does not exist or is not a file.")
    number = 1  # of the line that a parse starts at
    try:
        with open(path, encoding="utf-8-sig") as file:  # with or without the mark that Windows editors write first
            if path.lower().endswith(".jsonl"):
                rows = []
                for number, line in enumerate(file, 1):  # noqa: B007
                    rows += [json.loads(line.strip())] if line.strip() else []
            else:
                rows = json.load(file)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from error
    except json.JSONDecodeError as error:
        hint = " (name a JSONL file .jsonl)" if error.msg == "Extra data" else ""
        line = number + error.lineno - 1
        raise ValueError(f"{path}, line {line}: not valid JSON: {error.msg}{hint}.") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path} is not valid JSON: {reason}.") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a JSON list of samples, not {type(rows).__name__}; or name it .jsonl.")
    return rows


def _references(row: dict | None) -> list[tuple[str, str]]:
    """(kind, path) of each medium of a row."""
    return [(p["type"], p[p["type"]]) for p in content_parts(row) if p["type"] != "text"] if row else []


def _turns(row: dict, field: str) -> list[dict]:
    turns = row[field]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"has no turn in its `{field}` field; it must be a list of at least two")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise ValueError(f"{field}[{i}] must be an object, not {type(turn).__name__}")
    return turns


def _text(value, field: str) -> dict:
    if not isinstance(value, str):
        raise ValueError(f"{field} must be text, not {'missing' if value is None else type(value).__name__}")
    return {"type": "text", "text": value}


def _as_list(value, field: str) -> list[str]:
    paths = value if isinstance(value, list) else [] if value is None else [value]
    for path in paths:
        if not isinstance(path, str):
            raise ValueError(f"`{field}` must be a path or a list of paths, not {type(path).__name__}")
    return list(paths)


def _split_placeholders(text: str) -> list[dict]:
    """Text parts and media parts, in order; a line break that sets a placeholder apart belongs to neither."""
    parts = []
    pieces = PLACEHOLDER.split(text)
    for i, piece in enumerate(pieces):
        if i % 2:
            parts.append({"type": piece[1:-1]})
            continue
        if i > 0:
            piece = LINE_BREAK_BEFORE.sub("", piece)
        if i < len(pieces) - 1:
            piece = LINE_BREAK_BEHIND.sub("", piece)
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _check_roles(roles: list[str]) -> None:
    """An optional system message, then user and assistant in turn, an assistant last."""
    turns = roles[1:] if roles[0] == "system" else roles
    expected = [("user", "assistant")[i % 2] for i in range(len(turns))]
    if turns != expected or len(turns) % 2 or not turns:
        raise ValueError(
            f"has the roles {', '.join(roles)}; expected an optional system message, then user and assistant in turn, "
            "with an assistant reply at the end"
        )
