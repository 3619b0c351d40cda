"""One data set written in every form gives one and the same batch; published formats are read to the letter."""

import base64
import csv
import json
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import collator_of, taught, trained_runs
from PIL import Image

from reading.dataset import MultimodalDataset
from reading.options import MediaOptions

# (role, *parts): the name of a file stands for the medium.
CONVERSATIONS = [
    [("user", "red.png", "What colour is it?"), ("assistant", "Red")],
    [("user", "red.png", "blue.png", "Which is blue?"), ("assistant", "The second")],
    [("user", "Name a colour."), ("assistant", "Blue")],
    [("user", "Hello."), ("assistant", "Hi!"), ("user", "tall.jpg", "And this?"), ("assistant", "A green one")],
    [("system", "Be brief."), ("user", "blue.png", "What colour is it?"), ("assistant", "Blue")],
    [("user", "clip.mp4", "What happens?"), ("assistant", "It gets brighter")],
]
NUM_FRAMES = 4


def kind(part: str) -> str:
    return {".png": "image", ".jpg": "image", ".mp4": "video"}.get(Path(part).suffix, "text")


def media_of(conversation: list[tuple], wanted: str) -> list[str]:
    return [part for _, *parts in conversation for part in parts if kind(part) == wanted]


def open_by_hand(name: str, folder: Path) -> dict:
    """A content part with its pixels, read without the code under test."""
    if kind(name) == "text":
        return {"type": "text", "text": name}
    if kind(name) == "image":
        return {"type": "image", "image": Image.open(folder / name).convert("RGB")}
    with av.open(str(folder / name)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    indices = [0, 5, 10, 15]  # of 16
    metadata = {"fps": 8.0, "duration": 2.0, "total_num_frames": 16, "frames_indices": indices}
    return {"type": "video", "video": np.stack([frames[i] for i in indices]), "metadata": metadata}


def by_hand(conversation: list[tuple], folder: Path) -> dict:
    """A conversation as an opened canonical sample."""
    return {
        "messages": [
            {"role": role, "content": [open_by_hand(p, folder) for p in parts]} for role, *parts in conversation
        ]
    }


@pytest.fixture(scope="module")
def collators(tiny):
    families = ("llava-1.5", "qwen2.5-vl")
    return {family: collator_of(family, tiny) for family in families}


@pytest.fixture
def read(tmp_path, media_folder):
    """`read(path)`: a data set whose media lie in the folder of the fixtures."""
    return partial(
        MultimodalDataset,
        image_folder=str(media_folder),
        video_folder=str(media_folder),
        media=MediaOptions(num_frames=NUM_FRAMES, cache_folder=str(tmp_path / "cache")),
    )


# ---- forms: a conversation -> a row ----


def llava(conversation, folder, names=("system", "human", "gpt"), columns=("image", "video")) -> dict:
    """`conversations`, a single medium by its path alone."""
    names = dict(zip(("system", "user", "assistant"), names))
    turns = [
        {"from": names[role], "value": "\n".join(p if kind(p) == "text" else f"<{kind(p)}>" for p in parts)}
        for role, *parts in conversation
    ]
    row = {"id": "7", "conversations": turns}
    for column in columns:
        paths = media_of(conversation, column.rstrip("s"))
        row |= {column: paths[0] if len(paths) == 1 and column[-1] != "s" else paths} if paths else {}
    return row


def llava_system_prompt(conversation, folder) -> dict:
    row = llava(conversation, folder)
    if row["conversations"][0]["from"] == "system":
        row["system_prompt"] = row["conversations"].pop(0)["value"]
    return row | {"image": row.get("image"), "video": row.get("video")}


def messages(conversation, folder, part: Callable, strings: bool = False) -> dict:
    """`messages` whose media parts are `part(name, folder)`; `strings`: texts without a list around them."""

    def content(parts):
        if strings and [kind(p) for p in parts] == ["text"]:
            return parts[0]
        return [{"type": "text", "text": p} if kind(p) == "text" else part(p, folder) for p in parts]

    return {"messages": [{"role": role, "content": content(parts)} for role, *parts in conversation]}


def data_url(name: str, folder: Path) -> str:
    subtype = {".png": "png", ".jpg": "jpeg"}[Path(name).suffix]
    return f"data:image/{subtype};base64," + base64.b64encode((folder / name).read_bytes()).decode()


def struct(name: str, folder: Path) -> dict:
    """The feature `Image` of HF datasets, as it lies in Parquet."""
    return {"bytes": (folder / name).read_bytes(), "path": name}


def images_only(part: Callable) -> Callable:
    """The same for images; a clip by its path."""
    return lambda name, folder: part(name, folder) if kind(name) == "image" else {"type": "video", "path": name}


def columns(conversation, folder, value: Callable = lambda name, folder: name, single: bool = False) -> dict:
    """The columns `images` and `videos`, or `image` and `video` of rows with one."""
    found = {
        k: [value(n, folder) if k == "image" else n for n in media_of(conversation, k)] for k in ("image", "video")
    }
    if single:
        return {k: values[0] for k, values in found.items() if values}
    return {f"{k}s": values for k, values in found.items() if values}


def bare_parts(conversation, folder, **kwargs) -> dict:
    """Media parts without a source, filled from the columns."""
    return messages(conversation, folder, lambda name, _: {"type": kind(name)}) | columns(
        conversation, folder, **kwargs
    )


def no_parts(conversation, folder, **kwargs) -> dict:
    """Media in columns alone: they go to the front of the first user turn."""
    texts = [(role, *(p for p in parts if kind(p) == "text")) for role, *parts in conversation]
    return messages(texts, folder, None, strings=True) | columns(conversation, folder, **kwargs)


def prompt_completion(conversation, folder) -> dict:
    rows = no_parts(conversation, folder)
    *prompt, completion = rows.pop("messages")
    return {"prompt": prompt, "completion": [completion], **rows}


def prompt_completion_parts(conversation, folder) -> dict:
    rows = bare_parts(conversation, folder, value=struct)
    *prompt, completion = rows.pop("messages")
    return {"prompt": prompt, "completion": [completion], **rows}


def prompt_completion_texts(conversation, folder) -> dict:
    question, answer = (parts[-1] for _, *parts in conversation)
    return {"prompt": question, "completion": answer, **columns(conversation, folder)}


def question_answer(conversation, folder, names=("question", "answer")) -> dict:
    pair = dict(zip(("prompt", "completion"), names))
    return {pair.get(name, name): value for name, value in prompt_completion_texts(conversation, folder).items()}


# ---- files: rows -> what --data_path gets ----


def as_json(rows: list[dict], folder: Path, name: str = "rows.json") -> str:
    (folder / name).write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    return str(folder / name)


def as_jsonl(rows: list[dict], folder: Path, name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def as_parquet(rows: list[dict], folder: Path, name: str = "rows.parquet") -> str:
    """Columns and fields that a row does not have are null."""
    pq.write_table(pa.Table.from_struct_array(pa.array(rows)), folder / name, row_group_size=2)
    return str(folder / name)


def as_table(rows: list[dict], folder: Path, name: str = "rows.csv", encoding: str = "utf-8", **dialect) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with open(folder / name, "w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, **dialect)
        writer.writerow(columns)
        for row in rows:
            cells = (row.get(column, "") for column in columns)
            writer.writerow([cell if isinstance(cell, str) else " | ".join(cell) for cell in cells])
    return str(folder / name)


def as_folder(rows, folder: Path) -> str:
    shards = folder / "shards"
    shards.mkdir()
    as_parquet(rows[4:], shards, "train-2.parquet")
    as_json(rows[:2], shards, "train-0.json")
    as_jsonl(rows[2:4], shards, "train-1.jsonl")
    (shards / "README.md").write_text("# no rows")
    return str(shards)


def as_hub_folder(rows, folder: Path) -> str:
    (folder / "set" / "data").mkdir(parents=True)
    for i in (0, 1):
        as_parquet(rows[3 * i : 3 * i + 3], folder / "set" / "data", f"train-0000{i}-of-00002.parquet")
    as_parquet(rows[:1], folder / "set" / "data", "test-00000-of-00001.parquet")
    return str(folder / "set") + ":train"


def as_glob(rows, folder: Path) -> str:
    as_folder(rows, folder)
    return str(folder / "shards" / "train-*")


def as_several(rows, folder: Path) -> list[str]:
    return [as_json(rows[:2], folder), as_parquet(rows[2:3], folder), as_jsonl(rows[3:], folder)]


def as_slices(rows, folder: Path) -> list[str]:
    path = as_jsonl(rows, folder)
    return [f"{path}[:2]", f"{path}[2:-1]", f"{path}[-1:]"]


def media_first(conversation) -> bool:
    """All media stand in the first user turn."""
    later = [turn for turn in conversation if turn[0] == "user"][1:]
    return not any(kind(part) != "text" for _, *parts in later for part in parts)


class Form(NamedTuple):
    row: Callable
    write: Callable = as_json
    options: dict = {}
    fits: Callable = lambda conversation: True


PATHS = partial(messages, part=lambda name, _: {"type": kind(name), "path": name}, strings=True)
PATHS_IN_LISTS = partial(messages, part=lambda name, _: {"type": kind(name), "path": name})
URLS = images_only(lambda name, folder: {"type": "image_url", "image_url": {"url": data_url(name, folder)}})
URL_STRINGS = images_only(lambda name, folder: {"type": "image_url", "image_url": data_url(name, folder)})
BASE64 = images_only(
    lambda name, folder: {"type": "image", "base64": base64.b64encode((folder / name).read_bytes()).decode()}
)
KEYS = {"user_key": "user", "assistant_key": "assistant"}
ONE_EXCHANGE = lambda conversation: [role for role, *_ in conversation].count("user") == 1  # noqa: E731
ONE_PAIR = lambda conversation: [role for role, *_ in conversation] == ["user", "assistant"]  # noqa: E731
FORMS = {
    "LLaVA": Form(llava),
    "LLaVA, JSONL": Form(llava, as_jsonl),
    "LLaVA, Parquet of paths": Form(partial(llava, columns=("images", "videos")), as_parquet),
    "LLaVA, system_prompt": Form(llava_system_prompt),
    "ShareGPT": Form(partial(llava, names=("system", "user", "assistant"), columns=("images", "videos")), options=KEYS),
    "parts with path": Form(PATHS),
    "parts with path, Parquet": Form(PATHS_IN_LISTS, as_parquet),
    "parts named image": Form(partial(messages, part=lambda name, _: {"type": kind(name), kind(name): name})),
    "parts with absolute path": Form(
        partial(messages, part=lambda name, folder: {"type": kind(name), "path": str(folder / name)})
    ),
    "parts with data URL": Form(
        partial(messages, part=images_only(lambda n, f: {"type": "image", "image": data_url(n, f)})), as_jsonl
    ),
    "parts with data URL as url": Form(
        partial(messages, part=images_only(lambda n, f: {"type": "image", "url": data_url(n, f)}))
    ),
    "parts with base64": Form(partial(messages, part=BASE64)),
    "image_url, objects": Form(partial(messages, part=URLS), as_jsonl),
    "image_url, strings": Form(partial(messages, part=URL_STRINGS)),
    "image_url, Parquet": Form(partial(messages, part=URLS), as_parquet),
    "parts with bytes, Parquet": Form(
        partial(messages, part=images_only(lambda n, f: {"type": "image", "image": struct(n, f)})), as_parquet
    ),
    "columns fill parts": Form(bare_parts),
    "columns fill parts, Parquet of bytes": Form(partial(bare_parts, value=struct), as_parquet),
    "columns fill parts, data URLs": Form(partial(bare_parts, value=data_url), as_jsonl),
    "columns alone": Form(no_parts, fits=media_first),
    "column image alone": Form(
        partial(no_parts, single=True), fits=lambda c: media_first(c) and len(media_of(c, "image")) < 2
    ),
    "columns alone, Parquet of bytes": Form(partial(no_parts, value=struct), as_parquet, fits=media_first),
    "LLaVA, Parquet of bytes": Form(
        lambda c, folder: llava(c, folder, columns=()) | columns(c, folder, value=struct), as_parquet
    ),
    "renamed messages": Form(
        lambda c, folder: {"dialog": PATHS(c, folder)["messages"]}, options={"field_messages": "dialog"}
    ),
    "prompt and completion": Form(prompt_completion, fits=ONE_EXCHANGE),
    "prompt and completion, Parquet": Form(prompt_completion_parts, as_parquet, fits=ONE_EXCHANGE),
    "prompt and completion, texts": Form(prompt_completion_texts, as_jsonl, fits=ONE_PAIR),
    "prompt and completion, CSV": Form(prompt_completion_texts, as_table, fits=ONE_PAIR),
    "question and answer": Form(question_answer, fits=ONE_PAIR),
    "question and answer, CSV of Excel": Form(
        partial(question_answer, names=("Question", " Answer ")),
        partial(as_table, delimiter=";", encoding="utf-8-sig"),
        fits=ONE_PAIR,
    ),
    "question and answer, TSV": Form(
        question_answer, partial(as_table, name="rows.TSV", delimiter="\t", lineterminator="\n"), fits=ONE_PAIR
    ),
    "a folder of shards": Form(PATHS_IN_LISTS, as_folder),
    "a split of a folder": Form(partial(bare_parts, value=struct), as_hub_folder),
    "a glob": Form(PATHS_IN_LISTS, as_glob),
    "several files": Form(PATHS_IN_LISTS, as_several),
    "slices": Form(llava, as_slices),
}


@pytest.mark.parametrize("family", ["qwen2.5-vl", pytest.param("llava-1.5", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_batch(collators, media_folder, tmp_path, read, form, family):
    form = FORMS[form]
    taken = [c for c in CONVERSATIONS if form.fits(c) and (family != "llava-1.5" or not media_of(c, "video"))]
    assert len(taken) >= 3
    dataset = read(form.write([form.row(c, media_folder) for c in taken], tmp_path), **form.options)
    batch = collators[family]([dataset[i] for i in range(len(dataset))])
    expected = collators[family]([by_hand(conversation, media_folder) for conversation in taken])
    assert batch.keys() == expected.keys()
    for name in expected:
        assert torch.equal(batch[name], expected[name]), name


def test_references_are_absolute_paths_and_bytes(media_folder, tmp_path, read):
    content = [
        {"type": "image", "path": "./red.png"},
        {"type": "image", "image": data_url("red.png", media_folder)},
        {"type": "image", "base64": data_url("blue.png", media_folder).split(",")[1]},
        {"type": "image_url", "image_url": {"url": data_url("blue.png", media_folder), "detail": "low"}},
        {"type": "video", "path": "clip.mp4"},
        {"type": "video", "video": ["red.png", "red.png"]},
    ]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes"}]}
    dataset = read(as_json([row], tmp_path))
    red, clip = str(media_folder / "red.png"), str(media_folder / "clip.mp4")
    red_bytes, blue_bytes = ((media_folder / name).read_bytes() for name in ("red.png", "blue.png"))
    assert dataset.rows[0] == {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": red},
                    {"type": "image", "image": red_bytes},
                    {"type": "image", "image": blue_bytes},
                    {"type": "image", "image": blue_bytes},
                    {"type": "video", "video": clip},
                    {"type": "video", "video": [red, red]},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]},
        ],
        "index": 0,
        "source": "rows.json, sample 0",
    }
    assert dataset.raw(0) == row


@pytest.fixture
def web(media_folder):
    """The address of a server of the media."""
    handler = type("Handler", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(media_folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_urls_give_the_same_batch(collators, media_folder, tmp_path, read, web):
    def part(name, _):
        url = f"{web}/{name}"
        if kind(name) == "video":
            return {"type": "video_url", "video_url": {"url": url}}
        return {"type": "image_url", "image_url": {"url": url}} if name == "red.png" else {"type": "image", "url": url}

    options = {"allow_urls": True, "allowed_networks": ("127.0.0.0/8",), "cache_folder": str(tmp_path / "cache")}
    path = as_json([messages(conversation, media_folder, part) for conversation in CONVERSATIONS], tmp_path)
    dataset = read(path, media=MediaOptions(num_frames=NUM_FRAMES, **options))
    assert dataset.rows[0]["messages"][0]["content"][0] == {"type": "image", "image": f"{web}/red.png"}
    batch = collators["qwen2.5-vl"]([dataset[i] for i in range(len(dataset))])
    expected = collators["qwen2.5-vl"]([by_hand(conversation, media_folder) for conversation in CONVERSATIONS])
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize("column", [False, True])
def test_a_list_of_images_is_a_video(tmp_path, read, column):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (9, 9, 9)]
    for i, colour in enumerate(colours):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{i}.png")
    frames = [f"{i}.png" for i in range(4)]
    part = {"type": "video"} if column else {"type": "video", "video": frames}
    row = {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "Yes"}]}
    row |= {"videos": [frames]} if column else {}
    dataset = read(as_json([row], tmp_path), video_folder=str(tmp_path), image_folder=str(tmp_path))
    video = dataset[0]["messages"][0]["content"][0]["video"]
    assert video.shape == (4, 32, 32, 3)
    assert [tuple(colour) for colour in video[:, 16, 16].tolist()] == colours


# ---- "train": false ----


@pytest.mark.parametrize("family", ["llava-1.5", "qwen2.5-vl"])
@pytest.mark.parametrize("untrained", [[0], [1], [0, 2], [1, 2], []])
@pytest.mark.parametrize("form", ["messages", "conversations", "OpenAI"])
def test_a_reply_with_train_false_has_no_label(collators, tmp_path, read, family, untrained, form):
    replies = ["Red", "Two of them", "Blue"]
    turns = [(role, text) for reply in replies for role, text in (("user", "What?"), ("assistant", reply))]
    if form != "conversations":
        turns = [{"role": role, "content": text} for role, text in turns]
    else:
        turns = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in turns]
    no, yes = ({"weight": 0}, {"weight": 1}) if form == "OpenAI" else ({"train": False}, {"train": True})
    for i in range(3):
        turns[2 * i + 1] |= no if i in untrained else yes if i == 1 else {}
    dataset = read(as_json([{"messages" if form == "OpenAI" else form: turns}], tmp_path))
    messages = dataset.rows[0]["messages"]
    assert [i for i in range(3) if messages[2 * i + 1].get("train") is False] == untrained
    labels = collators[family]([dataset[0]])["labels"][0]
    every = taught(family, replies)  # with what is taught after the last one alone
    assert trained_runs(collators[family].processor.tokenizer, labels) == [
        text for i, text in enumerate(every) if i not in untrained
    ]


# ---- published formats ----


def llava_instruct_150k(folder: Path, media: Path) -> tuple[str, dict]:
    """liuhaotian/LLaVA-Instruct-150K, llava_instruct_150k.json: COCO names, <image> first or last in the first turn."""
    (folder / "train2017").mkdir()
    (folder / "train2017" / "000000033471.jpg").write_bytes((media / "tall.jpg").read_bytes())
    question, more = "What are the colors of the bus in the image?", "Is it wide?"
    rows = [
        {
            "id": "000000033471",
            "image": "000000033471.jpg",
            "conversations": [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": "It is green."},
                {"from": "human", "value": more},
                {"from": "gpt", "value": "No."},
            ],
        },
        {
            "id": "000000033471",
            "image": "000000033471.jpg",
            "conversations": [
                {"from": "human", "value": f"{question}\n<image>"},
                {"from": "gpt", "value": "It is green."},
            ],
        },
    ]
    return as_json(rows, folder, "llava_instruct_150k.json"), {"image_folder": str(folder / "train2017")}


LLAVA_INSTRUCT = [
    [
        ("user", "tall.jpg", "What are the colors of the bus in the image?"),
        ("assistant", "It is green."),
        ("user", "Is it wide?"),
        ("assistant", "No."),
    ],
    [("user", "What are the colors of the bus in the image?", "tall.jpg"), ("assistant", "It is green.")],
]

IMAGES = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def llava_instruct_mix(folder: Path, media: Path) -> tuple[str, dict]:
    """HuggingFaceH4/llava-instruct-mix-vsft: `dataset_info` of its README; the split is in the names of the files."""
    part = pa.struct({"index": pa.int64(), "text": pa.string(), "type": pa.string()})
    schema = pa.schema(
        {"messages": pa.list_(pa.struct({"content": pa.list_(part), "role": pa.string()})), "images": IMAGES},
        metadata={"huggingface": json.dumps({"info": {"features": {"images": {"feature": {"_type": "Image"}}}}})},
    )

    def text(value):
        return {"index": None, "text": value, "type": "text"}

    def row(answer):
        return {
            "messages": [
                {"content": [text("Who wrote this?\n"), {"index": 0, "text": None, "type": "image"}], "role": "user"},
                {"content": [text(answer)], "role": "assistant"},
                {"content": [text("What is the title?\n")], "role": "user"},
                {"content": [text("Blue")], "role": "assistant"},
            ],
            "images": [{"bytes": (media / "blue.png").read_bytes(), "path": None}],
        }

    (folder / "data").mkdir()
    for name, answer in (
        ("train-00000-of-00002", "Ann"),
        ("train-00001-of-00002", "Bo"),
        ("test-00000-of-00001", "Cy"),
    ):
        pq.write_table(pa.Table.from_pylist([row(answer)], schema), folder / "data" / f"{name}.parquet")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n---\n")
    return f"{folder}:train", {}


LLAVA_MIX = [
    [
        ("user", "Who wrote this?\n", "blue.png"),
        ("assistant", name),
        ("user", "What is the title?\n"),
        ("assistant", "Blue"),
    ]
    for name in ("Ann", "Bo")
]


def openai_chat(folder: Path, media: Path) -> tuple[str, dict]:
    """Vision fine-tuning guide of OpenAI: chat completions JSONL, data URLs, `detail`."""
    url = {"url": data_url("red.png", media), "detail": "low"}
    content = [{"type": "text", "text": "Describe this artwork."}, {"type": "image_url", "image_url": url}]
    row = {
        "messages": [
            {"role": "system", "content": "You are an assistant that identifies and describes artworks."},
            {"role": "user", "content": content},
            {"role": "assistant", "content": "A red square."},
        ]
    }
    return as_jsonl([row], folder), {}


OPENAI = [
    [
        ("system", "You are an assistant that identifies and describes artworks."),
        ("user", "Describe this artwork.", "red.png"),
        ("assistant", "A red square."),
    ]
]


def sharegpt4video(folder: Path, media: Path) -> tuple[str, dict]:
    """ShareGPT4Video, sharegpt4video_mix181k...json: LLaVA's form with `video`, beside rows of images and of texts."""
    (folder / "videos" / "panda").mkdir(parents=True)
    (folder / "videos" / "panda" / "j5JqNXjGufw.mp4").write_bytes((media / "clip.mp4").read_bytes())
    turns = [
        {"from": "human", "value": "<video>\nOffer a detailed description of the video."},
        {"from": "gpt", "value": "It gets brighter."},
    ]
    plain = [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Blue"}]
    rows = [
        {"id": "sharegpt4video_0", "video": "panda/j5JqNXjGufw.mp4", "conversations": turns},
        {"id": "text_0", "conversations": plain},
    ]
    return as_json(rows, folder), {"video_folder": str(folder / "videos")}


SHAREGPT4VIDEO = [
    [("user", "clip.mp4", "Offer a detailed description of the video."), ("assistant", "It gets brighter.")],
    [("user", "Name a colour."), ("assistant", "Blue")],
]


def trl_vision(folder: Path, media: Path) -> tuple[str, dict]:
    """TRL's docs/dataset_formats: conversational prompt-completion with a column of images."""
    message = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    schema = pa.schema({"prompt": message, "completion": message, "images": IMAGES})
    row = {
        "prompt": [{"role": "user", "content": "What color is the sky?"}],
        "completion": [{"role": "assistant", "content": "It is blue."}],
        "images": [struct("blue.png", media), struct("red.png", media)],
    }
    return as_parquet(pa.Table.from_pylist([row], schema).to_pylist(), folder), {}


TRL = [[("user", "blue.png", "red.png", "What color is the sky?"), ("assistant", "It is blue.")]]

PUBLISHED = {
    "LLaVA-Instruct-150K": (llava_instruct_150k, LLAVA_INSTRUCT),
    "llava-instruct-mix-vsft": (llava_instruct_mix, LLAVA_MIX),
    "OpenAI": (openai_chat, OPENAI),
    "ShareGPT4Video": (sharegpt4video, SHAREGPT4VIDEO),
    "TRL": (trl_vision, TRL),
}


def told(sample: dict, folder: Path) -> list[tuple]:
    """An opened sample in the notation of this file: media by the name of the file that has the same pixels."""
    names = ("red.png", "blue.png", "tall.jpg", "clip.mp4")
    pixels = {name: part[part["type"]] for name in names for part in [open_by_hand(name, folder)]}

    def name_of(part: dict) -> str:
        if part["type"] == "text":
            return part["text"]
        medium = np.asarray(part[part["type"]])
        return next(
            (n for n, p in pixels.items() if np.array_equal(np.asarray(p), medium)), f"no {part['type']} of ours"
        )

    return [(m["role"], *map(name_of, m["content"])) for m in sample["messages"]]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_format_is_read_to_the_letter(collators, media_folder, tmp_path, name):
    write, conversations = PUBLISHED[name]
    path, options = write(tmp_path, media_folder)
    options |= {"media": MediaOptions(num_frames=NUM_FRAMES, cache_folder=str(tmp_path / "cache"))}
    dataset = MultimodalDataset(path, **options)
    samples = [dataset[i] for i in range(len(dataset))]
    assert [told(sample, media_folder) for sample in samples] == conversations
    assert collators["qwen2.5-vl"](samples)["input_ids"].shape[0] == len(conversations)
