"""The engine under the cycles, with steps that only say that they ran."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dbos import DBOS
from sqlalchemy import create_engine, select, text

from active_learning import cycle as cycles
from active_learning import jobs, triggers
from active_learning.claims import SoleClaims
from active_learning.context import CycleContext
from active_learning.jobs import CycleJobs, JobsError
from active_learning.journal import Journal
from active_learning.ledger import Cycle, CycleEvent, CycleState, Ledger, Project
from active_learning.predictors import PredictorPool
from active_learning.steps import STEPS, Outcome
from model.errors import ELNetError

Step = Callable[[CycleContext, Journal], Outcome]


class Bench:
    """A ledger, a jobs database, and steps that can be replaced."""

    def __init__(self, ledger: Ledger, folder: Path, jobs_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ledger = ledger
        self.folder = folder
        self.jobs_url = jobs_url
        self.ran: list[str] = []
        self.decided = "promote"
        self._monkeypatch = monkeypatch
        with ledger.session() as session:
            project = Project(name="spills", tool_url="http://tool", tool_project_id=1, classes=["oil"])
            session.add(project)
            session.flush()
            self.project_id = project.id
        for name in STEPS:
            self.replace(name, self.runs(name))
        monkeypatch.setattr(cycles, "decision", lambda _context, _id: self.decision())
        monkeypatch.setattr(cycles, "ending", lambda _context, _id: (CycleState.PROMOTED, "better"))

    def decision(self) -> str:
        return self.decided if "gate" in self.ran else ""

    def runs(self, name: str) -> Step:
        def step(_context: CycleContext, _journal: Journal) -> Outcome:
            self.ran.append(name)
            return Outcome(f"{name} is done.")

        return step

    def fails(self, text: str) -> Step:
        def step(_context: CycleContext, _journal: Journal) -> Outcome:
            raise ELNetError(text)

        return step

    def replace(self, name: str, step: Step) -> None:
        self._monkeypatch.setitem(STEPS, name, step)  # type: ignore[misc]

    def request(self) -> int:
        with self.ledger.session() as session:
            return triggers.request(session, session.get_one(Project, self.project_id), "a test").id

    def resume(self, cycle_id: int) -> None:
        with self.ledger.session() as session:
            triggers.resume(session, session.get_one(Cycle, cycle_id), "ada")

    def context(self) -> CycleContext:
        nothing: Any = None
        return CycleContext(self.ledger, nothing, nothing, PredictorPool(), self.folder, patience_s=5)

    @contextmanager
    def worker(self) -> Iterator[CycleJobs]:
        with CycleJobs(self.context(), self.jobs_url) as engine:
            yield engine

    def cycle(self, cycle_id: int) -> Cycle:
        with self.ledger.session(write=False) as session:
            return session.get_one(Cycle, cycle_id)

    def messages(self) -> list[str]:
        with self.ledger.session(write=False) as session:
            return list(session.scalars(select(CycleEvent.message).order_by(CycleEvent.id)))

    def wait(self, cycle_id: int, state: CycleState | None = None, engine: CycleJobs | None = None) -> Cycle:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            row = self.cycle(cycle_id)
            if row.state is state or (state is None and row.finished_at is not None):
                return row
            if engine is not None:
                engine.work_off()
            time.sleep(0.05)
        pytest.fail(f"cycle {cycle_id} is {row.state}: {self.messages()}")


@pytest.fixture
def bench(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(ledger, tmp_path, f"sqlite:///{tmp_path / 'jobs.sqlite'}", monkeypatch)


PROMOTED = ["snapshot", "train", "evaluate", "gate", "promote", "recalibrate", "prefill"]


def test_a_requested_cycle_goes_through_all_its_steps(bench: Bench) -> None:
    cycle_id = bench.request()
    with bench.worker() as engine:
        assert engine.work_off() == 1
        row = bench.wait(cycle_id)
        assert engine.work_off() == 0
    assert bench.ran == PROMOTED
    assert (row.state, row.reason) == (CycleState.PROMOTED, "better")
    assert list(row.seconds) == PROMOTED
    assert row.started_at is not None
    assert bench.messages()[-1] == "The cycle ended promoted: better"


def test_a_rejected_challenger_leaves_the_champion_to_be_calibrated(bench: Bench) -> None:
    bench.decided = "reject"
    cycle_id = bench.request()
    with bench.worker() as engine:
        engine.work_off()
        bench.wait(cycle_id)
    assert bench.ran == ["snapshot", "train", "evaluate", "gate", "reject", "recalibrate", "prefill"]


def test_a_challenger_that_waits_for_a_lead_leaves_the_champion_to_be_calibrated(bench: Bench) -> None:
    bench.decided = "challenge"
    cycle_id = bench.request()
    with bench.worker() as engine:
        engine.work_off()
        bench.wait(cycle_id)
    assert bench.ran == ["snapshot", "train", "evaluate", "gate", "challenge", "recalibrate", "prefill"]


def test_work_off_starts_a_cycle_once(bench: Bench) -> None:
    going = threading.Event()
    bench.replace("snapshot", lambda _c, _j: Outcome(str(going.wait(20))))
    cycle_id = bench.request()
    with bench.worker() as engine:
        assert engine.work_off() == 1
        bench.wait(cycle_id, CycleState.RUNNING)
        assert engine.work_off() == 0
        going.set()
        bench.wait(cycle_id)
    assert bench.ran == PROMOTED[1:]


def test_a_failing_step_ends_the_cycle_with_its_reason(bench: Bench) -> None:
    bench.replace("train", bench.fails("the disk is full; make room"))
    cycle_id = bench.request()
    with bench.worker() as engine:
        engine.work_off()
        row = bench.wait(cycle_id)
    assert (row.state, row.step) == (CycleState.FAILED, "train")
    assert row.reason == "train: the disk is full; make room"
    assert bench.ran == ["snapshot"]


def test_a_failed_cycle_is_resumed_with_the_step_that_failed(bench: Bench) -> None:
    bench.replace("train", bench.fails("the disk is full; make room"))
    cycle_id = bench.request()
    with bench.worker() as engine:
        engine.work_off()
        bench.wait(cycle_id)
        bench.resume(cycle_id)
        engine.work_off()
        assert bench.wait(cycle_id).state is CycleState.FAILED  # the disk is still full
        bench.replace("train", bench.runs("train"))
        bench.resume(cycle_id)
        assert engine.work_off() == 1
        row = bench.wait(cycle_id)
        assert engine.work_off() == 0
    assert bench.ran == PROMOTED  # each once: what was finished is not repeated
    assert (row.state, row.reason) == (CycleState.PROMOTED, "better")
    resumed = [m for m in bench.messages() if m.startswith("Resumed")]
    assert resumed == ["Resumed by ada; it had ended failed: train: the disk is full; make room"] * 2


def test_a_cancelled_cycle_that_is_resumed_before_it_stops_runs_each_step_once(bench: Bench) -> None:
    began, heard = threading.Event(), threading.Event()
    at_once = 0

    def slow(context: CycleContext, journal: Journal) -> Outcome:
        nonlocal at_once
        at_once += 1
        assert at_once == 1
        began.set()
        assert heard.wait(20)
        at_once -= 1
        journal.check()
        return bench.runs("train")(context, journal)

    bench.replace("train", slow)
    cycle_id = bench.request()
    with bench.worker() as engine:
        engine.work_off()
        assert began.wait(20)
        with bench.ledger.session() as session:
            assert triggers.cancel(session, session.get_one(Cycle, cycle_id), "cancelled by ada")
        bench.resume(cycle_id)
        assert engine.work_off() == 0  # the first workflow is still at it
        heard.set()
        assert bench.wait(cycle_id, CycleState.PROMOTED, engine).reason == "better"
    assert bench.ran == PROMOTED


def test_a_cycle_that_brings_its_worker_down_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fatal(context: CycleContext, _journal: Journal) -> Outcome:
        context.stop.set()  # stands for a death of the whole process
        context.check()
        return Outcome("never")

    def die() -> None:
        with bench.worker() as engine:
            engine.work_off()
            assert cycles.wait_until_idle(20)

    monkeypatch.setattr(jobs, "MAX_TAKEOVERS", 2)
    bench.replace("evaluate", fatal)
    cycle_id = bench.request()
    for _ in range(3):
        die()
        assert bench.cycle(cycle_id).state is CycleState.RUNNING
    die()
    assert bench.cycle(cycle_id).reason == "its worker died over it again and again: see the worker's log"
    bench.resume(cycle_id)
    for _ in range(3):  # a lead's word counts anew
        die()
        assert bench.cycle(cycle_id).state is CycleState.RUNNING
    die()
    assert bench.cycle(cycle_id).state is CycleState.FAILED
    assert bench.ran == ["snapshot", "train"]


def test_a_stopped_worker_leaves_the_step_to_the_next(bench: Bench) -> None:
    began = threading.Event()

    def slow(context: CycleContext, _journal: Journal) -> Outcome:
        began.set()
        context.sleep(60)
        return Outcome("never")

    bench.replace("train", slow)
    cycle_id = bench.request()
    with bench.worker() as engine:
        engine.work_off()
        assert began.wait(20)
        started = time.monotonic()
    assert time.monotonic() - started < 8
    assert bench.cycle(cycle_id).state is CycleState.RUNNING
    assert bench.messages()[-1] == "The worker is stopping; the next one begins this step again."
    bench.replace("train", bench.runs("train"))
    with bench.worker() as engine:
        assert bench.wait(cycle_id, engine=engine).state is CycleState.PROMOTED
    assert f"The worker is gone; {socket.gethostname()} goes on." in bench.messages()
    assert bench.ran == PROMOTED  # each once: the finished one is not repeated


def test_a_step_that_the_ledger_knows_is_not_run_again(bench: Bench) -> None:
    """As after a crash between the ledger's record and that of DBOS."""
    cycle_id = bench.request()
    Journal(bench.ledger, cycle_id).finish("snapshot", 1, "Frozen.", {})
    with bench.worker() as engine:
        engine.work_off()
        bench.wait(cycle_id)
    assert bench.ran == PROMOTED[1:]


