"""Several workers on one ledger: they share the work, and do that of those who die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from active_learning import registry
from active_learning.ledger import Ledger, Prediction, Project, Task, TaskStatus, WorkerLease
from backend import lease as leases
from backend.lease import NAME, Lease, share_of

ROOT = Path(__file__).parents[2]
PROCESS = Path(__file__).parent / "prefill_process.py"


class Team:
    def __init__(self, ledger: Ledger, url: str, state: Path) -> None:
        self.ledger = ledger
        self.url = url
        self.state = state
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, kind: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "ELNET_DATABASE_URL": self.url}
        command = [sys.executable, str(PROCESS), str(self.state), kind]
        with (self.state / "log").open("ab") as said:
            started = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        self.processes.append(started)
        return started

    def said(self) -> str:
        return (self.state / "log").read_text()

    def count(self, what: Any) -> int:
        with self.ledger.session(write=False) as session:
            return session.scalar(select(func.count(what))) or 0

    def until(self, what: Callable[[], Any], within_s: float = 120) -> None:
        deadline = time.monotonic() + within_s
        while not what():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def predicted_by(self, process: subprocess.Popen[bytes]) -> int:
        told = re.findall(rf"^{process.pid} predicted (\d+) images", self.said(), re.MULTILINE)
        return sum(map(int, told))


def furnish(ledger: Ledger, count: int) -> None:
    ledger.upgrade()
    with ledger.session() as session:
        project = Project(
            name="spills", tool_url="http://tool", tool_project_id=7, classes=["oil"], accept_threshold=0.5
        )
        session.add(project)
        session.flush()
        registry.promote(session, registry.register(session, project, Path("nowhere"), "0" * 64))
        session.add_all(
            Task(project_id=project.id, tool_task_id=i, image_uri=f"{i}.png", scene=f"{i}")
            for i in range(count)
        )


@pytest.fixture
def make_team(postgresql_url: str, tmp_path: Path) -> Iterator[Callable[[int], Team]]:
    made: list[Team] = []

    def make(count: int) -> Team:
        ledger = Ledger(postgresql_url)
        furnish(ledger, count)
        made.append(Team(ledger, postgresql_url, tmp_path))
        return made[-1]

    yield make
    for team in made:
        for process in team.processes:
            process.kill()
            process.wait()
        team.ledger.close()


def test_three_share_the_work_and_do_that_of_the_one_who_is_killed(make_team: Callable[[int], Team]) -> None:
    team = make_team(360)
    worker, one, other = (team.start(kind) for kind in ("all", "prefill", "prefill"))
    team.until(lambda: all(team.predicted_by(p) for p in (worker, one, other)))
    one.send_signal(signal.SIGKILL)
    team.until(lambda: team.count(Prediction.id) == 360)
    assert team.predicted_by(worker) + team.predicted_by(one) + team.predicted_by(other) <= 360
    with team.ledger.session(write=False) as session:
        assert session.scalar(select(func.count(Prediction.task_id.distinct()))) == 360
        waiting = select(Task.id).where(Task.status.in_((TaskStatus.WAITING, TaskStatus.FAILED)))
        assert session.scalars(waiting).all() == []
    for process in (worker, other):
        process.terminate()
        assert process.wait(30) == 0
    with team.ledger.session(write=False) as session:  # who goes gives its share back at once
        assert [row.pid for row in session.scalars(select(WorkerLease))] == [one.pid]


def test_a_standby_takes_over_from_a_worker_that_is_killed(make_team: Callable[[int], Team]) -> None:
    team = make_team(40)
    worker = team.start("all")
    team.until(lambda: "worker started" in team.said())
    standby = team.start("standby")
    team.until(lambda: "standing by" in team.said())
    worker.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    team.until(lambda: team.said().count("worker started") == 2, within_s=leases.STALE_S + 10)
    assert time.monotonic() - killed < leases.STALE_S + 5
    team.until(lambda: team.count(Prediction.id) == 40)
    standby.terminate()
    assert standby.wait(30) == 0


def test_shares_are_of_those_whose_heart_beats(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (share_of(ledger, NAME).number, share_of(ledger, NAME).of) == (0, 1)  # not even itself is known
    with Lease(ledger, lambda: None, "prefill-b"), Lease(ledger, lambda: None, "prefill-a"):
        with Lease(ledger, lambda: None):
            found = [share_of(ledger, name) for name in ("prefill-a", "prefill-b", NAME)]
            assert [(share.number, share.of) for share in found] == [(0, 3), (1, 3), (2, 3)]
        assert share_of(ledger, "prefill-b").of == 2
        monkeypatch.setattr(leases, "STALE_S", -1.0)
        assert share_of(ledger, "prefill-b").of == 1
