"""One row of a file, in any of its forms -> canonical messages.

    conversations   {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, ...]}
    messages        {"messages": [{"role": "user", "content": "..." or [parts]}, ...], "images": [...]}
    prompt          {"prompt": "..." or [messages], "completion": "..." or [messages], "images": [...]}
    question        {"question": "...", "answer": "...", "image": "a.png"}, or with the names "query" and "response",
                    or "instruction", "input" and "output"; earlier turns in "history"

A reference to a medium becomes an absolute path, an http(s) URL, or the bytes of an encoded file; a video may also be a
list of references to images. docs/dataset.md describes the forms to users.
"""

import base64
import binascii
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

from reading import unread
from reading.files import is_within, leads_out_of, stays_in
from reading.mapping import TURN_KEYS, Mapping, proposal

ROLES = ("system", "user", "assistant")
KINDS = ("image", "video")
MEDIA_COLUMNS = tuple(name for kind in KINDS for name in (kind, f"{kind}s"))
# Names of what is asked -> of what is answered. Of the first, the texts may be lists of messages.
PAIRS = {"prompt": "completion", "question": "answer", "query": "response", "instruction": "output"}
INPUT = {"instruction": ("input",)}  # what it ends with
SYSTEM = ("system_prompt", "system")  # two names of one field
MASKS = ("train", "training", "loss", "weight", "loss_weight")  # names of one key of a message
OBJECT_MARK = re.compile("<(ref-object|bbox|point)>")  # ms-swift's
LINE_BREAK_BEFORE, LINE_BREAK_BEHIND = re.compile(r"\A\r?\n"), re.compile(r"\r?\n\Z")
# Stands inside control strings typed by a user until they are tokenized (collators/base.py).
RESERVED_CHARACTER = "\ufdd0"
# Lone surrogates (a cut "\ud83d" in JSON) are no characters, and no tokenizer takes them.
UNUSABLE_CHARACTER = re.compile(f"[{RESERVED_CHARACTER}\ud800-\udfff]")
DATA_URL = re.compile(r"data:(?P<type>[\w/.+-]*)(?:;[\w=.+-]+)*?(?P<base64>;base64)?,", re.IGNORECASE)
# Of a part -> the keys that its reference may stand under, besides the name of its kind.
SOURCES = ("path", "url", "base64", "value")


