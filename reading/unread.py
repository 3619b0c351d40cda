"""Find the fields of a row that are not read. Some of them are refused, the others are only listed.

An image under an unknown name (`photo: "a.jpg"`, bytes of a JPEG) would silently be missing in training, and so would a
loss mask, tools or the times of a clip. Such fields are refused. A field such as `id: 17` is harmless, so its name is
listed once, with the number of rows. The same goes for a text that only repeats the file name of media that the row
reads (`file_name: "1.jpg"` next to `image: "train2017/1.jpg"`). Empty fields such as `tools: []` are ignored.
"""

import base64
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import lru_cache
from urllib.parse import unquote, urlsplit

from reading.references import ENDING, describe, is_url

HEADER = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|BM.{4}\0{4}|RIFF.{4}(WEBP|AVI |WAVE)|II\*\0|MM\0\*|\0\0\x01\0|P[1-6]\s"
    rb"|\0{3}\x0cjP|\xff\x4f\xff\x51|.{4}ftyp|\x1aE\xdf\xa3|FLV\x01|\0\0\x01[\xb3\xba]|OggS|fLaC|ID3",
    re.DOTALL,
)
# Media in a user's text: <img>a.png</img> of Qwen-VL, <img src="a.png">, ![](a.png); or a.png alone.
IN_TEXT = re.compile(r"<(\w+)>([^<>\n]+)</\1>|<[^<>\n]*\bsrc=[\"']([^\"'\n]+)|!\[[^\]\n]*\]\(([^()\n]+)\)")
NAME_IN_TEXT = re.compile(ENDING.pattern.replace(r"\Z", r"\b"), re.IGNORECASE)
SEPARATOR = re.compile(r"[\s<>()[\]\"'`]")
MEDIA_TAGS = ("img", "image", "video", "vid", "audio")
PLACES = ("<image>", "<video>", "<audio>")
IN_LETTERS, BASE64 = re.compile("data:(image|video|audio)/", re.IGNORECASE), re.compile("[A-Za-z0-9+/]{24}")
LIST_INDEX = re.compile(r"\[\d+\]")
LONGEST_PATH = 2048

MASK, TIME = "a loss mask", "a time or frame rate of a video"
# What a field name may mean -> the fix.
FIXES = {
    MASK: 'write "train": false on each message that is not to be trained',
    "a system prompt": "name it `system`, or make it the first message, of role system",
    "tools": "name it `tools` in the row, or `tool_calls` in the reply (docs/conversations.md)",
    "earlier turns": "move them to the start of the row's turns",
    "a thought": "name it `reasoning_content` in the reply (docs/conversations.md)",
    "sound": "remove such rows (train.py: --on_bad_sample skip)",
    "a size of media": "set it for all media: --max_pixels, --image_size or --video_max_pixels (for one video: its "
    "`max_pixels`)",
    TIME: "name it `start`, `end`, `fps`, `num_frames` or `times`, in the row or its video (docs/moments.md)",
}
# (meaning, words, others): a name has the meaning if it contains one of the words, and apart from these only `others`
# (None: anything), since further words change the meaning (`weight_kg`, `operating_system`).
MEANINGS = [
    (
        MASK,
        "mask masks masked loss train trained training trainable weight weights",
        "is do no not on of in from for turn token tokens sample label labels message assistant reply response should "
        "compute ignore skip exclude attention scale",
    ),
    ("a system prompt", "system sys preamble", "prompt prompts message instruction instructions text content"),
    (
        "tools",
        "tool tools function functions",
        "call calls choice available definition definitions schema schemas list parallel used response responses",
    ),
    ("earlier turns", "history previous prior", "chat conversation dialog dialogue message messages turns"),
    ("a thought", "reasoning thinking thought thoughts cot", "chain of content text detail details block blocks trace"),
    ("sound", "audio audios sound sounds speech wav", "path file url bytes data input content"),
    ("a size of media", "pixels resized", "max min total height width image video"),
    (
        TIME,
        "start end begin stop time times timestamp timestamps second seconds sec secs duration fps nframes frames rate "
        "moment interval",
        None,
    ),
    (
        TIME,
        "clip segment span timespan frame onset offset ts t from to",
        "video s in range window idx index indices offset point points",
    ),
]
NEGATIONS = {"mask", "masks", "masked", "no", "not", "ignore", "skip", "exclude"}


