"""Tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_WIDEST = 10_000  # characters


def print_table(console: Console, table: Table) -> None:
    """Print a table: folded to the width of a terminal, but as wide as it is into a file or a program."""
    before = console.width
    if not console.is_terminal:
        needed = Measurement.get(console, console.options.update(width=_WIDEST), table).maximum
        console.width = max(before, needed)
    console.print(table)
    console.width = before