@dataclass(frozen=True)
class RowForm:
    """How the rows of a file are to be read."""

    folders: dict[str, str]  # "image" and "video" -> the absolute folder where relative paths start
    user_key: str = "human"
    assistant_key: str = "gpt"
    field_messages: str = "messages"
    allow_urls: bool = False
    allow_outside: bool = False
    allow_absolute: bool = True  # False for what came from the Hub, whose author is not the user
    mapping: Mapping = Mapping()
    prompt: str | None = None  # the question of each row
    system_prompt: str | None = None  # of each row
    turn_keys: tuple[tuple[str, ...], tuple[str, ...]] = TURN_KEYS  # of a turn -> its role and its content
    system_key: str = "system"
    allow_empty_answers: bool = False
    roots: tuple[str, ...] = ()  # folders that no local medium may be outside of, links resolved; (): anywhere
    roles: dict[str, str] = field(init=False)  # name in `from` -> role

    def __post_init__(self):
        keys = {self.system_key: "system", self.user_key: "user", self.assistant_key: "assistant"}
        object.__setattr__(self, "roles", {role: role for role in ROLES} | keys)

    @property
    def columns(self) -> tuple[str, ...]:
        """All fields of a row that can be read."""
        of_pairs = (*PAIRS, *PAIRS.values(), "input", "history")
        return (self.field_messages, "conversations", *of_pairs, *SYSTEM, *MEDIA_COLUMNS)

    def named(self, row: dict, mapped: Counter | None = None) -> dict:
        """A row under the names that are read, with what the flags give each row."""
        row = self.mapping.row(row, mapped)
        if self.prompt is not None:
            if asked := [name for name in (*self._turns_names(), *PAIRS) if name in row]:
                raise ValueError(f"has a question of its own (`{asked[0]}`), and --prompt gives one too; leave one out")
            row |= {question: self.prompt for question, answer in PAIRS.items() if answer in row}
        if self.system_prompt is not None:
            if given := [name for name in SYSTEM if name in row]:
                raise ValueError(f"has its own `{given[0]}`, and --system_prompt gives one too; leave one out")
            row |= {SYSTEM[0]: self.system_prompt}
        return row

    def messages(self, row: object, unread_fields: Counter | None = None, mapped: Counter | None = None) -> list[dict]:
        """The canonical messages of a row.

        Args:
            unread_fields: counts the rows of each field that is not read, and need not be.
            mapped: counts the rows that have each field of --columns.

        Raises:
            ValueError: names the field and the fix; it goes on after "train.json, sample 7: ".
        """
        if not isinstance(row, dict):
            raise ValueError(f"must be a JSON object, not {type(row).__name__}")
        row = self.named(row, mapped)
        form, answer = self._form(row)
        names = (form, answer, "history", *INPUT.get(form, ())) if answer else (form,)
        left = unread.leaves(_unread(row, names, self.turn_keys))
        unread.check_names(left, has_video=False)
        turns = self._turns_of_pair(row, form, answer) if answer else _turns(row[form], form)
        messages = _system(row) + [self._message(turn, where) for turn, where in turns]
        for kind in reversed(KINDS):  # so that images come first where both go to the front
            column, references = self._column(row, kind)
            self._put_in(messages, kind, column, references, column in row, form == "conversations")
        _check_roles([message["role"] for message in messages])
        for message in messages:
            for part in message["content"]:
                if part["type"] != "text" and message["role"] != "user":
                    raise ValueError(
                        f"has {part['type']} content in role {message['role']!r}; move it to a user message"
                    )
                if part["type"] == "text" and message["role"] == "user":
                    unread.check_text(part["text"], {*self.folders.values()})
                if match := UNUSABLE_CHARACTER.search(part.get("text", "")):
                    raise ValueError(f"has the unusable character U+{ord(match[0]):04X} in a text; remove it")
        if not any(message["role"] == "assistant" and message.get("train", True) for message in messages):
            raise ValueError('has "train": false on every reply, so that nothing would be trained')
        if not self.allow_empty_answers and has_empty_answer(messages):
            raise ValueError(
                f"has an empty reply in its `{answer or form}` field, of which only the end would be "
                'trained: write an answer, put "train": false on the message, or leave the row out '
                "(--allow_empty_answers True trains on such rows)"
            )
        parts = content_parts({"messages": messages})
        if "objects" in row and any(OBJECT_MARK.search(part.get("text", "")) for part in parts):
            raise ValueError("has marks of `objects` in its texts; boxes and points are not read yet, so leave it out")
        if left:
            self._check_unread(left, row, parts)
        if unread_fields is not None:
            unread_fields.update({leaf.listed for leaf in left})
        return messages

    def _turns_names(self) -> set[str]:
        return {self.field_messages, "conversations"}

    def _form(self, row: dict) -> tuple[str, str | None]:
        """The field that holds the turns of a row; or those that hold its question and its answer."""
        forms = sorted(self._turns_names() & row.keys())
        if "completion" in row or not forms and "prompt" in row:  # many data sets have a `prompt` beside messages
            forms.append("prompt")
        if not self._turns_names() & row.keys():
            forms += [name for name in PAIRS if name in row and name not in forms]
        if len(forms) > 1:
            raise ValueError(
                f"has both `{forms[0]}` and `{forms[1]}`, and only one can be trained on: remove one, or add "
                f"--columns {forms[1]}= to ignore it"
            )
        if not forms:
            fields = ", ".join(f"`{name}`" for name in row) or "none at all"
            raise ValueError(
                f"has none of `conversations`, `{self.field_messages}`, `question` and `answer` (docs/dataset.md), but "
                f"{fields}: {proposal(row, {*self.folders.values()})}"
            )
        return forms[0], None if forms[0] in self._turns_names() else PAIRS[forms[0]]

    def _check_unread(self, left: list[unread.Leaf], row: dict, parts: list[dict]) -> None:
        unread.check_names(left, has_video=any(part["type"] == "video" for part in parts))
        media = [part[part["type"]] for part in parts if part["type"] != "text"]
        media += [row[name] for name in MEDIA_COLUMNS if name in row]  # with the names of what is given as bytes
        read = {value for _, value in unread.flat("", media) if isinstance(value, str)}
        unread.check_media(left, read, {*self.folders.values()})

    def _turns_of_pair(self, row: dict, question: str, answer: str) -> list[tuple[dict, str]]:
        """The answer is trained, and so are those of the history; of a question of several messages, nothing is."""
        turns = []
        for i, pair in enumerate(row.get("history", [])):
            if not isinstance(pair, list) or len(pair) != 2:
                raise ValueError(f"history[{i}] is {shown(pair)}; it must be a list of a question and its answer")
            turns += [({"role": role, "content": text}, f"history[{i}]") for role, text in zip(ROLES[1:], pair)]
        for name, role in ((question, "user"), (answer, "assistant")):
            value = row.get(name)
            if isinstance(value, list) and value and isinstance(value[0], str):
                source = dict(self.mapping.sources).get(name, name)
                first = source.replace("[]", "[0]") if "[]" in source else f"{source}[0]"
                raise ValueError(f"`{name}` is a list of texts; --columns '{name}={first}' takes the first of them")
            if value is None and name == answer:
                hint = proposal(row, {*self.folders.values()})
                hint = f": {hint}" if "question=" in hint else ""  # else the question is its only text
                raise ValueError(f"has `{question}` but no `{answer}`{hint}")
            if isinstance(value, list):
                found = _turns(value, name)
                turns += [({**turn, "train": False}, where) for turn, where in found] if name == question else found
                continue
            if name == answer and type(value) is int:  # a count, or a class without a name
                value = str(value)
            texts = [
                _text(value, name)["text"],
                *(_text(row[key], key)["text"] for key in INPUT.get(name, ()) if key in row),
            ]
            turns.append(({"role": role, "content": "\n".join(text for text in texts if text)}, name))
        return turns

    def _put_in(
        self, messages: list[dict], kind: str, column: str, references: list, is_given: bool, must_be_placed: bool
    ) -> None:
        """Give the media of a field their places: parts without a source, <image> in texts of the user, or the front.

        Args:
            is_given: whether the row has the field; without it, <image> is text.
            must_be_placed: whether every <image> in a text is a place, and the front is none.
        """
        parts = [part for message in messages for part in message["content"] if part["type"] == kind]
        empty = [part for part in parts if part[kind] is None]
        users = [message for message in messages if message["role"] == "user"]
        if not parts and (is_given or must_be_placed):
            typed = sum(part.get("text", "").count(f"<{kind}>") for message in users for part in message["content"])
            if typed != len(references) and (typed or must_be_placed):
                raise ValueError(
                    f"has {typed} <{kind}> in its user turns but {len(references)} in its `{column}` field; they must "
                    "match"
                )
            if references and not users:
                raise ValueError(f"has a `{column}` field, but no user message to put it in")
            left = iter(references)
            for message in users if typed else []:
                message["content"] = [piece for part in message["content"] for piece in _split(part, kind, left)]
            if not typed and references:
                users[0]["content"][:0] = [{"type": kind, kind: reference} for reference in references]
            return
        if references and not empty:
            raise ValueError(
                f"has parts of type {kind!r} that name their source, and a `{column}` field besides; remove one"
            )
        if len(empty) != len(references):
            if not references:
                where = empty[0]["where"]
                raise ValueError(f"{where} has type {kind!r} but no `path`, and the row has no `{kind}s` for it")
            raise ValueError(
                f"has {len(empty)} parts of type {kind!r} without a source but {len(references)} in its "
                f"`{column}` field; they must match"
            )
        for i, part in enumerate(empty):
            index, where = part.pop("index"), part.pop("where")
            if index is not None and index not in range(len(references)):  # some data sets number them
                raise ValueError(f"{where}.index is {shown(index)}, but `{column}` has {len(references)} values")
            part[kind] = references[i if index is None else index]

    def _message(self, turn: dict, where: str) -> dict:
        keys = [key for names in self.turn_keys for key in names if key in turn]
        sender, value = (next((key for key in names if key in turn), names[0]) for names in self.turn_keys)
        if len(keys) > 2:
            raise ValueError(f"{where} has the keys `{'`, `'.join(keys)}`; keep a role and a content")
        role, content = turn.get(sender), turn.get(value)
        if not isinstance(role, str) or role not in self.roles:
            raise ValueError(
                f"{where}.{sender} is {shown(role)}, expected one of {', '.join(map(repr, self.roles))} (--user_key "
                "and --assistant_key rename two)"
            )
        if isinstance(content, list) and value == "content":
            parts = [self._part(part, f"{where}.{value}[{j}]") for j, part in enumerate(content)]
        else:
            parts = [_text(content, f"{where}.{value}")]
        return {"role": self.roles[role], "content": parts, **_train(turn, where)}

    def _part(self, part: object, where: str) -> dict:
        """A part of a message; of a medium without a source, the reference is None."""
        part = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {}
        kind = part.get("type")
        if "value" in part and kind in part:
            raise ValueError(f"{where} has both `{kind}` and `value`; keep one")
        if kind == "text":
            return _text(part.get("text", part.get("value")), f"{where}.text")
        if kind in ("image_url", "video_url"):  # OpenAI's: {"image_url": {"url": ...}}
            kind, url = kind.removesuffix("_url"), part.get(kind, part.get("value"))
            part = {"url": url.get("url") if isinstance(url, dict) else url}
            if part["url"] is None:
                raise ValueError(f"{where} has type '{kind}_url' but no `{kind}_url` with a `url`")
        elif kind not in KINDS:
            raise ValueError(
                f"{where} has type {shown(kind)}, expected 'text', 'image', 'video', 'image_url' or 'video_url'"
            )
        given = [name for name in (*SOURCES, kind) if name in part]
        if len(given) > 1:
            raise ValueError(f"{where} has both `{given[0]}` and `{given[1]}`; keep one")
        if not given:
            return {"type": kind, kind: None, "index": part.get("index"), "where": where}
        value = part[given[0]]
        if given[0] == "base64":
            return {"type": kind, kind: _decode(value, f"{where}.base64")}
        return {"type": kind, kind: self._reference(kind, value, f"{where}.{given[0]}")}

    # ---- references ----

    def _column(self, row: dict, kind: str) -> tuple[str, list]:
        """The name and the references of the row's field `image` or `images`, `video` or `videos`."""
        names = [name for name in (kind, f"{kind}s") if name in row]
        if len(names) > 1:
            raise ValueError(f"has both `{names[0]}` and `{names[1]}`; keep one")
        name = names[0] if names else kind
        values = row.get(name, "")
        if not isinstance(values, list):
            values = [] if values == "" else [values]  # an empty text is an absent one, as in a table
        where = [f"{name}[{i}]" if len(values) > 1 else name for i in range(len(values))]
        return name, [self._reference(kind, value, spot) for value, spot in zip(values, where)]

    def _reference(self, kind: str, value: object, where: str) -> object:
        if isinstance(value, dict) and value.keys() & {"bytes", "path"}:  # of the Hub's Image and Video columns
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if isinstance(value, list) and kind == "video" and value:
            return [self._reference("image", frame, f"{where}[{i}]") for i, frame in enumerate(value)]
        if isinstance(value, (bytes, Image.Image)):
            return value
        if not isinstance(value, str):
            raise ValueError(
                f"`{where}` must be a path or a list of paths (or a URL, a data URL, {{bytes, path}}), not "
                f"{type(value).__name__}"
            )
        if value[:5].lower() == "data:":
            return _decode_url(kind, value, where)
        if re.match(r"https?://", value, re.IGNORECASE):
            if not self.allow_urls:
                raise ValueError(f"{where} is the URL {shown(value)}: add --allow_urls True to fetch such media")
            return value
        return self._path(kind, value, where)

    def _path(self, kind: str, path: str, where: str) -> str:
        if not path.strip():
            raise ValueError(f"{where} is empty; give a path, or leave it out")
        if re.match(r"[a-z][a-z0-9+.-]+://", path, re.IGNORECASE) or "\0" in path:
            raise ValueError(f"{where} is {shown(path)}, which is no path; use a path, or an http(s) URL")
        folder = self.folders[kind]
        resolved = os.path.normpath(os.path.join(folder, path))
        if self.roots and not stays_in(resolved, self.roots):
            raise ValueError(f"{where} is {shown(path)}, which {leads_out_of(self.roots[0])}")
        if self.allow_outside or (os.path.isabs(path) and self.allow_absolute):
            return resolved
        if not is_within(resolved, folder):
            raise ValueError(
                f"{where} is {shown(path)}, which leaves the folder {folder}: mend the path or --{kind}_folder, or "
                "add --allow_outside True if you trust the data"
            )
        return resolved


