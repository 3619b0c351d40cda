"""From the names in a file to the names under which rows are read: the flag --columns.

`--columns question=query image=jpg "answer=answers[0].text"` reads the field `query` as `question`, and so on; `url=`
ignores a field. A source may be inside objects and lists: `meta.file`, `turns[1].text`, `frames[].path` (of all).
"""

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reading import unread
from reading.references import kind_by_name
from reading.strict_json import loaded

COLUMN = re.compile(r"([^=]+)=(.*)", re.DOTALL)
SEVERAL = ("images", "videos")  # names that hold the media of several fields, in the order of the flag
TURN_KEYS = (("role", "from"), ("content", "value"))
# Fields that often hold the question or the answer, the likeliest first, and those that hold neither.
QUESTIONS = "question query prompt instruction problem input human user".split()
ANSWERS = "answer response output completion caption captions label labels target solution translation text".split()
NEITHER = re.compile(r"(system(_prompt)?|tools|(.*[\W_])?(id|ID|uid|uuid|idx|index)|.*[a-z]Id)\Z")
OF_A_VIDEO = re.compile(r"video|clip|\.(mp4|mkv|mov|avi|webm)", re.IGNORECASE)
STEPS = re.compile(r"\[(\d*)\]|[^.\[\]]+")
# Keys of a well-known file, of its parts or of its rows -> its converter (example_data/convert.py); of two, the first.
CONVERTERS = {
    ("images", "annotations", "categories"): "coco_instances",
    ("licenses", "images", "annotations"): "coco_captions",
    ("questions", "data_subtype"): "vqa_v2",
    ("annotations", "data_subtype"): "vqa_v2",
    ("id", "qas"): "visual_genome",
    ("data", "annotations"): "label_studio",
    ("root", "annotation"): "internvl_meta",
}


@dataclass(frozen=True)
class Mapping:
    """How the fields of a row get the names under which they are read."""

    sources: tuple[tuple[str, str], ...] = ()  # (name that is read, field of the file), each once but SEVERAL
    ignored: tuple[str, ...] = ()  # fields that are passed over, as `Unread.names` has them
    usual: str | None = None  # as `sources.usual_names` gives it

    @classmethod
    def of(cls, columns: Sequence[str] | None, lower: bool = False, usual: str | None = None) -> "Mapping":
        """From the values of the flag; `lower`: the file's own names are read in small letters, as those of tables."""
        pairs = dict.fromkeys(COLUMN.fullmatch(column).groups() for column in columns or [])
        fold = str.lower if lower else str
        return cls(
            tuple((name, fold(source)) for name, source in pairs if source),
            tuple(fold(name) for name, source in pairs if not source),
            usual,
        )

    def names(self, fields: Sequence[str]) -> dict[str, str]:
        """Column of a file -> the name it is read by; ignored columns only where another name reads them."""
        named = {source: name for name, source in self.sources}
        heads = {*named, *(STEPS.match(source)[0] for source in named)}
        return {field: named.get(field, field) for field in fields if field in heads or field not in self.ignored}

    def row(self, row: dict, found: Counter | None = None) -> dict:
        """A row under the names that are read, without what is null or ignored; `found` counts the rows in which each
        NAME=FIELD of the flag has a value, by either name."""
        left, named = row, {}
        for name, source in self.sources:
            value, left = field_of(left, source)
            if value is not None:
                named[name] = [*as_list(named[name]), *as_list(value)] if name in named else value
            if found is not None and (name in named or name in row):
                found[f"{name}={source}"] += 1
        if self.ignored:  # a name of the file, or one inside of what is read by a name
            left = unread.without(left, self.ignored)
            named = unread.without(named, {*self.ignored} - {*named})
            # Of what is ignored, rows of Parquet files and tables have no value.
            unread.check_places(left | named, {name: field_of(row, name)[0] for name in self.ignored})
        left = {key: value for key, value in left.items() if value is not None}
        source_of = dict(self.sources)  # `question=question[0]` takes from the field of its own name
        if both := [name for name in named if name in left and STEPS.match(source_of[name])[0] != name]:
            name = both[0]
            raise ValueError(
                f"has a field `{name}`, but --columns reads `{source_of[name]}` as `{name}`: add "
                f"--columns {name}= to ignore the first"
            )
        row = left | named
        for field in [*left] if self.usual else ():
            name = usual_name(self.usual, field, row)
            if name and name not in row:
                row[name] = row.pop(field)
        return row


def as_list(value: object) -> list:
    return value if isinstance(value, list) else [value]


def usual_name(kind: str, field: str, row: dict) -> str | None:
    """What a field of this kind of file is read as, where neither --columns nor the row has that name."""
    if kind == "metadata":  # as the Hub reads a folder of pictures with a file of this name
        names = as_list(row[field]) if field in ("file_name", "file_names") else []
        return kind_by_name(str(names[0])) if names else None
    if field == "txt" or field == "cls" and "txt" not in row:  # a field of a tar file is the ending of its member
        return "answer"
    return None if "." in field else kind_by_name(f".{field}")


