"""What a log says about speed: against sums by hand, a clock of our own, and torch's counter of operations."""

import json

import pytest
import torch
from conftest import logs_of, make_loader, rows_for, run
from launch import launch

from arguments import parse_arguments
from collators import COLLATORS
from reading.dataset import MultimodalDataset
from training import throughput
from training.throughput import ThroughputMeter, sample_lengths

FIGURES = {"tokens_per_second", "samples_per_second", "padding", "data_wait", "peak_memory_gb"}


def test_samples_of_a_padded_batch():
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    labels = torch.tensor([[-100, -100, 7, 7, -100], [-100, 7, -100, -100, -100], [-100] * 5])  # the last: a dummy
    assert sample_lengths({"attention_mask": mask, "labels": labels}).tolist() == [4, 2, 0]


def test_samples_of_a_padding_free_batch():
    labels = torch.tensor([[-100, -100, 7, 7, -100, 7, -100, -100, -100]])
    assert sample_lengths({"sample_lengths": [4, 2, 3], "labels": labels}).tolist() == [4, 2, 0]


class Clock:
    """Time that passes only when told so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(throughput, "perf_counter", lambda: self.now)

    def batches(self, wait: float):
        """Batches of 6 real tokens on 8 positions."""
        labels = torch.tensor([[-100, 7, 7, 7], [-100, 7, -100, -100]])
        while True:
            self.now += wait
            yield {"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), "labels": labels}

    def train(self, meter, wait: float, seconds: float, batches: int) -> None:
        found = meter.waiting(self.batches(wait))
        for batch in [next(found) for _ in range(batches)]:
            with meter.step(batch):
                self.now += seconds


def test_times_of_waiting_and_of_evaluation(monkeypatch):
    clock, meter = Clock(monkeypatch), ThroughputMeter(torch.device("meta"))
    clock.train(meter, 1, 3, 2)
    first = meter.log()
    expected = {"tokens_per_second": 1.5, "samples_per_second": 0.5, "padding": 0.25, "data_wait": 0.25}
    assert first.keys() == FIGURES and expected.items() <= first.items()
    clock.train(meter, 0.04, 0.96, 1)
    meter.pause()
    clock.now += 100  # evaluation
    clock.train(meter, 0.04, 0.96, 1)
    assert expected | {"tokens_per_second": 6, "samples_per_second": 2, "data_wait": 0.04} == {
        name: value for name, value in meter.log().items() if name in expected
    }
    whole = meter.log_run()  # 4 batches: 2 of 4 s and 2 of 1 s; waited 2 + 0.08 s
    assert whole["train_tokens_per_second"] == 2.4 and whole["train_data_wait"] == pytest.approx(2.08 / 10)


def test_memory_is_the_peak_of_the_process():
    block = torch.ones(40_000_000)  # 0.16 GB
    peak = float(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) * 1024 / 1e9
    assert ThroughputMeter(torch.device("cpu"))._peak_memory() == pytest.approx(peak, rel=0.02) and peak > 0.16
    del block


@pytest.mark.parametrize("padding_free", [True, False])
def test_a_run_logs_the_figures_of_its_batches(tiny, padding_free, write_rows, tmp_path):
    rows = rows_for("llava-1.5")[:4]
    path = write_rows(rows)
    loader = make_loader("llava-1.5", tiny("llava-1.5"))
    collator, dataset = COLLATORS.get("llava-1.5")(loader.load_processor(), 2048), MultimodalDataset(path)
    lengths = [collator.encode(dataset[i]).inputs["input_ids"].shape[1] for i in range(4)]
    flags = ["--train_sampling_strategy", "sequential", "--gradient_accumulation_steps", 2, "--peak_tflops", 0.1]
    flags += ["--padding_free", padding_free, "--eval_data_path", path]
    steps = run(tiny, "llava-1.5", path, tmp_path / "out", *flags)
    positions = sum(lengths) if padding_free else 2 * max(lengths[:2]) + 2 * max(lengths[2:])
    final = json.loads((tmp_path / "out" / "all_results.json").read_text())
    final = {name.removeprefix("train_"): value for name, value in final.items()}
    for entry in [*steps, final]:
        assert FIGURES | {"mfu"} <= entry.keys() and 0 < entry["data_wait"] < 1 and entry["mfu"] > 0
        assert entry["padding"] == pytest.approx(1 - sum(lengths) / positions, rel=1e-3)
        assert entry["tokens_per_second"] / entry["samples_per_second"] == pytest.approx(sum(lengths) / 4, rel=2e-3)
    assert final["samples_per_second"] > 8 / final["runtime"] * 0.99  # the Trainer's runtime holds more than training


@pytest.mark.slow
def test_figures_are_of_all_processes(tiny, write_rows, tmp_path):
    rows = rows_for("llava-1.5")[:4]
    path = write_rows(rows)
    words = ["--model_id", "llava-1.5-7b", "--model_local_path", tiny("llava-1.5"), "--data_path", path]
    words += ["--train_sampling_strategy", "sequential", "--per_device_train_batch_size", 1, "--max_steps", 2]
    words += ["--logging_steps", 2, "--use_cpu", True, "--save_strategy", "no", "--model_max_length", 2048]
    launch([*words, "--use_lora", True, "--disable_tqdm", True, "--output_dir", tmp_path / "out"], 2)
    log = logs_of(tmp_path / "out")
    loader = make_loader("llava-1.5", tiny("llava-1.5"))
    collator, dataset = COLLATORS.get("llava-1.5")(loader.load_processor(), 2048), MultimodalDataset(path)
    lengths = [collator.encode(dataset[i]).inputs["input_ids"].shape[1] for i in range(4)]
    assert log[0]["tokens_per_second"] / log[0]["samples_per_second"] == pytest.approx(sum(lengths) / 4, rel=2e-3)


@pytest.mark.parametrize("recomputes, trains", [(False, True), (True, True), (False, False)])
def test_mfu_is_the_share_of_the_peak_that_products_take(monkeypatch, recomputes, trains):
    """A matrix of 5 x 7 on 8 positions: 2 operations for each forward; backward 2 more, 2 where its input trains."""
    weight, clock = torch.ones(5, 7, requires_grad=True), Clock(monkeypatch)
    meter = ThroughputMeter(torch.device("meta"), peak_tflops=1e-9, recomputes=recomputes)
    for batch, _ in zip(meter.waiting(clock.batches(0)), range(2)):
        with meter.step(batch):
            inputs = torch.ones(2, 4, 5, requires_grad=trains)
            product = (inputs @ weight).sum()
            meter.end_forward()
            if recomputes:
                inputs @ weight
            product.backward()
            clock.now += 3
    needed = 2 * 5 * 7 * 6 * (3 if trains else 2)  # of the 8 positions, 6 are no padding
    assert meter.log()["mfu"] == pytest.approx(needed / 3 / 1e3, rel=1e-3)


@pytest.mark.parametrize(
    "flags, error", [(["--peak_tflops", "0"], "above 0"), (["--peak_tflops", "1", "--torch_compile", "True"], "count")]
)
def test_a_peak_that_has_no_use_is_refused(flags, error, tmp_path):
    words = ["--model_id", "llava-1.5-7b", "--data_path", "x.json", "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match=error):
        parse_arguments([*words, *flags])
