"""The benchmark of the ledger, on a few tasks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sqlalchemy import func, select

from active_learning import routing
from active_learning.ledger import Ledger, Project, Task, TaskStatus
from benchmarks import ledger as benchmark


def test_the_tasks_are_there_and_the_work_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "MADE", 120)  # the others are copies
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger:
        benchmark.fill(ledger, 1150)
        benchmark.fill(ledger, 1200)
        benchmark.fill(ledger, 1200)  # they are there
        assert routing.settle(ledger, 1) == 0
        for work in (benchmark.WORK | benchmark.QUERIES).values():
            work(ledger, 1)
        with ledger.session(write=False) as session:
            assert session.scalar(select(func.count()).select_from(Project)) == 1
            rows = session.execute(select(Task.status, Task.priority)).all()
    assert len(rows) == 1200
    assert {status for status, _ in rows} == {
        TaskStatus.DONE, TaskStatus.REVIEW, TaskStatus.ACCEPTED, TaskStatus.AUDIT,
    }  # fmt: skip
    assert all((p is not None) == (s in (TaskStatus.REVIEW, TaskStatus.AUDIT)) for s, p in rows)


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ledger", "--tasks", "60,30", "--runs", "1", "--queries", "2"])
    benchmark.main()
    said = capsys.readouterr().out
    assert said.index("| 30 | order the queue") < said.index("| 60 | order the queue")
    assert said.count("`elnet threshold`: eight thresholds") == 2