class Unread:
    """Collects the fields of one row that are not read.

    `leave` notes the fields of each object of the row. `check` judges possible media once the row's media are known.
    """

    def __init__(self, folders: Collection[str]):
        self.folders = folders  # the folders of relative paths
        self.names: set[str] = set()  # of unread fields that are not empty, such as `id` and `messages[].detail`
        self.times: list[str] = []  # faults of the row if it has a video
        self.media: list[tuple[object, str]] = []  # possible media, and the fault if the row does not read them

    def leave(self, value: dict, read: Collection[str], where: str = "") -> None:
        """Note the fields of an object that are not in `read`. `where` is the object's place, such as `messages[3]`.

        Raises:
            ValueError: A name means something that training must not ignore. The message has the field and the fix.
        """
        place = f"{LIST_INDEX.sub('[]', where)}." if where else ""
        where = f"{where}." if where else ""
        for key in value:
            if key in read:
                continue
            listed = f"{place}{key}"
            ignore = f"(--columns '{listed}=' ignores it)"
            for name, inner in flat(key, value[key]):
                self.names.add(listed)
                for word, meaning in meanings_of(name):
                    if counts(meaning, word, inner):
                        fault = f"{where}{name} looks like {meaning}, but is not read: {FIXES[meaning]} {ignore}"
                        if meaning != TIME:
                            raise ValueError(fault)
                        self.times.append(fault)
                if is_medium(inner, self.folders):
                    fault = f"{where}{name} contains media ({describe(inner)}), but no field of this name is read"
                    fix = FIXES["sound"] if is_sound(name, inner) else "name it `image` or `video`"
                    self.media.append((inner, f"{fault}: {fix} {ignore}"))

    def leave_text(self, text: str) -> None:
        """Note or refuse the files that a user's text names, such as `Picture 1: a.png`."""
        for match in IN_TEXT.finditer(text):
            path = next(filter(None, match.groups()[1:])).strip()
            is_tagged = (match[1] or "").lower() in MEDIA_TAGS and ENDING.search(path)
            if is_tagged or is_medium(path, self.folders, must_exist=True):
                raise ValueError(as_letters(path))
        for match in NAME_IN_TEXT.finditer(text):
            name = SEPARATOR.split(text[max(match.end() - LONGEST_PATH, 0) : match.end()])[-1]
            if is_medium(name, self.folders, must_exist=True):
                self.media.append((name, as_letters(name)))

    def check(self, references: list, has_video: bool) -> None:
        """Refuse noted times if the row has a video, and noted media that are not among the references of the row."""
        if has_video and self.times:
            raise ValueError(self.times[0])
        read = {value for _, value in flat("", references) if isinstance(value, str)}
        for medium, fault in self.media:
            if not names_one_of(medium, read, self.folders):
                raise ValueError(fault)