def test_a_lost_jobs_database_is_no_lost_cycle(bench: Bench, tmp_path: Path) -> None:
    began = threading.Event()

    def slow(context: CycleContext, _journal: Journal) -> Outcome:
        began.set()
        context.sleep(60)
        return Outcome("never")

    bench.replace("evaluate", slow)
    cycle_id = bench.request()
    with bench.worker() as engine:
        engine.work_off()
        assert began.wait(20)
    (tmp_path / "jobs.sqlite").unlink()
    bench.replace("evaluate", bench.runs("evaluate"))
    with bench.worker() as engine:
        engine.work_off()
        assert bench.wait(cycle_id).state is CycleState.PROMOTED
    assert bench.ran == PROMOTED


def test_a_cycle_that_another_worker_runs_is_left_to_it(bench: Bench) -> None:
    """And taken up, after its last finished step, when that one is gone."""

    class Elsewhere(SoleClaims):
        alive = True

        def take(self, cycle_id: int) -> bool:
            return not self.alive and super().take(cycle_id)

    cycle_id = bench.request()
    Journal(bench.ledger, cycle_id).finish("snapshot", 1, "Frozen.", {})
    context = bench.context()
    context.claims = elsewhere = Elsewhere()
    with CycleJobs(context, bench.jobs_url) as engine:
        assert engine.work_off() == 0
        elsewhere.alive = False
        assert engine.work_off() == 1
        bench.wait(cycle_id)
    assert bench.ran == PROMOTED[1:]


