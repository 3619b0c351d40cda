"""Hostile files and rows: each is an error that names its place, in bounded time and memory, and runs nothing."""

import base64
import copy
import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import socket
import time
import traceback
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import check_each, turns
from PIL import Image

from reading.dataset import MultimodalDataset
from reading.options import MediaOptions

SECONDS, MEGABYTES = 20, 600  # that one file may take
HI = {"conversations": turns("Hi", "Hello")}
GOOD = json.dumps(HI)


def faults(dataset: MultimodalDataset) -> dict[int, str]:
    """Position -> error, of the rows that cannot be used; damage of a medium may show only when it is opened."""
    found = dict(dataset.errors)
    for position in range(len(dataset)):
        try:
            dataset[position]
        except ValueError as error:
            assert found.setdefault(position, str(error)) == str(error)
    return found


def opened(path: str, options: dict) -> str | tuple[list[bool], dict[int, str]]:
    """What `open_apart` returns for one path. Nothing but a ValueError may be raised."""
    try:
        dataset = MultimodalDataset(path, check=False, **options)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            MultimodalDataset(path, **options)
        return str(error)
    if dataset.errors:
        with pytest.raises(ValueError, match=re.escape(dataset.errors[min(dataset.errors)])):
            MultimodalDataset(path, **options)
    errors = faults(dataset)
    return [position not in errors for position in range(len(dataset))], errors


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> MediaOptions:
    return MediaOptions(cache_folder=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def open_here(media):
    """`open_here(path)`: open a data set and its rows, with check=False and with True.

    Returns: (whether each row can be used, the errors of those that cannot), or the text of a ValueError; of a list of
    paths the list of these.
    """

    def get(paths, **options):
        several = paths if isinstance(paths, list) else [paths]
        answers = [opened(str(path), {"media": media, **options}) for path in several]
        check_messages(answers)
        return answers if isinstance(paths, list) else answers[0]

    return get


def check_messages(answers: list) -> None:
    for answer in answers:
        for message in [answer] if isinstance(answer, str) else answer[1].values():
            assert len(message) < 4000, "the error repeats the file"
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", message), f"would move the cursor: {message!r}"
            message.encode()  # it can be printed


@pytest.fixture(scope="module")
def open_apart(media):
    """`open_here` in a process of its own, in bounded time and memory: for what might hang, crash or fill it."""
    context = multiprocessing.get_context("fork")

    def in_child(sender, paths, options):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            answers = [opened(str(path), {"media": media, **options}) for path in paths]
        except BaseException:
            answers = traceback.format_exc()
        sender.send((answers, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024))

    def get(paths, **options):
        receiver, sender = context.Pipe(duplex=False)
        several = paths if isinstance(paths, list) else [paths]
        process = context.Process(target=in_child, args=(sender, several, options))
        process.start()
        sender.close()
        try:
            assert receiver.poll(SECONDS), f"still busy after {SECONDS} seconds"
            answers, megabytes = receiver.recv()  # EOFError: the process died
        finally:
            process.kill()
            process.join()
        assert isinstance(answers, list), answers
        assert megabytes < MEGABYTES
        check_messages(answers)
        return answers if isinstance(paths, list) else answers[0]

    return get


@pytest.fixture
def mark(tmp_path):
    """(a file, the bytes of a pickle that makes it when it is loaded)."""

    class Planted:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "unpickled",))

    planted = pickle.dumps(Planted())
    pickle.loads(planted)  # it works
    (tmp_path / "unpickled").unlink()
    return tmp_path / "unpickled", planted


# ---- whole files ----


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


