"""Checkpoints with wrong bytes are not resumed, and none runs code as it is loaded."""

import json
import os
import pickle
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from training import resume
from training.checkpoint_files import BLOCK, BLOCKS

RUN = {"flags": {"seed": 42}, "processes": 1, "samples": 9, "texts": "a"}


def write(folder: Path, step: int = 1, numbers: int = 300, **files) -> Path:
    """A checkpoint as a run leaves it, with so many numbers in its larger files."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"weight": torch.arange(300.0)}, checkpoint / "small.safetensors")
    save_file({"weight": torch.ones(numbers)}, checkpoint / "model.safetensors")
    for name, value in ({"optimizer.pt": {"state": torch.ones(numbers)}} | files).items():
        torch.save(value, checkpoint / name)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    resume.write_record(str(checkpoint), {"run": RUN, "losses": [0.5], "total": float("nan"), "logged": 0})
    return checkpoint


FLAGS = {"process_index": 0, "world_size": 1, "save_on_each_node": False, "trust_checkpoint": False}


def check(checkpoint: Path, **options) -> None:
    resume.check_files(str(checkpoint), SimpleNamespace(**FLAGS | options))


def resume_newest(folder: Path) -> str | None:
    options = {"output_dir": str(folder), "resume_from_checkpoint": True, "save_only_model": False}
    return resume.checkpoint_to_resume(SimpleNamespace(**FLAGS, **options, should_save=True))


def overwrite(path: Path, position: int, data: bytes | None = None) -> bytes:
    """Write other bytes, by default one with another bit; returns those that were there."""
    with open(path, "r+b") as file:
        file.seek(position)
        before = file.read(len(data) if data else 1)
        file.seek(position)
        file.write(data or bytes([before[0] ^ 1]))
    return before


@pytest.fixture
def whole(tmp_path) -> Path:
    checkpoint = write(tmp_path / "whole")
    check(checkpoint)
    return checkpoint


def test_wrong_bytes_are_found(tmp_path):
    whole, dice = write(tmp_path, numbers=2 * BLOCK * BLOCKS // 4), random.Random(0)
    check(whole)
    size = (whole / "model.safetensors").stat().st_size
    for name, positions in {
        "small.safetensors": [0, 9, *dice.sample(range(100, 1200), 2)],
        "trainer_state.json": range(2),
        "checkpoint.json": dice.sample(range(300), 5),
        "optimizer.pt": [0, *dice.sample(range(2000, 2 * BLOCK * BLOCKS), 3)],  # also in what no block holds
        "model.safetensors": [0, 8, size - 1],
    }.items():
        for position in positions:
            before = overwrite(whole / name, position)
            with pytest.raises(ValueError, match=f"{name} is damaged: |no usable checkpoint.json"):
                check(whole)
            overwrite(whole / name, position, before)
    check(whole)
    number = size - 2 * BLOCK * BLOCKS + 4 * (BLOCK * 3 // 8)  # after the first block, before the second
    assert BLOCK < number < (size - BLOCK) // (BLOCKS - 1) - 4
    overwrite(whole / "model.safetensors", number, b"\x00\x00\x80\x7f")  # infinity
    with pytest.raises(ValueError, match="model.safetensors is damaged: weight is not finite"):
        check(whole)


@pytest.mark.parametrize("held", ["", "[]", "{}", "7", '"text"', "null", "[" * 100_000, '{"files": [], "run": null}'])
def test_an_odd_record_is_no_checkpoint(whole, tmp_path, held):
    copy = shutil.copytree(whole, tmp_path / "checkpoint-1")
    (copy / "checkpoint.json").write_text(held)
    with pytest.raises(ValueError, match="is not a complete checkpoint: no usable checkpoint.json"):
        check(copy)


def test_the_newest_that_is_as_it_was_saved_is_resumed(whole, tmp_path, capsys):
    for step in (1, 9, 10):
        shutil.copytree(whole, tmp_path / f"checkpoint-{step}")
    overwrite(tmp_path / "checkpoint-10" / "optimizer.pt", 800)
    assert resume_newest(tmp_path) == str(tmp_path / "checkpoint-9")
    passed_over, resumed = capsys.readouterr().out.splitlines()
    assert passed_over.startswith(f"WARNING: skipped a checkpoint: {tmp_path}/checkpoint-10/optimizer.pt is damaged: ")
    assert resumed == f"Resuming from {tmp_path}/checkpoint-9."
    # a process finds what is in its share of the files; its message reaches all
    for share in (0, 1):
        others = [check_share(tmp_path / "checkpoint-10", rank) for rank in range(2) if rank != share]
        assert sum(map(bool, [check_share(tmp_path / "checkpoint-10", share), *others])) == 1


def check_share(checkpoint: Path, rank: int) -> str:
    try:
        check(checkpoint, process_index=rank, world_size=2)
    except ValueError as error:
        return str(error)
    return ""


class Planted:
    def __init__(self, function, *words):
        self.function, self.words = function, words

    def __reduce__(self):
        return self.function, self.words


def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path):
    from torch.utils.collect_env import run

    ran = tmp_path / "ran"
    name = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    planted = write(tmp_path, **{name: {"step": Planted(run, f"touch {ran}")}})
    with pytest.raises(ValueError, match=f"{name} would run torch.utils.collect_env.run .*--trust_checkpoint True"):
        check(planted)
    with pytest.raises(ValueError, match="would run torch.utils.collect_env.run"):  # no older one in its place
        resume_newest(tmp_path)
    check(planted, trust_checkpoint=True)
    for protocol in (2, 5):  # FSDP2's plain pickles; this one was put there after the save
        metadata = write(tmp_path / str(protocol)) / ".metadata"
        held = [torch.Size([2]), Planted(os.system, f"touch {ran}"), Planted(getattr, "text", "upper")]
        metadata.write_bytes(pickle.dumps(held, protocol))
        with pytest.raises(ValueError, match=r".metadata would run (__builtin__|builtins).getattr, posix.system when"):
            check(metadata.parent)
    assert not ran.exists()


def test_rotation_goes_by_step_whatever_the_clock_says(whole, tmp_path):
    for step, time in ((2, 300), (10, 200), (9, 400), (11, 100)):
        shutil.copytree(whole, tmp_path / f"checkpoint-{step}")
        os.utime(tmp_path / f"checkpoint-{step}", (time, time))
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path), save_total_limit=2))
    resume.ResumableTrainer.rotate_checkpoints(trainer, keep={"checkpoint-11"})
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-11"]
