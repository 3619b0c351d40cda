"""What a script imports and prints before its work: nothing that the run does not need, no line that tells nothing."""

import ast
import gc
import json
import os
import re
import subprocess
import sys

import pytest
from conftest import MODEL_ID, REPO, rows_for

import entry

# Module -> the only thing that needs it. What transformers 5.23, peft 0.21 and accelerate 1.15 import in every run is
# not here: peft, bitsandbytes and deepspeed where they are installed, torch._dynamo with sympy, torch.distributed.
NEEDED_FOR = {
    "pyarrow": "Parquet",
    "av": "videos",
    "reading.fetch": "--allow_urls",
    "rich": "preview.py in a terminal",
    "matplotlib": "preview.py --check --html",
    "flash_attn": "--use_flash_attn",
    "liger_kernel": "--use_liger_kernel",
    "rapidfuzz": "--eval_generate",
    "gradio": "webui.py",
    "tensorboard": "--report_to",
    "wandb": "--report_to",
    "preview": "a tool",
    "predict": "a tool",
    "merge_lora_weights": "a tool",
    "tiny_models": "a tool",
    "reports.data_report": "a tool",
}
HEAVY = ("torch", "transformers", "numpy", "PIL", "yaml", "peft")
# The table of what trains, and the progress, are the run's own lines.
OWN_LINES = re.compile(
    r"|.*: \d+ samples|component .*|vision_.*|language_model .*|all .*|adapters: .*|trained \d+ steps in .*|Saved to .*"
    r"|\d+ steps in \w+ on cpu, with .*|finished: .*"
)
PROGRESS = re.compile(r"((Loading weights|Writing model shards): | *\d+%\|).*| *")


def run_script(words: list) -> tuple[str, str, set[str]]:
    """stdout and stderr of a script that ran by itself, and the modules that it had imported when it ended."""
    code = (
        "import atexit, json, os, runpy, sys\n"
        "sys.path.insert(0, os.getcwd())\n"
        "sys.argv = sys.argv[1:]\n"
        "atexit.register(lambda: print('MODULES', json.dumps(sorted(sys.modules)), file=sys.__stderr__))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], cwd=REPO, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stderr, _, modules = done.stderr.rpartition("MODULES ")
    return done.stdout, stderr, set(json.loads(modules))


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [["--use_lora", "True"], pytest.param([], marks=pytest.mark.cross)], ids=["lora", "full"]
)
def test_a_run_imports_and_prints_only_what_it_needs(tiny, write_rows, tmp_path, flags):
    words = ["train.py", "--model_id", MODEL_ID["llava-1.5"], "--model_local_path", tiny("llava-1.5"), *flags]
    words += ["--data_path", write_rows(rows_for("llava-1.5")), "--output_dir", tmp_path / "out", "--max_steps", 1]
    words += ["--logging_strategy", "no"]  # without a loss there is no plot
    stdout, stderr, modules = run_script([*words, "--use_cpu", "True"])
    assert {"torch", "transformers", "training.trainer"} <= modules  # the list is that of the run
    assert {name: NEEDED_FOR[name] for name in modules & NEEDED_FOR.keys()} == {}
    assert [line for line in stdout.split("\n") if not OWN_LINES.fullmatch(line)] == []
    assert [line for line in re.split("[\r\n]", stderr) if not PROGRESS.fullmatch(line)] == []


SCRIPTS = ("train", "preview", "predict", "estimate", "merge_lora_weights", "check_serving", "tiny_models", "webui")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_heavy_import(script):
    """That it tells what the parser takes is a test of the docs (tests/test_docs.py)."""
    stdout, stderr, modules = run_script([f"{script}.py", "--help"])
    assert ast.get_docstring(ast.parse((REPO / f"{script}.py").read_text())) in stdout
    assert stderr == ""
    assert modules.isdisjoint(HEAVY)


def full_disk() -> None:
    """A merge whose disk fills up, as safetensors says it."""
    try:
        with open("/dev/full", "w") as file:
            file.write("weights")
    except OSError as error:
        raise RuntimeError(f"Error while serializing: I/O error: {error.strerror} (os error 28)") from error


def test_a_full_disk_is_named_without_a_traceback(capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit, match="Error: the disk is full .*Make room"):
        entry.cli(full_disk)
    with pytest.raises(RuntimeError, match="another"):
        entry.cli(lambda: (_ for _ in ()).throw(RuntimeError("another")))


@pytest.mark.parametrize(
    "gpu, given, expected",
    [(None, None, "PASSIVE"), (None, "ACTIVE", "ACTIVE"), ("/dev/nvidia0", None, None), ("/dev/kfd", None, None)],
)
def test_threads_wait_idly_where_there_is_no_gpu(monkeypatch, gpu, given, expected):
    monkeypatch.setattr("glob.glob", lambda pattern: [gpu] if (gpu or "").startswith(pattern.rstrip("*")) else [])
    monkeypatch.setattr("os.path.exists", lambda path: path == gpu)
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if not given:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    try:
        entry.begin("train.py")
    finally:
        gc.enable()
    assert os.environ.get("OMP_WAIT_POLICY") == expected
