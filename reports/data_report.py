"""Check all data of a run before it starts: `python preview.py --check`, with the flags of train.py. Loads no weights.

    python preview.py --check --model_id qwen2.5-vl-3b-instruct --data_path train.json --eval_data_path test.json
    python preview.py --check run.yaml --html report.html

Every row of training and evaluation data is opened and encoded as in training, in several processes. The exit code is 1
if training would fail.
"""

import json
import math
import os
import re
import sys
from collections import Counter
from contextlib import redirect_stdout
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset, get_worker_info

from collators.base import IGNORE_INDEX
from collators.budget import OverlongSample
from collators.label_check import check_labels
from collators.template import naming
from collators.template_check import check_template
from collators.thoughts_and_tools import MESSAGE_FIELDS
from evaluation.verdict import of_check
from loaders import LOADERS
from reading.dataset import cost_of_replies
from reading.references import digest, hash_of
from reading.replaced import check_drawn
from reading.row_index import Layout
from reading.rows import content_parts
from reading.split import make_datasets
from reading.strict_json import strict_json
from reports import data_report_views
from reports.terminal import terminal
from training.added_tokens import added_tokens, untrained_tokens
from training.engines import print_once
from training.make_collator import make_collator

ROW_KINDS = ("text", "image", "several images", "video", "mixed", "unreadable")
# Maps each fault of a row to its description. `Results.rows` stores a fault as its position in this table, from 1.
FAULTS = {
    "row": "cannot be read",
    "missing": "media file is missing",
    "broken": "media file is broken",
    "refused": "refused by the model",
    "no label": "nothing to train on",
    "overlong": "too long, cannot be cut",
    "crash": "fails with an unexpected error",
}
CODES = {None: 0} | {fault: code for code, fault in enumerate(FAULTS, 1)}
NOT_DONE = -1
# The faults that --on_bad_sample handles.
BAD = ("row", "missing", "broken", "refused", "no label")
# What an evaluation row may share with a training row, and how the report describes this.
SHARED = {"content": "also in the training data", "question": "with the same media and questions as training rows"}
# How reading/files.py reports a missing file.
MISSING = re.compile("does not exist|is a folder")
NUM_EXAMPLES = 10
ROW = np.dtype(
    [
        *[("fault", "i1"), ("kind", "i1"), ("text", "i4"), ("image", "i4"), ("video", "i4")],  # tokens before any cut
        *[("labels", "i4"), ("cut", "i4"), ("typed", "i1"), ("content", "u8"), ("question", "u8")],
    ]
)


def run(arguments, own) -> int:
    """Check the data of a run, and print or write the report.

    Args:
        own: the flags that preview.py adds to those of train.py.

    Returns:
        The exit code: 1 if training would fail.

    Raises:
        ValueError: flags, data files or the checkpoint cannot be used.
    """
    data, model, stdout = arguments.data, arguments.model, sys.stdout
    with redirect_stdout(sys.stderr):  # libraries may print
        train_dataset, eval_dataset = make_datasets(data, arguments.training.seed, check=False)
        splits = {"train": train_dataset} | ({"eval": eval_dataset} if eval_dataset else {})
        notes = {split: [*dataset.notes(), *check_drawn(dataset)] for split, dataset in splits.items()}
        loader = LOADERS.get(model.family)(model.model_path, model.trust_remote_code)
        collator = make_collator(model.family, loader, data, *splits.values())
        check_labels(collator)
        print_once(check_template(collator, *splits.values()))
        print_once(added_tokens(loader, collator.template))
        print_once(untrained_tokens(loader, arguments, collator.template, splits["train"]))
        results = Results(splits)
        given = arguments.training.dataloader_num_workers if "dataloader_num_workers" in arguments.given else None
        # Use at least one worker process, because a file that crashes its decoder must not end this process.
        check_rows(splits, collator, results, max(1, os.cpu_count() if given is None else given))
        num_processes = own.num_processes or arguments.training.world_size
        report = results_of(arguments, collator.budget, splits, results, notes, num_processes)
    if own.html:
        Path(own.html).write_text(data_report_views.page(report), encoding="utf-8")
    if own.json:
        print(strict_json(report), file=stdout)
    else:
        data_report_views.show(report, terminal(stdout))
    return 1 if report["failures"] else 0


