"""The documentation is true: its commands parse, its code runs, its generated parts are fresh, its links resolve."""

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from importlib.metadata import metadata
from pathlib import Path

import pytest
from conftest import REPO, copy_code, turns

import predict
import preview
import tiny_models
from arguments import parse_arguments
from reading.dataset import MultimodalDataset
from supported_models import families
from training import checks
from training.trainable import training_modes

CHINESE = [REPO / "README_zh.md", REPO / "docs/start_zh.md"]
PAGES = [REPO / "README.md", *sorted({*(REPO / "docs").glob("*.md")} - {*CHINESE})]
# All but multi_node.sh, which hands the user's flags on.
SCRIPTS = sorted(set((REPO / "example_scripts").glob("*.sh")) - {REPO / "example_scripts/multi_node.sh"})
# Flags of the commands that are not ours, and of docs/generate.py.
FOREIGN_FLAGS = {"nproc_per_node", "no-build-isolation", "matrix"}
FOREIGN_FLAGS |= {
    "json",
    "pythons",
    "fault",
    "engines",
    "boxes",
    "picture",
    "forms",
    "templates",
    "tokenizers",
}  # of benchmarks and draw.py
FOREIGN_FLAGS |= {"logdir"}  # of tensorboard
FOREIGN_FLAGS |= {
    "served-model-name",
    "enable-lora",
    "lora-modules",
    "max-lora-rank",
    "enable-auto-tool-choice",
    "tool-call-parser",
}
FOREIGN_FLAGS |= {"enable-tower-connector-lora", "chat-template-content-format"}
FOREIGN_FLAGS |= {"override-generation-config", "mm-processor-kwargs", "trust-request-mm-kwargs"}  # of vLLM
FOREIGN_FLAGS |= {"model-path", "lora-paths", "port"}  # and of SGLang
FOREIGN_FLAGS |= {"outfile", "outtype", "mmproj", "base", "lora", "no-deps", "no-binary"}  # of llama.cpp and pip
FOREIGN_FLAGS |= {"model", "include_path", "tasks", "model_args"}  # of lmms-eval


def code_blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """(the paragraph before it, code) of each block of a language."""
    text = page.read_text(encoding="utf-8")
    blocks, position = [], 0
    for match in re.finditer(r"(?ms)^ *```(\w*)\n(.*?)^ *```$", text):
        if match[1] == language:
            blocks.append((text[position : match.start()].strip().split("\n\n")[-1], textwrap.dedent(match[2])))
        position = match.end()
    return blocks