def test_a_worker_that_was_taken_for_dead_says_nothing_of_the_cycle(bench: Bench) -> None:
    class Lost(SoleClaims):
        lost = False

        def holds(self, cycle_id: int) -> bool:
            return not self.lost

    context = bench.context()
    context.claims = claims = Lost()

    def lose(_context: CycleContext, _journal: Journal) -> Outcome:
        claims.lost = True
        raise ELNetError("the training was killed")

    bench.replace("train", lose)
    cycle_id = bench.request()
    with CycleJobs(context, bench.jobs_url) as engine:
        engine.work_off()
        assert cycles.wait_until_idle(20)
    assert bench.cycle(cycle_id).state is CycleState.RUNNING
    bench.replace("train", bench.runs("train"))
    with bench.worker() as engine:
        assert bench.wait(cycle_id, engine=engine).state is CycleState.PROMOTED
    assert bench.ran == PROMOTED


def test_a_workflow_that_failed_before_its_cycle_settles_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(_context: CycleContext, _step: str, _cycle_id: int) -> str:
        raise RuntimeError("the ledger could not be written")

    monkeypatch.setattr(cycles, "perform", break_down)
    cycle_id = bench.request()
    with bench.worker() as engine:
        engine.work_off()
        row = bench.wait(cycle_id, engine=engine)
    assert row.state is CycleState.FAILED
    assert row.reason == "the workflow ended ERROR before the cycle did: see the worker's log"


def test_nothing_is_pickled(bench: Bench, tmp_path: Path) -> None:
    cycle_id = bench.request()
    with bench.worker() as engine:
        engine.work_off()
        bench.wait(cycle_id)
    store = create_engine(bench.jobs_url)
    with store.connect() as connection:
        kinds = set(connection.execute(text("SELECT DISTINCT serialization FROM workflow_status")).scalars())
        kinds |= set(
            connection.execute(text("SELECT DISTINCT serialization FROM operation_outputs")).scalars()
        )
    store.dispose()
    assert kinds == {"portable_json"}


def test_nothing_is_said_and_nobody_is_called(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    called: list[Any] = []

    def connect(_socket: socket.socket, address: Any) -> None:
        called.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket.socket, "connect", connect)
    cycle_id = bench.request()
    with bench.worker() as engine:
        engine.work_off()
        bench.wait(cycle_id)
    out, err = capfd.readouterr()
    assert called == []
    assert "dbos" not in (out + err).lower()


def test_one_engine_per_process(bench: Bench) -> None:
    with bench.worker():
        second = CycleJobs(bench.context(), bench.jobs_url)
        with pytest.raises(cycles.CycleRunningError, match="already"):
            second.start()
        assert DBOS.list_workflows() == []  # the first one is unharmed


def test_a_jobs_database_that_cannot_be_had_is_named(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"this is no database, but long enough to look like one" * 40)
    with pytest.raises(JobsError, match=r"jobs\.sqlite"):
        CycleJobs(bench.context(), bench.jobs_url).start()
    (tmp_path / "jobs.sqlite").unlink()
    with bench.worker():
        pass  # the failed start left nothing behind


@pytest.mark.postgresql
def test_the_same_on_postgresql(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        bench = Bench(ledger, tmp_path, postgresql_url, monkeypatch)
        cycle_id = bench.request()
        with bench.worker() as engine:
            engine.work_off()
            assert bench.wait(cycle_id).state is CycleState.PROMOTED
    assert bench.ran == PROMOTED