# ---- one row ----


class CheckedRows(Dataset):
    """Data set with the check result of each row of all splits. Rows are opened and encoded as in training.

    Args:
        num_workers: maximum number of worker processes. `current` has the position that each worker is reading.
    """

    def __init__(self, splits: dict, collator, num_workers: int):
        self.splits, self.collator = splits, collator
        self.current = torch.full((num_workers,), -1).share_memory_()

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    def __getitem__(self, position: int) -> dict:
        position = int(position)
        self.current[get_worker_info().id] = position
        dataset, place = locate(self.splits, position)
        try:
            return self.describe(dataset, place) | {"position": position}
        except Exception as error:  # a bug in this code or in a library: check the other rows
            reason = f"{dataset.name}, sample {place}: {type(error).__name__}: {error}"
            return {"position": position, "fault": "crash", "reason": reason}

    def describe(self, dataset, place: int) -> dict:
        row = dataset.rows[place]
        if row is None:
            index, number = dataset.locate(place)
            try:
                index.row(number)
            except ValueError:
                return {"fault": "row", "reason": dataset.errors[place]}
            return medium_fault(dataset.errors[place])
        found = {"kind": Layout.of(row["messages"]).kind}
        try:
            sample = dataset[place]
        except ValueError as error:
            return found | medium_fault(str(error))
        found["typed"] = self.collator.template.holds_frame_tokens(sample["messages"])
        return found | fingerprints(row) | self.measure(sample)

    def measure(self, sample: dict) -> dict:
        """Return the token counts of an opened sample before any cut, and the effect of --model_max_length."""
        template = self.collator.template
        try:
            with naming(sample["source"], self.collator.processor):
                template.check_layout(sample["messages"])
                template.check_rendering(sample["messages"])
            whole = self.collator.encode(sample, within_budget=False).inputs
        except OverlongSample:  # raised even without a length limit if no token would be trained
            return {"fault": "no label", "reason": f"{sample['source']}: none of its tokens would be trained"}
        except ValueError as error:
            return {"fault": "refused", "reason": str(error)}
        ids = whole["input_ids"][0]
        masks = {kind: self.collator.is_media(ids, kind) for kind in ("image", "video")}
        has_video = any(part["type"] == "video" for part in content_parts(sample))
        if has_video and not len(self.collator.media_token_ids["video"]):  # frames are passed as images
            masks = {"image": masks["video"], "video": masks["image"]}
        tokens = {kind: int(mask.sum()) for kind, mask in masks.items()}
        found = {"text": len(ids) - sum(tokens.values()), **tokens}
        kept, cut = whole, 0
        if (most := self.collator.budget.max_length) and len(ids) > most:
            try:
                kept, _, cut = self.collator.encode(sample)
            except OverlongSample as error:
                return found | {"fault": "overlong", "reason": str(error)}
        return found | {"labels": int((kept["labels"] != IGNORE_INDEX).sum()), "cut": cut}


def locate(splits: dict, position: int) -> tuple:
    """Return the data set of a row, and the row's index there. `position` counts through all splits in order."""
    for dataset in splits.values():
        if position < len(dataset):
            return dataset, position
        position -= len(dataset)
    raise IndexError(position)


def medium_fault(message: str) -> dict:
    return {"fault": "missing" if MISSING.search(message) else "broken", "reason": message}


