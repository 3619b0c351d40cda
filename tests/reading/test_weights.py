"""Rows that are drawn: by their own weights, each class equally often, and some of them only."""

import csv
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import check_each, run, turns
from test_split import row, text

from arguments import DataArguments
from reading.dataset import MultimodalDataset
from reading.split import make_datasets
from training.sampling import SAMPLERS, PackSampler

EPOCHS = 400


def seen(dataset: MultimodalDataset, epochs: int = EPOCHS) -> np.ndarray:
    """How often an epoch takes each row, in the mean."""
    drawn = [dataset.epoch_rows(3, epoch) for epoch in range(epochs)]
    assert {len(rows) for rows in drawn} == {dataset.epoch_size}
    return np.bincount(np.concatenate(drawn), minlength=len(dataset)) / epochs


def assert_drawn(dataset: MultimodalDataset, expected: list[float]) -> None:
    """The mean of each row is within five standard deviations of the expected one, which is what `row_weights` says."""
    assert dataset.row_weights() == pytest.approx(expected)
    share = np.array(expected) / dataset.epoch_size
    deviation = np.sqrt(dataset.epoch_size * share * (1 - share) / EPOCHS)
    assert (np.abs(seen(dataset) - expected) <= 5 * deviation).all()


def weighted(*weights, **fields) -> list[dict]:
    return [text(str(i)) | ({} if w is None else {"sampling_weight": w}) | fields for i, w in enumerate(weights)]


def test_rows_are_drawn_by_their_weights(write_rows):
    assert_drawn(MultimodalDataset(write_rows(weighted(3, 0, 0.5, None, 1.5))), [2.5, 0, 5 / 12, 5 / 6, 1.25])
    paths = [write_rows(weighted(1, 3)), write_rows(weighted(None, None, None, None))]
    # Four rows of weight 1 beside 1 and 3, of which a path that counts three times has three times the weight.
    assert_drawn(MultimodalDataset([paths[0] + ":3", paths[1]]), [1.875, 5.625, *[0.625] * 4])
    assert_drawn(MultimodalDataset([paths[0] + "[1:]", paths[1] + "[:1]"]), [1.5, 0.5])


def test_each_class_is_drawn_equally_often(write_rows, tmp_path):
    rows = [text(str(i)) | {"meta": {"kind": kind}} for i, kind in enumerate(["a", "a", "a", "b", 1, "a"])]
    assert_drawn(MultimodalDataset(write_rows(rows), balance="meta.kind"), [0.5, 0.5, 0.5, 2, 2, 0.5])
    rows = [one | {"sampling_weight": i % 3} for i, one in enumerate(rows)]  # 0, 1, 2, 0, 1, 2
    rows[3]["sampling_weight"] = 0.1
    assert_drawn(MultimodalDataset(write_rows(rows), balance="meta.kind"), [0, 0.4, 0.8, 2, 2, 0.8])
    table = tmp_path / "rows.csv"
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows([["Question", "Answer"], ["a", "Yes"], ["b", "Yes"], ["c", "Yes"], ["d", "No"]])
    dataset = MultimodalDataset(str(table), balance="Answer")  # the answer is its class
    assert_drawn(dataset, [2 / 3, 2 / 3, 2 / 3, 2])
    assert (
        dataset.notes()[0]
        == f"{table}: an epoch draws 4 rows with replacement, each of 2 classes of `Answer` equally often."
    )


def test_weights_and_classes_are_read_from_every_kind_of_file(write_rows, tmp_path):
    rows = [{"question": str(i), "answer": "x", "w": float(i), "c": "ab"[i > 0]} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with open(tmp_path / "rows.tsv", "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([["QUESTION", "answer", "W", "C"], *(one.values() for one in rows)])
    for path in (write_rows(rows), write_rows(rows, "rows.jsonl"), tmp_path / "rows.parquet", tmp_path / "rows.tsv"):
        dataset = MultimodalDataset(str(path), columns=["sampling_weight=w"])
        assert dataset.row_weights() == pytest.approx([0, 4 / 6, 8 / 6, 2])
        assert dataset.notes()[0].endswith("an epoch draws 4 rows with replacement, by sampling_weight.")
        rest = dataset.part([1, 2, 3])
        assert rest.row_weights() == pytest.approx([0.5, 1, 1.5]) and rest.digest != dataset.digest
        dataset = MultimodalDataset(str(path), columns=["w="], balance="c")
        assert dataset.row_weights() == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3])
        assert not any("not read: c" in note for note in dataset.notes())


