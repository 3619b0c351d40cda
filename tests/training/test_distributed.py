"""Several processes, text, image and video rows spread unevenly over them: no hang, and the losses of one process."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from conftest import CONSENT, IMAGE_ROWS, MODEL_ID, REPO, TAKES_VIDEO, VIDEO_ROWS, VISION_FLAGS, turns
from launch import free_port, launch
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
PROJECTOR = VISION_FLAGS[2:]
CELLS = [("qwen2-vl", engine) for engine in ENGINES]
CELLS += [
    (family, engine)
    for family in ("llava-onevision", "gemma-3", "llama-3.2-vision", "auto")
    for engine in ("ddp", "zero2", "zero3", "fsdp2")
]


def words(tiny, family, data_path, output_dir, processes: int, *flags) -> list[str]:
    given = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", data_path]
    given += ["--output_dir", output_dir, "--use_cpu", "True", "--num_frames", "4", *CONSENT[family]]
    given += ["--train_sampling_strategy", "sequential", "--logging_steps", "1", "--learning_rate", "1e-3"]
    given += ["--per_device_train_batch_size", 4 // processes, "--max_grad_norm", "0", "--model_max_length", "2048"]
    for name, value in {"max_steps": "4", "save_strategy": "no"}.items():
        given += [] if f"--{name}" in flags else [f"--{name}", value]
    return [*given, *flags]


def losses(tiny, family, data_path, output_dir, engine: str | None = None, *flags):
    """The loss of each step of a run, alone or on two processes, and the evaluation loss, if any."""
    processes = 1 if engine is None else 2
    given = words(tiny, family, data_path, output_dir, processes, *ENGINES.get(engine, []), *flags)
    launch(given, processes, SCRIPT.get(engine, "train"))
    return logged(output_dir)


def logged(output_dir) -> list[float]:
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry.get("loss", entry.get("eval_loss")) for entry in log if "loss" in entry or "eval_loss" in entry]


def shapes(path) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in load_file(path).items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """`alone(key, run)`: what one process gives, run once a module."""
    made = {}

    def get(key, run):
        if key not in made:
            made[key] = run(tmp_path_factory.mktemp("alone"))
        return made[key]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("family, engine", CELLS)
def test_two_processes_equal_one(tiny, family, engine, write_rows, tmp_path, alone):
    path = write_rows(ROWS if family in TAKES_VIDEO else APART)
    expected = alone(family, lambda out: losses(tiny, family, path, out, None, *VISION_FLAGS))
    assert len(expected) == 4
    found = losses(tiny, family, path, tmp_path / "out", engine, *VISION_FLAGS)
    assert found == pytest.approx(expected, abs=1e-4)
    # whole, with the keys of the base, also where the engine holds shards
    assert shapes(tmp_path / "out" / "model.safetensors") == shapes(f"{tiny(family)}/model.safetensors")


# What trains -> its flags, and the engines that cannot do it (tests/training/test_engines.py).
ADAPTERS = {
    "lora": (LORA, ()),
    "lora and projector": ([*LORA, *PROJECTOR], ()),
    "q_lora": ([*LORA, "--q_lora", "True"], ()),
    "8-bit": ([*LORA, "--load_in_8bit", "True"], ("zero3", "zero3_offload", "fsdp2")),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode, engine",
    [(mode, engine) for mode, (_, without) in ADAPTERS.items() for engine in ENGINES if engine not in without],
)
def test_adapters_with_texts_alone_on_a_rank(tiny, mode, engine, write_rows, tmp_path, alone):
    # Nine rows for evaluation: two processes have to fill up their last batches.
    flags = [*ADAPTERS[mode][0], "--eval_data_path", write_rows(APART[:9]), "--per_device_eval_batch_size", "2"]
    path = write_rows(APART)
    expected = alone(mode, lambda out: (losses(tiny, "llava-1.5", path, out, None, *flags), shapes_of_adapter(out)))
    found = losses(tiny, "llava-1.5", path, tmp_path / "out", engine, *flags)
    # 8-bit: which columns are outliers, and stay in 16 bits, depends on the rows of a batch.
    assert found == pytest.approx(expected[0], abs=1e-3 if mode == "8-bit" else 1e-4)
    assert shapes_of_adapter(tmp_path / "out") == expected[1]


def shapes_of_adapter(out) -> dict:
    return shapes(out / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero3"])
@pytest.mark.parametrize("number", [15, 13])
def test_an_uneven_last_step_is_filled_up_with_the_first_rows(tiny, engine, number, write_rows, tmp_path):
    filled = APART[:number] + APART[: 16 - number]
    alone = losses(tiny, "llava-1.5", write_rows(filled), tmp_path / "one", None, *LORA)
    found = losses(tiny, "llava-1.5", write_rows(APART[:number]), tmp_path / "two", engine, *LORA)
    assert found == pytest.approx(alone, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [[], LORA], ids=["full", "lora"])
@pytest.mark.parametrize("rows", [APART, TEXTS * 4], ids=["mixed", "texts"])
def test_two_processes_equal_one_where_texts_skip_layers(tiny, lora, rows, write_rows, tmp_path):
    """Layers of the language model that see images alone, on a rank with texts alone, and without any image."""
    path = write_rows(rows)
    alone = losses(tiny, "llama-3.2-vision", path, tmp_path / "one", None, *lora)
    assert losses(tiny, "llama-3.2-vision", path, tmp_path / "two", "ddp", *lora) == pytest.approx(alone, abs=1e-4)


@pytest.mark.slow
def test_a_vision_encoder_with_unused_parts_under_activation_checkpointing(tiny, write_rows, tmp_path):
    """DDP then looks for no unused parameters; --model_id auto does not know which these are."""
    flags = [*VISION_FLAGS, "--activation_checkpointing", "True"]
    path = write_rows(APART)
    alone = losses(tiny, "auto", path, tmp_path / "one", None, *flags)
    assert losses(tiny, "auto", path, tmp_path / "two", "ddp", *flags) == pytest.approx(alone, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3", "zero3_offload", "fsdp2"])
@pytest.mark.parametrize("flags", [VISION_FLAGS, [*LORA, *PROJECTOR]], ids=["full", "lora and projector"])
def test_in_bfloat16_with_checkpointing_and_accumulation(tiny, engine, flags, write_rows, tmp_path, alone):
    path = write_rows(ROWS)
    flags = [*flags, "--bf16", "True", "--activation_checkpointing", "True", "--gradient_accumulation_steps", "2"]
    expected = alone(str(flags), lambda out: losses(tiny, "qwen2-vl", path, out, None, *flags))
    found = losses(tiny, "qwen2-vl", path, tmp_path / "out", engine, *flags)
    assert found == pytest.approx(expected, abs=0.05) and found[-1] < found[0] - 0.3


# ---- FSDP2: what it saves ----


@pytest.mark.slow
@pytest.mark.parametrize("flags", [VISION_FLAGS, [*LORA, *PROJECTOR], [*LORA, "--q_lora", "True"]])
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
@pytest.mark.parametrize("built", [True, False], ids=["built", "cold"])
def test_a_stale_lock_hangs_no_run_and_a_build_is_announced(tiny, built, write_rows, tmp_path):
    from torch.utils.cpp_extension import get_default_build_root

    (folder := tmp_path / "extensions" / "deepspeed_shm_comm").mkdir(parents=True)
    if built:
        losses(tiny, "qwen2-vl", write_rows(APART), tmp_path / "out", "zero2")  # so that it is
        (found,) = (path for path in os.scandir(get_default_build_root()) if path.name.startswith("py"))
        shutil.copytree(f"{found.path}/deepspeed_shm_comm", folder, dirs_exist_ok=True)
    (folder / "lock").touch()
    given = words(tiny, "qwen2-vl", write_rows(APART), tmp_path / "out", 2, *ENGINES["zero2"])
    output = launch(given, 2, environment={"TORCH_EXTENSIONS_DIR": tmp_path / "extensions"})
    assert output.count("Building DeepSpeed's communication for CPUs") == (not built)
    assert (folder / "deepspeed_shm_comm.so").exists()


# ---- many machines ----


def environment(**values) -> dict:
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    values = {"OMP_NUM_THREADS": 1, "DS_ACCELERATOR": "cpu", "PROCESSES_PER_NODE": 1, "PATH": path} | values
    return os.environ | {name: str(value) for name, value in values.items()}


@pytest.mark.slow
def test_two_machines_equal_one_process(tiny, write_rows, tmp_path):
    path, port = write_rows(ROWS), free_port()
    alone = losses(tiny, "qwen2-vl", path, tmp_path / "one", None, *VISION_FLAGS)
    given = words(tiny, "qwen2-vl", path, tmp_path / "two", 2, *VISION_FLAGS, *ENGINES["zero2"])
    script = ["bash", "example_scripts/multi_node.sh", *map(str, given)]
    machine = {"NNODES": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(script, cwd=REPO, env=environment(**machine, NODE_RANK=rank), stdout=-1, stderr=-2, text=True)
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert logged(tmp_path / "two") == pytest.approx(alone, abs=1e-4)
    assert "Saved to" in outputs[0] and "Saved to" not in outputs[1]  # the first process alone speaks and writes


FAKE_SRUN = """#!/usr/bin/env bash
# Two tasks on one machine, which get the signals that srun gets.
while [[ $1 == --* ]]; do shift; done
for id in 0 1; do SLURM_NODEID=$id "$@" & TASKS+=($!); done
trap 'kill -TERM "${TASKS[@]}"' TERM
for task in "${TASKS[@]}"; do while kill -0 "$task" 2>/dev/null; do wait "$task" && : || STATUS=$?; done; done
exit ${STATUS:-0}
"""
FAKE_SCONTROL = """#!/usr/bin/env bash
[ "$1" = requeue ] && echo "$2" >> "$REQUEUED" || printf '127.0.0.1\\n127.0.0.1\\n'
"""


@pytest.fixture
def slurm(tiny, write_rows, tmp_path):
    """`slurm(*flags)`: how to start a job on two machines, as arguments of `subprocess.Popen`."""
    for name, text in {"srun": FAKE_SRUN, "scontrol": FAKE_SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def start(*flags) -> dict:
        out = tmp_path / "out"
        given = words(tiny, "qwen2-vl", write_rows(ROWS), out, 2, *VISION_FLAGS, "--save_strategy", "steps", *flags)
        place = given.index("--output_dir")
        script = ["bash", "example_scripts/multi_node.slurm", *map(str, given[:place] + given[place + 2 :])]
        job = {"SLURM_NNODES": 2, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": os.getpid()}
        job |= {"SLURM_JOB_NAME": "finelmm", "OUTPUT_DIR": out, "REQUEUED": tmp_path / "requeued"}
        env = environment(**job)
        return {"args": script, "cwd": REPO, "env": env | {"PATH": f"{tmp_path}:{env['PATH']}"}, "text": True}

    return start


@pytest.mark.slow
def test_a_slurm_job_starts_on_all_machines_and_resumes(slurm, tmp_path):
    job, out, logs = slurm("--save_steps", 2), tmp_path / "out", []
    for said in ("starting from the beginning", f"Resuming from {out}/checkpoint-2"):
        result = subprocess.run(**job, capture_output=True, timeout=600)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        assert result.stdout.count(said) == 1
        logs.append(logged(out))
        shutil.rmtree(out / "checkpoint-4")
    assert len(logs[0]) == 4 and logs[1] == pytest.approx(logs[0], abs=1e-4)
    assert not (tmp_path / "requeued").exists()


@pytest.mark.slow
def test_a_slurm_job_whose_time_is_up_saves_and_is_queued_again(slurm, tmp_path):
    job, out, log = slurm("--save_steps", 1000, "--max_steps", 100), tmp_path / "out", tmp_path / "log"
    with open(log, "w") as file:
        process = subprocess.Popen(**job, stdout=file, stderr=file)
        while ": loss " not in log.read_text():
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.1)
        process.terminate()
        assert process.wait(600) != 0
    assert "SIGTERM: stopped after step" in log.read_text()
    assert (tmp_path / "requeued").read_text().split() == [str(os.getpid())]
    (checkpoint,) = out.glob("checkpoint-*")
    result = subprocess.run(**job, capture_output=True, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert f"Resuming from {checkpoint}." in result.stdout and len(logged(out)) == 100
