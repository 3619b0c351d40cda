"""Convert one row of a file, in any supported format, to canonical messages.

    conversations   {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, ...]}
    messages        {"messages": [{"role": "user", "content": "..." or [parts]}, ...], "images": [...]}
    prompt          {"prompt": "..." or [messages], "completion": "..." or [messages], "images": [...]}
    question        {"question": "...", "answer": "...", "image": "a.png"}, or with the names "query" and "response",
                    or "instruction", "input" and "output"; earlier turns in "history"

References to media become absolute paths, http(s) URLs, or the bytes of encoded files. A video may also be a list of
references to images. docs/dataset.md describes the formats to users.
"""

import base64
import binascii
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from urllib.request import url2pathname

from PIL import Image

from reading import boxes, clips, named_fields
from reading.files import is_within, resolve_in
from reading.mapping import TURN_KEYS, Mapping, field_of, proposal, said_in
from reading.references import is_url
from reading.strict_json import loaded, strict_json
from reading.unread import Unread, is_base64

ROLES = ("system", "user", "assistant")
MEDIA_KINDS = ("image", "video")
PART_TYPES = ("text", *MEDIA_KINDS, "image_url", "video_url")
MEDIA_COLUMNS = tuple(name for kind in MEDIA_KINDS for name in (kind, f"{kind}s"))
# Field of the question -> field of the answer. In the first pair, both fields may contain lists of messages.
PAIRS = {"prompt": "completion", "question": "answer", "query": "response", "instruction": "output"}
INPUT = {"instruction": ("input",)}  # more text, which is appended to the question
SYSTEM = ("system_prompt", "system")  # two names of one field
MASKS = ("train", "training", "loss", "weight", "loss_weight")  # names of one key of a message
WEIGHT = "sampling_weight"
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
LINE_BREAK_BEFORE, LINE_BREAK_BEHIND = re.compile(r"\A\r?\n"), re.compile(r"\r?\n\Z")
# Inserted into control strings that a user typed, and removed at tokenization (collators/frame_tokens.py).
RESERVED_CHARACTER = "\ufdd0"
# Lone surrogates (a cut "\ud83d" in JSON) are not characters, and no tokenizer accepts them.
UNUSABLE_CHARACTER = re.compile(f"[{RESERVED_CHARACTER}\ud800-\udfff]")
DATA_URL = re.compile(r"data:(?P<type>[\w/.+-]*)(?:;[\w=.+-]+)*?(?P<base64>;base64)?,", re.IGNORECASE)


