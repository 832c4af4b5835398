"""A worker is killed at any point of a cycle, and the next one ends it as if nothing had happened.

`ELNET_FAULTS_AGAIN=2` (`make bench-faults`) also kills the two workers that take over, each at a point drawn
at random.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from sqlalchemy import select

import backend
from active_learning.ledger import (
    Cycle,
    CycleEvent,
    CycleState,
    HoldoutMask,
    Label,
    Ledger,
    ModelVersion,
    Prediction,
    Project,
    Promotion,
    RouteDecision,
    Snapshot,
    Task,
    WorkerLease,
)
from model.checkpoint import load_checkpoint
from tests.backend import worker_process as process
from tests.databases import new_database

SERVERS = 2  # that fork workers at the same time
AGAIN = int(os.environ.get("ELNET_FAULTS_AGAIN", "0"))  # of those who take over, how many die too
STEPS = ["snapshot", "train", "evaluate", "gate", "promote", "recalibrate", "prefill"]


class Faults:
    """Forks workers that die where they are told to."""

    def __init__(self, folder: Path, postgresql: str | None) -> None:
        self._folder = folder
        self._postgresql = postgresql
        self._servers: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        root = Path(backend.__file__).parents[1]
        for _ in range(SERVERS):
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.backend.fault_process"],
                cwd=root,
                env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._servers.put(server)
        if postgresql is not None:
            self._begin_database("furnished", "template1")
        settings = process.furnish(folder / "furnished", labelled=6, unlabelled=3)
        assert self.work(folder / "furnished")["status"] == 0  # makes the jobs' tables, which takes a while
        with Ledger(settings.ledger_url) as ledger:
            with ledger.session() as session:
                training = {**process.TRAINING, "epochs": 2}
                session.scalars(select(Project)).one().training = training
            process.request(ledger)

    def state(self, name: str) -> Path:
        made = Path(shutil.copytree(self._folder / "furnished", self._folder / name))
        if self._postgresql is not None:
            self._begin_database(name, (made / "database").read_text().rpartition("/")[2])
        return made

    def _begin_database(self, name: str, template: str) -> None:
        assert self._postgresql is not None
        (self._folder / name).mkdir(exist_ok=True)
        (self._folder / name / "database").write_text(new_database(self._postgresql, template))

    def work(self, state: Path, point: int | None = None) -> dict[str, Any]:
        """What `fault_process` answers."""
        server = self._servers.get()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps({"state": str(state), "point": point}) + "\n")
        server.stdin.flush()
        answer: dict[str, Any] = json.loads(server.stdout.readline())
        self._servers.put(server)
        return answer

    def close(self) -> None:
        for _ in range(SERVERS):
            self._servers.get().communicate()


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def faults(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    elsewhere = request.param == "postgresql"
    server = request.getfixturevalue("postgresql_server") if elsewhere else None
    made = Faults(tmp_path_factory.mktemp("faults"), server)
    yield made
    made.close()


def outcome(state: Path) -> dict[str, Any]:
    """What a cycle has left: in the ledger, on disk and in the tool."""
    with Ledger(process.settings_of(state).ledger_url) as ledger, ledger.session(write=False) as session:
        [cycle], [version] = session.scalars(select(Cycle)).all(), session.scalars(select(ModelVersion)).all()
        events = session.scalars(select(CycleEvent)).all()
        decisions = {
            d.task_id: d.status for d in session.scalars(select(RouteDecision).order_by(RouteDecision.id))
        }
        load_checkpoint(Path(version.path))  # whole, and what its card says
        predictions = session.scalars(select(Prediction)).all()
        return {
            "cycle": (cycle.state, list(cycle.seconds)),
            "finished": Counter(e.step for e in events if e.data.get("finished")),
            "weights": version.sha256,
            "champion": session.scalars(select(Project)).one().champion_id == version.id,
            "promotions": len(session.scalars(select(Promotion)).all()),
            "snapshots": [s.sha256 for s in session.scalars(select(Snapshot))],
            "labels": sorted((r.task_id, r.masks.tobytes()) for r in session.scalars(select(Label))),
            "predictions": sorted((p.task_id, round(p.score, 6)) for p in predictions),
            "holdout masks": sorted(
                (m.model_version_id == version.id, m.task_id, m.masks.tobytes())
                for m in session.scalars(select(HoldoutMask))
            ),
            "heard": all(p.tool_prediction_id for p in predictions),
            "tasks": sorted((t.id, t.status, t.failure) for t in session.scalars(select(Task))),
            "routes": sorted(decisions.items()),
            "leases": len(session.scalars(select(WorkerLease)).all()),
            "tool": {k: v for k, v in json.loads((state / "tool.json").read_text()).items() if k != "next"},
            "left": sorted(p.name for p in state.rglob("*") if ".part" in p.name or p.suffix == ".state"),
        }


@pytest.fixture(scope="module")
def undisturbed(faults: Faults) -> tuple[int, dict[str, Any]]:
    state = faults.state("undisturbed")
    answer = faults.work(state)
    assert answer["status"] == 0, (state / "worker.log").read_text()
    found = outcome(state)
    assert found["cycle"] == (CycleState.PROMOTED, STEPS)
    assert found["finished"] == Counter(STEPS)
    assert found["champion"]
    assert len(found["holdout masks"]) > 0
    assert (found["promotions"], found["leases"], found["left"]) == (1, 0, [])
    assert len(found["predictions"]) == len(found["tool"]["prefills"]) == 3
    return answer["points"], found


@pytest.mark.timeout(1200 * (1 + AGAIN))  # sixty deaths each
def test_a_worker_may_die_anywhere(faults: Faults, undisturbed: tuple[int, dict[str, Any]]) -> None:
    total, expected = undisturbed
    assert total >= 50

    def die_at(point: int) -> tuple[int, dict[str, Any]]:
        """How the worker ended that was to die, and what is not as it should be after the next one."""
        state = faults.state(f"killed-{point}")
        killed = faults.work(state, point)["status"]
        draw = random.Random(point)
        for _ in range(AGAIN):
            faults.work(state, draw.randint(1, total))
        answer = faults.work(state)
        if answer["status"]:
            return killed, {"log": (state / "worker.log").read_text()[-2000:]}
        found = outcome(state)
        return killed, {key: value for key, value in found.items() if value != expected[key]}

    with ThreadPoolExecutor(SERVERS) as pool:
        ends = dict(zip(range(1, total + 1), pool.map(die_at, range(1, total + 1)), strict=True))
    assert {point: wrong for point, (_, wrong) in ends.items() if wrong} == {}
    # Which commit is the last depends on what the worker's threads find at the same time.
    assert sum(killed == -signal.SIGKILL for killed, _ in ends.values()) >= total - 5
