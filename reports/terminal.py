"""The console for output on the terminal (rich)."""

from typing import TextIO

from rich.console import Console


def terminal(file: TextIO, **options) -> Console:
    """Return a console that prints text unchanged, even if it looks like markup or emoji of rich."""
    return Console(file=file, markup=False, emoji=False, highlight=False, **options)
