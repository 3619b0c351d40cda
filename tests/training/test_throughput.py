"""What a log says about speed: against sums by hand, a clock of our own, and torch's counter of operations."""

import json

import pytest
import torch
from conftest import CONSENT, MODEL_ID, VISION_FLAGS, make_loader, rows_for, run
from launch import launch
from torch.utils.flop_counter import FlopCounterMode

from arguments import parse_arguments
from collators import COLLATORS
from loaders.output_folder import ProcessorFiles
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions
from training import throughput, trainable
from training.throughput import FlopCounter, ThroughputMeter, sample_lengths
from training.trainer import FinetuneTrainer

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
            with meter.forward(batch):
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
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    loader = make_loader("llava-1.5", tiny("llava-1.5"))
    collator, dataset = COLLATORS.get("llava-1.5")(loader.load_processor(), 2048), MultimodalDataset(path)
    lengths = [collator.encode(dataset[i]).inputs["input_ids"].shape[1] for i in range(4)]
    assert log[0]["tokens_per_second"] / log[0]["samples_per_second"] == pytest.approx(sum(lengths) / 4, rel=2e-3)


WAYS = {
    "full": [],
    "lora": ["--use_lora", "True", "--lora_dropout", "0"],
    "projector": ["--use_lora", "True", "--lora_dropout", "0", "--train_vision_projector", "True"],
    "vision": VISION_FLAGS,
}
FLOP_FAMILIES = ("llava-1.5", "llava-onevision", "qwen2.5-vl", "qwen3-vl-moe", "gemma-3")


class Counted:
    """A tiny model and what our counter and torch's find in a forward and backward pass."""

    def __init__(self, tiny, family: str, path: str, *flags: str):
        folder = tiny(family)
        words = ["--model_id", MODEL_ID[family], "--model_local_path", folder, "--data_path", path, *CONSENT[family]]
        arguments = parse_arguments([*words, "--output_dir", folder + "-out", *flags])
        # Neither the fused attention of the CPU nor fused experts are known to torch's counter (2.14).
        self.loader = make_loader(family, folder, attn_implementation="eager", experts_implementation="eager")
        self.model = trainable.make_trainable(self.loader.load_model(), self.loader, arguments).train()
        self.collator = COLLATORS.get(family)(self.loader.load_processor(), 2048)
        self.dataset = MultimodalDataset(path, media=MediaOptions(num_frames=4))
        self.flop_counter = FlopCounter(self.model, self.loader)
        self.trainer = FinetuneTrainer(
            model=self.model,
            args=arguments.training,
            data_collator=self.collator.collate,
            processor_files=ProcessorFiles(folder),
            flop_counter=self.flop_counter,
        )

    def batch(self, *positions: int) -> dict:
        return self.collator([self.dataset[i] for i in positions])

    def ours(self, *positions: int) -> float:
        self.trainer.meter.interval.clear()
        self.trainer.compute_loss(self.model, self.batch(*positions)).backward()
        return float(self.trainer.meter.interval["flops"])

    def torchs(self, *positions: int) -> float:
        """Of one sample, without padding; without the pairs of text that are not causal, and layers nobody reads."""
        with FlopCounterMode(display=False) as forward:
            loss = self.trainer.compute_loss(self.model, self.batch(*positions))
        with FlopCounterMode(display=False) as backward:
            loss.backward()
        total = forward.get_total_flops() + backward.get_total_flops()
        for name, operations in forward.get_flop_counts().items():
            name = name.partition(".")[2].removeprefix("base_model.model.")
            if name.endswith("self_attn") and self.loader.component_of(name) == "language_model":
                total -= 3 * operations.get(torch.ops.aten.bmm, 0) / 2  # backward, two products for each
            if name in self.loader.unused:
                total -= sum(operations.values())
        return total


# One way of each family by default.
DEFAULT = dict(zip(FLOP_FAMILIES, ("lora", "projector", "vision", "lora", "full")))
CASES = [
    pytest.param(family, way, marks=[] if DEFAULT[family] == way else pytest.mark.slow)
    for family in FLOP_FAMILIES
    for way in WAYS
]


@pytest.mark.parametrize("family, way", CASES)
def test_operations_are_those_that_torch_counts(tiny, family, way, write_rows):
    counted = Counted(tiny, family, write_rows(rows_for(family)), *WAYS[way])
    for sample in (1, len(counted.dataset) - 1):  # two images, and the last: a video where the family takes one
        # gemma-3's projection is a matrix that no Linear holds; its sliding layer also multiplies what it masks.
        tolerance = 0.02 if family == "gemma-3" else 1e-3
        assert counted.ours(sample) == pytest.approx(counted.torchs(sample), rel=tolerance)


def test_padding_and_recomputation_count_nothing(tiny, write_rows):
    path = write_rows(rows_for("llava-1.5"))
    counted = Counted(tiny, "llava-1.5", path)
    alone = [counted.ours(0), counted.ours(2)]
    assert counted.batch(0, 2)["attention_mask"].float().mean() < 0.9
    assert counted.ours(0, 2) == pytest.approx(sum(alone), rel=1e-5)
    again = Counted(tiny, "llava-1.5", path)
    again.model.gradient_checkpointing_enable()
    again.model.enable_input_require_grads()  # which gives gradients to the frozen encoder, too
    assert again.ours(2) == alone[1]


@pytest.mark.parametrize(
    "flags, error", [(["--peak_tflops", "0"], "above 0"), (["--peak_tflops", "1", "--torch_compile", "True"], "hides")]
)
def test_a_peak_that_has_no_use_is_refused(flags, error, tmp_path):
    words = ["--model_id", "llava-1.5-7b", "--data_path", "x.json", "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match=error):
        parse_arguments([*words, *flags])
