"""Time and memory of opening a data set of many rows, for the first and the second time, and of reading it shuffled.

Of the most rows, also the second opening of a slice with a weight, and the time to draw an epoch from it.

    python benchmarks/open_rows.py
    python benchmarks/open_rows.py --rows 1000 10000 --forms jsonl arrow tar

Makes data sets of text and image references (to a few small pictures, or as many as --pictures says) in a temporary
folder, about 1 GB for a million rows in three forms. Each opening is a process of its own. Seconds are those of the
clock and of the processor, which others that are busy hardly change. Memory is what opening added to a process that
has imported the code: at its peak, and kept (pages that no other process shares).
"""

import argparse
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from PIL import Image  # noqa: E402

SLICE = "[10%:90%]:0.5"
ACCESSES = 2000
ANSWER = "It is a plain square of one colour, with nothing else in the picture. " * 3


def row(i: int, pictures: int) -> dict:
    return {
        "id": f"{i:012}",
        "image": f"{i % pictures}.png",
        "conversations": [
            {"from": "human", "value": f"<image>\nWhat do you see in picture {i}?"},
            {"from": "gpt", "value": ANSWER},
        ],
    }


def write(path: Path, count: int, pictures: int) -> None:
    """`count` rows, in the form that the ending names."""
    if path.suffix in (".parquet", ".arrow"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        new = pq.ParquetWriter if path.suffix == ".parquet" else pa.ipc.new_stream
        with new(str(path), pa.Table.from_pylist([row(0, pictures)]).schema) as writer:
            for start in range(0, count, 1000):
                rows = [row(i, pictures) for i in range(start, min(start + 1000, count))]
                writer.write_table(pa.Table.from_pylist(rows))
        return
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as tar:
            for i in range(count):
                data, member = json.dumps(row(i, pictures)).encode(), tarfile.TarInfo(f"{i:09}.json")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                tar.members.clear()
        return
    is_list = path.suffix == ".json"
    with open(path, "w") as file:
        file.write("[" if is_list else "")
        for i in range(count):
            file.write((",\n" if is_list and i else "") + json.dumps(row(i, pictures)) + ("" if is_list else "\n"))
        file.write("]" if is_list else "")


def measure_opening(path: str, cache: str) -> dict:
    """In a process of its own: seconds by the clock and of the processor, and MB at the peak and kept."""
    from reading.dataset import MultimodalDataset
    from reading.options import MediaOptions

    process, usage = psutil.Process(), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peak, kept, start, cpu = usage(), process.memory_full_info().uss, time.perf_counter(), time.process_time()
    dataset = MultimodalDataset(path, media=MediaOptions(cache_folder=cache))
    assert dataset.rows[len(dataset) - 1]["messages"]
    found = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "peak": usage() - peak}
    return found | {"kept": (process.memory_full_info().uss - kept) / 2**20}


def measure_epoch(path: str, cache: str) -> dict:
    """As `measure_opening`, and the seconds that the positions of an epoch take."""
    from reading.dataset import MultimodalDataset
    from reading.options import MediaOptions

    found = measure_opening(path, cache)
    dataset, start = MultimodalDataset(path, media=MediaOptions(cache_folder=cache)), time.perf_counter()
    assert len(dataset.epoch_rows(0, 0)) == dataset.epoch_size
    return found | {"epoch": time.perf_counter() - start}


def measure_reading(path: str, cache: str) -> dict:
    """Rows per second in random order, pictures opened, by this process and by two workers, once they have started."""
    from torch.utils.data import DataLoader

    from reading.dataset import MultimodalDataset
    from reading.options import MediaOptions

    dataset = MultimodalDataset(path, media=MediaOptions(cache_folder=cache))
    positions = [random.Random(0).randrange(len(dataset)) for _ in range(ACCESSES)]
    rates = {}
    for workers in (0, 2):
        loader = DataLoader(dataset, sampler=positions, batch_size=8, collate_fn=list, num_workers=workers)
        batches = iter(loader)
        next(batches)
        start = time.perf_counter()
        read = sum(len(batch) for batch in batches)
        rates[str(workers)] = read / (time.perf_counter() - start)
    return rates


def in_child(task: str, path: Path | str, cache: Path) -> dict:
    command = [sys.executable, __file__, "--task", task, str(path), str(cache)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--forms", nargs="+", default=["jsonl", "json", "parquet"])
    parser.add_argument("--pictures", type=int, default=8, help="Files of pictures that the rows share.")
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)  # of a child
    own = parser.parse_args()
    if own.task:
        tasks = {"open": measure_opening, "read": measure_reading, "epoch": measure_epoch}
        print(json.dumps(tasks[own.task[0]](*own.task[1:])))
        return
    print(
        "form      rows       file MB | first: s   cpu s  peak MB  kept MB | second: s cpu s  peak MB  kept MB | rows/s"
        "  2 workers"
    )
    sliced = []
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (64, 64), (30, 99, 99)).save(first := os.path.join(folder, "0.png"))
        for i in range(1, own.pictures):
            shutil.copyfile(first, os.path.join(folder, f"{i}.png"))
        for form in own.forms:
            results = []
            for count in own.rows:
                path, cache = Path(folder) / f"{count}.{form}", Path(folder) / f"cache-{count}-{form}"
                write(path, count, own.pictures)
                first, second = (in_child("open", path, cache) for _ in range(2))
                rates = in_child("read", path, cache)
                results.append((first, second))
                opened = " | ".join(
                    f"{r['seconds']:8.2f} {r['cpu']:7.2f} {r['peak']:8.1f} {r['kept']:8.1f}" for r in (first, second)
                )
                megabytes, (alone, two) = path.stat().st_size / 1e6, (rates["0"], rates["2"])
                print(f"{form:8} {count:9,} {megabytes:9.1f}   | {opened} | {alone:6.0f} {two:8.0f}", flush=True)
                if count == max(own.rows):
                    sliced.append((form, count, in_child("epoch", f"{path}{SLICE}", cache)))
                path.unlink()
            summarise(form, own.rows, results)
    for form, count, r in sliced:
        opened = f"second opening {r['seconds']:.2f} s, {r['peak']:.1f} MB at its peak, {r['kept']:.1f} MB kept"
        print(f"{form}: {count:,} rows as PATH{SLICE}: {opened}; drawing an epoch {r['epoch']:.3f} s")


def summarise(form: str, counts: list[int], results: list[tuple[dict, dict]]) -> None:
    """How both openings grow from the fewest rows to the most, and how near the first's processor time is to a line."""
    if len(counts) < 3:
        return
    growth = counts[-1] / counts[0]
    for name, what in (("seconds", "seconds"), ("peak", "MB at its peak"), ("kept", "MB kept")):
        low, high = results[0][1][name], results[-1][1][name]
        print(f"{form}: second opening, {growth:g} times the rows: {low:.2f} -> {high:.2f} {what}")
    seconds = np.array([first["cpu"] for first, _ in results])
    slope, start = np.polyfit(counts, seconds, 1)
    error = np.abs(start + slope * np.array(counts) - seconds).max()
    line = f"{start:.2f} s of the processor + {slope * 1e6:.2f} s per million rows, at most {error:.2f} s off"
    print(f"{form}: first opening: {line}\n")


if __name__ == "__main__":
    main()
