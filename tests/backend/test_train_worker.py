"""Machines share a PostgreSQL and an S3 server; their workers share the cycles, and do those of the dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from active_learning import triggers
from active_learning.journal import TAKEN_OVER
from active_learning.ledger import (
    Cycle,
    CycleEvent,
    CycleState,
    Ledger,
    ModelVersion,
    Prediction,
    Project,
    Snapshot,
    WorkerLease,
)
from backend import lease as leases
from backend.settings import MediaSettings, Settings, SettingsError
from backend.train_worker import TrainWorker
from model.errors import ELNetError
from tests.backend import worker_process as process

ROOT = Path(__file__).parents[2]
PROCESS = Path(__file__).parent / "train_process.py"
STEPS = ["snapshot", "train", "evaluate", "gate", "promote", "recalibrate", "prefill"]


class Machines:
    """Each worker has a state folder and a cache of its own."""

    def __init__(self, ledger: Ledger, url: str, s3: Any, folder: Path) -> None:
        self.ledger = ledger
        self.folder = folder
        self.files = f"s3://{s3.bucket}/elnet"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "ELNET_DATABASE_URL": url,
            "ELNET_FILES": self.files,
            "ELNET_MEDIA__S3_ENDPOINT": s3.endpoint,
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, kind: str) -> subprocess.Popen[bytes]:
        machine = self.folder / f"machine-{len(self.processes)}"
        (machine / "state").mkdir(parents=True)
        own = {"ELNET_STATE": str(machine / "state"), "ELNET_HOME": str(machine / "cache")}
        command = [sys.executable, str(PROCESS), str(self.folder), kind]
        with (self.folder / "log").open("ab") as said:
            started = subprocess.Popen(command, env=self.environment | own, stdout=said, stderr=said)
        self.processes.append(started)
        return started

    def request(self) -> list[int]:
        with self.ledger.session() as session:
            projects = session.scalars(select(Project).order_by(Project.id)).all()
            return [triggers.request(session, project, "a test").id for project in projects]

    def runners(self) -> dict[int, int]:
        """Cycle -> pid of the worker that runs it."""
        with self.ledger.session(write=False) as session:
            rows = session.scalars(select(WorkerLease).where(WorkerLease.name.startswith("cycle-")))
            return {int(row.name.removeprefix("cycle-")): row.pid for row in rows}

    def said(self, cycle_id: int) -> list[CycleEvent]:
        with self.ledger.session(write=False) as session:
            return list(
                session.scalars(
                    select(CycleEvent).where(CycleEvent.cycle_id == cycle_id).order_by(CycleEvent.id)
                )
            )

    def state(self, cycle_id: int) -> CycleState:
        with self.ledger.session(write=False) as session:
            return session.get_one(Cycle, cycle_id).state

    def is_training(self, cycle_id: int) -> bool:
        return any("epoch" in event.data for event in self.said(cycle_id))

    def until(self, what: Callable[[], Any], within_s: float = 120) -> None:
        deadline = time.monotonic() + within_s
        while not what():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-8000:]
            time.sleep(0.05)

    def hide(self, pid: int) -> None:
        """Let a worker seem to be of another host: nobody here can see that it is dead."""
        with self.ledger.session() as session:
            session.execute(update(WorkerLease).where(WorkerLease.pid == pid).values(host="elsewhere"))


@pytest.fixture
def machines(
    postgresql_url: str, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machines]:
    monkeypatch.setenv("ELNET_DATABASE_URL", postgresql_url)
    for number in range(2):
        process.furnish(tmp_path, labelled=8, unlabelled=3, number=number)
    with Ledger(postgresql_url) as ledger:
        with ledger.session() as session:
            for project in session.scalars(select(Project)):
                project.training = {**process.TRAINING, "epochs": 40}
        made = Machines(ledger, postgresql_url, s3, tmp_path)
        yield made
        for worker in made.processes:
            worker.kill()
            worker.wait()


@pytest.mark.timeout(600)
def test_the_cycle_of_a_worker_that_is_killed_is_taken_over_by_another(machines: Machines) -> None:
    workers = [machines.start("train") for _ in range(3)]
    first, second = machines.request()
    machines.until(lambda: machines.is_training(first) and machines.is_training(second))
    before = machines.runners()
    assert set(before) == {first, second}
    assert len(set(before.values())) == 2  # each worker runs one at a time
    victim = next(worker for worker in workers if worker.pid == before[first])
    machines.hide(victim.pid)
    victim.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    machines.until(lambda: any(event.step == TAKEN_OVER for event in machines.said(first)))
    took = time.monotonic() - killed
    print(f"taken over after {took:.1f} s")
    assert took < 30
    assert machines.runners()[first] != victim.pid

    main = machines.start("serve")
    machines.until(lambda: machines.state(first) is machines.state(second) is CycleState.PROMOTED, 240)
    for cycle_id, deaths in ((first, 1), (second, 0)):
        said = machines.said(cycle_id)
        assert Counter(event.step for event in said if event.data.get("finished")) == Counter(STEPS)
        assert sum(event.step == TAKEN_OVER for event in said) == deaths
    with machines.ledger.session(write=False) as session:
        versions = session.scalars(select(ModelVersion).order_by(ModelVersion.project_id)).all()
        assert [version.name for version in versions] == ["elnet-0001", "elnet-0001"]
        assert all(version.path.startswith(f"{machines.files}/models/") for version in versions)
        assert session.scalar(select(func.count()).select_from(Snapshot)) == 2
    count = select(func.count()).select_from(Prediction)

    def predicted() -> int:
        with machines.ledger.session(write=False) as session:
            return session.scalar(count) or 0

    machines.until(lambda: predicted() == 6)  # by a worker that has trained nothing
    machines.until(lambda: machines.runners() == {})
    for worker in (*workers, main):
        worker.terminate()
        assert worker.wait(30) == (-signal.SIGKILL if worker is victim else 0)


@pytest.mark.timeout(300)
def test_a_worker_that_is_stopped_hands_its_cycle_over_at_once(machines: Machines) -> None:
    workers = [machines.start("train") for _ in range(3)]
    first, second = machines.request()
    machines.until(lambda: machines.is_training(first) and second in machines.runners())
    before = machines.runners()
    [idle] = {worker.pid for worker in workers} - set(before.values())
    one = next(worker for worker in workers if worker.pid == before[first])
    one.terminate()
    stopped = time.monotonic()
    machines.until(lambda: machines.runners().get(first) == idle, 30)
    assert time.monotonic() - stopped < leases.STALE_S / 2
    assert one.wait(30) == 0


@pytest.mark.parametrize("lacking", ["weights", "bucket"])
def test_a_machine_that_cannot_train_takes_no_cycle(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "bare"))
    machines.request()
    nothing: Any = None
    values = {"weights": {}, "bucket": {"trunk": "random-nano", "files": "s3://no-such-bucket"}}[lacking]
    endpoint = MediaSettings(s3_endpoint=machines.environment["ELNET_MEDIA__S3_ENDPOINT"])
    worker = TrainWorker(Settings(state=tmp_path, media=endpoint, **values), machines.ledger, nothing)
    with pytest.raises(ELNetError, match={"weights": "elnet weights", "bucket": "ELNET_FILES"}[lacking]):
        worker.run()
    assert machines.runners() == {}


def test_sqlite_is_for_one_worker(ledger: Ledger, tmp_path: Path) -> None:
    nothing: Any = None
    with pytest.raises(SettingsError, match="PostgreSQL: set ELNET_DATABASE_URL"):
        TrainWorker(Settings(state=tmp_path), ledger, nothing)