def flat(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield (name, value) of each text, number or other non-empty leaf of a nested value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(f"{name}.{key}", inner)
    elif isinstance(value, (list, tuple)):
        name += "[]"
        for inner in value:
            yield from flat(name, inner)
    elif value is not None and value not in ("", b""):
        yield name, value


def as_letters(path: str) -> str:
    return (
        f"names the file {describe(path)} in a text, so only the name would be trained: write <image> or <video> "
        "instead and the path in the row's field `image` or `video`, or make it a part (docs/dataset.md)"
    )


def without(value: object, ignored: Collection[str], name: str = "") -> object:
    """Return a row, or a value in it, without the ignored fields (written as in `Unread.names`)."""
    if isinstance(value, dict):
        names = {key: f"{name}.{key}" if name else key for key in value}
        return {key: without(inner, ignored, names[key]) for key, inner in value.items() if names[key] not in ignored}
    return [without(inner, ignored, f"{name}[]") for inner in value] if isinstance(value, list) else value


@lru_cache(maxsize=4096)
def meanings_of(path: str) -> list[tuple[str, str]]:
    """Return (name, meaning) for each name in a field's path that may affect training."""
    found = []
    for name in re.split(r"[.\[\]]+", path):
        words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
        for meaning, any_of, beside in MEANINGS:
            any_of = set(any_of.split())
            if words & any_of and (beside is None or words <= any_of | set(beside.split())):
                found.append((name, meaning))
    return found


def counts(meaning: str, name: str, value: object) -> bool:
    """Whether a value affects training, unlike `"loss": true`, or a date in a field for the times of a video."""
    if meaning == MASK:
        return value not in (True, "true") or any(word in name.lower() for word in NEGATIONS)
    if meaning == TIME:
        is_date = re.search(r"\d{4}-\d\d|\d\d/\d\d", str(value))
        return not isinstance(value, bool) and bool(re.search(r"\d", str(value))) and not is_date
    return value is not False


def is_sound(name: str, value: object) -> bool:
    """Whether a field contains sound, judged by its name or its file names."""
    files = [ENDING.search(path_of(inner)) for _, inner in flat("", value) if isinstance(inner, str)]
    return any(meaning == "sound" for _, meaning in meanings_of(name)) or any(f and not f.lastgroup for f in files)


def check_places(row: dict, ignored: dict[str, object]) -> None:
    """Refuse <audio> in a text if the sound is ignored, since the tag would be trained as text."""
    sounds = [name for name, value in ignored.items() if is_sound(name, value)]
    if sounds and any(isinstance(text, str) and "<audio>" in text for _, text in flat("", row)):
        fault = f"has <audio> in a text, but --columns {sounds[0]}= ignores the sound: remove <audio> from the text, or"
        raise ValueError(f"{fault} {FIXES['sound']}")


def is_medium(value: object, folders: Collection[str], must_exist: bool = False) -> bool:
    """Whether a value is an image, a video or sound, or the path or URL of one."""
    if isinstance(value, bytes):
        return bool(HEADER.match(value))
    if not isinstance(value, str):
        return False
    if IN_LETTERS.match(value) or is_base64(value):
        return True
    if len(value) > LONGEST_PATH or not value.isprintable():
        return False
    names_medium = bool(ENDING.search(path_of(value)))
    if found := existing_files(value, folders):
        return names_medium or any(map(has_header, found))
    return names_medium and not must_exist


def is_base64(value: str) -> bool:
    """Whether a text is a media file in base64, judged by its first characters, with which no known path begins."""
    return bool(BASE64.match(value)) and bool(HEADER.match(base64.b64decode(value[:24])))


def existing_files(value: str, folders: Collection[str]) -> list[str]:
    """Return the existing files that a value names, if it is a path."""
    paths = [os.path.join(folder, value) for folder in folders]
    return [os.path.normpath(path) for path in paths if os.access(path, os.F_OK) and os.path.isfile(path)]


def has_header(path: str) -> bool:
    with suppress(OSError), open(path, "rb") as file:
        return bool(HEADER.match(file.read(16)))
    return False


def path_of(reference: str) -> str:
    return unquote(urlsplit(reference).path) if is_url(reference) else reference.replace("\\", "/")


def names_one_of(value: object, read: Collection[str], folders: Collection[str]) -> bool:
    """Whether a path equals a reference in `read` or the end of one, or a URL has the same file name as one."""
    if not isinstance(value, str) or len(value) > LONGEST_PATH:
        return False
    if found := existing_files(value, folders):
        return not read.isdisjoint(found)
    tail = [part for part in path_of(value).split("/") if part not in ("", ".")][-1 if is_url(value) else 0 :]
    return any(path_of(medium).split("/")[-len(tail) :] == tail for medium in read)
