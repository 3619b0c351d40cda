"""Two processes, text, image and video rows spread unevenly over them: no hang, and the losses of one process."""

import json
import os
import socket
import subprocess
import sys

import pytest
from conftest import IMAGE_ROWS, MODEL_ID, REPO, VIDEO_ROWS, VISION_FLAGS, turns
from safetensors.torch import load_file

# In file order with two rows a rank: texts meet images, images meet videos, texts meet image and video together.
TEXTS = [{"conversations": turns(f"Question {i}?", f"Answer number {i}")} for i in range(4)]
ROWS = [*TEXTS[:2], IMAGE_ROWS[0], IMAGE_ROWS[1], IMAGE_ROWS[2], TEXTS[2], VIDEO_ROWS[0], TEXTS[3]]
ROWS += [*TEXTS[:2], VIDEO_ROWS[1], VIDEO_ROWS[0], VIDEO_ROWS[0], VIDEO_ROWS[0], IMAGE_ROWS[0], IMAGE_ROWS[1]]


def losses(tiny, family, data_path, output_dir, processes: int, *flags):
    """The loss of each step of a run of train.py on this many processes, and the evaluation loss, if any."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    words = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", data_path]
    words += ["--output_dir", str(output_dir), "--use_cpu", "True", "--num_frames", "4", "--max_steps", "4"]
    words += ["--train_sampling_strategy", "sequential", "--logging_steps", "1", "--save_strategy", "no"]
    words += [*VISION_FLAGS, "--learning_rate", "1e-3"]
    words += ["--per_device_train_batch_size", str(4 // processes), "--max_grad_norm", "0", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(
        [*launcher, "train.py", *words], cwd=REPO, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry.get("loss", entry.get("eval_loss")) for entry in log if "loss" in entry or "eval_loss" in entry]


ENGINES = {
    "ddp": [],
    "zero2": ["--deepspeed", "ds_configs/zero2.json"],
    "zero3": ["--deepspeed", "ds_configs/zero3.json"],
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2-vl", "llava-onevision"])
def test_two_processes_equal_one(tiny, family, write_rows, tmp_path):
    path = write_rows(ROWS)
    alone = losses(tiny, family, path, tmp_path / "one", 1)
    assert len(alone) == 4
    shapes = {name: weight.shape for name, weight in load_file(f"{tiny(family)}/model.safetensors").items()}
    for engine, flags in ENGINES.items():
        assert losses(tiny, family, path, tmp_path / engine, 2, *flags) == pytest.approx(alone, abs=1e-4), engine
        saved = load_file(tmp_path / engine / "model.safetensors")  # whole, also where the engine holds shards
        assert {name: weight.shape for name, weight in saved.items()} == shapes


@pytest.mark.slow
def test_two_processes_equal_one_with_lora_and_text_alone_on_a_rank(tiny, write_rows, tmp_path):
    rows = [IMAGE_ROWS[0], IMAGE_ROWS[1], *TEXTS[:2]] * 4
    # Nine rows for evaluation: two processes have to fill up their last batches.
    lora = ["--use_lora", "True", "--lora_dropout", "0", "--eval_data_path", write_rows(rows[:9])]
    path, lora = write_rows(rows), [*lora, "--per_device_eval_batch_size", "2"]
    alone = losses(tiny, "llava-1.5", path, tmp_path / "one", 1, *lora)
    for engine, flags in ENGINES.items():
        found = losses(tiny, "llava-1.5", path, tmp_path / engine, 2, *lora, *flags)
        assert found == pytest.approx(alone, abs=1e-4), engine


@pytest.mark.slow
@pytest.mark.parametrize("lora", [[], ["--use_lora", "True", "--lora_dropout", "0"]], ids=["full", "lora"])
def test_two_processes_equal_one_where_texts_skip_layers(tiny, lora, write_rows, tmp_path):
    """Layers of the language model that see images alone, on a rank with texts alone, and without any image."""
    flags = ["--train_vision_encoder", "False", "--train_vision_projector", "False", *lora]
    for name, rows in {"mixed": [IMAGE_ROWS[0], IMAGE_ROWS[1], *TEXTS[:2]] * 4, "texts": TEXTS * 4}.items():
        path = write_rows(rows)
        alone = losses(tiny, "llama-3.2-vision", path, tmp_path / f"{name}-one", 1, *flags)
        found = losses(tiny, "llama-3.2-vision", path, tmp_path / f"{name}-two", 2, *flags)
        assert found == pytest.approx(alone, abs=1e-4), name