def test_equal_weights_are_none(write_rows):
    dataset = MultimodalDataset(write_rows(weighted(1, 1.0, "1", None)))
    assert not dataset.is_drawn and dataset.epoch_rows(0, 0).tolist() == [0, 1, 2, 3]


def test_a_weight_that_is_none_is_refused_with_file_and_row(write_rows):
    def refused(weight) -> None:
        path = write_rows(weighted(1, weight))
        shown = rf"{path.rpartition('/')[2]}, sample 1: sampling_weight is .*; it must be a number from 0 to 1e9"
        for _ in range(2):  # as the index is made, and as it is opened again
            with pytest.raises(ValueError, match=shown):
                MultimodalDataset(path)

    values = (-1, -0.5, math.nan, math.inf, 10**400, 1e10, "much", "", "nan", True, False, [1], {"a": 1})
    check_each([(value,) for value in values], refused)


def test_rows_of_which_none_can_be_drawn_are_refused(write_rows):
    path = write_rows(weighted(0, 0))
    with pytest.raises(ValueError, match=f"{path}: no row has a sampling_weight above 0"):
        make_datasets(DataArguments(data_path=[path]), 0)
    path = write_rows([text("a") | {"sampling_weight": 0}, text("b")])
    with pytest.raises(ValueError, match="no row of a class of --balance conversations.*above 0"):
        make_datasets(DataArguments(data_path=[path], balance="conversations"), 0)
    path = write_rows([text("a") | {"kind": "a"}, text("b"), text("b") | {"kind": None}])
    with pytest.raises(ValueError, match="(?s)2 of 3 samples .* sample 1: has no field `kind`, which --balance kind"):
        make_datasets(DataArguments(data_path=[path], balance="kind"), 0)
    with pytest.raises(ValueError, match="--columns sampling_weight=wieght: no row of .* has a field `wieght`"):
        make_datasets(DataArguments(data_path=[path], columns=["sampling_weight=wieght"]), 0)


def test_weights_are_of_training_alone(write_rows):
    """Evaluation data need no such column, and one that they have changes nothing."""
    path, others = write_rows(weighted(1, 2, 1, 5, kind="a")), write_rows([text(), text()])
    columns = ["sampling_weight=sample_weight"]
    mapped = write_rows([text(str(i)) | {"sample_weight": i} for i in range(4)])
    data = DataArguments(data_path=[mapped], eval_data_path=[mapped, others], columns=columns)
    train, evaluation = make_datasets(data, 0)
    assert train.is_drawn and not evaluation.is_drawn and evaluation.epoch_size == 6
    train, held_out = make_datasets(DataArguments(data_path=[path], eval_split=2, balance="kind"), 0)
    assert train.is_drawn and not held_out.is_drawn and held_out.row_weights().tolist() == [1, 1]


def test_the_digest_knows_weights_and_classes(write_rows):
    digests = [
        MultimodalDataset(write_rows(weighted(*weights))).digest for weights in ((1, 2), (2, 1), (1, 1), (None, 1))
    ]
    assert len({*digests}) == 3 and digests[2] == digests[3]