def content_parts(row: dict) -> list[dict]:
    """All content parts of a canonical sample, in order."""
    return [part for message in row["messages"] for part in message["content"]]


def has_empty_answer(messages: list[dict]) -> bool:
    """Whether a trained reply is nothing but white space, which templates strip."""
    return any(
        message["role"] == "assistant"
        and message.get("train", True)
        and not any(part["text"].strip() for part in message["content"])
        for message in messages
    )


def shown(value: object) -> str:
    """A value in an error message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _turns(turns: object, name: str) -> list[tuple[dict, str]]:
    """The turns of a field, each with how messages name it."""
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"has no turn in its `{name}` field; it must be a list of at least two")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise ValueError(f"{name}[{i}] must be an object, not {type(turn).__name__}")
    return [(turn, f"{name}[{i}]") for i, turn in enumerate(turns)]


def _text(value: object, where: str) -> dict:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be text, not {'missing' if value is None else type(value).__name__}")
    return {"type": "text", "text": value}


def _system(row: dict) -> list[dict]:
    """The system message that a field of the row gives, if one does."""
    given = [name for name in SYSTEM if name in row]
    if len(given) > 1:
        raise ValueError(f"has both `{given[0]}` and `{given[1]}`; keep one")
    return [{"role": "system", "content": [_text(row[name], name)]} for name in given if row[name] or name != "system"]


def _train(turn: dict, where: str) -> dict:
    """`"train": false`, or OpenAI's `"weight": 0`, leaves a message out of the loss; there are other names of it."""
    given = {name: turn[name] for name in MASKS if turn.get(name) is not None}
    for name, value in given.items():
        if value not in (False, True):  # to which 0 and 1 are equal
            raise ValueError(f"{where}.{name} is {shown(value)}; it must be true or false")
    if len(set(given.values())) > 1:
        raise ValueError(f"{where} says by `{'`, `'.join(given)}` both that it is trained and that it is not; keep one")
    return {"train": False} if False in given.values() else {}