def fingerprints(row: dict) -> dict:
    """Return two hashes: of the whole content of a row, and of its user messages. Media are hashed by their bytes."""
    content, question = [], []
    for message in row["messages"]:
        parts = [(p["type"], p["text"] if p["type"] == "text" else digest(p[p["type"]])) for p in message["content"]]
        named = {name: value for name, value in message.items() if name in (*MESSAGE_FIELDS, "tools")}
        content.append((message["role"], parts, named))
        question += parts if message["role"] == "user" else []
    hashes = {"content": content, "question": question}
    return {name: hash_of(json.dumps(value).encode())[:16] for name, value in hashes.items()}


# ---- all rows ----


class Results:
    """The results of all rows: a few numbers per row, and the reason for each row that cannot be used."""

    def __init__(self, splits: dict):
        self.splits = splits
        self.starts = list(accumulate(map(len, splits.values()), initial=0))
        self.rows = np.zeros(self.starts[-1], ROW)
        self.rows["fault"] = NOT_DONE
        self.reasons: dict[int, str] = {}  # position -> why the row cannot be used

    def add(self, found: dict) -> None:
        """Store the result of a row."""
        counts = [found.get(name, 0) for name in ("text", "image", "video", "labels", "cut", "typed")]
        hashes = [int(found.get(name, "0"), 16) for name in ("content", "question")]
        kind = ROW_KINDS.index(found.get("kind", "unreadable"))
        self.rows[found["position"]] = (CODES[found.get("fault")], kind, *counts, *hashes)
        if "fault" in found:
            self.reasons[found["position"]] = found["reason"]

    def name(self, position: int) -> str:
        """Return the file of a readable row, and the row's position in the file."""
        dataset, place = locate(self.splits, position)
        return dataset.rows[place]["source"]


