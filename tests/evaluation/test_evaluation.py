"""Answers while training: they change nothing, are those of predict.py, and decide what is kept and when it ends."""

import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import CONSENT, CROSSED, MODEL_ID, VISION_FLAGS, lines_of, logs_of, rows_for, run, turns
from launch import Launch, here, launch
from PIL import Image

import predict
import train
from arguments import parse_arguments
from evaluation import answers
from reading.dataset import MultimodalDataset

FAMILY = "qwen2-vl"
FSDP = ["--fsdp", "True", "--fsdp_config", "fsdp_configs/fsdp2.json"]
FSDP += ["--accelerator_config", '{"use_configured_state": true}']
ZERO3, LORA = ["--deepspeed", "ds_configs/zero3.json"], ["--use_lora", "True", "--lora_dropout", "0"]
ANSWERS = ["--eval_generate", 3, "--eval_max_new_tokens", 5, "--eval_strategy", "steps", "--eval_steps", 1]


def edits(a: str, b: str) -> int:
    """Of Levenshtein, by its definition."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


def measured(answers: list[dict]) -> dict[str, float]:
    """The metrics, computed from the answers by other means."""
    pairs = [(answer["prediction"].strip(), answer["reference"].strip()) for answer in answers]
    similar = []
    for p, r in pairs:
        share = edits(p.lower(), r.lower()) / max(len(p), len(r))
        similar.append(1 - share if share < 0.5 else 0)
    return {
        "eval_exact_match": sum(p == r for p, r in pairs) / len(pairs),
        "eval_anls": sum(similar) / len(pairs),
    }


def test_replies_that_are_not_trained_are_not_asked(write_rows):
    said = lambda role, text, **more: {"role": role, "content": text, **more}  # noqa: E731
    messages = [said("user", "A?"), said("assistant", "a", train=False), said("user", "B?"), said("assistant", "b")]
    first = [{"from": sender, "value": "Hm"} for sender in ("gpt", "human", "gpt")]  # its first reply has no question
    dataset = MultimodalDataset(write_rows([{"messages": messages}, {"conversations": first}]))
    assert answers.questions(dataset) == [(0, 1, 3), (1, 1, 2)]


def test_evaluations_change_nothing_and_their_answers_are_those_of_predict(tiny, write_rows, tmp_path):
    """With dropout and data loaders, which draw random numbers, and with a function of the user's."""
    path = write_rows(rows_for(FAMILY))
    (tmp_path / "own.py").write_text("def longest(predictions, references):\n    return max(map(len, predictions))\n")
    flags = ["--use_lora", True, "--lora_dropout", 0.3, *VISION_FLAGS, "--learning_rate", 1e-2, "--max_steps", 3]
    other = write_rows(rows_for(FAMILY)[:2])
    plain = run(tiny, FAMILY, path, tmp_path / "plain", *flags)
    own = ["--metric", f"{tmp_path / 'own.py'}:longest", "--eval_data_path", path, other]
    asked = run(tiny, FAMILY, path, tmp_path / "asked", *flags, *ANSWERS, *own)
    for key in ("loss", "grad_norm"):
        assert [entry[key] for entry in asked] == [entry[key] for entry in plain]

    folder = tmp_path / "asked"
    evaluated = {logs["step"]: logs for logs in logs_of(folder) if "eval_loss" in logs}
    assert list(evaluated) == [0, 1, 2, 3]
    for step, logs in evaluated.items():
        lines = lines_of(folder / f"eval_answers/step-{step}.jsonl")
        found = measured(lines) | {"eval_longest": max(len(line["prediction"]) for line in lines)}
        for part in (path, other):
            own = [line for line in lines if (line["index"] < len(rows_for(FAMILY))) == (part == path)]
            found |= {name.replace("eval", f"eval_{Path(part).stem}"): value for name, value in measured(own).items()}
        assert {name: logs[name] for name in found} == pytest.approx(found)
        assert len(own) == sum(len(row["conversations"]) // 2 for row in rows_for(FAMILY)[:2])
    lines = [line for line in lines if line not in own]

    words = ["--model_path", str(folder), "--data_path", path, "--output_path", str(tmp_path / "offline.jsonl")]
    predict.main([*words, "--max_new_tokens", "5"])
    offline = {(line["index"], line["turn"]): line for line in lines_of(tmp_path / "offline.jsonl")}
    assert {index for index, _ in offline} == set(range(len(rows_for(FAMILY))))
    rows = {line["index"] for line in lines}
    assert rows == {0, (len(rows_for(FAMILY)) - 1) // 2, len(rows_for(FAMILY)) - 1}  # evenly spread
    assert lines == [line for key, line in sorted(offline.items()) if key[0] in rows]


@pytest.mark.slow
@pytest.mark.parametrize("family", CROSSED)
def test_the_answers_of_every_family_are_those_of_predict(tiny, family, write_rows, tmp_path):
    """In the trained model, whose samples are joined and kept apart, and in the one that was saved."""
    path, out = write_rows(rows_for(family)), tmp_path / "out"
    flags = ["--use_lora", True, "--train_vision_projector", True, "--learning_rate", 1e-2, "--eval_data_path", path]
    run(tiny, family, path, out, *flags, *ANSWERS, "--eval_generate", 99)
    words = ["--model_path", str(out), "--data_path", path, "--output_path", str(tmp_path / "offline.jsonl")]
    predict.main([*words, *CONSENT[family], "--max_new_tokens", "5"])
    found = lines_of(out / "eval_answers/step-2.jsonl")
    assert found and found == lines_of(tmp_path / "offline.jsonl")


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param([*FSDP, *LORA], id="fsdp2-lora"),
        pytest.param(LORA, id="ddp-lora", marks=pytest.mark.cross),
        pytest.param(ZERO3, id="zero3-full"),
        pytest.param([*ZERO3, *LORA], id="zero3-lora", marks=pytest.mark.cross),
    ],
)
@pytest.mark.slow
def test_processes_share_the_answers_of_one(tiny, write_rows, tmp_path, flags):
    """Of an odd number of questions, so that one process has more than the other."""
    rows = rows_for(FAMILY)[0:3:2]
    path = write_rows(rows)
    words = ["--model_id", MODEL_ID[FAMILY], "--model_local_path", tiny(FAMILY), "--data_path", path, "--use_cpu", True]
    words += ["--eval_data_path", path, "--max_steps", 2, "--save_strategy", "no", "--learning_rate", 1e-2]
    words += [*VISION_FLAGS, "--per_device_train_batch_size", 1, *ANSWERS]
    alone = LORA if LORA[0] in flags else []
    here([*words, *alone, "--gradient_accumulation_steps", 2, "--output_dir", tmp_path / "one"])
    script = "fsdp_on_cpu" if "--fsdp" in flags else "train"
    launch([*words, *flags, "--output_dir", tmp_path / "two"], processes=2, script=script)
    for step in (0, 1, 2):
        alone, together = (lines_of(tmp_path / name / f"eval_answers/step-{step}.jsonl") for name in ("one", "two"))
        assert len(alone) == sum(len(row["conversations"]) // 2 for row in rows) == 3
        assert together == alone


@pytest.mark.slow
def test_answers_in_bfloat16_under_lora(tiny, write_rows, tmp_path, monkeypatch):
    """In the precision of the run, though accelerate sets it for the adapters' wrapper, which does not generate."""
    generate, precisions = answers._generate, set()

    def note(*args, **kwargs):
        precisions.add(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return generate(*args, **kwargs)

    monkeypatch.setattr(answers, "_generate", note)
    path = write_rows(rows_for(FAMILY))
    flags = ["--bf16", True, "--use_cpu", True, "--use_lora", True, *VISION_FLAGS, "--eval_data_path", path]
    run(tiny, FAMILY, path, tmp_path / "out", *flags, *ANSWERS, "--max_steps", 1)
    assert len(lines_of(tmp_path / "out/eval_answers/step-1.jsonl")) >= 3
    assert precisions == {torch.bfloat16}


def test_a_broken_picture_is_left_out_of_the_answers_and_counted(tiny, write_rows, tmp_path, media_folder, capsys):
    Image.effect_noise((300, 300), 90).save(media_folder / "torn.jpg")
    data = (media_folder / "torn.jpg").read_bytes()
    (media_folder / "torn.jpg").write_bytes(data[: len(data) // 2])  # behind a good header
    rows = rows_for(FAMILY)
    torn = {"image": "torn.jpg", "conversations": turns("<image>\nWhat?", "Noise")}
    flags = ["--on_bad_sample", "skip", "--eval_data_path", write_rows([torn, *rows[:1]])]
    run(tiny, FAMILY, write_rows(rows), tmp_path / "out", *flags, "--eval_generate", 2, "--eval_max_new_tokens", 3)
    assert [line["index"] for line in lines_of(tmp_path / "out/eval_answers/step-2.jsonl")] == [1]
    assert "1 of 2 evaluation samples were skipped" in capsys.readouterr().out


# ---- what they decide ----


def best_of(values: list[float], tmp_path) -> list:
    """Flags by which evaluation i, from 0, is worth `values[i]`; after the first, a blind guess is measured."""
    values = [values[0], 0.0, *values[1:]]
    # A count on disk, since the file is loaded anew for each evaluation.
    (tmp_path / "given.py").write_text(
        "import pathlib\n"
        f"count = pathlib.Path({str(tmp_path / 'count')!r})\n"
        "def worth(predictions, references):\n"
        "    number = int(count.read_text()) if count.exists() else 0\n"
        "    count.write_text(str(number + 1))\n"
        f"    return {{'taste': {values}[number]}}\n"
    )
    return ["--metric", f"{tmp_path / 'given.py'}:worth", "--metric_for_best_model", "taste"]


def test_the_best_checkpoint_by_a_users_metric_and_early_stopping(tiny, write_rows, tmp_path, capsys):
    path, out = write_rows(rows_for(FAMILY)[:2]), tmp_path / "out"
    # Before training, then steps 1 to 4; the last is of the best weights, at the end.
    flags = [*best_of([9.0, 0.1, 0.5, 0.4, 0.3, 0.5], tmp_path), "--early_stopping_patience", 2, *ANSWERS]
    flags += ["--eval_data_path", path, "--max_steps", 8, "--save_strategy", "steps", "--save_steps", 1]
    flags += ["--save_total_limit", 2, "--use_lora", True, "--learning_rate", 1e-2]
    run(tiny, FAMILY, path, out, *flags)
    logs = logs_of(out)
    assert [entry["eval_taste"] for entry in logs if "eval_taste" in entry] == [9.0, 0.1, 0.5, 0.4, 0.3, 0.5]
    assert max(entry["step"] for entry in logs if "loss" in entry) == 4
    assert "Stopped early after step 4: 2 evaluations without a better taste than 0.5 at step 2" in (
        capsys.readouterr().out
    )
    weights = "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (out / "checkpoint-2" / weights).read_bytes()
    assert (out / weights).read_bytes() != (out / "checkpoint-4" / weights).read_bytes()

    # Started again, such as by a cluster, it is still over.
    (tmp_path / "count").write_text("6")
    run(tiny, FAMILY, path, out, *flags, "--resume_from_checkpoint", True)
    assert max(entry["step"] for entry in logs_of(out) if "loss" in entry) == 4


@pytest.mark.slow
def test_the_count_of_early_stopping_survives_a_stop(tiny, write_rows, tmp_path):
    path, out = write_rows(rows_for(FAMILY)), tmp_path / "out"
    flags = [*best_of([0.0, 0.5, 0.4, 0.3, 0.2, 0.5], tmp_path), "--early_stopping_patience", 3, *ANSWERS]
    flags += ["--eval_data_path", path, "--max_steps", 8, "--save_strategy", "steps", "--save_steps", 1]
    flags += ["--use_lora", True]
    run(tiny, FAMILY, path, out, *flags)
    (tmp_path / "count").write_text("4")  # as it was after step 2
    run(tiny, FAMILY, path, tmp_path / "again", *flags, "--resume_from_checkpoint", out / "checkpoint-2")
    for folder in (out, tmp_path / "again"):
        assert max(entry["step"] for entry in logs_of(folder) if "loss" in entry) == 4


WRONG = [
    (["--eval_generate", 3], "--eval_generate has no effect without --eval_data_path"),
    (["--eval_generate", -1], "--eval_generate is -1; it must be 0 or more"),
    (["--eval_max_new_tokens", 3], "--eval_max_new_tokens has no effect"),
    (["--metric", "none.py:score", "--eval_generate", 1], "--metric none.py:score: .* or FILE.py:FUNCTION"),
    (["--metric_for_best_model", "anls", "--eval_strategy", "epoch"], "anls is measured on answers"),
    (
        ["--metric_for_best_model", "bleu", "--eval_generate", 1],
        "bleu is not measured: use one of loss, exact_match, anls",
    ),
    (["--metric_for_best_model", "cer", "--eval_generate", 1], "anls, or add --metric cer"),
    (["--metric", "bleu", "--eval_generate", 1], "--metric bleu: use one of exact_match, anls, accuracy"),
    (["--early_stopping_patience", 1], "--early_stopping_patience has no effect without --eval_strategy"),
    (["--early_stopping_patience", 0, "--eval_strategy", "epoch"], "--early_stopping_patience is 0"),
]


@pytest.mark.parametrize("flags, message", WRONG, ids=[" ".join(map(str, flags)) for flags, _ in WRONG])
def test_wrong_flags_are_refused_before_anything_is_loaded(flags, message):
    with pytest.raises(ValueError, match=message):
        train.main(["--model_id", "qwen2-vl-2b-instruct", "--data_path", "none.json", *map(str, flags)])


def test_the_direction_of_a_metric_and_the_names_of_files_are_known_before_anything_is_loaded():
    words = ["--model_id", "qwen2-vl-2b-instruct", "--data_path", "a.json", "--eval_generate", "5", "--output_dir", "x"]
    words += ["--use_cpu", "True", "--eval_data_path", "x/val.json", "y/val.json", "--metric", "cer", "f1"]
    for best, is_higher in (("x_val_cer", False), ("eval_cer", False), ("y_val_f1", True), ("eval_x_val_loss", False)):
        training = parse_arguments([*words, "--metric_for_best_model", best]).training
        assert training.greater_is_better is is_higher, best
    given = parse_arguments([*words, "--metric_for_best_model", "cer", "--greater_is_better", "True"]).training
    assert given.greater_is_better is True
    for best, message in (
        (
            "val_cer",
            "val_cer is not measured: use one of loss, exact_match, anls, cer, f1, x_val_loss, .* y_val_f1, or",
        ),
        ("x_val_wer", "y_val_f1, or add --metric wer"),
        ("z_loss", r"y_val_f1\.$"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_arguments([*words, "--metric_for_best_model", best])


def test_a_metric_of_another_name_ends_the_run_before_step_1(tiny, write_rows, tmp_path):
    path = write_rows(rows_for(FAMILY))
    flags = [*best_of([0.0], tmp_path), *ANSWERS, "--eval_data_path", path, "--metric_for_best_model", "smell"]
    with pytest.raises(ValueError, match="smell is not measured; choose from loss, .*, taste"):
        run(tiny, FAMILY, path, tmp_path / "out", *flags)


# ---- log.jsonl ----


@pytest.mark.slow
def test_the_log_of_a_stopped_run_goes_on(tiny, write_rows, tmp_path):
    """Killed after a checkpoint, it has lines that the resumed run writes again."""
    path, out = write_rows(rows_for(FAMILY)), tmp_path / "out"
    words = ["--model_id", MODEL_ID[FAMILY], "--model_local_path", tiny(FAMILY), "--data_path", path, "--use_cpu", True]
    words += ["--output_dir", out, "--logging_steps", 1, "--save_strategy", "steps", "--save_steps", 4]
    words += ["--per_device_train_batch_size", 1, "--max_steps", 400, "--use_lora", True]
    first = Launch(words)
    while not (out / "log.jsonl").exists() or len(lines_of(out / "log.jsonl")) < 6:
        assert first.running, first.output
        time.sleep(0.05)
    first.send(signal.SIGKILL)
    first.wait()
    before = lines_of(out / "log.jsonl")
    assert [line["step"] for line in before] == list(range(1, len(before) + 1))
    assert all(line["max_steps"] == 400 and line["loss"] > 0 for line in before)
    second = Launch([*words, "--resume_from_checkpoint", True])
    while len(lines_of(out / "log.jsonl")) <= len(before):
        assert second.running, second.output
        time.sleep(0.05)
    second.send(signal.SIGTERM)
    assert second.wait() == [143]
    *after, end = lines_of(out / "log.jsonl")
    assert (end["state"], end["step"]) == ("stopped", after[-1]["step"]) and end["seconds"] > 0
    assert [line["step"] for line in after] == list(range(1, len(after) + 1))
    assert [line["loss"] for line in after[: len(before)]] == [line["loss"] for line in before]