@dataclass(frozen=True)
class RowForm:
    """Settings for reading the rows of a file."""

    folders: dict[str, str]  # "image" and "video" -> the absolute folder of relative paths
    user_key: str = "human"
    assistant_key: str = "gpt"
    field_messages: str = "messages"
    allow_urls: bool = False
    allow_outside: bool = False
    allow_absolute: bool = True  # False for data from the Hub, whose author is not the user
    mapping: Mapping = Mapping()
    prompt: str | None = None  # the question for every row
    system_prompt: str | None = None  # the system prompt for every row
    turn_keys: tuple[tuple[str, ...], tuple[str, ...]] = TURN_KEYS  # keys of a turn for its role and content
    system_key: str = "system"
    allow_empty_answers: bool = False
    balance: str | None = None  # the field of the file that names a row's class
    train_replies: str = "all"
    roots: tuple[str, ...] = ()  # with links resolved, local media must be inside these; (): anywhere

    @cached_property
    def roles(self) -> dict[str, str]:
        """Map values of `from` to roles."""
        keys = {self.system_key: "system", self.user_key: "user", self.assistant_key: "assistant"}
        return {role: role for role in ROLES} | keys

    @cached_property
    def turn_fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("conversations", self.field_messages)))

    @cached_property
    def plain_turns(self) -> dict[tuple[str, str], tuple[str, str]]:
        """Map the keys of a turn with two keys, in either order, to (key of the role, key of the content)."""
        pairs = [(sender, value) for sender in self.turn_keys[0] for value in self.turn_keys[1]]
        return {keys: pair for pair in pairs for keys in (pair, pair[::-1])}

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """All fields of a row that can be read."""
        of_pairs = (*PAIRS, *PAIRS.values(), "input", "history")
        return (*self.turn_fields[::-1], *of_pairs, *SYSTEM, *MEDIA_COLUMNS, "tools", "objects", WEIGHT, *clips.NAMES)

    def named(self, row: object, mapped: Counter | None = None) -> dict:
        """Return a row with renamed fields, and with values from flags. `Mapping.row` gets `mapped` as `found`."""
        if not isinstance(row, dict):
            raise ValueError(f"must be a JSON object, not {type(row).__name__}")
        if self.balance and field_of(row, self.balance)[0] is None:
            raise ValueError(f"has no field `{self.balance}`, which --balance {self.balance} needs")
        row = self.mapping.row(row, mapped)
        if WEIGHT in row:
            row[WEIGHT] = _weight(row[WEIGHT])
        for flag, names in (("prompt", (*self.turn_fields, *PAIRS)), ("system_prompt", SYSTEM)):
            if getattr(self, flag) is not None and (own := [name for name in names if name in row]):
                raise ValueError(f"has the field `{own[0]}`, but --{flag} is also given; remove one of the two")
        if self.prompt is not None:
            asked = {question: answer for question, answer in PAIRS.items() if answer in row}
            _one_of((*asked.values(),), row)
            row |= dict.fromkeys(asked, self.prompt)
        return row if self.system_prompt is None else row | {SYSTEM[0]: self.system_prompt}

    def samples(self, row: dict, unread_fields: Counter | None = None) -> list[list[dict]]:
        """Return the canonical messages of each sample of a row (--train_replies). "all" makes the row one sample.

        "each" gives one sample per trained exchange: the row up to the end of the exchange, with only that exchange
        trained. Q1 A1 Q2 A2 gives Q1 A1, and Q1 A1 Q2 A2 with only A2 trained. "last" gives only the longest sample.
        With "each", a tool call in an exchange without thoughts is a separate sample too, since the prompt of the
        call may end with an empty thought, which a server does not put before the next reply (Gemma 4).
        """
        messages = self.messages(row, unread_fields)
        if self.train_replies == "all":
            return [messages]
        found, asked = [], [i for i, message in enumerate(messages) if message["role"] == "user"]
        for question, end in zip(asked, [*asked[1:], len(messages)]):
            cuts = [i + 1 for i in range(question, end - 1) if "tool_calls" in messages[i]]
            if self.train_replies == "last" or any("reasoning_content" in m for m in messages[question:end]):
                cuts = []
            for start, stop in pairwise([question, *cuts, end]):
                if trained_replies(messages[start:stop]):
                    history = [m | {"train": False} if m["role"] == "assistant" else m for m in messages[:start]]
                    found.append([*history, *messages[start:stop]])
        return (found if self.train_replies == "each" else found[-1:]) or [messages]

    def messages(self, row: dict, unread_fields: Counter | None = None) -> list[dict]:
        """Return the canonical messages of a row.

        Args:
            row: from `named`.
            unread_fields: for each harmless field that is not read, counts the rows that contain it.

        Raises:
            ValueError: The message contains the field and the fix. Callers put "train.json, sample 7: " before it.
        """
        form, answer = self._form(row)
        unread = Unread({*self.folders.values()})
        pair = (answer, "history", *INPUT.get(form, ())) if answer else ()
        row, several = _with_one_answer(row, answer)
        unread.leave(row, {form, *pair, *SYSTEM, *MEDIA_COLUMNS, "tools", "objects", WEIGHT, *clips.NAMES})
        turns = self._turns_of_pair(row, form, answer, several) if answer else _turns(row[form], form, self)
        messages = _system(row) + named_fields.merged([self._message(turn, where, unread) for turn, where in turns])
        users = [message for message in messages if message["role"] == "user"]
        unread.leave_text(_said(users))
        media = [part for message in messages for part in message["content"] if "text" not in part]
        for kind in reversed(MEDIA_KINDS):  # images are inserted last, to be in front of videos
            column, references = self._column(row, kind, unread)
            if parts := [part for part in media if part["type"] == kind]:
                _fill(parts, kind, column or kind, references)
            elif column or form == "conversations":
                if _said(users).count(f"<{kind}>") != len(references):  # then count the tags in tool results too
                    users = [message for message in messages if message["role"] in ("user", "tool")]
                _place(users, kind, column or kind, references, must_be_placed=form == "conversations")
        _check_roles(messages)
        if several[1:]:
            messages[-1]["references"] = several
        if tools := named_fields.tools_of(row):
            messages[0]["tools"] = _usable(tools, "tools")
        if not (trained := trained_replies(messages)):
            raise ValueError('has "train": false on every reply, so nothing would be trained')
        if not self.allow_empty_answers and any(map(is_empty, trained)):
            raise ValueError(
                f"has an empty reply in its `{answer or form}` field, so only its end token would be "
                'trained: write an answer, put "train": false on the message, or remove the row '
                "(--allow_empty_answers True trains on rows with empty replies)"
            )
        if not row.keys().isdisjoint(clips.NAMES) or any("clip" in part for part in media):
            _place_clips(unread, row, messages)
        found = media_in(messages)
        if (objects := row.get("objects")) and boxes.placed(
            messages, _usable(objects, "objects"), [kind for kind, *_ in found].count("image")
        ):
            unread.leave(named_fields.parsed_json(objects, "objects"), boxes.OBJECT_KEYS, "objects")
        elif objects:  # `objects` in another format
            unread.leave({"objects": objects}, ())
        if unread.times or unread.media:
            named = [row[name] for name in MEDIA_COLUMNS if name in row]  # also the file names of media given as bytes
            unread.check([*named, *(medium[1] for medium in found)], any(kind == "video" for kind, *_ in found))
        for name in unread.names - {self.balance} if unread_fields is not None else ():
            unread_fields[name] += 1
        return messages

    def _form(self, row: dict) -> tuple[str, str | None]:
        """Return (field with the turns, None), or (field with the question, field with the answer)."""
        forms = [name for name in self.turn_fields if name in row]
        if not forms:
            forms = [name for name in PAIRS if name in row or name == "prompt" and "completion" in row]
        elif "completion" in row:  # `prompt` alone is ignored, since many data sets have it next to messages
            forms.append("prompt")
        if len(forms) > 1:
            raise ValueError(
                f"has both `{forms[0]}` and `{forms[1]}`, but only one can be trained on: remove one, or add "
                f"--columns {forms[1]}= to ignore `{forms[1]}`"
            )
        if not forms:
            fields = ", ".join(f"`{name}`" for name in row) or "(none)"
            raise ValueError(
                f"has none of `conversations`, `{self.field_messages}`, `question` and `answer` (docs/dataset.md); its "
                f"fields are {fields}: {proposal(row, self)}"
            )
        return forms[0], None if forms[0] in self.turn_fields else PAIRS[forms[0]]

    def _turns_of_pair(self, row: dict, question: str, answer: str, several: list[str]) -> list[tuple[dict, str]]:
        """Return the turns of a row. Answers, also in the history, are trained. Replies in the question are not."""
        history, turns = row.get("history", []), []
        for i, pair in enumerate(history if isinstance(history, list) else [history]):
            if not isinstance(pair, list) or len(pair) != 2:
                raise ValueError(f"history[{i}] is {shown(pair)}; it must be a list [question, answer]")
            turns += [({"role": role, "content": text}, f"history[{i}]") for role, text in zip(ROLES[1:], pair)]
        for name, role in ((question, "user"), (answer, "assistant")):
            value = row.get(name)
            if isinstance(value, list) and value and isinstance(value[0], str):
                fix = _first_texts((name, answer) if several[1:] else (name,), dict(self.mapping.sources))
                raise ValueError(f"`{name}` is a list of texts; pass --columns {fix} to use the first text")
            if value is None and name == answer:
                hint = proposal(row, self)
                hint = f": {hint}" if "answer=" in hint and "--prompt" not in hint else ""  # "": no other text field
                raise ValueError(f"has `{question}` but no `{answer}`{hint}")
            if isinstance(value, list):
                found = _turns(value, name, self)
                if name == question:
                    found = [(_untrained(turn, self), at) for turn, at in found]
                turns += found
                continue
            if name == answer and type(value) is int:  # such as a count or a class number
                value = str(value)
            fields = {name: value} | {key: row[key] for key in INPUT.get(name, ()) if key in row}
            texts = [_text(value, field)["text"] for field, value in fields.items()]
            turns.append(({"role": role, "content": "\n".join(filter(None, texts))}, name))
        return turns

    def _message(self, turn: dict, where: str, unread: Unread) -> dict:
        keys, train = self.plain_turns.get(tuple(_object(turn, where))), {}  # fast path for most turns
        if not keys:
            keys = [_one_of(names, turn, f"{where} ") or names[0] for names in self.turn_keys]
            named = named_fields.keys_of(turn.get(keys[0]))
            unread.leave(turn, {*MASKS, *self.turn_keys[0], *self.turn_keys[1], *named}, where)
            train = _train(turn, where)
        sender, value = keys
        given, content = turn.get(sender), turn.get(value)
        role = self.roles.get(given, named_fields.ROLE_NAMES.get(given)) if isinstance(given, str) else None
        if role is None:
            raise ValueError(
                f"{where}.{sender} is {shown(given)}, expected one of {', '.join(map(repr, self.roles))} (--user_key "
                "and --assistant_key set two of these names)"
            )
        if role == "assistant" and isinstance(content, list):
            turn, content = named_fields.without_parts(turn, content, f"{where}.{value}")
        fields = named_fields.fields_of(turn, role, where)
        if given in named_fields.CALLERS and given not in self.roles:
            content, fields = named_fields.called(content, f"{where}.{value}")
        if "tool_calls" in fields and not content:
            parts = []
        elif isinstance(content, list) and value == "content":
            parts = [self._part(part, f"{where}.{value}[{j}]", unread) for j, part in enumerate(content)]
            if role not in ("user", "tool") and (media := [part["type"] for part in parts if part["type"] != "text"]):
                raise ValueError(f"has {media[0]} content in role {role!r}; move it to a user message")
        else:
            parts = [_text(content, f"{where}.{value}")]
        message = {"role": role, "content": parts, **(_usable(fields, where) if fields else fields), **train}
        return named_fields.without_head(message, f"{where}.{value}") if role == "assistant" else message

    def _part(self, part: object, where: str, unread: Unread) -> dict:
        """Return a canonical content part. An image or video without a source gets the reference None."""
        part = {k: v for k, v in _object(part, where).items() if v is not None}
        kind = part.get("type")
        if kind not in PART_TYPES:
            raise ValueError(f"{where} has type {shown(kind)}, expected one of {', '.join(map(repr, PART_TYPES))}")
        sources = ("path", "url", "base64", "value", kind) if kind in MEDIA_KINDS else (kind, "value")
        of_clip = clips.NAMES if kind.startswith("video") else ()
        unread.leave(part, {"type", *sources, *(["index"] if kind in MEDIA_KINDS else []), *of_clip}, where)
        clip = {"clip": clip} if of_clip and (clip := clips.of_fields(part, f"{where}.")) else {}
        source = _one_of(sources, part, f"{where} ")
        value = part.get(source)
        if kind == "text":
            return _text(value, f"{where}.text")
        if kind.endswith("_url"):  # OpenAI's: {"image_url": {"url": ...}}
            if isinstance(value, dict):
                unread.leave(value, {"url"}, f"{where}.{kind}")
                value = value.get("url")
            if value is None:
                raise ValueError(f"{where} has type '{kind}' but no `{kind}` with a `url`")
            kind, source = kind.removesuffix("_url"), "url"
        if source is None:
            return {"type": kind, kind: None, "index": part.get("index"), "where": where, **clip}
        where = f"{where}.{source}"
        reference = _decode_base64(value, where) if source == "base64" else self._reference(kind, value, where, unread)
        return {"type": kind, kind: reference, **clip}

    # ---- references ----

    def _column(self, row: dict, kind: str, unread: Unread) -> tuple[str | None, list]:
        """Return the name of the field with media of this kind, such as `images` (else None), and its references."""
        name = _one_of((kind, f"{kind}s"), row)
        if name is None or row[name] == "":  # an empty text means no media, as in a table
            return name, []
        if not isinstance(row[name], list):
            return name, [self._reference(kind, row[name], name, unread)]
        return name, [self._reference(kind, value, f"{name}[{i}]", unread) for i, value in enumerate(row[name])]

    def _reference(self, kind: str, value: object, where: str, unread: Unread) -> object:
        if isinstance(value, dict) and value.keys() & {"bytes", "path"}:  # from the Hub's Image and Video columns
            unread.leave(value, {"bytes", "path"}, where)
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if isinstance(value, list) and kind == "video" and value:
            return [self._reference("image", frame, f"{where}[{i}]", unread) for i, frame in enumerate(value)]
        if isinstance(value, (bytes, Image.Image)):
            return value
        if not isinstance(value, str):
            raise ValueError(
                f"`{where}` must be a path or a list of paths (or a URL, a data URL, {{bytes, path}}), not "
                f"{type(value).__name__}"
            )
        if value[:5].lower() == "data:":
            return _decode_url(kind, value, where)
        if is_base64(value):
            return _decode_base64(value, where)
        if is_url(value):
            if not self.allow_urls:
                raise ValueError(f"{where} is the URL {shown(value)}: add --allow_urls True to fetch such media")
            return value
        return self._path(kind, value, where)

    def _path(self, kind: str, path: str, where: str) -> str:
        if path[:8].lower() == "file:///":
            path = url2pathname(path[7:])
        if not path.strip():
            raise ValueError(f"{where} is empty; write a path, or remove the field")
        if "://" in path and SCHEME.match(path) or "\0" in path:
            raise ValueError(f"{where} is {shown(path)}, which is not a path; use a path, or an http(s) URL")
        folder = self.folders[kind]
        resolved = os.path.normpath(os.path.join(folder, path))
        if self.roots:
            resolve_in(resolved, self.roots, f"{where} is {shown(path)}, which")
        if self.allow_outside or (os.path.isabs(path) and self.allow_absolute):
            return resolved
        if not is_within(resolved, folder):
            raise ValueError(
                f"{where} is {shown(path)}, which is outside of {folder}: fix the path or --{kind}_folder, or "
                "add --allow_outside True if you trust the data"
            )
        return resolved


