from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from backend.tables import print_table

PATH = "/a/long/path/" + "x" * 200


@pytest.fixture
def table() -> Table:
    table = Table(box=None)
    for name in ("version", "path"):
        table.add_column(name, overflow="fold")
    table.add_row("elnet-0001", PATH)
    return table


def test_into_a_file_nothing_is_folded(table: Table) -> None:
    out = io.StringIO()
    print_table(Console(file=out, width=40), table)
    head, line = out.getvalue().splitlines()
    assert head.split() == ["version", "path"]
    assert line.split() == ["elnet-0001", PATH]


def test_on_a_terminal_it_keeps_to_the_width(table: Table) -> None:
    out = io.StringIO()
    print_table(Console(file=out, width=40, force_terminal=True, color_system=None, no_color=True), table)
    lines = out.getvalue().splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 40 + len("\x1b[1m\x1b[0m") * 2
    assert "".join(line.split()[-1] for line in lines[1:]) == PATH
