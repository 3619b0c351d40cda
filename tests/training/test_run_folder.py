"""Nothing of another run is overwritten, deleted or mixed in, and no two runs write to one folder."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys

import psutil
import pytest
from conftest import REPO, run, turns
from launch import Launch, launch
from safetensors.torch import load_file

from training import run_folder
from web.runs import is_locked

ROWS = [{"image": "red.png", "conversations": turns(f"<image>\nQuestion {i}?", "Yes " * (i + 1))} for i in range(4)]
LORA = ["--use_lora", True, "--save_strategy", "steps", "--save_steps", 1]


def contents(folder) -> dict:
    """Path -> bytes of each file of a run's results."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_the_same_run_begins_again_in_place(tiny, write_rows, tmp_path, monkeypatch, capsys):
    path, out = write_rows(ROWS), tmp_path / "out"
    run(tiny, "llava-1.5", path, out, *LORA)
    weights = load_file(out / "adapter_model.safetensors")
    capsys.readouterr()

    def fail(*_):
        assert not list(out.glob("checkpoint-*"))  # of the earlier start
        assert (out / "adapter_model.safetensors").exists()  # until there are new ones
        raise OSError("the run dies here")

    with monkeypatch.context() as patched:
        patched.setattr("training.trainer.label_losses", fail)
        with pytest.raises(OSError, match="dies here"):
            run(tiny, "llava-1.5", path, out, *LORA)
    held = "adapter_model.safetensors, checkpoint-1, checkpoint-2"
    printed = capsys.readouterr().out
    assert f"{out} has results of an earlier start, to be replaced: {held}." in printed
    # Where it is saved is free.
    run(tiny, "llava-1.5", path, out, *LORA, "--save_steps", 2)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"]
    again = load_file(out / "adapter_model.safetensors")
    assert again.keys() == weights.keys() and all(again[name].equal(weights[name]) for name in weights)


def test_a_failed_start_is_reused(tiny, write_rows, tmp_path):
    path, parent = write_rows(ROWS), tmp_path / "new"
    out = parent / "out"
    with pytest.raises(ValueError, match="over|budget|max_length"):
        run(tiny, "llava-1.5", path, out, *LORA, "--model_max_length", 10)
    assert not parent.exists()
    parent.mkdir()
    (parent / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="none.json"):
        run(tiny, "llava-1.5", path, out, "--data_path", "none.json")
    assert contents(parent) == {"notes.txt": b"mine"} and not out.exists()
    run(tiny, "llava-1.5", path, out)
    assert not (out / "_lock").exists()


def test_another_run_is_refused_or_renamed_aside(tiny, write_rows, tmp_path, capsys):
    path, out = write_rows(ROWS), tmp_path / "out"
    run(tiny, "llava-1.5", path, out, *LORA)
    before = contents(out)
    for flags, what in [
        ([], "--use_lora is False, but was True"),  # new full weights beside an old adapter
        ([*LORA, "--learning_rate", 1e-4], "--learning_rate is 0.0001, but was 0.001"),
        ([*LORA, "--data_path", write_rows(ROWS[::-1])], "the rows of --data_path or their order have changed"),
    ]:
        with pytest.raises(ValueError, match="results of another run .adapter_model.safetensors.*" + what):
            run(tiny, "llava-1.5", path, out, *flags)
        assert contents(out) == before
    for odd in ("", "[]", '{"flags": []}'):  # then its checkpoints tell
        (out / "run.json").write_text(odd)
        earlier = run_folder.earlier_run(str(out))
        assert earlier == json.loads(before["run.json"])
    (out / "run.json").write_bytes(before["run.json"])
    with pytest.raises(ValueError, match="none.json"):  # a start that fails renames nothing
        run(tiny, "llava-1.5", path, out, "--overwrite_output_dir", True, "--data_path", "none.json")
    assert contents(out) == before
    for number in (1, 2):
        run(tiny, "llava-1.5", path, out, "--overwrite_output_dir", True)
        assert f"renamed {out} to {out}.old-{number}" in capsys.readouterr().out
        assert not (out / "adapter_model.safetensors").exists() and (out / "model.safetensors").exists()
    assert contents(tmp_path / "out.old-1") == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ValueError, match="no record says which run wrote them"):
        run(tiny, "llava-1.5", path, foreign)
    assert contents(foreign) == {"model.safetensors": b"weights"}


