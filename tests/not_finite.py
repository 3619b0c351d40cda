"""train.py with a loss that is not finite: `NOT_FINITE` is "rank:step", from 1; a step of 0 means every step."""

import os

import train
from training import trainer


def main() -> None:
    rank, step = map(int, os.environ["NOT_FINITE"].split(":"))
    if int(os.environ.get("RANK", 0)) == rank:
        plant(step)
    train.main()


def plant(step: int, monkeypatch=None) -> None:
    """Multiply the losses of a step by infinity."""
    label_losses, calls = trainer.label_losses, []

    def planted(model, *args):
        losses, *others = label_losses(model, *args)
        if model.training:
            calls.append(1)
            losses = losses * (float("inf") if step in (0, len(calls)) else 1.0)
        return losses, *others

    (monkeypatch.setattr if monkeypatch else setattr)(trainer, "label_losses", planted)