def _unread(row: dict, names: tuple[str, ...], turn_keys: tuple[tuple[str, ...], ...]) -> Iterator[tuple[str, object]]:
    """(where, value) of all fields that are not read, where `names` hold the turns or texts of the row."""
    for name, value in row.items():
        if name in MEDIA_COLUMNS:
            yield from _unread_of_reference(name, value)
        elif name not in (*names, *SYSTEM):
            yield name, value
        for i, turn in enumerate(value if name in names and isinstance(value, list) else []):
            for key, inner in turn.items() if isinstance(turn, dict) else []:
                if key not in (*turn_keys[0], *turn_keys[1], *MASKS):
                    yield f"{name}[{i}].{key}", inner
                for j, part in enumerate(inner if key == "content" and isinstance(inner, list) else []):
                    yield from _unread_of_part(f"{name}[{i}].{key}[{j}]", part)


def _unread_of_part(where: str, part: object) -> Iterator[tuple[str, object]]:
    """Of a part of a message, or of the object that it names its source by."""
    kind = part.get("type") if isinstance(part, dict) else None
    for key, value in part.items() if kind else []:
        if key == kind and kind in ("image_url", "video_url") and isinstance(value, dict):
            yield from ((f"{where}.{key}.{name}", inner) for name, inner in value.items() if name != "url")
        elif key == kind and kind in KINDS:
            yield from _unread_of_reference(f"{where}.{key}", value)
        elif key not in ("type", kind, "value", *(("index", *SOURCES) if kind in KINDS else ())) and value is not None:
            yield f"{where}.{key}", value


