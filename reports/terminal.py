"""The terminal, by rich."""

from typing import TextIO

from rich.console import Console


def terminal(file: TextIO, **options) -> Console:
    """A console that prints text as it is: file names and data may contain what rich takes for markup or emoji."""
    return Console(file=file, markup=False, emoji=False, highlight=False, **options)
