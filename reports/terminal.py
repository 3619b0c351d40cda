"""The terminal, by rich."""

from typing import TextIO

from rich.console import Console


def terminal(file: TextIO, **options) -> Console:
    """A console that prints text as it is: names of files and data may hold what rich takes for markup or emoji."""
    return Console(file=file, markup=False, emoji=False, highlight=False, **options)
