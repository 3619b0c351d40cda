"""Stopped runs go on as if never stopped: every logged value and every weight, to the last bit."""

import itertools
import json
import os
import random
import resource
import shutil
import signal
import threading
import time
from functools import partial

import psutil
import pytest
from conftest import IMAGE_ROWS, crossed, run, turns
from launch import Launch, free_port, launch
from PIL import Image
from safetensors.torch import load_file

from arguments import parse_arguments
from reading.dataset import MultimodalDataset
from training.resume import check_same_run, describe_run, keep_resize, read_record, write_record

ROWS = [{"image": "red.png", "conversations": turns(f"<image>\nQuestion {i}?", "Yes " * (i + 1))} for i in range(9)]
ROWS += IMAGE_ROWS[:2]
# 11 samples, one a batch and two a step: 6 steps an epoch, the last of one batch. Losses are logged between saves.
STEPS = ["--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 2, "--max_steps", 14]
STEPS += ["--logging_steps", 4, "--save_strategy", "steps", "--save_steps", 1, "--learning_rate", 1e-2]
LORA = ["--use_lora", True, "--lora_dropout", 0.3]
PERSISTENT = ["--dataloader_persistent_workers", True]
ZERO2 = ["--deepspeed", "ds_configs/zero2.json"]
PARTS, ENGINES = {"full": [], "lora": LORA}, {"ddp": [], "zero2": ZERO2}
# What is not the same in every run.
TIMES = ("runtime", "_per_second", "data_wait", "peak_memory_gb", "padding")  # the last, of the steps since a log


def log_of(folder) -> list[dict]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{name: value for name, value in entry.items() if not name.endswith(TIMES)} for entry in log]


def assert_equal_runs(found, expected) -> None:
    """The same logged values and the same weights, to the last bit."""
    assert log_of(found) == log_of(expected)
    names = sorted(path.name for path in expected.glob("*.safetensors"))
    assert names and names == sorted(path.name for path in found.glob("*.safetensors"))
    for name in names:
        weights, wanted = load_file(found / name), load_file(expected / name)
        assert weights.keys() == wanted.keys()
        assert all(weights[key].equal(wanted[key]) for key in wanted)


def checkpoints(folder) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def has_reached(folder, step: int) -> bool:
    return max(checkpoints(folder), default=0) >= step


def words_of(tiny, path: str, *flags) -> list:
    """The words of a run of train.py on the CPU, all but the output folder."""
    words = ["--model_id", "llava-1.5-7b", "--model_local_path", tiny("llava-1.5"), "--data_path", path]
    return [*words, *STEPS, "--use_cpu", True, "--disable_tqdm", True, *flags]


# Within the first epoch, and at its end, before which its evaluation has to come.
@pytest.mark.parametrize(
    "way, steps", [(LORA, (5, 6)), pytest.param([], (5,), marks=pytest.mark.slow)], ids=["lora", "full"]
)
def test_a_resumed_run_equals_the_unbroken_one(tiny, write_rows, tmp_path, way, steps):
    path = write_rows(ROWS)
    flags = [*STEPS, *way, "--eval_data_path", path, "--eval_strategy", "epoch", "--max_steps", 8]
    run(tiny, "llava-1.5", path, tmp_path / "whole", *flags)
    assert [entry["step"] for entry in log_of(tmp_path / "whole")] == [1, 4, 6, 8, 8, 8]
    for step in steps:
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        resumed = ["--resume_from_checkpoint", checkpoint, "--save_steps", 500]
        run(tiny, "llava-1.5", path, tmp_path / f"{step}", *flags, *resumed)
        assert_equal_runs(tmp_path / f"{step}", tmp_path / "whole")