def test_the_folder_of_the_model_the_adapter_or_the_data_is_refused(tiny, write_rows, media_folder, tmp_path):
    path, model = write_rows(ROWS), tiny("llava-1.5")
    run(tiny, "llava-1.5", path, tmp_path / "adapter", "--use_lora", True)
    link = tmp_path / "link"
    link.symlink_to(model)
    adapter = ["--use_lora", True, "--lora_weight_path", tmp_path / "adapter"]
    for out, flag, *flags in [
        (model, "--model_local_path"),
        (link, "--model_local_path"),
        (tmp_path / "adapter", "--lora_weight_path", *adapter),
        (media_folder, "--data_path"),
        (media_folder, "--data_path", "--data_path", f"{path}[:2]"),
    ]:
        before = sorted(os.listdir(out))
        with pytest.raises(ValueError, match=f"contains files of {flag}"):
            run(tiny, "llava-1.5", path, out, *flags)
        assert sorted(os.listdir(out)) == before


@pytest.mark.slow
def test_a_second_run_is_refused_while_the_first_is_alive(tiny, write_rows, tmp_path):
    words = ["--model_id", "llava-1.5-7b", "--model_local_path", tiny("llava-1.5"), "--data_path", write_rows(ROWS)]
    words += [*LORA, "--use_cpu", True, "--output_dir", tmp_path / "out", "--save_steps", 1000]
    first = Launch([*words, "--max_steps", 100000, "--dataloader_num_workers", 1])
    while not (tmp_path / "out" / "log.jsonl").exists():
        assert first.running
    assert is_locked(str(tmp_path / "out")) and not is_locked(str(tmp_path))
    second = Launch([*words, "--max_steps", 1])
    assert second.wait() == [1] and "another run is writing to it" in second.output
    assert first.running and json.loads((tmp_path / "out" / "run.json").read_text())["flags"]["max_steps"] == 100000
    first.kill()
    assert not is_locked(str(tmp_path / "out"))
    launch([*words, "--max_steps", 1])  # at once, while the data loader's worker may still live


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def line(self) -> str:
        """What the line of the cursor shows."""
        shown = ""
        for text in self.getvalue().rpartition("\n")[2].split("\r"):
            shown = text + shown[len(text) :]
        return shown.strip()


# Noticed by what is logged, and by a save, for which libraries would make the folder again.
@pytest.mark.parametrize(
    "flags",
    [[], ["--logging_steps", 500, "--logging_first_step", False, "--save_strategy", "steps", "--save_steps", 1]],
)
def test_a_folder_that_is_removed_in_mid_run_is_named(tiny, write_rows, tmp_path, monkeypatch, flags):
    terminal, lines = Terminal(), []
    monkeypatch.setattr("sys.stderr", terminal)

    def remove(*_) -> int:  # once a step
        lines.append(terminal.line())
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return 0

    monkeypatch.setattr("training.trainer.FinetuneTrainer.floating_point_ops", remove)
    with pytest.raises(ValueError, match=f"--output_dir {tmp_path / 'out'} was removed during the run"):
        run(tiny, "llava-1.5", write_rows(ROWS), tmp_path / "out", "--disable_tqdm", False, *flags)
    assert "0/2" in lines[0] and terminal.line() == ""  # what is said of it begins on a line of its own
    assert not (tmp_path / "out").exists()


def test_a_base_of_4_bits_is_refused_without_lora(tiny, write_rows, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny("llava-1.5"), base)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{base} is quantized and cannot train in full: add --use_lora True"):
        run(lambda _: str(base), "llava-1.5", write_rows(ROWS), tmp_path / "out")


@pytest.mark.slow
def test_ctrl_c_during_the_start_ends_without_a_traceback():
    # Where a shell started the tests in the background, they ignore the signal, and so would what they start.
    command = ["env", "--default-signal=INT", sys.executable, "train.py", "run.yaml"]
    started = subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True)
    libraries = {"torch", "transformers", "numpy"}
    while not any(library in path.path for path in psutil.Process(started.pid).memory_maps() for library in libraries):
        assert started.poll() is None
    started.send_signal(signal.SIGINT)
    assert started.communicate(timeout=60)[1] == "" and started.returncode == 130