def test_some_rows_are_drawn_by_the_seed(write_rows):
    path = write_rows([row("missing.png"), *(text(str(i)) for i in range(30))])

    def drawn(seed: int, **flags) -> list[int]:
        train, _ = make_datasets(DataArguments(data_path=[path], **flags), seed, max_bad_samples=1)
        return [train.locate(i)[1] for i in range(len(train))]

    tens = {seed: drawn(seed, sample_rows=10) for seed in range(20)}
    assert all(rows == sorted({*rows}) and len(rows) == 10 for rows in tens.values())
    assert tens[7] == drawn(7, sample_rows=10) and {*sum(tens.values(), [])} == {*range(1, 31)}
    assert drawn(0, sample_rows=99) == [*range(1, 31)]
    assert {*drawn(1, sample_rows=5, max_samples=7)} < {*range(1, 7)}  # of the first seven, one of which is bad
    checked, _ = make_datasets(DataArguments(data_path=[path], sample_rows=10), 7, check=False)
    assert [checked.locate(i)[1] for i in range(len(checked))] == [0, *tens[7]]
    train, held_out = make_datasets(DataArguments(data_path=[path], sample_rows=10, eval_split=3), 7, max_bad_samples=1)
    both = [side.locate(i)[1] for side in (train, held_out) for i in range(len(side))]
    assert sorted(both) == tens[7] and len(held_out) == 3


def test_every_order_of_an_epoch_takes_the_rows_that_are_drawn(write_rows):
    dataset = MultimodalDataset(write_rows(weighted(*range(20))))
    lengths = np.arange(1, 21)
    for name, sampler in SAMPLERS.items():
        sampler = sampler(dataset, 5, 4, lengths)
        for epoch in (0, 1, 2, 1):
            sampler.set_epoch(epoch)
            taken = [*sampler]
            assert sorted(taken) == dataset.epoch_rows(5, epoch).tolist() and len(taken) == len(sampler)
            assert name != "sequential" or taken == sorted(taken)
    packs = PackSampler(dataset, 5, lengths, 40, 2, 6)
    for epoch in range(6):
        packs.set_epoch(epoch)
        taken = [*packs]
        assert len(taken) == len(packs) and all(lengths[[*one]].sum() <= 40 for one in taken)
        assert sorted(sum(taken, ())) == dataset.epoch_rows(5, epoch).tolist()


WAYS = {
    "packs": ["--packing", True, "--model_max_length", 64],
    "batches": [],
    "lengths": ["--train_sampling_strategy", "group_by_length"],
}


@pytest.mark.parametrize("way", [way if way == "packs" else pytest.param(way, marks=pytest.mark.slow) for way in WAYS])
def test_a_run_on_drawn_rows_is_resumed_exactly(tiny, write_rows, tmp_path, capsys, way):
    rows = [{"conversations": turns("What?", "Yes " * (i + 1)), "kind": "ab"[i > 2], "id": i} for i in range(9)]
    path = write_rows(rows)
    flags = ["--balance", "kind", "--sample_rows", 8, "--eval_split", 2, "--max_steps", 5, "--save_strategy", "steps"]
    flags += ["--save_steps", 1, "--use_lora", True, "--lora_dropout", 0.3, *WAYS[way]]
    whole = run(tiny, "llava-1.5", path, tmp_path / "whole", *flags)
    said = capsys.readouterr().out
    assert f"{path}: 6 samples\n" in said and "(held out): 2 samples\n" in said
    assert "an epoch draws 6 rows with replacement, each of 2 classes of `kind` equally often." in said
    (tmp_path / "part").mkdir()
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    again = run(tiny, "llava-1.5", path, tmp_path / "part", *flags, "--resume_from_checkpoint", checkpoint)
    assert [step["loss"] for step in again] == [step["loss"] for step in whole]
    rows[0]["kind"] = "b"
    changed = write_rows(rows)
    with pytest.raises(ValueError, match="the rows of --data_path or their order"):
        run(tiny, "llava-1.5", changed, tmp_path / "x", *flags, "--resume_from_checkpoint", checkpoint)
    other = [*flags, "--resume_from_checkpoint", checkpoint]
    other[other.index("--eval_split") + 1] = 1
    with pytest.raises(ValueError, match="--eval_split is 1.0, but was 2.0"):
        run(tiny, "llava-1.5", path, tmp_path / "x", *other)