WAYS = {
    "workers": [*LORA, "--dataloader_num_workers", 2, *PERSISTENT],
    "length": [*LORA, "--train_sampling_strategy", "group_by_length"],
    "bf16": ["--bf16", True, "--use_cpu", True, "--train_vision_projector", True, "--activation_checkpointing", True],
    "q_lora": [*LORA, "--q_lora", True],
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_resumes_anywhere(tiny, write_rows, tmp_path, way):
    path = write_rows(ROWS)
    flags = [*STEPS, "--eval_data_path", path, "--eval_strategy", "epoch", *WAYS[way]]
    run(tiny, "llava-1.5", path, tmp_path / "whole", *flags)
    for step in (6, 9, 14):  # at the end of an epoch, within the second, and after the last step
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        run(tiny, "llava-1.5", path, tmp_path / f"{step}", *flags, "--resume_from_checkpoint", checkpoint)
        assert_equal_runs(tmp_path / f"{step}", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    "way, engine, step",  # at the end of the first epoch, and within the second
    crossed(itertools.product(PARTS, ENGINES, (3, 4)), [("full", "ddp", 3), ("lora", "zero2", 4)]),
)
def test_two_resumed_processes_equal_the_unbroken_ones(tiny, write_rows, tmp_path, way, engine, step):
    words = words_of(tiny, write_rows(ROWS), *PARTS[way], *ENGINES[engine], "--max_steps", 6)
    launch([*words, "--output_dir", tmp_path / "whole"], 2)
    resumed = ["--resume_from_checkpoint", tmp_path / "whole" / f"checkpoint-{step}"]
    launch([*words, "--output_dir", tmp_path / "resumed", *resumed], 2)
    assert_equal_runs(tmp_path / "resumed", tmp_path / "whole")


@pytest.mark.slow
def test_processes_that_see_different_checkpoints_are_refused(tiny, write_rows, tmp_path):
    words = words_of(tiny, write_rows(ROWS), *LORA, "--max_steps", 3, "--output_dir", tmp_path / "out")
    launch(words, 2)
    ranks, port = [], free_port()
    for rank, step in enumerate((1, 2)):
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        resume = ["--resume_from_checkpoint", tmp_path / "out" / f"checkpoint-{step}"]
        ranks.append(Launch([*words, *resume], environment=env))
    for started in ranks:
        assert started.wait() == [1]
        assert "Error: The processes start from different checkpoints, of steps [1, 2]" in started.output


def wait_for(condition, started: Launch, timeout: float = 300) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert started.running and time.monotonic() < end, started.output[-3000:]
        time.sleep(0.001)


def chain_of_kills(words, max_steps: int, out, kills: int, aimed: int, processes: int = 1) -> None:
    """Start and kill -9 a run again and again, `aimed` of the kills within a save; then once more in the last save."""
    dice = random.Random(kills)
    words = [*words, "--max_steps", max_steps, "--output_dir", out, "--resume_from_checkpoint", True]
    in_saves = set(dice.sample(range(kills), aimed))
    for kill in range(kills):
        before = checkpoints(out)
        started = Launch(words, processes)
        steps, delay = dice.randrange(3), dice.uniform(0, 0.15)
        wait_for(partial(has_reached, out, max(before, default=0) + steps), started)
        if kill in in_saves:
            wait_for((out / "unfinished-checkpoints").exists, started)
            started.kill()
            assert (out / "unfinished-checkpoints").exists()
        else:
            end = time.monotonic() + delay + (not steps) * dice.uniform(0, 4)  # without a step, also while it loads
            while time.monotonic() < end and not has_reached(out, max(before, default=0) + steps + 1):
                time.sleep(0.001)
            assert started.running
            started.kill()
        after = checkpoints(out)
        print(f"kill {kill}: {'in a save' if kill in in_saves else 'anywhere'}, {before} -> {after}")
        assert has_reached(out, max(before, default=0))
    started = Launch(words, processes)
    wait_for(lambda: f"trained {max_steps} steps in " in started.output, started)
    started.kill()
    assert has_reached(out, max_steps)
    launch(words, processes)
    assert len(checkpoints(out)) == 2 and not (out / "unfinished-checkpoints").exists()


WORKERS, PACKING = ["--dataloader_num_workers", 2], ["--packing", True, "--model_max_length", 1024]
KILLS = {
    "lora": (6, 3, 1, LORA),
    "full": (2, 1, 1, []),
    "workers": (2, 1, 1, [*LORA, *WORKERS]),
    "zero2": (2, 1, 2, [*LORA, *ZERO2]),
}
TWENTY = {
    "packed-lora": (5, 2, 1, [*LORA, *PACKING]),
    "packed-full-workers": (5, 2, 1, [*PACKING, *WORKERS]),
    "lora-workers": (5, 2, 1, [*LORA, *WORKERS]),
    "full-alone": (5, 2, 1, []),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", [*KILLS, *(pytest.param(way, marks=pytest.mark.cross) for way in TWENTY)])
def test_killed_runs_end_as_the_unbroken_one(tiny, write_rows, tmp_path, way):
    kills, aimed, processes, flags = (KILLS | TWENTY)[way]
    words, max_steps = words_of(tiny, write_rows(ROWS), *flags, "--save_total_limit", 2), 4 * kills + 8
    launch([*words, "--max_steps", max_steps, "--output_dir", tmp_path / "whole"], processes)
    chain_of_kills(words, max_steps, tmp_path / "killed", kills, aimed, processes)
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")


def test_sigterm_saves_and_stops(tiny, write_rows, tmp_path, capsys):
    path, out = write_rows(ROWS), tmp_path / "out"
    flags = [*STEPS, *LORA, "--max_steps", 100, "--save_steps", 1000]
    training = threading.Event()

    def stop():
        while "loss" not in capsys.readouterr().out:
            time.sleep(0.01)
        training.set()
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(SystemExit) as stopped:
        run(tiny, "llava-1.5", path, out, *flags)
    assert stopped.value.code == 143 and training.is_set() and signal.getsignal(signal.SIGTERM) is before
    (step,) = checkpoints(out)
    assert f"SIGTERM: stopped after step {step} of 100 and saved" in capsys.readouterr().out
    assert not (out / "adapter_model.safetensors").exists()  # it is not complete


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", pytest.param("ddp", marks=pytest.mark.cross)])
def test_sigterm_on_one_rank_stops_all_where_its_workers_get_it_too(tiny, write_rows, tmp_path, engine):
    words = words_of(tiny, write_rows(ROWS), *LORA, *ENGINES[engine], "--dataloader_num_workers", 1)
    words += [*PERSISTENT, "--save_steps", 1000]
    launch([*words, "--output_dir", tmp_path / "whole"], 2)
    words += ["--output_dir", tmp_path / "out", "--resume_from_checkpoint", True]
    started = Launch(words, 2)
    wait_for(lambda: ": loss " in started.output, started)
    workers = psutil.Process(started.processes[1].pid).children()
    assert [worker.name() for worker in workers] == ["pt_data_worker"]
    for process in [*workers, started.processes[1]]:
        process.terminate()
    for process in started.processes:
        process.join(120)
    assert [process.exitcode for process in started.processes] == [143, 143], started.output[-3000:]
    assert len(checkpoints(tmp_path / "out")) == 1
    assert "SIGTERM: stopped" in started.output and "Traceback" not in started.output
    launch(words, 2)
    assert_equal_runs(tmp_path / "out", tmp_path / "whole")


def test_a_full_disk_is_named_and_the_last_checkpoint_is_whole(tiny, write_rows, tmp_path):
    """No file may grow beyond the limit here, which fails as a full disk does."""
    path, out = write_rows(ROWS), tmp_path / "out"
    flags = [*STEPS, *LORA, "--max_steps", 3, "--save_steps", 2]
    run(tiny, "llava-1.5", path, tmp_path / "whole", *flags)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", out / "checkpoint-2")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))  # the optimizer's state has 330 kB
    try:
        with pytest.raises(ValueError, match="checkpoint-3 could not be written .*last complete .*out/checkpoint-2"):
            run(tiny, "llava-1.5", path, out, *flags, "--resume_from_checkpoint", True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["checkpoint-2"]
    run(tiny, "llava-1.5", path, out, *flags, "--resume_from_checkpoint", True)
    assert_equal_runs(out, tmp_path / "whole")


def test_ctrl_c_before_the_first_checkpoint_promises_none(tiny, write_rows, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.Trainer.train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, "llava-1.5", write_rows(ROWS), tmp_path / "out", *STEPS)
    assert (
        "Ctrl-C: there is no checkpoint yet. --resume_from_checkpoint True continues from it, or else"
        in capsys.readouterr().out
    )


def test_a_checkpoint_is_pushed_when_it_is_whole(tiny, write_rows, tmp_path, monkeypatch):
    pushed = []
    for name in ("init_hf_repo", "push_to_hub"):
        monkeypatch.setattr(f"transformers.Trainer.{name}", lambda *_, **__: None)
    monkeypatch.setattr("transformers.Trainer._push_from_checkpoint", lambda _, path: pushed.append(read_record(path)))
    flags = ["--push_to_hub", True, "--save_strategy", "steps", "--save_steps", 1, "--max_steps", 2]
    run(tiny, "llava-1.5", write_rows(ROWS), tmp_path / "out", *flags)
    assert len(pushed) == 2


def test_what_cannot_be_resumed_is_refused_or_passed_over(tiny, write_rows, tmp_path, capsys):
    path, out = write_rows(ROWS), tmp_path / "out"
    words = [*STEPS, *LORA, "--max_steps", 2, "--save_total_limit", 1]
    resume = [*words, "--resume_from_checkpoint"]
    run(tiny, "llava-1.5", path, out, *resume, True)
    assert f"No usable checkpoint in {out}: starting from the beginning." in capsys.readouterr().out
    assert checkpoints(out) == [2]
    for flag, value, error in [
        ("--lora_r", 4, "--lora_r is 4, but was 8"),
        ("--gradient_accumulation_steps", 1, "--gradient_accumulation_steps is 1, but was 2"),
        ("--seed", 7, "--seed is 7, but was 42"),
        ("--save_only_model", True, "--save_only_model True"),
        ("--data_path", write_rows(ROWS[:-1]), "has 10 usable samples, but had 11"),
        ("--data_path", write_rows([*ROWS[1:], ROWS[0]]), "rows of --data_path or their order"),
        ("--data_path", write_rows([ROWS[0] | {"importance": 0.5}, *ROWS[1:]]), "rows of --data_path or their order"),
    ]:
        with pytest.raises(ValueError, match=error):
            run(tiny, "llava-1.5", path, out, *resume, True, flag, value)
    (out / "checkpoint-2").rename(out / "checkpoint-1")
    shutil.copytree(out / "checkpoint-1", out / "checkpoint-2")
    os.truncate(out / "checkpoint-2" / "optimizer.pt", 100)
    shutil.copytree(out / "checkpoint-2", out / "unfinished-checkpoints" / "checkpoint-3")
    with pytest.raises(ValueError, match="optimizer.pt is missing or not"):
        run(tiny, "llava-1.5", path, out, *resume, out / "checkpoint-2")
    with pytest.raises(ValueError, match="no usable checkpoint.json"):
        run(tiny, "llava-1.5", path, out, *resume, tiny("llava-1.5"))
    for odd in ("[]", "{}", '{"files": [], "run": {"flags": {}}}', '{"files": {}, "run": null}'):
        (tmp_path / "checkpoint-9").mkdir(exist_ok=True)
        (tmp_path / "checkpoint-9" / "checkpoint.json").write_text(odd)
        with pytest.raises(ValueError, match="no usable checkpoint.json"):
            run(tiny, "llava-1.5", path, out, *resume, tmp_path / "checkpoint-9")
    run(tiny, "llava-1.5", path, out, *resume, True)
    printed = capsys.readouterr().out
    assert "WARNING: skipped a checkpoint: " in printed and f"Resuming from {out / 'checkpoint-1'}." in printed
    assert "unfinished-checkpoints, which contained a half-written" in printed
    assert not (out / "unfinished-checkpoints").exists()


def test_a_run_goes_on_with_the_media_that_it_began_with(tmp_path, capsys):
    words = ["--model_id", "llava-1.5-7b", "--data_path", "x", "--output_dir", str(tmp_path), "--use_cpu", "True"]
    arguments, path = parse_arguments(words), tmp_path / "rows.json"
    rows = [{"image": f"{i}.png", "conversations": turns("<image>", "b")} for i in range(3)]
    path.write_text(json.dumps(rows))

    def describe(change=lambda picture: None) -> dict:
        """With new files, so that the rows are indexed again, as after a copy to another machine."""
        for i in range(3):
            Image.new("RGB", (8, 8)).save(picture := tmp_path / f"new-{i}.png")
            os.utime(picture, (1, 1))
            if i:
                change(picture)
            picture.rename(tmp_path / f"{i}.png")
        return describe_run(arguments, MultimodalDataset(str(path)))

    (checkpoint := tmp_path / "checkpoint-1").mkdir()
    write_record(str(checkpoint), {"run": describe()})
    check_same_run(str(checkpoint), describe())
    assert "written again" not in capsys.readouterr().out
    check_same_run(str(checkpoint), describe(os.utime))
    assert "2 of the compared media files were rewritten with the same size (such as rows.json, sample 1" in (
        capsys.readouterr().out
    )
    with pytest.raises(ValueError, match=r"sample 1: image .*1.png has .* bytes, but had .*, and 1 other media file"):
        check_same_run(str(checkpoint), describe(lambda picture: picture.write_bytes(picture.read_bytes() + b"more")))


def test_a_run_that_resized_images_before_the_processor_goes_on_so(write_rows, tmp_path):
    """Such a run's record has no --keep_processor_config."""
    dataset = MultimodalDataset(write_rows(ROWS))
    words = ["--model_id", "qwen2-vl-2b-instruct", "--data_path", "x", "--output_dir", str(tmp_path)]
    words += ["--use_cpu", "True", "--max_pixels", "9999"]
    for is_old in (True, False):
        run = describe_run(parse_arguments(words), dataset)
        if is_old:
            del run["flags"]["keep_processor_config"]
        write_record(str(tmp_path), {"run": run})
        again = parse_arguments(words)
        keep_resize(str(tmp_path), again.data)
        check_same_run(str(tmp_path), describe_run(again, dataset))
        assert again.data.keep_processor_config is (None if is_old else False)


# By hand: of each flag, another value changes what is computed in some run.
DECIDE = {
    "model": """model_id attn_implementation train_vision_encoder train_vision_projector train_language_model freeze
        train vision_encoder_lr vision_projector_lr""",
    "data": """max_samples user_key assistant_key field_messages image_size image_resize_algorithm min_pixels max_pixels
        jpeg_draft num_frames fps max_frames video_max_pixels processor_kwargs model_max_length chat_template
        padding_free packing mask_question_tokens drop_overlong eval_split sample_rows balance""",
    "lora": """use_lora use_vision_lora q_lora load_in_8bit lora_r lora_alpha lora_dropout lora_bias lora_target_modules
        lora_init use_dora use_rslora lora_weight_path lora_experts lora_router""",
    "training": """per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps learning_rate
        lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2
        adam_epsilon max_grad_norm label_smoothing_factor neftune_noise_alpha bf16 fp16 tf32 torch_compile
        activation_checkpointing use_liger_kernel seed data_seed full_determinism dataloader_drop_last
        train_sampling_strategy ignore_data_skip load_best_model_at_end metric_for_best_model greater_is_better
        early_stopping_patience deepspeed fsdp fsdp_config""",
}


def test_each_flag_that_decides_the_weights_must_stay(write_rows, tmp_path, monkeypatch):
    dataset = MultimodalDataset(write_rows(ROWS))
    words = ["--model_id", "llava-1.5-7b", "--data_path", "x", "--output_dir", str(tmp_path), "--use_cpu", "True"]
    arguments = parse_arguments(words)
    write_record(str(tmp_path), {"run": describe_run(arguments, dataset)})
    check_same_run(str(tmp_path), describe_run(parse_arguments([*words, "--logging_steps", "7"]), dataset))
    for part, names in DECIDE.items():
        for name in names.split():
            with monkeypatch.context() as changed, pytest.raises(ValueError, match=f"--{name} is another, but was "):
                changed.setattr(getattr(arguments, part), name, "another")
                check_same_run(str(tmp_path), describe_run(arguments, dataset))