def _unread_of_reference(where: str, value: object) -> Iterator[tuple[str, object]]:
    """Of the Hub's {bytes, path}, or a list of these: what stands beside the two."""
    if isinstance(value, dict):
        yield from ((f"{where}.{key}", inner) for key, inner in value.items() if key not in ("bytes", "path"))
    for i, inner in enumerate(value if isinstance(value, list) else []):
        yield from _unread_of_reference(f"{where}[{i}]", inner)


def _decode(text: object, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError(f"{where} is not valid base64: {error}") from error


def _decode_url(kind: str, url: str, where: str) -> bytes:
    match = DATA_URL.match(url)
    if not match or not match["base64"]:
        raise ValueError(f"{where} is no data URL of the form data:{kind}/...;base64,...")
    if match["type"] and match["type"].partition("/")[0].lower() not in (kind, "application"):
        raise ValueError(f"{where} is a data URL of type {shown(match['type'])}, but the part is a {kind}")
    return _decode(url[match.end() :], where)


def _split(part: dict, kind: str, left: Iterator) -> list[dict]:
    """A text part at its <image> or <video>; a line break that sets one apart belongs to neither side."""
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


def _check_roles(roles: list[str]) -> None:
    """An optional system message, then user and assistant in turn from either on, an assistant last."""
    turns = roles[1:] if roles[0] == "system" else roles
    expected = [("assistant", "user")[i % 2] for i in range(len(turns))][::-1]
    if turns != expected or "user" not in turns:
        raise ValueError(
            f"has the roles {', '.join(roles)}; expected an optional system message, then user and assistant in turn, "
            "with an assistant reply at the end"
        )
