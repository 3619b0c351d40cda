"""What the tests share: tiny checkpoints, built once a session, and small media files."""

import contextlib
import datetime
import gc
import json
import os
import shutil
import sys
import tempfile
import traceback
import zlib
from functools import cache
from pathlib import Path
from unittest import mock

# Read when torch is imported, here and in the processes that tests start: on tensors as small as these, threads wait
# for each other longer than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Bytecode is kept, also where the environment says otherwise, as that of many containers does: each worker would
# compile all tests again, and each process that they start all of the code.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that asks a hub is broken: fail at once
CACHE = tempfile.TemporaryDirectory()  # of this session's tests alone
os.environ["FINELMM_CACHE"] = CACHE.name

from facts import FACTS  # noqa: E402

from supported_models import AUTO, MODELS, families  # noqa: E402

# Nothing here imports torch before a test runs: the process that hands the tests out to the workers needs none.
IGNORE_INDEX = -100  # what torch's cross entropy ignores
OUTCOMES = pytest.StashKey()
FAMILIES = [*families(), AUTO]
# One family of each kind: a case of any other family is slow (`pytest_itemcollected` below).
KINDS = (
    "llava-1.5",
    "llava-onevision",  # tiles
    "qwen2.5-vl",  # mrope
    "qwen3-vl-moe",  # experts
    "qwen3.5",  # thoughts
    "phi3-v",  # remote code
    "llama-3.2-vision",  # cross-attention
    "gemma-3",  # bidirectional masks
    AUTO,
)
# Of what hardly depends on the family, one of each kind of positions and masks; the others are the rest of a cross.
FEW = ("llava-1.5", "qwen2.5-vl", "gemma-3")


def crossed_but(*chosen: str) -> list:
    """All families as parameters; but the chosen ones, each is the rest of a cross."""
    rest = [pytest.mark.slow, pytest.mark.cross]
    return [family if family in chosen else pytest.param(family, marks=rest) for family in FAMILIES]


OF_FEW = crossed_but(*FEW)
# The same, with one of each kind.
CROSSED = [family if family in KINDS else pytest.param(family, marks=pytest.mark.cross) for family in FAMILIES]
# The first model id of each family.
MODEL_ID = {family: next(id for id, model in MODELS.items() if model.family == family) for family in families()}
MODEL_ID[AUTO] = AUTO
# Flags that every run of the family needs.
CONSENT = {family: ["--trust_remote_code", "True"] if FACTS[family].remote_code else [] for family in FAMILIES}
TAKES_VIDEO = [family for family in FAMILIES if FACTS[family].takes_video]


def golden_records(family: str, format: int = 0) -> list[dict]:
    """The golden records of one of a family's formats."""
    records = json.loads((REPO / "tests" / "golden" / f"{family}.json").read_text(encoding="utf-8"))
    name = (FACTS[family].golden or (family,))[format]
    found = [record for record in records if record["family"] == name]
    assert found
    return found


def for_official_template(family: str, messages: list[dict]) -> list[dict]:
    """Messages in the form that the family's official template takes."""
    facts, given = FACTS[family], []
    for message in messages:
        text = "".join(part.get("text", "") for part in message["content"])
        if message["role"] in facts.string_roles:
            message = message | {"content": text}
        elif message["role"] in facts.one_part_roles:
            message = message | {"content": [{"type": "text", "text": text}]}
        given.append(message)
    return given


def make_loader(family: str, path: str, **kwargs):
    from loaders import LOADERS

    return LOADERS.get(family)(str(path), FACTS[family].remote_code, **kwargs)


def collator_of(family: str, tiny, *args, **kwargs):
    """A collator of a tiny checkpoint."""
    from collators import COLLATORS

    return COLLATORS.get(family)(make_loader(family, tiny(family)).load_processor(), *args, **kwargs)


def logs_of(folder) -> list[dict]:
    """What a run has logged."""
    return json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]


def lines_of(path) -> list[dict]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def slow(*values):
    """A parameter that is tested in .ci/run only."""
    return pytest.param(*values, marks=pytest.mark.slow)