# name -> (content, what the error says); the name of the file is always there
FILES = {
    "empty.json": ("", ""),
    "empty.jsonl": ("", "no sample"),
    "blank.json": (" \n\t\n ", ""),
    "blank.jsonl": (" \n\t\n ", "no sample"),
    "no-rows.json": ("[]", "no sample"),
    "object.json": (GOOD, "list"),
    "wrapped.json": (f'{{"data": [{GOOD}]}}', "list"),
    "null.json": ("null", "list"),
    "number.json": ("7", "list"),
    "text.json": ('"Hi"', "list"),
    "lines.json": (f"{GOOD}\n{GOOD}\n", "jsonl"),
    "two-lists.json": (f"[{GOOD}]\n[{GOOD}]", "line 2"),
    "trailing.json": (f"[{GOOD},\n{GOOD},\n]", "line 3"),
    "no-comma.json": (f"[{GOOD}\n{GOOD}]", "line 2"),
    "two-commas.json": (f"[{GOOD},\n,{GOOD}]", "line 2"),
    "comment.json": (f"[{GOOD},\n// more\n{GOOD}]", "line 2"),
    "single-quotes.json": (str([HI]), "line 1"),
    "python.json": (f"[{GOOD},\nNone]", "line 2"),
    "garbage-behind.json": (f"[{GOOD}]\nxyz", "line 2"),
    "raw-nul.json": (f'[{GOOD},\n{{"conversations": "\0"}}]', "line 2"),
    "only-nul.json": ("\0" * 4096, ""),
    "nul-tail.json": (f"[{GOOD}]\n" + "\0" * 512, "line 2"),
    "raw-control.json": (f'[{GOOD},\n{{"a": "\x1b[2J"}}]', "line 2"),
    "bad-escape.json": (f'[{GOOD},\n{{"a": "\\x"}}]', "line 2"),
    "bad-unicode.json": (f'[{GOOD},\n{{"a": "\\u12"}}]', "line 2"),
    "utf-16.json": (f"[{GOOD}]".encode("utf-16"), "UTF-8"),
    "utf-16.jsonl": (GOOD.encode("utf-16"), "(?i)utf-8"),
    "utf-32.json": (f"[{GOOD}]".encode("utf-32"), "UTF-8"),
    "latin-1.json": (f'[{GOOD}, "caf\xe9"]'.encode("latin-1"), "UTF-8"),
    "raw-surrogate.json": (b'[{"a": "\xed\xa0\xbd"}]', "UTF-8"),
    "overlong.json": (b'[{"a": "\xc0\xaf"}]', "UTF-8"),
    "brackets.json": ("[" * 100_000, "nested"),
    "closed-brackets.json": (nested(100_000), "nested"),
    "braces.json": ('[{"a":' * 100_000, "nested"),
    "in-a-row.json": (f'[{GOOD},{{"a":{nested(100_000)}}}]', "nested"),
    "digits.json": (f'[{GOOD},{{"a":{"7" * 1_000_000}}}]', "digits"),
    "long-line.json": ("[" + "x" * 30_000_000, "line 1"),
    "unending-text.json": ('["' + "x" * 30_000_000, "line 1"),
    "gzip.json": (b"\x1f\x8b\x08\x00" + bytes(range(256)), "a compressed archive"),
    "picture.json": (b"\x89PNG\r\n\x1a\n" + bytes(100), "UTF-8"),
    "parquet.json": (b"PAR1" + bytes(100) + b"PAR1", ""),
    "json.parquet": (f"[{GOOD}]", ""),
    "empty.parquet": ("", ""),
    "magic.parquet": ("PAR1", ""),
    "magics.parquet": ("PAR1PAR1", ""),
    "lying-footer.parquet": (b"PAR1" + bytes(64) + b"\xff\xff\xff\x7fPAR1", ""),
    "zeros-footer.parquet": (b"PAR1" + bytes(64) + b"\x20\x00\x00\x00PAR1", ""),
    "encrypted.parquet": (b"PARE" + bytes(64) + b"\x20\x00\x00\x00PARE", ""),
    "rows.json.gz": (b"\x1f\x8b\x08\x00", r"\.json"),
    "rows.arrow": (b"ARROW1", "not a readable Arrow file"),
    "rows.csv": ("a,b\n1,2", "`question` and `answer`"),
    "rows": (f"[{GOOD}]", r"\.json"),
}


def check_file(folder: Path, open_it, name: str) -> None:
    content, named = FILES[name]
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    answer = open_it(folder / name)
    if not isinstance(answer, str):  # a list may be kept up to the fault
        answer = "\n".join(answer[1].values())
    assert name in answer and re.search(named, answer), answer


def test_a_small_hostile_file_is_an_error_that_names_it(tmp_path, open_here):
    small = [(name,) for name, (content, _) in FILES.items() if len(content) < 10_000]
    check_each(small, partial(check_file, tmp_path, open_here))


@pytest.mark.slow
def test_a_hostile_file_is_an_error_that_names_it(tmp_path, open_apart):
    check_each([(name,) for name in FILES], partial(check_file, tmp_path, open_apart))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop", "dangling"])
def test_what_is_no_file_is_an_error(tmp_path, open_apart, kind):
    path = tmp_path / "rows.json"
    make = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path),
        "dangling": lambda: path.symlink_to(tmp_path / "none"),
    }
    make[kind]()
    assert "rows.json" in open_apart(path)


ROWS = [HI, {"image": "red.png", "conversations": turns('<image>\n{"a": [1]}', '[{]} \\ " é')}, HI]


def written(folder: Path, ending: str, contents: list[str | bytes]) -> list[Path]:
    """Files 0, 1, 2, ... of these contents."""
    paths = [folder / f"{i}.{ending}" for i in range(len(contents))]
    for path, content in zip(paths, contents):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return paths


