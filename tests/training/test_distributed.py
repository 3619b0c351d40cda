"""What test_strategies.py does not meet on several processes: no hang, and the losses of one process."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from conftest import CONSENT, IMAGE_ROWS, MODEL_ID, REPO, TAKES_VIDEO, VIDEO_ROWS, VISION_FLAGS, crossed, logs_of, turns
from launch import here, launch
from safetensors.torch import load_file

# In file order with two rows a rank: texts meet images, images meet videos, texts meet image and video together.
TEXTS = [{"conversations": turns(f"Question {i}?", f"Answer number {i}")} for i in range(4)]
ROWS = [*TEXTS[:2], IMAGE_ROWS[0], IMAGE_ROWS[1], IMAGE_ROWS[2], TEXTS[2], VIDEO_ROWS[0], TEXTS[3]]
ROWS += [*TEXTS[:2], VIDEO_ROWS[1], VIDEO_ROWS[0], VIDEO_ROWS[0], VIDEO_ROWS[0], IMAGE_ROWS[0], IMAGE_ROWS[1]]
# Texts alone on one rank, images alone on the other.
APART = [IMAGE_ROWS[0], IMAGE_ROWS[1], *TEXTS[:2]] * 4

FSDP = ["--fsdp", "True", "--fsdp_config", "fsdp_configs/fsdp2.json"]
ENGINES = {
    "ddp": [],
    **{
        name: ["--deepspeed", f"ds_configs/{name}.json"]
        for name in ("zero2", "zero3", "zero2_offload", "zero3_offload")
    },
    "fsdp2": [*FSDP, "--accelerator_config", '{"use_configured_state": true}'],
}
SCRIPT = dict.fromkeys(ENGINES, "train") | {"fsdp2": "fsdp_on_cpu"}
LORA = ["--use_lora", "True", "--lora_dropout", "0"]
CHOSEN = [("qwen2-vl", "zero2_offload"), ("qwen2-vl", "zero3_offload"), ("auto", "zero3")]
CHOSEN += [("llava-onevision", "ddp"), ("llava-onevision", "fsdp2")]
MEETINGS = crossed(itertools.product(["qwen2-vl", "llava-onevision", "auto"], ENGINES), CHOSEN)


def words(tiny, family, data_path, output_dir, processes: int, *flags) -> list[str]:
    given = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", data_path]
    given += ["--output_dir", output_dir, "--use_cpu", "True", "--num_frames", "4", *CONSENT[family]]
    given += ["--train_sampling_strategy", "sequential", "--logging_steps", "1", "--learning_rate", "1e-3"]
    given += ["--per_device_train_batch_size", 4 // processes, "--max_grad_norm", "0", "--model_max_length", "2048"]
    for name, value in {"max_steps": "4", "save_strategy": "no"}.items():
        given += [] if f"--{name}" in flags else [f"--{name}", value]
    return [*given, *flags]


def losses(tiny, family, data_path, output_dir, engine: str | None = None, *flags):
    """The loss of each step of a run, alone in this process or on two, and the evaluation loss, if any."""
    processes = 1 if engine is None else 2
    given = words(tiny, family, data_path, output_dir, processes, *ENGINES.get(engine, []), *flags)
    if engine is None:
        here(given)
    else:
        launch(given, processes, SCRIPT[engine])
    return logged(output_dir)


def logged(output_dir) -> list[float]:
    log = logs_of(output_dir)
    return [entry.get("loss", entry.get("eval_loss")) for entry in log if "loss" in entry or "eval_loss" in entry]


@pytest.mark.slow
def test_nodes_that_shard_a_copy_each_equal_one_process(tiny, write_rows, tmp_path):
    """Two nodes of two processes."""
    path = write_rows(APART)
    expected = losses(tiny, "qwen2-vl", path, tmp_path / "one", None, *VISION_FLAGS)
    given = words(tiny, "qwen2-vl", path, tmp_path / "out", 4, *ENGINES["fsdp2"], *VISION_FLAGS)
    given[given.index("fsdp_configs/fsdp2.json")] = "fsdp_configs/hsdp.json"
    launch(given, 4, "fsdp_on_cpu", {"LOCAL_WORLD_SIZE": 2})  # which looks at the mesh
    assert logged(tmp_path / "out") == pytest.approx(expected, abs=1e-4)
    assert shapes(tmp_path / "out" / "model.safetensors") == shapes(f"{tiny('qwen2-vl')}/model.safetensors")


def shapes(path) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in load_file(path).items()}


@pytest.mark.slow
@pytest.mark.parametrize("family, engine", MEETINGS)
def test_two_processes_equal_one(tiny, family, engine, write_rows, tmp_path):
    path = write_rows(ROWS if family in TAKES_VIDEO else APART)
    expected = losses(tiny, family, path, tmp_path / "one", None, *VISION_FLAGS)
    assert len(expected) == 4
    found = losses(tiny, family, path, tmp_path / "out", engine, *VISION_FLAGS)
    assert found == pytest.approx(expected, abs=1e-4)
    # whole, with the keys of the base, also where the engine holds shards
    assert shapes(tmp_path / "out" / "model.safetensors") == shapes(f"{tiny(family)}/model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", ["ddp", *[pytest.param(name, marks=pytest.mark.cross) for name in ("zero2", "fsdp2")]]
)
@pytest.mark.parametrize("lora", [[], [*LORA, "--use_vision_lora", "True"]], ids=["full", "lora"])
def test_a_step_of_texts_decays_the_vision_part_alike(tiny, engine, lora, write_rows, tmp_path):
    """AdamW passes over a parameter without gradient, not over one whose gradient is zero."""
    path = write_rows([*APART[:4], *TEXTS, *APART[:4], *TEXTS, *APART[:4]])
    flags = [*VISION_FLAGS, *lora, "--max_steps", "5", "--weight_decay", "0.5", "--adam_epsilon", "1e-4"]
    alone = losses(tiny, "llava-1.5", path, tmp_path / "one", None, *flags, "--learning_rate", "1e-2")
    found = losses(tiny, "llava-1.5", path, tmp_path / "two", engine, *flags, "--learning_rate", "1e-2")
    assert found == pytest.approx(alone, abs=1e-4)
    (one,), (two,) = (tuple((tmp_path / name).glob("*model.safetensors")) for name in ("one", "two"))
    for (name, weight), other in zip(sorted(load_file(one).items()), dict(sorted(load_file(two).items())).values()):
        torch.testing.assert_close(weight, other, atol=1e-4, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("engine, number", crossed(itertools.product(["ddp", "zero3"], [15, 13]), [("zero3", 13)]))
def test_an_uneven_last_step_is_filled_up_with_the_first_rows(tiny, engine, number, write_rows, tmp_path):
    filled = APART[:number] + APART[: 16 - number]
    alone = losses(tiny, "llava-1.5", write_rows(filled), tmp_path / "one", None, *LORA)
    found = losses(tiny, "llava-1.5", write_rows(APART[:number]), tmp_path / "two", engine, *LORA)
    assert found == pytest.approx(alone, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [[], LORA], ids=["full", "lora"])
def test_two_processes_equal_one_where_texts_skip_layers(tiny, lora, write_rows, tmp_path):
    """Layers of the language model that see images alone, without any image."""
    path = write_rows(TEXTS * 4)
    alone = losses(tiny, "llama-3.2-vision", path, tmp_path / "one", None, *lora)
    assert losses(tiny, "llama-3.2-vision", path, tmp_path / "two", "ddp", *lora) == pytest.approx(alone, abs=1e-4)


@pytest.mark.slow
def test_a_vision_encoder_with_unused_parts_under_activation_checkpointing(tiny, write_rows, tmp_path):
    """DDP then looks for no unused parameters; --model_id auto does not know which these are."""
    flags = [*VISION_FLAGS, "--activation_checkpointing", "True"]
    path = write_rows(APART)
    alone = losses(tiny, "auto", path, tmp_path / "one", None, *flags)
    assert losses(tiny, "auto", path, tmp_path / "two", "ddp", *flags) == pytest.approx(alone, abs=1e-4)


# What trains in bfloat16, with checkpointing and accumulation.
PARTS = {"full": VISION_FLAGS, "lora and projector": [*LORA, *VISION_FLAGS[2:]]}
ON = itertools.product(PARTS, ["zero2", "zero3", "zero3_offload", "fsdp2"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts, engine", crossed(ON, [("lora and projector", "zero2"), ("full", "zero3"), ("lora and projector", "fsdp2")])
)
def test_in_bfloat16_with_checkpointing_and_accumulation(tiny, parts, engine, write_rows, tmp_path):
    path, flags = write_rows(ROWS), ["--bf16", "True", "--activation_checkpointing", "True"]
    flags += [*PARTS[parts], "--gradient_accumulation_steps", "2"]
    expected = losses(tiny, "qwen2-vl", path, tmp_path / "one", None, *flags)
    found = losses(tiny, "qwen2-vl", path, tmp_path / "out", engine, *flags)
    assert found == pytest.approx(expected, abs=0.05) and found[-1] < found[0] - 0.3


# ---- FSDP2: what it saves ----


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["lora and projector", pytest.param("full", marks=pytest.mark.cross)])
def test_fsdp_ends_with_the_best_checkpoint(tiny, parts, write_rows, tmp_path):
    """The largest loss is called the best, so that it is not the last."""
    path = write_rows(ROWS)
    flags = [*PARTS[parts], "--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "steps"]
    flags += ["--eval_steps", "2", "--load_best_model_at_end", "True", "--greater_is_better", "True"]
    found = losses(tiny, "qwen2-vl", path, tmp_path, "fsdp2", *flags, "--eval_data_path", path)
    _, _, best, _, _, last, at_end = found
    assert at_end == pytest.approx(best, abs=1e-6) and abs(last - best) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(VISION_FLAGS, id="full"),
        pytest.param([*LORA, "--q_lora", "True"], id="q_lora"),
        pytest.param(PARTS["lora and projector"], id="lora and projector", marks=pytest.mark.cross),
    ],
)
def test_fsdp_resumes_exactly(tiny, flags, write_rows, tmp_path):
    path, out = write_rows(ROWS), tmp_path / "out"
    flags = [*flags, "--save_strategy", "steps", "--save_steps", "2"]
    whole = losses(tiny, "qwen2-vl", path, out, "fsdp2", *flags)
    shutil.rmtree(out / "checkpoint-4")
    assert losses(tiny, "qwen2-vl", path, out, "fsdp2", *flags, "--resume_from_checkpoint", "True") == whole


@pytest.mark.slow
def test_fsdp_saves_a_model_in_the_precision_of_its_base(tiny, write_rows, tmp_path):
    """Trained parts cast, frozen parts as they were, whatever the precision of the run."""
    from transformers import AutoModelForImageTextToText

    base = tmp_path / "base"
    shutil.copytree(tiny("qwen2-vl"), base)
    AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float16).save_pretrained(base)
    path, flags = write_rows(APART), ["--bf16", "True"]
    for name, engine in (("one", None), ("two", "fsdp2")):
        losses(lambda _: str(base), "qwen2-vl", path, tmp_path / name, engine, *flags)
        before, after = load_file(base / "model.safetensors"), load_file(tmp_path / name / "model.safetensors")
        assert {weight.dtype for weight in after.values()} == {torch.float16}
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == "float16"
        same = {key for key in before if torch.equal(before[key], after[key])}
        assert same == {key for key in before if key.startswith("visual.")}


# ---- the communication that DeepSpeed compiles ----


@pytest.mark.slow
@pytest.mark.parametrize("built", [True, pytest.param(False, marks=pytest.mark.cross)], ids=["built", "cold"])
def test_a_stale_lock_hangs_no_run(tiny, built, write_rows, tmp_path):
    from torch.utils.cpp_extension import get_default_build_root

    (folder := tmp_path / "extensions" / "deepspeed_shm_comm").mkdir(parents=True)
    if built:
        losses(tiny, "qwen2-vl", write_rows(APART), tmp_path / "out", "zero2")  # so that it is
        (found,) = (path for path in os.scandir(get_default_build_root()) if path.name.startswith("py"))
        shutil.copytree(f"{found.path}/deepspeed_shm_comm", folder, dirs_exist_ok=True)
    (folder / "lock").touch()
    given = words(tiny, "qwen2-vl", write_rows(APART), tmp_path / "out", 2, *ENGINES["zero2"])
    launch(given, 2, environment={"TORCH_EXTENSIONS_DIR": tmp_path / "extensions"})
    assert (folder / "deepspeed_shm_comm.so").exists()


# ---- many machines ----

FAKE_SRUN = """#!/usr/bin/env bash
# Two tasks on one machine, which get the signals that srun gets.
while [[ $1 == --* ]]; do shift; done
for id in 0 1; do SLURM_NODEID=$id "$@" > "$LOGS-$id" 2>&1 & TASKS+=($!); done
trap 'kill -TERM "${TASKS[@]}"' TERM
for task in "${TASKS[@]}"; do while kill -0 "$task" 2>/dev/null; do wait "$task" && : || STATUS=$?; done; done
exit ${STATUS:-0}
"""
FAKE_SCONTROL = """#!/usr/bin/env bash
[ "$1" = requeue ] && echo "$2" >> "$REQUEUED" || printf '127.0.0.1\\n127.0.0.1\\n'
"""


@pytest.mark.slow
@pytest.mark.cross  # five starts of processes that import everything
def test_a_slurm_job_whose_time_is_up_is_queued_again_and_ends_as_one_process(tiny, write_rows, tmp_path):
    """On two machines, which example_scripts/multi_node.sh starts on."""
    for name, text in {"srun": FAKE_SRUN, "scontrol": FAKE_SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path, out = write_rows(ROWS), tmp_path / "out"
    steps = ["--save_strategy", "steps", "--save_steps", "1000", "--max_steps", "40"]
    alone = losses(tiny, "qwen2-vl", path, tmp_path / "one", None, *VISION_FLAGS, *steps)
    given = words(tiny, "qwen2-vl", path, out, 2, *ENGINES["zero2"], *VISION_FLAGS, *steps)
    place = given.index("--output_dir")
    script = ["bash", "example_scripts/multi_node.slurm", *map(str, given[:place] + given[place + 2 :])]
    environment = {"SLURM_NNODES": 2, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": os.getpid()}
    environment |= {"SLURM_JOB_NAME": "finelmm", "OUTPUT_DIR": out, "REQUEUED": tmp_path / "requeued"}
    environment |= {"PATH": f"{tmp_path}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    environment |= {"PROCESSES_PER_NODE": 1, "DS_ACCELERATOR": "cpu"}

    def start(number: int) -> list:
        """The job, and the logs of its machines."""
        env = os.environ | {name: str(value) for name, value in environment.items()} | {"LOGS": f"{tmp_path}/{number}"}
        logs = [tmp_path / f"{number}-{machine}" for machine in (0, 1)]
        return subprocess.Popen(script, cwd=REPO, env=env), *logs

    job, log, _ = start(1)
    while not log.exists() or ": loss " not in log.read_text():
        assert job.poll() is None, log.exists() and log.read_text()[-3000:]
        time.sleep(0.1)
    job.terminate()
    assert job.wait(600) != 0
    assert "starting from the beginning" in log.read_text() and "SIGTERM: stopped after step" in log.read_text()
    assert (tmp_path / "requeued").read_text().split() == [str(os.getpid())]
    (checkpoint,) = out.glob("checkpoint-*")

    job, log, other = start(2)
    assert job.wait(600) == 0, log.read_text()[-3000:]
    assert f"Resuming from {checkpoint}." in log.read_text()
    assert "Saved to" in log.read_text() and "Saved to" not in other.read_text()  # the first process alone speaks
    assert logged(out) == pytest.approx(alone, abs=1e-4)
    assert (tmp_path / "requeued").read_text().split() == [str(os.getpid())]
