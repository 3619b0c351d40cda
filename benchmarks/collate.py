"""CPU time of a row from its file to a batch, as a ratio to the checkpoint's own processor.

    python benchmarks/collate.py
    python benchmarks/collate.py llava-1.5 qwen2-vl

Makes tiny checkpoints with image sizes as large as the families' own, and noisy JPEG files, in a temporary folder;
needs no network. One thread. Ways take turns; shown are medians of the times and of the ratios within a turn:

    ours        opening, rendering, tokens, pixels, labels, a batch of one (MultimodalDataset, ChatCollator)
    bare        decoding with Pillow and one call of the processor as it comes, with the text ready and no labels
    decode      decoding alone
    limit       bare, where the fastest decoder that is installed (simplejpeg, OpenCV, torchvision) hands tensors to the
                processor, whose resizing is torchvision's: the fastest of those that are exact (pip install simplejpeg)
    draft       ours with --image_size 512 --jpeg_draft True, beside `to 512`, the same without the draft
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision.io import decode_jpeg, read_file  # noqa: E402
from transformers import AutoProcessor  # noqa: E402

from collators import COLLATORS  # noqa: E402
from loaders import LOADERS  # noqa: E402
from reading.dataset import MultimodalDataset  # noqa: E402
from reading.options import MediaOptions  # noqa: E402
from tiny_checkpoints import make_tiny_checkpoint  # noqa: E402

TURNS = 7
# Sizes of the released checkpoints; the tiny ones have small images.
SIZES = {
    "llava-1.5": {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    "llava-onevision": {
        "size": {"height": 384, "width": 384},
        "image_grid_pinpoints": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
    },
    "qwen2-vl": {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}},
    "qwen2.5-vl": {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}},
    "gemma-3": {"size": {"height": 896, "width": 896}},
    "internvl3": {"size": {"height": 448, "width": 448}},
    "smolvlm2": {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
    "pixtral": {"size": {"longest_edge": 1024}, "patch_size": {"height": 16, "width": 16}},
}
IMAGES = {"178x218": (178, 218), "1152x864": (1152, 864), "1920x1080": (1920, 1080), "4000x3000": (4000, 3000)}


def write_photo(path: Path, width: int, height: int) -> None:
    grain = np.random.default_rng(0).integers(0, 12, (height, width, 3), dtype=np.uint8)
    hills = np.add.outer(np.sin(np.arange(height) / 90), np.cos(np.arange(width) / 120)) * 50 + 110
    Image.fromarray((hills[..., None] + grain).astype(np.uint8)).save(path, quality=90)


def decoders() -> dict[str, Callable[[Path], torch.Tensor]]:
    """Name of a package -> JPEG file to RGB (3, height, width), all to the same pixels but for their last bit."""
    found = {"torchvision": lambda path: decode_jpeg(read_file(str(path)))}
    with contextlib.suppress(ImportError):
        import simplejpeg

        found["simplejpeg"] = lambda path: torch.from_numpy(simplejpeg.decode_jpeg(path.read_bytes())).permute(2, 0, 1)
    with contextlib.suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)
        color = cv2.IMREAD_COLOR_RGB
        found["OpenCV"] = lambda path: torch.from_numpy(cv2.imread(str(path), color)).permute(2, 0, 1)
    return found


def fastest(files: list[str]) -> Callable[[Path], torch.Tensor]:
    ways = decoders()
    turns = measure({name: partial(way, Path(files[0])) for name, way in ways.items()})
    return ways[min(ways, key=lambda name: statistics.median(turn[name] for turn in turns))]


def make_checkpoint(family: str, path: Path) -> None:
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        make_tiny_checkpoint(family, str(path))
    processor = AutoProcessor.from_pretrained(path)
    images = processor.image_processor
    processor.image_processor = type(images).from_dict(images.to_dict(), **SIZES[family])
    processor.save_pretrained(path)


def write_rows(folder: Path) -> dict[str, Path]:
    """Rows of several kinds, a file each."""
    question = {"from": "human", "value": "<image>\nWhat is it?"}
    reply = {"from": "gpt", "value": "A range of hills in the sun."}
    rows = {name: {"image": f"{name}.jpg", "conversations": [question, reply]} for name in IMAGES}
    four = question | {"value": "<image>\n" * 4 + "Which is it?"}
    rows["4 images"] = {"image": ["178x218.jpg"] * 4, "conversations": [four, reply]}
    long = {"from": "human", "value": "What colour is the circle? " * 330}
    rows["text only"] = {"conversations": [long, reply]}
    paths = {name: folder / f"{name}.json" for name in rows}
    for name, path in paths.items():
        path.write_text(json.dumps([rows[name]]))
    return paths


def measure(ways: dict) -> list[dict[str, float]]:
    """CPU-ms of a call of each way, for each turn."""
    for way in ways.values():
        way()
    turns = []
    for _ in range(TURNS):
        turn = {}
        for name, way in ways.items():
            start = time.process_time()
            way()
            turn[name] = (time.process_time() - start) * 1000
        turns.append(turn)
    return turns


def compare(family: str, checkpoint: Path, rows: dict[str, Path]) -> None:
    """Prints a line for each kind of row."""
    own = AutoProcessor.from_pretrained(checkpoint)
    collator = COLLATORS.get(family)(LOADERS.get(family)(str(checkpoint)).load_processor())
    for kind, path in rows.items():
        options = {"": {}, "to 512": {"image_size": "512"}, "draft": {"image_size": "512", "jpeg_draft": True}}
        datasets = {name: MultimodalDataset(str(path), media=MediaOptions(**flags)) for name, flags in options.items()}
        row = datasets[""].rows[0]
        files = [part["image"] for message in row["messages"] for part in message["content"] if "image" in part]
        text = collator.template.render(row["messages"])[0]

        def decode(files=files):
            images = []
            for file in files:
                with Image.open(file) as image:
                    images.append(image.convert("RGB"))
            return images

        def bare(text=text, decode=decode):
            media = {"images": [images]} if (images := decode()) else {}
            return own(text=[text], return_tensors="pt", **media)

        def limit(decode, text=text, files=files):
            return own(text=[text], return_tensors="pt", images=[[decode(Path(file)) for file in files]])

        ways = {"ours": lambda d=datasets[""]: collator([d[0]]), "bare": bare}
        if files:
            ways |= {"decode": decode, "limit": partial(limit, decode=fastest(files))}
        if kind == "1920x1080":
            ways |= {name: lambda d=datasets[name]: collator([d[0]]) for name in ("to 512", "draft")}
        turns = measure(ways)
        times = {name: statistics.median(turn[name] for turn in turns) for name in ways}
        names = ("ours", "bare", "decode", "limit")
        columns = [f"{times[name]:>8.1f}" if name in times else " " * 8 for name in names]
        for other, one in (("bare", "ours"), ("ours", "limit")):
            ratios = [turn[one] / turn[other] for turn in turns if one in times]
            columns.append(f"{statistics.median(ratios):>13.2f}" if ratios else " " * 13)
        columns += [f"{times[name]:>8.1f}" for name in ("to 512", "draft") if name in times]
        print(f"{family:<16} {kind:<10}" + "".join(columns), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(SIZES), help="Default: all of the table in this file.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FINELMM_CACHE"] = str(folder / "cache")
        for image, size in IMAGES.items():
            write_photo(folder / f"{image}.jpg", *size)
        rows = write_rows(folder)
        times = "".join(f"{name:>8}" for name in ("ours", "bare", "decode", "limit"))
        print(f"{'CPU-ms':<27}{times}{'ours / bare':>13}{'limit / ours':>13}{'to 512':>8}{'draft':>8}")
        for family in args.families:
            make_checkpoint(family, folder / family)
            compare(family, folder / family, rows)


if __name__ == "__main__":
    main()