def content_parts(row: dict) -> list[dict]:
    """Return all content parts of a canonical sample, in order."""
    return [part for message in row["messages"] for part in message["content"]]


def media_in(messages: list[dict]) -> list[tuple[str, object, tuple]]:
    """Return (kind, reference, items of the `clip`) of each image or video, in order."""
    parts = [part for message in messages for part in message["content"] if "text" not in part]
    return [(part["type"], part[part["type"]], tuple(part.get("clip", {}).items())) for part in parts]


def trained_replies(messages: list[dict]) -> list[dict]:
    return [message for message in messages if message["role"] == "assistant" and message.get("train", True)]


def is_empty(reply: dict) -> bool:
    """Whether a reply has only white space, which templates strip, and no calls."""
    return "tool_calls" not in reply and not any(part["text"].strip() for part in reply["content"])


def shown(value: object) -> str:
    """Format a value for an error message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _weight(value: object) -> float:
    """Return the weight of a row: how often it is drawn, compared with others. In tables, numbers are text."""
    with suppress(ValueError, OverflowError):
        if type(value) in (int, float, str) and 0 <= (weight := float(value)) <= 1e9:  # not NaN
            return weight
    raise ValueError(f"{WEIGHT} is {shown(value)}; it must be a number from 0 to 1e9")


def _turns(turns: object, name: str, form: RowForm) -> list[tuple[dict, str]]:
    """Return the turns of a field, each with its name for error messages."""
    turns = loaded(turns)
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"has no turns in its `{name}` field; write a list of turns, or that list as JSON text")
    return [(said, f"{name}[{i}]") for i, turn in enumerate(turns) for said in said_in(turn, form) or [turn]]


def _object(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, not {type(value).__name__}")
    return value


def _untrained(turn: object, form: RowForm) -> object:
    """Return a turn of a question, marked as not trained if it is a reply."""
    senders = [turn.get(name) for name in form.turn_keys[0]] if isinstance(turn, dict) else []
    is_reply = any(form.roles.get(sender) == "assistant" for sender in senders if isinstance(sender, str))
    return turn | {"train": False} if is_reply else turn


def _first_texts(names: tuple[str, ...], sources: dict[str, str]) -> str:
    """Return the values for --columns that select the first text of each field. All fields contain lists."""
    found = ((name, sources.get(name, name)) for name in names)
    return " ".join(f"'{n}={s.replace('[]', '[0]') if '[]' in s else f'{s}[0]'}'" for n, s in found)


def _with_one_answer(row: dict, name: str | None) -> tuple[dict, list[str]]:
    """Replace a list of answers by the most frequent answer. Return the row and the list ([] if there is no list)."""
    answers = row.get(name)
    if not isinstance(answers, list) or not answers or not isinstance(answers[0], str):
        return row, []
    references = [_text(answer, f"{name}[{i}]")["text"] for i, answer in enumerate(answers)]
    return row | {name: Counter(references).most_common(1)[0][0]}, references


def _said(messages: list[dict]) -> str:
    return "\n".join([part["text"] for message in messages for part in message["content"] if "text" in part])


def _text(value: object, where: str) -> dict:
    if not isinstance(value, str):
        fix = f': write "{value}"' if isinstance(value, (int, float)) else ""
        fault = "is missing; it must be text" if value is None else f"must be text, not {type(value).__name__}"
        raise ValueError(f"{where} {fault}{fix}")
    if not value.isascii() and (match := UNUSABLE_CHARACTER.search(value)):
        raise ValueError(f"{where} has the unusable character U+{ord(match[0]):04X}; remove it")
    return {"type": "text", "text": value}


def _usable(fields: object, where: str) -> object:
    """Return the fields unchanged. Raise a ValueError if their texts have unusable characters."""
    if match := UNUSABLE_CHARACTER.search(strict_json(fields, ensure_ascii=False)):
        found = f"U+{ord(match[0]):04X} in a thought, tool or name"
        raise ValueError(f"{where} has the unusable character {found}; remove it")
    return fields


def _one_of(names: tuple[str, ...], given: dict, where: str = "") -> str | None:
    """Return which of several names for the same thing is given, or None. Raise a ValueError if two are given."""
    found = [name for name in names if name in given]
    if len(found) > 1:
        fix = "" if where else f" (--columns {found[1]}= ignores the second)"
        raise ValueError(f"{where}has both `{found[0]}` and `{found[1]}`; keep one{fix}")
    return found[0] if found else None


def _system(row: dict) -> list[dict]:
    """Return a list with the system message from the row's field, if there is one."""
    name = _one_of(SYSTEM, row)
    if name is None or name == "system" and not row[name]:
        return []
    return [{"role": "system", "content": [_text(row[name], name)]}]


