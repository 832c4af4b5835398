from __future__ import annotations

import re

from benchmarks import desk


def test_every_page_is_measured(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["desk", "--tasks", "120", "--runs", "1"])
    desk.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][
        1:
    ]
    assert [row[0].strip() for row in rows] == [page or "overview" for page in desk.PAGES]
    assert all(re.fullmatch(r" \d+ ", cell) for row in rows for cell in row[1:])