def field_of(row: dict, name: str) -> tuple[object, object]:
    """The value of a field of a row, None if there is none; and the row without it."""
    # A name, a place in a list, or None for all of it.
    steps = [match[0] if match[1] is None else int(match[1]) if match[1] else None for match in STEPS.finditer(name)]
    return take(row, [name] if name in row else steps)


def take(value: object, steps: Sequence[str | int | None]) -> tuple[object, object]:
    """What a path of steps leads to, None if nothing; and the value without it."""
    if not steps:
        return value, None
    step, *rest = steps
    if step is None and isinstance(value, list):
        pairs = [take(inner, rest) for inner in value]
        return [found for found, _ in pairs], [left for _, left in pairs]
    if isinstance(step, int) and isinstance(value, list) and step < len(value):
        found, left = take(value[step], rest)
        return found, [*value[:step], left, *value[step + 1 :]]
    if isinstance(value, dict) and step in value:
        found, left = take(value[step], rest)
        return found, value | {step: left}
    return None, value


def proposal(row: dict, form) -> str:
    """The --columns by which a RowForm would read a row whose fields have other names, as far as its values tell."""
    if fix := conversion(row):
        return fix
    found = ((name, turn) for name, value in row.items() for turn in as_list(loaded(value)) if isinstance(turn, dict))
    turns = next((name for name, turn in found if turn.keys() & {*TURN_KEYS[0]} or said_in(turn, form)), None)
    texts, media = {}, {}
    for name, value in unread.flat("", {name: value for name, value in row.items() if name != turns}):
        source = re.sub(r"\.(bytes|path)\Z", "", name.removeprefix("."))
        if unread.is_medium(value, form.folders.values()):
            kind = "video" if OF_A_VIDEO.search(f"{name} {value}"[:300]) else "image"
            media.setdefault(kind, []).append(source)
        elif not NEITHER.match(source) and (
            isinstance(value, str) or type(value) is int and rank(source) < len(ANSWERS)
        ):
            texts[source] = str(value)
    answer = min([*texts][1:] + [*texts][:1], key=rank, default=None)
    others = [name for name in texts if name != answer]
    question = min(others, key=lambda name: (rank(name, QUESTIONS), " " not in texts[name]), default=None)
    (asked_in, _, asked), (replied_in, _, replied) = ((name or "").partition("[].") for name in (question, answer))
    are_pairs = bool(asked and replied) and asked_in == replied_in and not turns
    pairs = {"question": question and question.replace("[]", "[0]"), "answer": answer and answer.removesuffix("[]")}
    if question and question.endswith("[]") and answer.endswith("[]"):  # one of each question
        pairs["answer"] += "[0]"
    pairs = {"messages": turns or asked_in} if turns or are_pairs else pairs
    found = [f"{name}={source}" for name, source in pairs.items() if source not in (None, name)]
    for kind, (first, *others) in media.items():
        if first.removesuffix("[]") not in (kind, f"{kind}s"):
            found.append(f"{kind}{'s' if '[]' in first else ''}={first}")
        found += [f"{other}=" for other in dict.fromkeys(others) if other != first]
    flags = [*(["--columns"] if found else []), *map(shlex.quote, found)]
    flags += [f"--user_key {asked} --assistant_key {replied}"] if are_pairs else []
    flags += [] if question or turns else ['--prompt "..." (the question of every row)']
    return f"try {' '.join(flags)}" if answer or turns else "it holds no text"


def said_in(turn: object, form) -> list[dict]:
    """The turns of {"human": "What?", "gpt": "A door."} and the like, by a RowForm's roles; empty for other objects."""
    if not isinstance(turn, dict) or not turn.keys().isdisjoint(form.turn_keys[0]):
        return []
    roles = dict.fromkeys(form.roles.values())  # system, user, assistant
    said = {key: text for name in roles for key, text in turn.items() if form.roles.get(key) == name}
    if not {"user", "assistant"} <= {form.roles[key] for key in said}:
        return []
    (role, *_), (content, *_) = form.turn_keys
    turns = [{role: key, content: text} for key, text in said.items()]
    turns[0] |= {key: value for key, value in turn.items() if key not in said}  # to be refused or listed
    return turns


def conversion(found: object) -> str | None:
    """How a file that holds this becomes rows, if example_data/convert.py knows it."""
    parts = (found, *found.values()) if isinstance(found, dict) else ()
    known = [part.keys() for part in parts if isinstance(part, dict)]
    names = (name for keys, name in CONVERTERS.items() if any(part >= {*keys} for part in known))
    name = next(names, None)
    return name and f"convert it to rows: python example_data/convert.py {name} --help"


def rank(source: str, names: Sequence[str] = ANSWERS) -> int:
    """How likely a field is to hold what these names do: the smallest number is the likeliest."""
    words = re.split(r"\W+", source.lower())
    return next((place for place, name in enumerate(names) if name in words), len(names))