def _train(turn: dict, where: str) -> dict:
    """Return {"train": False} for `"train": false`, OpenAI's `"weight": 0`, or another name in MASKS, else {}."""
    given = {name: turn[name] for name in MASKS if turn.get(name) is not None}
    for name, value in given.items():
        if value not in (False, True):  # 0 and 1 are equal to these
            raise ValueError(f"{where}.{name} is {shown(value)}; it must be true or false")
    if len(set(given.values())) > 1:
        raise ValueError(f"{where} has `{'`, `'.join(given)}`, which contradict each other; keep one")
    return {"train": False} if False in given.values() else {}


def _place_clips(unread: Unread, row: dict, messages: list[dict]) -> None:
    """Apply the row's video fields to its videos. In a row without videos, treat these fields as unread."""
    media = [part for part in content_parts({"messages": messages}) if "text" not in part]
    videos = [part for part in media if part["type"] == "video"]
    given = {name: row[name] for name in clips.NAMES if name in row}
    if len(videos) < len(media) or not videos:  # `max_pixels` may be meant for the images
        unread.leave({name: given[name] for name in given if not videos or name == "max_pixels"}, ())
    if videos:
        clips.place(given, videos)


def _decode_base64(text: object, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError(f"{where} is not valid base64: {error}") from error


def _decode_url(kind: str, url: str, where: str) -> bytes:
    match = DATA_URL.match(url)
    if not match or not match["base64"]:
        raise ValueError(f"{where} is not a data URL of the form data:{kind}/...;base64,...")
    if match["type"] and match["type"].partition("/")[0].lower() not in (kind, "application"):
        raise ValueError(f"{where} is a data URL of type {shown(match['type'])}, expected {kind}/...")
    return _decode_base64(url[match.end() :], where)


def _fill(parts: list[dict], kind: str, column: str, references: list) -> None:
    """Assign the media of a field to the parts without a source."""
    empty = [part for part in parts if part[kind] is None]
    if references and not empty:
        raise ValueError(f"has parts of type {kind!r} with a source, and also the field `{column}`; remove one")
    if empty and not references:
        raise ValueError(f"{empty[0]['where']} has type {kind!r} but no `path`, and the row has no field `{kind}s`")
    if len(empty) != len(references):
        raise ValueError(
            f"has {len(empty)} parts of type {kind!r} without a source, but {len(references)} in its "
            f"`{column}` field; both must match"
        )
    left = dict(enumerate(references))
    for i, part in enumerate(empty):
        index, where = part.pop("index"), part.pop("where")
        index = i if index is None else index  # some data sets number the parts
        if index not in range(len(references)):
            raise ValueError(f"{where}.index is {shown(index)}, but `{column}` has {len(references)} values")
        if index not in left:
            raise ValueError(f"{where}.index is {shown(index)}, as in an earlier part; use each index once")
        part[kind] = left.pop(index)


def _place(users: list[dict], kind: str, column: str, references: list, must_be_placed: bool) -> None:
    """Replace the tags in user messages by the media of a field. Without tags, put the media first, if allowed."""
    typed = _said(users).count(f"<{kind}>")
    if typed != len(references) and (typed or must_be_placed):
        raise ValueError(
            f"has {typed} <{kind}> in its user turns but {len(references)} in its `{column}` field; both must match"
        )
    if typed:
        left = iter(references)
        for message in users:
            message["content"] = [piece for part in message["content"] for piece in _split(part, kind, left)]
    elif references:
        if not users:
            raise ValueError(f"has the field `{column}`, but no user message for its media")
        users[0]["content"][:0] = [{"type": kind, kind: reference} for reference in references]


def _split(part: dict, kind: str, left: Iterator) -> list[dict]:
    """Split a text part at each <image> or <video>. One line break next to the tag is removed on each side."""
    parts, pieces = [], part["text"].split(f"<{kind}>") if part["type"] == "text" else []
    for i, piece in enumerate(pieces):
        if i > 0:
            parts.append({"type": kind, kind: next(left)})
            piece = LINE_BREAK_BEFORE.sub("", piece)
        if i < len(pieces) - 1:
            piece = LINE_BREAK_BEHIND.sub("", piece)
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts if pieces[1:] else [part]


def _check_roles(messages: list[dict]) -> None:
    """Raise a ValueError if the messages are not in a valid order. Add missing ids of calls and results."""
    if not named_fields.fit_together(messages):
        results = ", and tool results after each message with calls that is not the last, and nowhere else"
        has_tools = any(message["role"] == "tool" or "tool_calls" in message for message in messages)
        raise ValueError(
            f"has the roles {', '.join(message['role'] for message in messages)}; expected an optional system message, "
            f"then user and assistant in turn, with an assistant reply at the end{results if has_tools else ''}"
        )
    named_fields.add_ids(messages)