def copy_code(folder: Path) -> None:
    """A copy of the repository without tests, documentation and what is not in git."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "docs", "checkpoints", "out")
    shutil.copytree(REPO, folder, ignore=ignored, dirs_exist_ok=True)


def check_each(cases, check) -> None:
    """`check(*case)` of every case in one test, where a test for each would take longer than the case itself.

    The failures are reported together, each with its case.
    """
    failures = []
    for case in cases:
        try:
            check(*case)
        except (Exception, pytest.fail.Exception):  # the latter of `pytest.raises`
            failures.append(f"---- {repr(case):.200}\n{traceback.format_exc()}")
    if failures:
        pytest.fail(f"{len(failures)} of {len(cases)} cases fail\n" + "\n".join(failures), pytrace=False)


def pytest_collection_finish(session):
    """What is imported stays: the garbage collector need not look through it in every test."""
    gc.collect()
    gc.freeze()


def pytest_itemcollected(item):
    """A case of a family outside KINDS is slow, and outside FEW where the test says so."""
    others = {*FAMILIES} - {*(FEW if item.get_closest_marker("few") else KINDS)}
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    if any(isinstance(value, str) and value in others for value in params):
        item.add_marker(pytest.mark.slow)


# ---- only slow tests start processes ----

PROCESS_EVENTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system")
HELPERS = ("git", "uname")  # of milliseconds: a run asks them for the versions in its report
no_process = False  # while a test runs that is not slow


def refuse_process(event: str, args: tuple) -> None:
    if no_process and event in PROCESS_EVENTS and not (args and args[0] in HELPERS):
        pytest.fail(f"a test that is not marked slow starts a process: {event} {args[:2]}")


sys.addaudithook(refuse_process)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    global no_process
    no_process = item.get_closest_marker("slow") is None
    # No audit event tells of the processes that `multiprocessing` spawns.
    spawn = mock.patch("multiprocessing.util.spawnv_passfds", lambda *args: refuse_process("os.posix_spawn", args))
    with spawn if no_process else contextlib.nullcontext():
        yield
    no_process = False


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`tiny(family)`: the folder of a tiny checkpoint, made on the first call in any worker. To be read only."""
    from tiny_checkpoints import make_tiny_checkpoint

    run = tmp_path_factory.getbasetemp()
    root = (run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "tiny"
    root.mkdir(exist_ok=True)

    @cache
    def get(family: str) -> str:
        folder = root / family
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                make_tiny_checkpoint(family, f"{folder}.unfinished")
                os.rename(f"{folder}.unfinished", folder)
        return str(folder)

    return get


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory) -> Path:
    """A folder with red.png (64x64), blue.png (100x50), tall.jpg (60x140) and clip.mp4 (16 frames of 64x64)."""
    import av

    folder = tmp_path_factory.mktemp("media")
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    Image.new("RGB", (100, 50), "blue").save(folder / "blue.png")
    Image.new("RGB", (60, 140), "green").save(folder / "tall.jpg")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(16):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), i * 15, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return folder


@pytest.fixture
def write_rows(media_folder, tmp_path):
    """`write_rows(rows)`: a JSON file beside the media files; returns its path."""
    made = []

    def write(rows, name: str = "rows.json") -> str:
        path = media_folder / f"{tmp_path.name}-{len(made)}-{name}"
        made.append(path)
        if name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        else:
            path.write_text(json.dumps(rows), encoding="utf-8")
        return str(path)

    yield write
    for path in made:
        path.unlink()


def outline(dataset, position: int) -> tuple[dict, dict]:
    """A row without its texts and references, and (kind, number there) -> size of each medium, by the index."""
    index, place = dataset.locate(position)
    layout = index.layout(place)
    return {"messages": layout.messages}, layout.media_sizes(index.sizes(place))


def turns(*texts: str) -> list[dict]:
    """LLaVA-style turns, the user first."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


# Every mixture that one batch may hold; videos only where the family takes them.
IMAGE_ROWS = [
    {"image": "red.png", "conversations": turns("<image>\nWhat colour is it?", "Red")},
    {"image": ["red.png", "blue.png"], "conversations": turns("<image>\n<image>\nWhich is blue?", "The second")},
    {
        "image": ["blue.png", "tall.jpg"],
        "conversations": turns("Is <image> like <image> ?", "No", "Why?", "The colour"),
    },
    {"conversations": turns("Name a colour.", "Blue"), "system_prompt": "Be brief.", "image": None},
    {
        "messages": [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hi!"},
            {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "image", "path": "red.png"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A red square"}]},
        ]
    },
]
VIDEO_ROWS = [
    {"video": "clip.mp4", "conversations": turns("<video>\nWhat happens?", "It gets brighter")},
    {"video": "clip.mp4", "image": "red.png", "conversations": turns("<image> then <video> ?", "Red, then a fade")},
]


# For families that take one exchange, with images before the question.
SINGLE_ROWS = [
    {"image": "red.png", "conversations": turns("<image>\nWhat colour is it?", "Red")},
    {"image": ["red.png", "blue.png"], "conversations": turns("<image>\n<image>\nWhich is blue?", "The second")},
    {"image": "tall.jpg", "conversations": turns("<image>Is it wide or tall?", "It is a tall green picture")},
    {"image": "blue.png", "conversations": turns("<image> detect blue", "<loc0000><loc0001><loc1022><loc1023> blue")},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image", "path": "red.png"}, {"type": "text", "text": "And this?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A red square"}]},
        ]
    },
]


VISION_FLAGS = ["--train_vision_encoder", "True", "--train_vision_projector", "True"]


def run(tiny, family: str, data_path: str, output_dir, *flags, draws_plots: bool = False) -> list[dict]:
    """A short run of train.py in this process; returns its logged steps."""
    from launch import plots

    import train

    defaults = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "num_frames": 4}
    defaults |= {"disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-3, "model_max_length": 2048}
    words = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", data_path]
    words += CONSENT[family]
    for name, value in defaults.items():
        words += [] if f"--{name}" in flags else [f"--{name}", str(value)]
    with plots(draws_plots):
        train.main([*words, "--output_dir", str(output_dir), *map(str, flags)])
    return [entry for entry in logs_of(output_dir) if "loss" in entry]


def official_template(processor, family: str) -> str:
    """The checkpoint's chat template, with what changes from day to day held fast."""
    return (processor.chat_template or "").replace(*FACTS[family].pinned)


