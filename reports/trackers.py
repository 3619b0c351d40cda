"""Send tables of held-out answers and their images to the trackers of `--report_to`: tensorboard, wandb, trackio."""

import os
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from itertools import islice

import numpy as np
from PIL import Image, ImageOps
from transformers import TrainerCallback

from reading.dataset import MultimodalDataset
from reports.run_report import shown_answers

COLUMNS = ["row", "question", "reference", "answer", "right", "media"]
MOST_ANSWERS, MOST_PICTURES, HEIGHT = 40, 8, 160  # answers per table, pictures per row, pixels


class AnswerTables(TrainerCallback):
    """Callback that sends the answers of each evaluation, wrong ones first, to the trackers of `--report_to`."""

    def __init__(self, dataset: MultimodalDataset):
        self.dataset = dataset

    def on_evaluate(self, args, state, control, **kwargs):
        senders = [send for name, send in SENDERS.items() if name in args.report_to]
        if args.eval_generate and senders and state.is_world_process_zero:
            rows = list(table_rows(args.output_dir, self.dataset, state.global_step))
            for send in senders:
                send(rows, state.global_step, args.output_dir)


def table_rows(output_dir: str, dataset: MultimodalDataset, step: int) -> Iterator[list]:
    """Yield the values of COLUMNS for each answer. "media" is one image with all media side by side, or None."""
    for answer, shown in shown_answers(output_dir, dataset, step, MOST_ANSWERS):
        texts = [answer[name] for name in ("index", "question", "reference", "prediction", "exact_match")]
        yield [*texts, side_by_side([picture for _, picture, _ in islice(shown, MOST_PICTURES)])]


def side_by_side(pictures: list[Image.Image]) -> Image.Image | None:
    small = [ImageOps.contain(picture.convert("RGB"), (4 * HEIGHT, HEIGHT)) for picture in pictures]
    if not small:
        return None
    strip, left = Image.new("RGB", (sum(picture.width for picture in small), HEIGHT)), 0
    for picture in small:
        strip.paste(picture, (left, 0))
        left += picture.width
    return strip


# ---- one function per tracker ----


def to_tensorboard(rows: list[list], step: int, output_dir: str) -> None:
    """Write the table as text and the media as images, to a separate run named `answers`."""
    from torch.utils.tensorboard import SummaryWriter

    lines = [COLUMNS[:-1], ["---"] * len(COLUMNS[:-1]), *(texts for *texts, _ in rows)]
    cells = [[str(cell).replace("|", "\\|").replace("\n", "<br>") for cell in line] for line in lines]
    with SummaryWriter(os.path.join(output_dir, "runs", "answers")) as writer:
        writer.add_text("answers", "\n".join(f"| {' | '.join(line)} |" for line in cells), step)
        for number, picture in {row[0]: row[-1] for row in rows if row[-1]}.items():
            writer.add_image(f"answers/row {number}", np.asarray(picture), step, dataformats="HWC")


def to_table(name: str, rows: list[list], step: int, output_dir: str) -> None:
    """Log the table to wandb or trackio, which share an API, as `answers`, because `eval/answers` is a number."""
    tracker = import_module(name)
    data = [[*texts, picture and tracker.Image(picture)] for *texts, picture in rows]
    tracker.log({"answers": tracker.Table(columns=COLUMNS, data=data), "train/global_step": step})


SENDERS = {"tensorboard": to_tensorboard, "wandb": partial(to_table, "wandb"), "trackio": partial(to_table, "trackio")}
