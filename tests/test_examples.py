"""The example scripts as they come: what a newcomer runs first."""

import os
import subprocess
import sys

import pytest
from conftest import REPO


def last_table(script: str, tmp_path) -> dict[str, list[float]]:
    """Runs an example script; {question: [number, exact match, blind baseline]} of the table near its end."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OUTPUT_DIR": str(tmp_path / "out"), "HF_HUB_OFFLINE": "1"}
    command = ["bash", f"example_scripts/{script}"]
    result = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = result.stdout.rpartition("blind baseline\n")[2].partition("\n\n")[0].splitlines()
    return {row[:32].strip(): [float(number) for number in row[32:].split()] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("script, questions", [("example_image.sh", 300), ("example_video.sh", 150)])
def test_example_learns_what_a_blind_guess_does_not_know(script, questions, tmp_path):
    number, exact_match, blind_baseline = last_table(script, tmp_path)["all"]
    assert number >= questions
    assert exact_match >= 0.90
    assert blind_baseline < 0.35


def test_no_held_out_image_is_trained_on(tmp_path):
    """Of the drawn files, by their bytes."""
    command = [sys.executable, "example_data/draw.py", "--output_dir", str(tmp_path)]
    subprocess.run(command, cwd=REPO, check=True, capture_output=True)
    images = {part: [p.read_bytes() for p in (tmp_path / "images" / part).iterdir()] for part in ("train", "test")}
    assert len(images["train"]) > 1000 and len(images["test"]) > 100
    assert not set(images["train"]) & set(images["test"])