def commands(page: Path) -> list[list[str]]:
    lines = "".join(code for _, code in code_blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def ours(words: list[str]) -> list[str]:
    """The words from our script's name on; empty for a command that runs none."""
    start = next((i for i, word in enumerate(words) if word.endswith(".py")), len(words))
    return words[start:]


COMMANDS = [
    pytest.param(ours(words), id=f"{page.stem}-{i}")
    for page in PAGES
    for i, words in enumerate(commands(page))
    if ours(words) and page.stem != "add_new_model"  # the walk below runs them
]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with what the commands name, on a machine that seems to have a GPU with bfloat16."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "is_torch_bf16_gpu_available", lambda: True)
    for folder in ("ds_configs", "fsdp_configs"):
        shutil.copytree(REPO / folder, folder)
    ((_, run_yaml),) = code_blocks(REPO / "docs/training.md", "yaml")
    Path("run.yaml").write_text(run_yaml, encoding="utf-8")
    ((_, own_metrics),) = code_blocks(REPO / "docs/evaluation.md", "python")
    Path("my_metrics.py").write_text(own_metrics, encoding="utf-8")
    Path("out/checkpoint-500").mkdir(parents=True)
    Path("out/args.yaml").write_text(run_yaml, encoding="utf-8")
    return tmp_path


def parse(script: str, words: list[str], monkeypatch) -> None:
    """Run the script's real parser on its flags, and nothing more."""
    if script in ("train.py", "preview.py"):
        if "--deepspeed" in words:  # would start a process group
            at = words.index("--deepspeed")
            json.loads(Path(words[at + 1]).read_text())
            words = words[:at] + words[at + 2 :]
        words = words + ["--use_cpu", "True"]
        parse_arguments(words, extend=preview.add_flags if script == "preview.py" else None)
    elif script in (
        "webui.py",
        "predict.py",
        "merge_lora_weights.py",
        "estimate.py",
        "check_serving.py",
        "compare_runs.py",
    ):
        importlib.import_module(script.removesuffix(".py")).parse(words)
    elif script == "tiny_models.py":
        made = []
        monkeypatch.setattr(tiny_models, "make_tiny_checkpoint", lambda *args: made.append(args))
        monkeypatch.setattr(sys, "argv", [script, *words])
        tiny_models.main()
        assert made
    elif script == "example_data/draw.py":
        draw = runpy.run_path(str(REPO / script))["main"]
        draw.__globals__["write_split"] = draw.__globals__["write_rows"] = lambda *args: ""
        monkeypatch.setattr(sys, "argv", [script, *words])
        draw()
    elif script.startswith("benchmarks/"):
        assert all(f'"{word}"' in (REPO / script).read_text() for word in words if word.startswith("--")), words
    elif script == "example_data/report.py":
        assert len(words) == 2
    else:
        assert script in ("supported_models.py", "docs/generate.py") and words in ([], ["--matrix"]), script


def test_there_are_commands():
    assert {param.values[0][0] for param in COMMANDS} >= {
        "train.py",
        "preview.py",
        "predict.py",
        "merge_lora_weights.py",
        "estimate.py",
        "check_serving.py",
    }


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_of_the_pages_parses(words, workplace, monkeypatch):
    assert (REPO / words[0]).is_file()
    parse(words[0], words[1:], monkeypatch)


def check_calls(script: Path, workplace: Path, monkeypatch, **values) -> None:
    """Run a bash script with stubs; parse what python and torchrun are called with, and what it advises."""
    (workplace / "bin").mkdir()
    for name in ("python", "torchrun"):  # each writes down how it is called
        stub = workplace / "bin" / name
        stub.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done >> "$CALLS"\necho >> "$CALLS"\n')
        stub.chmod(0o755)
    calls = workplace / "calls"
    environment = {name: value for name, value in os.environ.items() if name not in ("MODEL_ID", "OUTPUT_DIR")}
    environment |= {"PATH": f"{stub.parent}:{os.environ['PATH']}", "CALLS": str(calls)} | values
    done = subprocess.run(["bash", script], env=environment, check=True, capture_output=True, text=True)
    called = [ours(line.rstrip("\0").split("\0")) for line in calls.read_text().splitlines()]
    assert "train.py" in [words[0] for words in called]
    called += [ours(words.split()) for words in re.findall(r"python (.*)", done.stdout)]
    for name, *words in called:
        parse(name, words, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("model_id", [None, "qwen2.5-vl-3b-instruct"])
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_commands_of_an_example_script_parse(script, model_id, workplace, monkeypatch):
    check_calls(script, workplace, monkeypatch, **({"MODEL_ID": model_id} if model_id else {}))


@pytest.mark.slow
@pytest.mark.parametrize("tiny", ["yes", ""])
def test_the_commands_of_the_notebook_parse(tiny, workplace, monkeypatch):
    cells = json.loads((REPO / "docs/finetune_video.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    bash = [source.removeprefix("%%bash\n") for source in sources if source.startswith("%%bash\n")]
    assert len(bash) > 4
    Path("cells.sh").write_text("\n".join(bash), encoding="utf-8")
    values = {"MODEL_ID": "llava-next-video-7b", "MODEL": "model", "WORK": "work", "NUM_FRAMES": "8", "TINY": tiny}
    check_calls(Path("cells.sh"), workplace, monkeypatch, **values)


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.stem)
def test_a_page_has_the_same_commands_in_chinese(page):
    found, expected = (
        re.findall(r"(?ms)^ *```\w*\n.*?^ *```$", path.read_text(encoding="utf-8"))
        for path in (page, page.with_stem(page.stem.removesuffix("_zh")))
    )
    assert found == [code for code in expected if "bibtex" not in code]


# ---- flags, links, versions ----


def flags_of(main, *words: list[str]) -> set[str]:
    """The flags in a script's own help."""
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        main(*words)
    return set(re.findall(r"--([\w-]+)", output.getvalue()))


def test_the_written_help_tells_what_the_parsers_take(monkeypatch):
    """Each flag of a hand-written help is one of the parser's, and stands there once, with the default it has."""
    for page in sorted((REPO / "docs/help").glob("*.txt")):
        script, text = importlib.import_module(page.stem), page.read_text(encoding="utf-8")
        all_of_them = parser_of(script, monkeypatch)
        listed = re.findall(r"^ +--(\w+)(?: True \| --(\w+))?.*?(?:\[([^\]]*)\])?$", text, re.MULTILINE)
        names = [name for one, other, _ in listed for name in (one, other) if name]
        assert len(names) == len(set(names)) and set(names) <= all_of_them.keys(), page.stem
        for name, _, default in listed:
            if default and (known := all_of_them[name].default) is not None and not default.startswith("--"):
                known = getattr(known, "value", known)
                same = float(default) == known if isinstance(known, (int, float)) else default.startswith(str(known))
                assert same or " " in default, (page.stem, name, default, known)
        own = {name for name, flag in all_of_them.items() if name in source_flags(page.stem)}
        assert own <= {*names}, (page.stem, own - {*names})
        assert len(text.splitlines()) + len(script.__doc__.splitlines()) < 120, page.stem


def parser_of(script, monkeypatch) -> dict[str, argparse.Action]:
    """Flag -> what the parser of a script knows of it."""
    found = {}

    def note(parser, *args, **kwargs):
        found.update({action.dest: action for action in parser._actions})
        raise SystemExit

    with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(argparse.ArgumentParser, "print_help", note)
        patch.setattr(sys, "argv", [f"{script.__name__}.py", "--help"])
        script.main()
    return found


def source_flags(script: str) -> set[str]:
    """The flags that a script itself adds to a parser."""
    return set(re.findall(r'add_argument\(\s*"--(\w+)"', (REPO / f"{script}.py").read_text(encoding="utf-8")))


def test_every_flag_of_the_pages_exists(monkeypatch):
    known = FOREIGN_FLAGS | {"warmup_ratio", "help_all"} | flags_of(preview.main, ["--help"])
    known |= flags_of(predict.parse, ["--help"])
    known |= flags_of(importlib.import_module("estimate").parse, ["--help"])
    known |= flags_of(importlib.import_module("merge_lora_weights").parse, ["--help"])
    known |= flags_of(importlib.import_module("webui").parse, ["--help"])
    known |= flags_of(importlib.import_module("check_serving").parse, ["--help"])
    known |= flags_of(importlib.import_module("compare_runs").parse, ["--help"])
    monkeypatch.setattr(sys, "argv", ["tiny_models.py", "--help"])
    known |= flags_of(tiny_models.main)
    for page in PAGES:
        text = re.sub(r"(?ms)^```text\n.*?^```$|<!--|-->", "", page.read_text(encoding="utf-8"))
        unknown = set(re.findall(r"(?<![\w-])--([A-Za-z][\w-]*)", text)) - known
        assert not unknown, f"{page.name}: {unknown}"


@pytest.mark.parametrize("page", [*PAGES, *CHINESE], ids=lambda page: page.stem)
def test_every_link_resolves(page):
    generate = runpy.run_path(str(REPO / "docs/generate.py"))
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", file.read_text(encoding="utf-8"))
            assert anchor in [generate["slug"](heading) for heading in headings], target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_named_in_the_pages_exists(page):
    named = re.findall(
        r"`((?:docs|ds_configs|example_\w+|loaders|collators|tiny_checkpoints)/[\w./]+\w|\w+\.py)`", page.read_text()
    )
    missing = {name for name in named if not (REPO / name).exists()}
    assert missing <= (
        {"loaders/my_llava.py", "collators/my_llava.py", "tiny_checkpoints/my_llava.py", "my_llava.py"}
    ), missing


def test_the_readme_names_the_commands_that_ci_runs():
    (test_command,) = [
        line for _, code in code_blocks(REPO / "README.md", "bash") for line in code.splitlines() if "pytest" in line
    ]
    lines = iter((REPO / ".ci/run").read_text().splitlines())
    for part in test_command.split(" && "):  # in this order; further words select the slow tests too
        assert any(line.startswith(part) for line in lines), part
    for words in commands(REPO / "README.md"):
        assert all((REPO / word).is_file() for word in words if word.endswith((".txt", ".sh")))


def test_the_readme_names_the_python_that_the_pinned_transformers_needs():
    lowest = re.search(r"3\.\d+", metadata("transformers")["Requires-Python"])[0]
    assert f"Python {lowest} or newer" in (REPO / "README.md").read_text()


# ---- what the pages claim ----


@pytest.mark.skipif(
    not metadata("transformers")["Version"].startswith("5.23."), reason="other releases explain their flags otherwise"
)
@pytest.mark.parametrize("pages", ["flags", pytest.param("families", marks=pytest.mark.slow)])
def test_the_generated_parts_are_fresh(tiny, pages):
    generate = runpy.run_path(str(REPO / "docs/generate.py"))
    for path, text in generate[f"pages_of_{pages}"](tiny).items():
        assert path.read_text(encoding="utf-8") == text, f"run `python docs/generate.py`: {path.name} is stale"


def test_the_table_of_what_trains():
    text = (REPO / "docs/training.md").read_text()
    rows = re.findall(r"(?m)^\| (none|`--.*`) \| (full|lora|frozen) \| (\w+) \| (\w+) \|$", text)
    assert len(rows) > 5
    for flags, *modes in rows:
        words = [] if flags == "none" else flags.strip("`").split()
        given = ["--model_id", "llava-1.5-7b", "--data_path", "train.json", "--use_cpu", "True"]
        assert list(training_modes(parse_arguments(given + words)).values()) == modes, flags


def test_the_errors_of_the_data_page(write_rows, media_folder):
    (media_folder / "broken.png").write_bytes(b"no image")
    question = turns("<image>\nWhat is it?", "A square.")
    rows = [
        {"image": "red.png", "conversations": turns("What is it?", "A square.")},
        {"image": "missing.png", "conversations": question},
        {"image": "broken.png", "conversations": question},
        {"image": "red.png", "conversations": [{"from": "bot", "value": "<image>\nWhat is it?"}, *question[1:]]},
        {"conversations": question[1:]},
        {"image": "../red.png", "conversations": question},
        {"image": "https://example.org/red.png", "conversations": question},
    ]
    errors = "\n".join(MultimodalDataset(write_rows(rows), check=False).errors.values())
    _, page = (REPO / "docs/choose_rows.md").read_text().split("## Errors and their fixes")
    listed = re.findall(r"(?m)^\| `(.*?)` \| ", page)
    (block,) = [code for _, code in code_blocks(REPO / "docs/choose_rows.md", "text") if code.startswith("Error")]
    shown = [line.split(": ", 1)[1] for line in block.splitlines()[1:]]
    for message in [*listed, *shown]:
        if "of the first exchange" not in message:  # collators; see the tests of cutting
            assert re.search(re.escape(message).replace(r"\.\.\.", ".*"), errors), message


def test_the_rows_of_the_pages_are_read(media_folder, tmp_path):
    for folder in ("photos", "clips"):
        (tmp_path / folder).mkdir()
    for name in ("photos/1.jpg", "photos/2.jpg"):
        shutil.copy(media_folder / "tall.jpg", tmp_path / name)
    shutil.copy(media_folder / "clip.mp4", tmp_path / "clips/door.mp4")
    os.symlink(REPO / "example_data/images", tmp_path / "images")
    blocks = [code for page in PAGES for _, code in code_blocks(page, "json") if code.startswith("[")]
    assert len(blocks) == 9
    for code in blocks:
        (tmp_path / "rows.json").write_text(code, encoding="utf-8")
        dataset = MultimodalDataset(str(tmp_path / "rows.json"))
        assert all(dataset[i]["messages"] for i in range(len(dataset)))


@pytest.mark.slow
def test_the_walk_of_add_new_model(tmp_path):
    page = REPO / "docs/add_new_model.md"
    copy_code(tmp_path)
    for paragraph, code in code_blocks(page, "python"):
        sentence = paragraph.split("\n")[-1]
        if match := re.fullmatch(r"Create `(.+)`:", sentence):
            (tmp_path / match[1]).write_text(code, encoding="utf-8")
            continue
        match = re.fullmatch(r"Add to `(\w+)` in `(.+)`:", sentence)
        assert match, f"{page.name}: a test cannot follow {sentence!r}"
        name, file = match.groups()
        text = (tmp_path / file).read_text(encoding="utf-8")
        at = text.index("\n}\n", re.search(rf"(?m)^{name} = {{$", text).start()) + 1
        (tmp_path / file).write_text(text[:at] + code + text[at:], encoding="utf-8")

    printed = {}
    for words in commands(page):
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        printed[words[1]] = done.stdout
    assert "my-lab/my-llava-7b" in printed["supported_models.py"]
    assert "chat template differs" not in printed["train.py"]
    assert "vision_projector  full" in printed["train.py"] and "\nother" not in printed["train.py"]
    ((_, expected),) = code_blocks(page, "json")
    row = json.loads(printed["preview.py"])
    assert len(row.pop("token_ids")) == len(row.pop("labels")) == row["num_tokens"]
    assert row == json.loads(expected)
    assert "my-llava" not in families()


def test_each_diff_of_change_it_still_applies():
    """What they do is tested by tests/training/test_change_it.py."""
    diffs = [code for _, code in code_blocks(REPO / "docs/change_it.md", "diff")]
    assert len(diffs) == 5
    for diff in diffs:
        command = ["git", "apply", "--check", "-"]
        done = subprocess.run(command, input=diff, cwd=REPO, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stderr}\n{diff}"