def rows_for(family: str) -> list[dict]:
    if not FACTS[family].multi_turn:
        return SINGLE_ROWS
    return IMAGE_ROWS + (VIDEO_ROWS[: 1 + FACTS[family].mixes_media] if family in TAKES_VIDEO else [])


def replies_of(row: dict) -> list[str]:
    """The assistant's texts, read from the raw row."""
    if "conversations" in row:
        return [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
    contents = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    return [content if isinstance(content, str) else content[0]["text"] for content in contents]


def taught(family: str, replies: list[str]) -> list[str]:
    """What the trained tokens of a conversation's replies decode to."""
    facts = FACTS[family]
    texts = [facts.decoded_space + reply + facts.end_of_turn for reply in replies]
    return [*texts[:-1], (texts[-1] + facts.end_of_text).replace(*facts.decoded)]


def trained_runs(tokenizer, row) -> list[str]:
    """The decoded runs of labels of one row."""
    runs, run = [], []
    for label in [*row.tolist(), IGNORE_INDEX]:
        if label != IGNORE_INDEX:
            run.append(label)
        elif run:
            runs, run = [*runs, tokenizer.decode(run)], []
    return runs


def row_losses(model, batch: dict):
    """Mean cross entropy of each row that has a label."""
    import torch

    with torch.no_grad():
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    sums = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1)
    return (sums / (labels != IGNORE_INDEX).sum(1))[(labels != IGNORE_INDEX).any(1)]


# ---- the full crosses, of which `--eighth N` runs an eighth, and the matrices, which `--matrix FILE` writes ----


def crossed(cases, chosen) -> list:
    """The cases of a cross as parameters: all but the chosen ones are marked `cross`."""
    return [pytest.param(*case, marks=[] if case in chosen else pytest.mark.cross) for case in cases]


def pytest_addoption(parser):
    parser.addoption("--eighth", metavar="N", type=int, help="of the cases marked `cross`, run the eighth N modulo 8")
    parser.addoption("--matrix", metavar="FILE", help="write the outcome of each cell of a matrix")


def pytest_configure(config):
    if config.getoption("--matrix") and config.getoption("numprocesses"):
        raise pytest.UsageError("--matrix collects the cells of one process: add -n 0")
    config.stash[OUTCOMES] = {}


def pytest_collection_modifyitems(config, items):
    number = config.getoption("--eighth")
    if number is not None:
        others = [item for item in items if item.get_closest_marker("cross") and eighth_of(item) != number % 8]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    # Of minutes, and the last in the order of files: one worker would wait for the other.
    items.sort(key=lambda item: item.path.name != "test_webui_browser.py")


def eighth_of(item) -> int:
    return zlib.crc32(item.nodeid.encode()) % 8


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    for mark in item.iter_markers("cell"):
        family, column, *meaning = mark.args  # of a pass, where it does not mean "passed"
        cells = item.config.stash[OUTCOMES].setdefault(family, {})
        if report.outcome != "passed" or column not in cells:
            cells[column] = meaning[0] if meaning and report.outcome == "passed" else report.outcome


def pytest_deselected(items):
    for item in items:
        if item.config.getoption("--matrix") and item.get_closest_marker("cell"):
            raise pytest.UsageError(f"--matrix takes a whole matrix, and {item.nodeid} would be left out")


def pytest_sessionfinish(session, exitstatus):
    if path := session.config.getoption("--matrix"):
        if exitstatus > pytest.ExitCode.TESTS_FAILED:  # interrupted: not all cells were run
            return
        found = {"date": datetime.date.today().isoformat(), "cells": session.config.stash[OUTCOMES]}
        Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
