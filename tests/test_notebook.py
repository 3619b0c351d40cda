"""The notebook: what it shows is a run of its own cells, and these still do what its text says where it is alone."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import REPO
from nbclient import NotebookClient

NOTEBOOK = REPO / "docs/finetune_video.ipynb"
PLACEHOLDER = "<its address>"


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(notebook) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def exact_matches(notebook) -> list[tuple[float, float]]:
    """(exact match, blind baseline) over all held-out questions: before the training, and after it."""
    return [tuple(map(float, pair)) for pair in re.findall(r"(?m)^all +\d+ +([\d.]+) +([\d.]+)$", printed(notebook))]


def check_learned(notebook) -> None:
    (before, blind), (after, _) = exact_matches(notebook)
    assert before < blind < 0.25
    assert after > 0.65  # all colours and guessed directions: 0.62
    merged, predicted = re.search(r"(?m)^\w.*\? (\w+) \(predict.py: (\w+), is: ", printed(notebook)).groups()
    assert merged == predicted


def test_it_is_shown_as_it_ran():
    notebook = read()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    check_learned(notebook)
    assert sum(any("image/png" in output.get("data", {}) for output in cell.outputs) for cell in code) == 3


def test_it_is_small_and_tells_nothing_of_a_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 300_000
    outputs = json.dumps([cell.get("outputs") for cell in read().cells])
    assert not re.findall(r"(?<![\w.)<])/(?:home|root|tmp|work|usr|opt|Users)\b", outputs)
    assert "Warning" not in outputs


def test_one_placeholder_stands_for_the_address():
    pages = [REPO / name for name in ("README.md", "README_zh.md")]
    assert all("git clone <its address> finelmm" in page.read_text(encoding="utf-8") for page in pages)
    assert read().cells[1].source.startswith(f'ADDRESS = "{PLACEHOLDER}"')


@pytest.mark.slow
@pytest.mark.cross  # of minutes; its commands are parsed by default, in test_docs.py
def test_it_runs_alone_and_clones_the_rest(tmp_path, monkeypatch):
    files = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, check=True, capture_output=True, text=True).stdout
    origin = tmp_path / "origin"
    for name in files.rstrip("\0").split("\0"):
        (origin / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, origin / name)
    (origin / "requirements.txt").write_text("torch\n")  # which is there
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], cwd=origin, check=True)
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    notebook = read()
    notebook.cells[1].source = notebook.cells[1].source.replace(PLACEHOLDER, str(origin))
    (tmp_path / "hosted").mkdir()
    resources = {"metadata": {"path": str(tmp_path / "hosted")}}
    client = NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources)
    client.execute()  # raises where a cell does
    check_learned(notebook)
