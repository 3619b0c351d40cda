"""Map the field names of a file to the names that we read, as the flag --columns says.

`--columns question=query image=jpg "answer=answers[0].text"` reads the field `query` as `question`, and so on; `url=`
ignores the field `url`. A field may be inside objects and lists: `meta.file`, `turns[1].text`, `frames[].path` (all).
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
SEVERAL = ("images", "videos")  # names to which several fields may be mapped, in the order of the flag
TURN_KEYS = (("role", "from"), ("content", "value"))
# Fields that often contain the question or the answer, the most likely first, and fields that contain neither.
QUESTIONS = "question query prompt instruction problem input human user".split()
ANSWERS = "answer response output completion caption captions label labels target solution translation text".split()
NEITHER = re.compile(r"(system(_prompt)?|tools|(.*[\W_])?(id|ID|uid|uuid|idx|index)|.*[a-z]Id)\Z")
OF_A_VIDEO = re.compile(r"video|clip|\.(mp4|mkv|mov|avi|webm)", re.IGNORECASE)
STEPS = re.compile(r"\[(\d*)\]|[^.\[\]]+")
# Keys of a well-known file, or of an object in it -> its converter (example_data/convert.py). The first match wins.
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
    """Maps the fields of a row to the names that we read."""

    sources: tuple[tuple[str, str], ...] = ()  # (name that we read, field of the file)
    ignored: tuple[str, ...] = ()  # ignored fields, written as in `Unread.names`
    usual: str | None = None  # the kind of file, from `sources.usual_names`

    @classmethod
    def of(cls, columns: Sequence[str] | None, lower: bool = False, usual: str | None = None) -> "Mapping":
        """Parse the values of the flag. With `lower` (for tables), convert the file's field names to lower case."""
        pairs = dict.fromkeys(COLUMN.fullmatch(column).groups() for column in columns or [])
        fold = str.lower if lower else str
        return cls(
            tuple((name, fold(source)) for name, source in pairs if source),
            tuple(fold(name) for name, source in pairs if not source),
            usual,
        )

    def names(self, fields: Sequence[str]) -> dict[str, str]:
        """Map each column to the name that we read. Ignored columns are left out unless the flag reads them too."""
        named = {source: name for name, source in self.sources}
        heads = {*named, *(STEPS.match(source)[0] for source in named)}
        return {field: named.get(field, field) for field in fields if field in heads or field not in self.ignored}

    def row(self, row: dict, found: Counter | None = None) -> dict:
        """Return a row with renamed fields, without null or ignored fields. For each NAME=FIELD of the flag, `found`
        counts the rows that have a value for FIELD or NAME."""
        left, named = row, {}
        for name, source in self.sources:
            value, left = field_of(left, source)
            if value is not None:
                named[name] = [*as_list(named[name]), *as_list(value)] if name in named else value
            if found is not None and (name in named or name in row):
                found[f"{name}={source}"] += 1
        if self.ignored:  # also inside of a field that the flag reads
            left = unread.without(left, self.ignored)
            named = unread.without(named, {*self.ignored} - {*named})
            # Rows of Parquet files and tables do not contain ignored fields, so these are None here.
            unread.check_places(left | named, {name: field_of(row, name)[0] for name in self.ignored})
        left = {key: value for key, value in left.items() if value is not None}
        source_of = dict(self.sources)  # to allow `question=question[0]`
        if both := [name for name in named if name in left and STEPS.match(source_of[name])[0] != name]:
            name = both[0]
            raise ValueError(
                f"has a field `{name}`, but --columns also reads `{source_of[name]}` as `{name}`: add "
                f"--columns {name}= to ignore the field `{name}`"
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
    """Return the name under which we read a well-known field of a file of this kind, or None."""
    if kind == "metadata":  # the metadata file of an image folder, read as the Hub does
        names = as_list(row[field]) if field in ("file_name", "file_names") else []
        return kind_by_name(str(names[0])) if names else None
    if field == "txt" or field == "cls" and "txt" not in row:  # a tar file's fields are extensions
        return "answer"
    return None if "." in field else kind_by_name(f".{field}")


def field_of(row: dict, name: str) -> tuple[object, object]:
    """Return the value of a field (None if it is missing), and the row without this field."""
    # Each step is a key, an index into a list, or None for all items of a list.
    steps = [match[0] if match[1] is None else int(match[1]) if match[1] else None for match in STEPS.finditer(name)]
    return take(row, [name] if name in row else steps)


def take(value: object, steps: Sequence[str | int | None]) -> tuple[object, object]:
    """Follow the steps into a value. Return the inner value (None if missing), and the outer value without it."""
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
    """Return a hint with --columns that map unknown field names of a row, guessed from the names and values."""
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
    if question and question.endswith("[]") and answer.endswith("[]"):  # if both are lists, use their first items
        pairs["answer"] += "[0]"
    pairs = {"messages": turns or asked_in} if turns or are_pairs else pairs
    found = [f"{name}={source}" for name, source in pairs.items() if source not in (None, name)]
    for kind, (first, *others) in media.items():
        if first.removesuffix("[]") not in (kind, f"{kind}s"):
            found.append(f"{kind}{'s' if '[]' in first else ''}={first}")
        found += [f"{other}=" for other in dict.fromkeys(others) if other != first]
    flags = [*(["--columns"] if found else []), *map(shlex.quote, found)]
    flags += [f"--user_key {asked} --assistant_key {replied}"] if are_pairs else []
    flags += [] if question or turns else ['--prompt "..." (the question for every row)']
    return f"try {' '.join(flags)}" if answer or turns else "add a field with text"


def said_in(turn: object, form) -> list[dict]:
    """Return the turns of an object like {"human": "What?", "gpt": "A door."}, whose keys are roles; else []."""
    if not isinstance(turn, dict) or not turn.keys().isdisjoint(form.turn_keys[0]):
        return []
    roles = dict.fromkeys(form.roles.values())  # system, user, assistant
    said = {key: text for name in roles for key, text in turn.items() if form.roles.get(key) == name}
    if not {"user", "assistant"} <= {form.roles[key] for key in said}:
        return []
    (role, *_), (content, *_) = form.turn_keys
    turns = [{role: key, content: text} for key, text in said.items()]
    turns[0] |= {key: value for key, value in turn.items() if key not in said}  # `Unread` refuses or lists these keys
    return turns


def conversion(found: object) -> str | None:
    """Return how to convert a file with this content to rows, if example_data/convert.py has a converter for it."""
    parts = (found, *found.values()) if isinstance(found, dict) else ()
    known = [part.keys() for part in parts if isinstance(part, dict)]
    names = (name for keys, name in CONVERTERS.items() if any(part >= {*keys} for part in known))
    name = next(names, None)
    return name and f"convert it to rows: python example_data/convert.py {name} --help"


def rank(source: str, names: Sequence[str] = ANSWERS) -> int:
    """Rank how likely a field contains what fields with these names usually contain. Rank 0 is the most likely."""
    words = re.split(r"\W+", source.lower())
    return next((place for place, name in enumerate(names) if name in words), len(names))