def test_a_list_cut_anywhere_is_an_error_that_names_the_line(tmp_path, open_here):
    text = json.dumps(ROWS, indent=1, ensure_ascii=False)
    cuts = [text[:end] for end in range(0, len(text), 5)]
    for path, cut, answer in zip(paths := written(tmp_path, "json", cuts), cuts, open_here(paths)):
        assert isinstance(answer, str) and path.name in answer
        if cut:
            with pytest.raises(json.JSONDecodeError) as caught:
                json.loads(cut)
            (line,) = re.findall(r"line (\d+)", answer)
            assert caught.value.lineno <= int(line) <= cut.count("\n") + 1


def test_a_list_broken_anywhere_is_an_error_that_names_the_line(tmp_path, open_here):
    text = json.dumps(ROWS, indent=1, ensure_ascii=False)
    places = range(0, len(text), 7)
    paths = written(tmp_path, "json", [f"{text[:place]}\x01{text[place:]}" for place in places])  # nowhere valid
    for path, place, answer in zip(paths, places, open_here(paths)):
        assert re.search(rf"{path.name}, line {text[:place].count(chr(10)) + 1}\b", answer), answer


def test_jsonl_broken_anywhere_loses_that_line_alone(tmp_path, open_here):
    line = json.dumps(HI, ensure_ascii=False)
    broken = [line[:end] for end in range(1, len(line), 4)]
    broken += [f"{line[:place]}\x01{line[place:]}" for place in range(0, len(line), 4)]
    paths = written(tmp_path, "jsonl", [f"{line}\n\n{bad}\n{line}" for bad in broken])
    for path, (usable, errors) in zip(paths, open_here(paths)):
        assert usable == [True, False, True]
        assert re.search(rf"{path.name}, .*line 3\b", errors[1]), errors[1]