def check_rows(splits: dict, collator, results: Results, num_workers: int) -> None:
    """Check all rows.

    Raises:
        ValueError: a row kills the process that opens it; the message names the rows that were being opened.
    """
    rows = CheckedRows(splits, collator, num_workers)
    columns = [TextColumn("checking rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=terminal(sys.stderr)) as progress:
        bar = progress.add_task("", total=len(rows))
        try:
            for found in workers(rows, num_workers):
                results.add(found)
                progress.advance(bar)
        except RuntimeError as error:  # from torch: a worker process died
            open_ones = [row for row in rows.current.tolist() if row >= 0 and results.rows["fault"][row] == NOT_DONE]
            names = "; ".join(results.name(row) for row in sorted(open_ones))
            raise ValueError(
                f"A row kills the process that opens it (a media file may crash its decoder): one of {names}. "
                "Pass --dataloader_num_workers 1 to find the row."
            ) from error


def workers(rows: CheckedRows, number: int) -> DataLoader:
    return DataLoader(rows, batch_size=None, num_workers=number, in_order=False)


# ---- what was found ----


def results_of(arguments, budget, splits: dict, results: Results, notes: dict, num_processes: int) -> dict:
    """Return everything that the tables and the page show, as plain numbers and texts."""
    report = {"model_id": arguments.model.model_id, "model_max_length": arguments.data.model_max_length, "data": {}}
    for start, (split, dataset) in zip(results.starts, splits.items()):
        rows, held = results.rows[start : start + len(dataset)], Counter()
        for layout, _, positions in dataset.groups():
            held.update({f"with {name}": len(positions) for name, sign in Layout.SIGNS.items() if sign in layout})
        found = {"name": dataset.name} | describe_split(results, start, rows)
        found["kinds"] |= held
        found["advice"] = budget.advice(dataset, np.flatnonzero(rows["fault"] == CODES["overlong"]))
        cost = cost_of_replies(dataset, sum(rows[kind] for kind in ("text", "image", "video")))
        found["notes"] = notes[split] + [cost] * bool(cost)
        report["data"][split] = found
    if "eval" in splits:
        report["overlap"] = shared_with_training(results)
    report["failures"], report["notes"] = reasons(report, arguments)
    report["state"] = of_check(report["failures"], report["notes"]).state
    for found in report["data"].values():
        report["notes"] += [note for note in found["notes"] if not is_warning(note)]
    report["epoch"] = epoch(splits["train"], results.rows[: results.starts[1]], arguments, num_processes)
    return report


def describe_split(results: Results, start: int, rows: np.ndarray) -> dict:
    good, measured = rows["fault"] == 0, rows[rows["text"] > 0]
    tokens = {kind: measured[kind] for kind in ("text", "image", "video")}
    total = sum(tokens.values())
    tokens = {"all": total, **tokens, "trained": rows["labels"][good]}
    faults = {}
    for fault, meaning in FAULTS.items():
        if len(positions := np.flatnonzero(rows["fault"] == CODES[fault])):
            examples = [results.reasons[start + i] for i in positions[:NUM_EXAMPLES]]
            faults[fault] = {"rows": len(positions), "meaning": meaning, "examples": examples}
    visual = rows["image"] + rows["video"]
    costly = [i for i in np.argsort(-visual, kind="stable")[:NUM_EXAMPLES] if visual[i]]
    return {
        "rows": len(rows),
        "good": int(good.sum()),
        "kinds": {kind: int((rows["kind"] == code).sum()) for code, kind in enumerate(ROW_KINDS)},
        "tokens": {name: spread(values) for name, values in tokens.items()},
        "histograms": {"tokens": histogram(total), "labels": histogram(tokens["trained"])},
        "over_budget": {"rows": int((rows["cut"] > 0).sum() + (rows["fault"] == CODES["overlong"]).sum())},
        "cut": {"rows": int((rows["cut"] > 0).sum()), "tokens": int(rows["cut"].sum())},
        "typed": {"rows": int(rows["typed"].sum())},
        "trained_tokens": int(tokens_within_budget(rows)[good].sum()),
        "faults": faults,
        "duplicates": duplicates(results, start, rows),
        "costly": [
            {"source": results.name(start + i)} | {kind: int(rows[kind][i]) for kind in ("image", "video", "text")}
            for i in costly
        ],
    }


def tokens_within_budget(rows: np.ndarray) -> np.ndarray:
    return rows["text"] + rows["image"] + rows["video"] - rows["cut"]


def spread(values: np.ndarray) -> dict:
    """Return sum, mean and percentiles over rows."""
    if not len(values):
        values = np.zeros(1, int)
    p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    mean = float(values.mean())
    return {"sum": int(values.sum()), "mean": mean, "p50": p50, "p90": p90, "p99": p99, "max": int(values.max())}


def histogram(values: np.ndarray) -> dict:
    """Return a histogram of the positive values. The bins are logarithmic if the range is wider than a factor of 20."""
    values = values[values > 0]
    if not len(values):
        return {"counts": [0], "edges": [0, 1], "scale": "linear"}
    low, high = int(values.min()), int(values.max()) + 1
    scale, spaced = ("log", np.geomspace) if high > 20 * low else ("linear", np.linspace)
    counts, edges = np.histogram(values, spaced(low, high, min(40, high - low) + 1))
    return {"counts": counts.tolist(), "edges": edges.tolist(), "scale": scale}


def duplicates(results: Results, start: int, rows: np.ndarray) -> dict:
    """Find rows that repeat an earlier row, word for word and byte for byte."""
    opened = np.flatnonzero(rows["content"])
    _, first, inverse = np.unique(rows["content"][opened], return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(opened)))
    pairs = [(opened[first[inverse[i]]], opened[i]) for i in repeated[:NUM_EXAMPLES]]
    return {"rows": len(repeated), "examples": [[results.name(start + i) for i in pair] for pair in pairs]}


def shared_with_training(results: Results) -> dict:
    """Find evaluation rows whose whole content, or whose media and questions, also occur in a training row."""
    train, held_out = np.split(results.rows, results.starts[1:2])
    found, exact = {}, np.zeros(len(held_out), bool)
    for name in ("content", "question"):
        shared = np.isin(held_out[name], train[name][train[name] > 0]) & ~exact
        exact |= shared
        examples = []
        for i in np.flatnonzero(shared)[:NUM_EXAMPLES]:
            twin = np.flatnonzero(train[name] == held_out[name][i])[0]
            examples.append({"train": results.name(twin), "eval": results.name(len(train) + i)})
        found[name] = {"rows": int(shared.sum()), "examples": examples}
    return found


def reasons(report: dict, arguments) -> tuple[list[str], list[str]]:
    """Return the reasons why training would fail, and notes to read before it starts."""
    data, failures, notes = arguments.data, [], []
    for of_split in report["data"].values():
        name = of_split["name"]
        number = {fault: found["rows"] for fault, found in of_split["faults"].items()}
        bad, overlong = sum(number.get(fault, 0) for fault in BAD), number.get("overlong", 0)
        if bad and data.on_bad_sample == "error":
            failures.append(f"{rows_of(bad, name)} cannot be used (to skip them: --on_bad_sample skip)")
        elif bad and bad > data.max_bad_samples:
            failures.append(f"{rows_of(bad, name)} cannot be used, more than --max_bad_samples {data.max_bad_samples}")
        elif bad:
            notes.append(f"{rows_of(bad, name)} skipped")
        if overlong and not data.drop_overlong:
            budget = f"--model_max_length {data.model_max_length}"
            fixes = [*filter(None, [of_split["advice"]]), "to drop them: --drop_overlong True"]
            failures.append(f"{rows_of(overlong, name)} too long for {budget} ({'; '.join(fixes)})")
        elif overlong:
            notes.append(f"{rows_of(overlong, name)} dropped")
        if number.get("crash"):
            failures.append(f"{rows_of(number['crash'], name)} would end the run")
        if not of_split["good"]:
            failures.append(f"{name} has no usable row")
        notes += filter(is_warning, of_split["notes"])
        if of_split["cut"]["rows"]:
            notes.append(f"{rows_of(of_split['cut']['rows'], name)} cut")
        if typed := of_split["typed"]["rows"]:
            notes.append(f"{rows_of(typed, name)} with a control token, such as </s>, as text: it stays text")
    for same, meaning in SHARED.items():
        if number := report.get("overlap", {}).get(same, {"rows": 0})["rows"]:
            notes.append(f"{rows_of(number, report['data']['eval']['name'])} {meaning}")
    kinds = report["data"]["train"]["kinds"]
    if not any(kinds[kind] for kind in ROW_KINDS[1:-1]):
        for flag in ("train_vision_encoder", "train_vision_projector"):
            if getattr(arguments.model, flag):
                failures.append(f"--{flag} True has no effect without images and videos")
    return failures, notes


def is_warning(note: str) -> bool:
    return note.startswith("WARNING")


def rows_of(number: int, name: str) -> str:
    return f"{number:,} row{'s' * (number != 1)} of {name}"


def epoch(dataset, rows: np.ndarray, arguments, num_processes: int) -> dict:
    """Return the steps and tokens of an epoch over the usable rows, counted as the Trainer does."""
    training = arguments.training
    good = np.flatnonzero(rows["fault"] == 0)
    dataset = dataset.part(good)
    number = dataset.epoch_size
    total_tokens = round(float(dataset.row_weights() @ tokens_within_budget(rows)[good]))
    whole = math.floor if training.dataloader_drop_last else math.ceil
    batches = whole(number / (training.per_device_train_batch_size * num_processes))
    steps = math.ceil(batches / training.gradient_accumulation_steps)
    total = training.max_steps if training.max_steps > 0 else math.ceil(steps * training.num_train_epochs)
    return {
        "rows": number,
        "rows_per_step": training.per_device_train_batch_size * training.gradient_accumulation_steps * num_processes,
        "processes": num_processes,
        "steps": steps,
        "total_steps": total,
        "tokens": total_tokens,
        "tokens_per_step": round(total_tokens / steps) if steps else 0,
    }