# A line of JSONL between two good ones.
LINES = {
    "latin-1": '{"a": "caf\xe9"}'.encode("latin-1"),
    "raw surrogate": b'{"a": "\xed\xa0\xbd"}',
    "NUL": b'{"a": "\x00"}',
    "NULs": b"\x00" * 512,
    "brackets": b"[" * 100_000,
    "brackets in a field": b'{"a": ' + nested(100_000).encode() + b"}",
    "braces": b'{"a":' * 100_000,
    "digits": b'{"a": ' + b"7" * 1_000_000 + b"}",
    "very long": b'{"a": "' + b"x" * 30_000_000,
    "two rows": f"{GOOD} {GOOD}".encode(),
    "a comma behind": f"{GOOD},".encode(),
    "null": b"null",
    "list": b"[]",
    "number": b"-1e999",
    "text": b'"conversations"',
    "brackets around": f"[{GOOD}]".encode(),
    "BOM inside": b"\xef\xbb\xbf" + GOOD.encode(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_a_hostile_line_is_an_error_and_the_others_stay(tmp_path, open_apart, name):
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([GOOD.encode(), LINES[name], GOOD.encode()]))
    usable, errors = open_apart(tmp_path / "a.jsonl")
    assert usable == [True, False, True]
    assert re.search(r"a.jsonl, .*(line 2|sample 1)\b", errors[1])


HARMLESS = {
    "a BOM": b"\xef\xbb\xbf" + f"{GOOD}\n{GOOD}".encode(),
    "blank lines": f"\n\n{GOOD}\n  \n\t\n{GOOD}\n\n".encode(),
    "Windows": f"{GOOD}\r\n\r\n{GOOD}\r\n".encode(),
    "line separators in a text": (GOOD.replace("Hi", "a\u2028b\u2029c\u0085d\x7f") + "\n" + GOOD).encode(),
    "a long text": (GOOD.replace("Hi", "x" * 20_000_000) + "\n" + GOOD).encode(),
    "no end of line": f"{GOOD}\n{GOOD}".encode(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_hostile_is_read(tmp_path, open_apart, name):
    (tmp_path / "a.jsonl").write_bytes(HARMLESS[name])
    assert open_apart(tmp_path / "a.jsonl") == ([True, True], {})


DEPTHS = (10, 100, 400, 900, 960, 990, 1100, 5000)


@pytest.mark.slow
def test_odd_json_is_an_error_or_a_row(tmp_path, open_apart):
    """Valid for Python's reader, or for a lenient one."""
    starts = ['"id": NaN', '"id": -Infinity', '"id": 1e999', '"conversations": []', '"": {"": ""}']
    starts += [f'"a": {nested(depth)}' for depth in DEPTHS]
    lines = [f"{{{start}, {GOOD[1:]}" for start in starts]
    (tmp_path / "a.jsonl").write_text("".join(f"{line}\n{GOOD}\n" for line in lines))
    usable, errors = open_apart(tmp_path / "a.jsonl")
    assert len(usable) == 2 * len(lines) and all(usable[1::2])
    assert all(f"sample {i}" in error or f"line {i + 1}" in error for i, error in errors.items())


@pytest.mark.slow
@pytest.mark.parametrize("field", ["from", "value", "image", "conversations", "messages", "prompt", "role", "type"])
def test_a_deeply_nested_field_is_an_error(tmp_path, open_apart, field):
    """What the reader still takes must not break what names it."""
    around = {
        "from": '{"conversations": [{"value": "Hi", %s}]}',
        "value": '{"conversations": [{"from": "human", %s}]}',
        "role": '{"messages": [{"content": "Hi", %s}]}',
        "type": '{"messages": [{"role": "user", "content": [{%s}]}]}',
    }.get(field, "{%s}")
    lines = [around.replace("%s", f'"{field}": {nested(depth)}') for depth in DEPTHS]
    (tmp_path / "a.jsonl").write_text("".join(f"{line}\n{GOOD}\n" for line in lines))
    usable, errors = open_apart(tmp_path / "a.jsonl")
    assert usable == [False, True] * len(lines)
    assert all(f"sample {i}" in error or f"line {i + 1}" in error for i, error in errors.items())


# ---- wrong types in every field of every form ----

TEXT, PART = {"type": "text", "text": "Hi"}, {"type": "image", "path": "red.png"}
ASKED = [{"role": "user", "content": [PART, TEXT]}, {"role": "assistant", "content": "Red", "train": True}]
BARE = [{"role": "user", "content": [{"type": "image"}, TEXT]}, ASKED[1]]
PNG = io.BytesIO()
Image.new("RGB", (16, 16)).save(PNG, "png")
BASE64 = base64.b64encode(PNG.getvalue()).decode()
DATA = f"data:image/png;base64,{BASE64}"


def parts(*content: dict, **columns) -> dict:
    return {"messages": [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "b"}], **columns}


FORMS = {
    "llava": {"image": "red.png", "system_prompt": "Brief.", "conversations": turns("<image>a", "b")},
    "llava lists": {"images": ["red.png"], "videos": ["clip.mp4"], "conversations": turns("<image><video>", "b")},
    "video": {"video": "clip.mp4", "conversations": turns("<video>a", "b")},
    "path": {"messages": ASKED},
    "image": parts({"type": "image", "image": "red.png"}),
    "base64": parts({"type": "image", "base64": BASE64}),
    "url": parts({"type": "image", "url": DATA}),
    "image_url": parts({"type": "image_url", "image_url": {"url": DATA}}),
    "image_url text": parts({"type": "image_url", "image_url": DATA}),
    "frames": parts({"type": "video", "video": ["red.png", "red.png"]}),
    "columns": {"messages": BARE, "images": ["red.png"]},
    "column": {"messages": BARE, "image": "red.png"},
    "prompt": {"prompt": ASKED[:1], "completion": ASKED[1:]},
    "prompt texts": {"prompt": "Hi", "completion": "Hello", "image": "red.png"},
}
JSON_VALUES = [None, True, 0, 7, -0.5, 1e300, "", "zzz", [], [[]], [7], [None], ["zzz"], {}, {"a": 1}, {"url": 7}, [{}]]


def places(value, path=()):
    """The paths of all fields and elements inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def replaced(row: dict, path: tuple, value) -> dict:
    row = copy.deepcopy(row)
    spot = row
    for key in path[:-1]:
        spot = spot[key]
    spot[path[-1]] = value
    return row


def is_right(form: str, path: tuple, value) -> bool:
    """Whether the row may be taken with this value there."""
    if not isinstance(path[-1], str):
        return (path, value) == (("completion", 0), "zzz")
    right = {  # any text is a text; an absent reply is a fault, an absent system prompt or image none
        "value": isinstance(value, str),
        "text": isinstance(value, str),
        "content": isinstance(value, str) or value == [],
        "system_prompt": isinstance(value, str) or value is None,
        "prompt": isinstance(value, str),
        "completion": isinstance(value, str) or type(value) is int or value == ["zzz"],  # or a list of right texts
        "train": value is None or value is True,
        "image": form == "prompt texts" and value in (None, [], ""),
    }
    return right.get(path[-1], False)


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_type_in_any_field_is_an_error_that_names_it(media_folder, tmp_path, form):
    cases = [(path, value) for path in places(FORMS[form]) for value in JSON_VALUES]
    rows = [FORMS[form], *(replaced(FORMS[form], path, value) for path, value in cases)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folders = {"image_folder": str(media_folder), "video_folder": str(media_folder)}
    dataset = MultimodalDataset(
        str(tmp_path / "a.jsonl"), **folders, media=MediaOptions(cache_folder=str(tmp_path / "cache")), check=False
    )
    errors = faults(dataset)
    assert 0 not in errors and len(cases) > 30
    wrong = []
    for i, (path, value) in enumerate(cases, 1):
        error = errors.get(i)
        fields = [key.rstrip("s") for key in path if isinstance(key, str)]
        if error is None:
            wrong += [] if is_right(form, path, value) else [(path, value, "is taken")]
        elif f"a.jsonl, sample {i}: " not in error:
            wrong.append((path, value, error))
        elif not isinstance(value, str | None) and "zzz" not in error and not any(field in error for field in fields):
            wrong.append((path, value, f"does not name the field: {error}"))
    assert not wrong, "\n".join(map(str, wrong[:20]))


# ---- Parquet ----


def parquet(columns: dict, path: Path) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


LISTS = [BARE[0], {"role": "assistant", "content": [TEXT]}]  # Parquet cannot mix lists and texts
CONVERSATION = pa.list_(pa.struct({"from": pa.string(), "value": pa.string()}))
COLUMNS = {
    "no usable column": {"text": ["a", "b"]},
    "no column": {},
    "messages of numbers": {"messages": [1, 2]},
    "messages of JSON texts": {"messages": [json.dumps(ASKED)] * 2},
    "messages of lists of texts": {"messages": [["a"], ["b"]]},
    "messages of bytes": {"messages": [b"\xff\x00", b"a"]},
    "messages of maps": {"messages": pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int64()))},
    "messages all null": {"messages": pa.nulls(2)},
    "messages of times": {"messages": pa.array([1, 2], pa.timestamp("us"))},
    "messages of decimals": {"messages": pa.array([1, 2], pa.decimal128(5))},
    "contents of numbers": {"messages": [[{"role": "user", "content": 1}, {"role": "assistant", "content": 2}]] * 2},
    "contents of bytes": {"messages": [[{"role": "user", "content": b"\xff"}, {"role": "assistant", "content": b"a"}]]},
    "images of numbers": {"messages": [LISTS] * 2, "images": [[1], [2]]},
    "images of empty structs": {"messages": [LISTS], "images": [[{"bytes": None, "path": None}]]},
    "images of bytes that are none": {"messages": [LISTS], "images": [[{"bytes": b"no image", "path": "red.png"}]]},
    "images of texts as bytes": {"messages": [LISTS], "images": [[{"bytes": "no bytes", "path": None}]]},
    "an image of a struct of others": {"messages": [LISTS], "image": [{"width": 1, "height": 2}]},
    "fewer images": {"messages": [LISTS], "images": pa.array([[]], pa.list_(pa.binary()))},
    "null images": {"messages": [LISTS], "images": pa.nulls(1)},
    "a null row": {"conversations": pa.array([None, None], CONVERSATION)},
    "null turns": {"conversations": pa.array([[None, None]], CONVERSATION)},
    "null values": {"conversations": pa.array([[{"from": "human", "value": None}]], CONVERSATION)},
}


def test_parquet_of_other_columns_is_an_error(tmp_path, open_here):
    def check(name: str) -> None:
        answer = open_here(parquet(COLUMNS[name], tmp_path / "a.parquet"))
        if not isinstance(answer, str):
            assert not any(answer[0])
            answer = answer[1][0]
        assert "a.parquet" in answer

    check_each([(name,) for name in COLUMNS], check)


@pytest.mark.slow
def test_parquet_cut_or_flipped_anywhere_is_an_error_or_its_rows(tmp_path, open_apart):
    data = parquet({"conversations": [HI["conversations"]] * 50}, tmp_path / "a.parquet").read_bytes()
    paths = written(tmp_path, "parquet", [data[:end] for end in range(0, len(data), len(data) // 20)])
    assert all(path.name in answer for path, answer in zip(paths, open_apart(paths)))
    places = range(0, len(data), len(data) // 50)
    flipped = [data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :] for place in places]
    paths = written(tmp_path, "parquet", flipped)
    for path, answer in zip(paths, open_apart(paths)):
        assert answer == ([True] * 50, {}) or path.name in (
            answer if isinstance(answer, str) else answer[1].popitem()[1]
        )


# ---- nothing is unpickled ----


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet", "a.pkl", "a.pt", "a.npy", "a"])
def test_a_pickle_is_never_loaded_as_data(tmp_path, open_here, mark, name):
    marker, planted = mark
    (tmp_path / name).write_bytes(planted)
    answer = open_here(tmp_path / name)
    assert name in (answer if isinstance(answer, str) else answer[1][0])
    assert not marker.exists()


def test_a_pickle_is_never_loaded_as_a_medium(tmp_path, open_here, mark):
    marker, planted = mark
    rows = []
    for name in ("a.png", "a.pkl", "a.npy", "a.pt", "a.mp4", "a.tif"):
        (tmp_path / name).write_bytes(planted)
        kind = "video" if name == "a.mp4" else "image"
        rows.append(parts({"type": kind, "path": name}))
    rows.append(parts({"type": "image", "base64": base64.b64encode(planted).decode()}))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    usable, errors = open_here(tmp_path / "a.json")
    assert not any(usable) and len(errors) == len(rows) and not marker.exists()
    parquet({"messages": [LISTS], "images": [[{"bytes": planted, "path": "a.png"}]]}, tmp_path / "a.parquet")
    assert open_here(tmp_path / "a.parquet")[0] == [False] and not marker.exists()


def test_a_parquet_type_that_pyarrow_used_to_unpickle_is_not(tmp_path, open_here, mark):
    """CVE-2023-47248: the metadata of an extension type held a pickle, loaded when the schema was read."""
    marker, planted = mark
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": planted}
    field = pa.field("messages", pa.string(), metadata=metadata)
    pq.write_table(pa.table({"messages": ["Hi"]}).cast(pa.schema([field])), tmp_path / "a.parquet")
    answer = open_here(tmp_path / "a.parquet")
    assert isinstance(answer, str) or not any(answer[0])
    assert not marker.exists()


def test_a_pickle_in_the_place_of_the_index_is_never_loaded(tmp_path, open_here, mark):
    marker, planted = mark
    (tmp_path / "a.jsonl").write_text(GOOD)
    media = MediaOptions(cache_folder=str(tmp_path / "cache"))
    assert open_here(tmp_path / "a.jsonl", media=media) == ([True], {})
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file():
            file.write_bytes(planted)
    assert open_here(tmp_path / "a.jsonl", media=media) == ([True], {})
    assert not marker.exists()


# ---- paths and addresses ----


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The folder data with own.png; outside of it secret.png, and links that lead there."""
    data = tmp_path_factory.mktemp("tree") / "data"
    data.mkdir()
    (data.parent / "data-private").mkdir()
    for path in (data / "own.png", data.parent / "secret.png", data.parent / "data-private" / "secret.png"):
        path.write_bytes(PNG.getvalue())
    (data / "link.png").symlink_to(data.parent / "secret.png")
    (data / "linked").symlink_to(data.parent)
    (data / "loop.png").symlink_to(data / "loop.png")
    (data / "inside.png").symlink_to(data / "own.png")
    (data / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(data / "pipe.png")
    return data


# reference -> what the error says
PATHS = {
    "../secret.png": "allow_outside",
    "./../secret.png": "allow_outside",
    "../data-private/secret.png": "allow_outside",  # whose name begins with the folder's
    "x/../../secret.png": "allow_outside",
    "../../../../../../../../../../etc/passwd": "allow_outside",
    "..": "",
    ".": "",
    "": "",
    "/": "",
    "/etc/passwd": "",
    "~/.ssh/id_rsa": "~/.ssh/id_rsa",
    "~root/a.png": "~root",
    "$HOME/a.png": "HOME",
    "file:///etc/passwd": "/etc/passwd",
    "file://localhost/etc/passwd": "file:",
    "own.png\0.jpg": "",
    "\0": "",
    "a" * 5000 + ".png": "",
    "a/" * 5000 + "a.png": "",
    "\ud83d.png": "",
    "\x1b[2J.png": "",
    "own.png/a.png": "",
    "..\\secret.png": "",
    "loop.png": "loop.png",
    "pipe.png": "pipe.png",
    "zero.png": "",
    "/dev/zero": "/dev/zero",
    "/proc/self/mem": "",
    "/dev/stdin": "",
    "ftp://127.0.0.1/a.png": "ftp",
    "s3://bucket/a.png": "s3",
    "hf://datasets/a/b/a.png": "hf",
    "javascript:alert(1)": "",
    "data:text/html;base64,PGI+": "",
    "data:text/html,<b>": "",
    "data:image/png;base64,": "",
    "data:image/png;base64": "",
    "data:": "",
    "data:image/png;base64,@@@@": "",
    "data:image/png;base64,iVBORw0KGgo": "",
    "data:image/png;base64," + base64.b64encode(bytes(100)).decode(): "",
    "data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(): "",
    "data:image/png;base64," + "A" * 20_000_000: "",
    "data:image/png;base64," + "é" * 1000: "",
    "http://": "",
    "http:///a.png": "",
}
URLS = ["http://127.0.0.1:{port}/a.png", "HTTP://127.0.0.1:{port}/a.png", "https://127.0.0.1:{port}/a.png"]


def rows_of(reference: str) -> list[dict]:
    """The reference in each place that a row has for one."""
    return [
        {"image": reference, "conversations": turns("<image>a", "b")},
        parts({"type": "image", "path": reference}),
        parts({"type": "image", "image": reference}),
        parts({"type": "image", "url": reference}),
        parts({"type": "image_url", "image_url": {"url": reference}}),
        parts({"type": "image"}, images=[reference]),
        parts({"type": "video", "video": [reference, "own.png"]}),
        {"prompt": "a", "completion": "b", "image": reference},
    ]


def check_references(folder: Path, open_it, references: list[str]) -> None:
    paths = []
    for i, reference in enumerate(references):
        paths.append(folder / f"rows-{i}.jsonl")
        rows = rows_of(reference)[: 2 if len(reference) > 10**6 else None]
        paths[-1].write_text("".join(f"{json.dumps(row)}\n{GOOD}\n" for row in rows))

    def check(reference: str, path: Path, answer: tuple) -> None:
        usable, errors = answer
        assert len(usable) >= 4 and usable == [False, True] * (len(usable) // 2), errors
        for position, error in errors.items():
            assert f"{path.name}, sample {position}: " in error and PATHS[reference] in error, error

    check_each(list(zip(references, paths, open_it(paths))), check)


def test_a_reference_that_leads_out_is_an_error_in_every_place(tree, open_here):
    check_references(tree, open_here, [reference for reference in PATHS if PATHS[reference] == "allow_outside"])


@pytest.mark.slow
def test_a_hostile_reference_is_an_error_in_every_place(tree, open_apart):
    check_references(tree, open_apart, [reference for reference in PATHS if reference])  # an empty one is absent


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_not_fetched_unless_allowed(tree, open_here, url):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        rows = rows_of(url.format(port=server.getsockname()[1]))
        rows.append(parts({"type": "video", "url": rows[0]["image"]}))
        rows.append(parts({"type": "video_url", "video_url": {"url": rows[0]["image"]}}))
        (tree / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        usable, errors = open_here(tree / "rows.jsonl")
        with pytest.raises(TimeoutError):
            server.accept()
    assert usable == [False] * len(rows)
    assert all("--allow_urls" in error for error in errors.values())


def test_paths_may_leave_the_folder_where_that_is_allowed(tree, open_here):
    rows = [rows_of(reference)[0] for reference in ("../secret.png", "link.png", "linked/secret.png", "inside.png")]
    (tree / "rows.json").write_text(json.dumps(rows))
    assert open_here(tree / "rows.json", allow_outside=True) == ([True] * 4, {})


def test_what_stays_inside_and_what_the_user_names_is_taken(tree, open_here):
    """Links, also those that lead out, for no data file makes them; `..` that comes back; an absolute path."""
    references = ["own.png", "inside.png", "link.png", "linked/secret.png", "x/../own.png"]
    references.append(str(tree.parent / "secret.png"))
    (tree / "rows.json").write_text(json.dumps([rows_of(reference)[0] for reference in references]))
    assert open_here(tree / "rows.json") == ([True] * 6, {})
    (tree.parent / "way").symlink_to(tree)
    assert open_here(tree / "rows.json", image_folder=str(tree.parent / "way")) == ([True] * 6, {})


# ---- rows that contradict themselves ----

ASK, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
UNTRAINED = ANSWER | {"train": False}
IMAGE, OWN = {"type": "image"}, {"type": "image", "path": "own.png"}


# row -> what the error says
CONTRADICTIONS = {
    "more images than parts": (parts(IMAGE, images=["own.png"] * 2), "2"),
    "fewer images than parts": (parts(IMAGE, IMAGE, images=["own.png"]), "1"),
    "a part without a source": (parts(IMAGE), "image"),
    "a part with two sources": (parts(OWN | {"url": "own.png"}), "path|url"),
    "a part of no known type": (parts({"type": "audio", "audio": "a.wav"}), "audio"),
    "a part of the other type": (parts({"type": "image", "video": "own.png"}), "image"),
    "image and images": (parts(IMAGE, image="own.png", images=["own.png"]), "image"),
    "an image of the assistant": ({"messages": [ASK, {"role": "assistant", "content": [OWN]}]}, "assistant"),
    "an image of the system": ({"messages": [{"role": "system", "content": [OWN]}, ASK, ANSWER]}, "system"),
    "no reply that is trained": ({"messages": [ASK, UNTRAINED]}, "train"),
    "no reply of two that is trained": ({"messages": [ASK, UNTRAINED] * 2}, "train"),
    "train is no truth value": ({"messages": [ASK, ANSWER | {"train": "false"}]}, "train"),
    "a prompt alone": ({"prompt": "a"}, "completion"),
    "a completion alone": ({"completion": "a"}, "prompt"),
    "a null completion": ({"prompt": "a", "completion": None}, "completion"),
    "a completion of the user": ({"prompt": [ASK], "completion": [ASK]}, "roles|completion"),
    "an empty completion": ({"prompt": [ASK], "completion": []}, "completion"),
    "an empty prompt": ({"prompt": [], "completion": [ANSWER]}, "prompt|roles"),
    "two forms": ({"messages": [ASK, ANSWER], "conversations": turns("a", "b")}, "conversations"),
    "a pair and messages": ({"messages": [ASK, ANSWER], "prompt": "a", "completion": "b"}, "prompt"),
    "two system prompts": (
        {"system_prompt": "a", "conversations": [{"from": "system", "value": "b"}, *turns("a", "b")]},
        "system",
    ),
    "two replies in a row": ({"messages": [ASK, ANSWER, ANSWER]}, "roles"),
    "an assistant first": ({"messages": [ANSWER, ASK]}, "roles"),
    "a user last": ({"messages": [ASK, ANSWER, ASK]}, "roles"),
    "an unknown role": ({"messages": [{"role": "tool", "content": "a"}, ASK, ANSWER]}, "tool"),
    "a long unknown role": ({"messages": [{"role": "x" * 10**6, "content": "a"}, ASK, ANSWER]}, "role"),
    "a cut surrogate": ({"conversations": turns("a", "cut \ud83d")}, r"U\+D83D"),
    "a reserved character": ({"messages": [{"role": "user", "content": "\ufdd0"}, ANSWER]}, r"U\+FDD0"),
    "an empty object": ({}, "conversations.*messages|messages.*conversations"),
    "more placeholders": ({"image": "own.png", "conversations": turns("<image><image>", "b")}, "2 <image>.*1"),
    "a video of no frames": (parts({"type": "video", "video": []}), "video"),
    "frames that are no images": (parts({"type": "video", "video": ["rows.jsonl"]}), "rows.jsonl"),
    "an image that is text": (parts({"type": "image", "path": "rows.jsonl"}), "rows.jsonl"),
}


def test_a_row_that_contradicts_itself_is_an_error(tree, open_here):
    def check(name: str, row: dict, named: str) -> None:
        (tree / "rows.jsonl").write_text(f"{GOOD}\n{json.dumps(row)}\n{GOOD}\n")
        usable, errors = open_here(tree / "rows.jsonl")
        assert usable == [True, False, True]
        assert re.search(rf"rows.jsonl, sample 1: .*({named})", errors[1], re.DOTALL), errors[1]

    check_each([(name, *case) for name, case in CONTRADICTIONS.items()], check)


def test_control_strings_stay_what_was_typed(tmp_path):
    """Of models, of templates, of terminals and of other formats: they are text to the reader."""
    typed = [
        "<image>",
        "<|im_end|>",
        "</s>",
        "{{ 7 * 7 }}",
        "{% generation %}",
        "\x1b[2J",
        "\0",
        "__import__('os')",
        "%s",
    ]
    rows = [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": t}]} for t in typed]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    dataset = MultimodalDataset(str(tmp_path / "a.json"), media=MediaOptions(cache_folder=str(tmp_path / "cache")))
    for i, text in enumerate(typed):
        assert [m["content"] for m in dataset.rows[i]["messages"]] == [[{"type": "text", "text": text}]] * 2


def test_many_faults_are_counted_and_ten_are_shown(tmp_path):
    (tmp_path / "a.jsonl").write_text(f"{GOOD}\n" + '{"conversations": 7}\n' * 5000)
    start = time.monotonic()
    with pytest.raises(ValueError, match="5000 of 5001") as caught:
        MultimodalDataset(str(tmp_path / "a.jsonl"), media=MediaOptions(cache_folder=str(tmp_path / "cache")))
    assert str(caught.value).count("\n") < 15 and time.monotonic() - start < SECONDS


def test_an_error_stays_an_error_when_the_index_exists(tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{GOOD}\n{{"conversations": 7}}\n')
    read = partial(
        MultimodalDataset, str(tmp_path / "a.jsonl"), media=MediaOptions(cache_folder=str(tmp_path / "cache"))
    )
    first = read(check=False).errors
    assert read(check=False).errors == first and first.keys() == {1}
    with pytest.raises(ValueError, match="a.jsonl, sample 1: .*conversations"):
        read()
    with pytest.raises(ValueError, match="a.jsonl, sample 1: .*conversations"):
        read(check=False)[1]
