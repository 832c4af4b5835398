"""The worker: everything that it works off, alone, killed, stopped, refused, and without its tool."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import select, update

from active_learning import triggers
from active_learning.ledger import (
    Cycle,
    CycleEvent,
    CycleState,
    InboxEvent,
    InboxState,
    Ledger,
    ModelVersion,
    Prediction,
    Project,
    Promotion,
    Task,
    TaskStatus,
    WorkerLease,
)
from active_learning.ledger.failures import LedgerError
from active_learning.ports import ToolUnavailableError
from active_learning.push import PushReport
from backend import worker as workers
from backend.lease import LeaseError
from backend.worker import Worker

PROCESS = Path(__file__).with_name("worker_process.py")
STEPS = ["snapshot", "train", "evaluate", "gate", "promote", "recalibrate", "prefill"]


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


process = _load(PROCESS)


class Rig:
    """A state folder, its ledger, and workers in this process or in others."""

    def __init__(self, state: Path, **project: Any) -> None:
        self.state = state
        self.settings = process.furnish(state, **project)
        self.ledger = Ledger(self.settings.ledger_url)
        self.tool = process.MirrorTool(self.ledger)
        self._processes: list[subprocess.Popen[bytes]] = []

    def worker(self, **settings: Any) -> Worker:
        chosen = process.settings_of(self.state, **settings)
        return Worker(chosen, self.ledger, self.tool, process.FolderImages(self.state))

    def start(self, *death: str) -> subprocess.Popen[bytes]:
        root = Path(workers.__file__).parents[1]
        with (self.state / "worker.log").open("ab") as said:
            started = subprocess.Popen(
                [sys.executable, str(PROCESS), str(self.state), *death],
                env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
                stdout=said,
                stderr=said,
            )
        self._processes.append(started)
        return started

    def close(self) -> None:
        for started in self._processes:
            started.kill()
            started.wait()
        self.ledger.close()

    def said(self) -> str:
        return (self.state / "worker.log").read_text()

    def all(self, kind: type[Any]) -> list[Any]:
        with self.ledger.session(write=False) as session:
            return list(session.scalars(select(kind).order_by(*kind.__table__.primary_key)))

    def until(self, what: Callable[[], Any], within_s: float = 120) -> Any:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if found := what():
                return found
            time.sleep(0.1)
        log = self.said() if (self.state / "worker.log").exists() else ""
        pytest.fail(f"it did not happen: {[e.message for e in self.all(CycleEvent)]} {log}")

    def ended(self) -> Cycle | None:
        row: Cycle = self.all(Cycle)[-1]
        return row if row.finished_at is not None else None

    def count(self, key: str) -> Counter[str]:
        """How often each step began, or finished."""
        return Counter(e.step for e in self.all(CycleEvent) if e.data.get(key))

    def statuses(self) -> Counter[str]:
        return Counter(task.status.value for task in self.all(Task))


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**project: Any) -> Rig:
        made.append(Rig(tmp_path / "state", **project))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


def run_in_thread(worker: Worker) -> threading.Thread:
    thread = threading.Thread(target=worker.run)
    thread.start()
    return thread


# the worker is killed


def test_killed_in_the_middle_of_training_and_at_a_boundary(rig: Rig) -> None:
    """Two deaths, three workers, one cycle: it ends promoted, and each finished step ran once."""
    cycle_id = process.request(rig.ledger)

    first = rig.start()
    rig.until(lambda: any(e.step == "train" and "epoch" in e.data for e in rig.all(CycleEvent)))
    first.kill()
    first.wait()
    assert rig.all(Cycle)[0].state is CycleState.RUNNING
    assert not (rig.state / "models" / f"cycle-{cycle_id}").exists()

    second = rig.start("train")  # the ledger has it, DBOS has not
    assert second.wait(120) == -signal.SIGKILL
    assert rig.count("finished") == Counter(["snapshot", "train"])

    third = rig.start()
    row = rig.until(rig.ended)
    assert row.state is CycleState.PROMOTED, row.reason
    assert rig.count("finished") == Counter(STEPS)
    assert rig.count("began") == Counter([*STEPS, "train"])
    assert list(row.seconds) == STEPS
    [version] = rig.all(ModelVersion)
    assert rig.all(Project)[0].champion_id == version.id
    assert len(rig.all(Promotion)) == 1
    rig.until(lambda: len(rig.all(Prediction)) == 4)

    third.terminate()
    assert third.wait(60) == 0
    assert rig.all(WorkerLease) == []
    assert "Traceback" not in rig.said()


def test_a_terminated_worker_stops_its_training_and_goes_on_later(rig: Rig) -> None:
    with rig.ledger.session() as session:
        session.execute(update(Project).values(training={**process.TRAINING, "epochs": 100_000}))
    process.request(rig.ledger)
    worker = rig.start()
    rig.until(lambda: any("epoch" in e.data for e in rig.all(CycleEvent)))
    started = time.monotonic()
    worker.terminate()
    assert worker.wait(60) == 0
    assert time.monotonic() - started < 30
    assert "SIGTERM: the worker is stopping" in rig.said()
    assert rig.all(Cycle)[0].state is CycleState.RUNNING
    assert rig.all(CycleEvent)[-1].message.startswith("The worker is stopping")


# one worker per ledger


def test_a_second_worker_is_refused_and_the_first_unharmed(rig: Rig) -> None:
    with rig.worker():
        second = rig.worker()
        with pytest.raises(LeaseError, match=f"pid {os.getpid()}"):
            second.run()
        assert len(rig.all(WorkerLease)) == 1
    assert rig.all(WorkerLease) == []


def test_a_lost_lease_stops_the_worker(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.lease.HEARTBEAT_S", 0.05)
    said: list[Exception] = []

    def run() -> None:
        try:
            rig.worker().run()
        except LeaseError as error:
            said.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    rig.until(lambda: rig.all(WorkerLease))
    with rig.ledger.session() as session:
        session.execute(update(WorkerLease).values(holder="another"))
    thread.join(30)
    assert not thread.is_alive()
    assert "lease on the ledger was lost" in str(said[0])


def test_a_ledger_without_tables_is_refused(tmp_path: Path) -> None:
    settings = process.settings_of(tmp_path)
    with Ledger(settings.ledger_url) as ledger, pytest.raises(LedgerError, match="elnet ledger upgrade"):
        Worker(settings, ledger, process.MirrorTool(ledger), process.FolderImages(tmp_path)).run()


# what it works off


def test_before_a_model_everything_goes_to_people(rig: Rig) -> None:
    with rig.worker() as worker:
        while worker.run_once():
            pass
        assert worker.run_once() == 0
    assert rig.statuses() == {"done": 10, "review": 4}
    assert set(rig.tool.placed.values()) == {"done", "review"}


def test_enough_labels_start_a_cycle_and_the_new_model_prefills(
    make_rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rig = make_rig(labels_per_cycle=10)
    worker = rig.worker()
    thread = run_in_thread(worker)
    try:
        row = rig.until(lambda: rig.all(Cycle) and rig.ended())
        assert row.state is CycleState.PROMOTED, row.reason
        assert row.trigger == "labels: 10 new in all"
        rig.until(lambda: len(rig.tool.prefilled) == 4)
        assert set(rig.tool.prefilled.values()) == {"elnet-0001"}
        rig.until(lambda: rig.statuses()["done"] == 10 and rig.statuses()["waiting"] == 0)
        assert "cycle 1 of project 1 requested: labels: 10 new in all" in caplog.text

        # a task that comes later is predicted by the resident model
        with rig.ledger.session() as session:
            uri = "images/0.png"
            new = Task(project_id=1, tool_task_id=900, image_uri=uri, data={"image": uri}, scene="new")
            session.add(new)
        rig.until(lambda: 900 in rig.tool.prefilled)
        assert "predicted 1 images of project 1" in caplog.text
    finally:
        worker.stop()
        thread.join(30)
    assert not thread.is_alive()
    assert rig.all(WorkerLease) == []
    assert len(rig.all(Cycle)) == 1


def test_prefills_go_on_while_a_cycle_runs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    going = threading.Event()
    from active_learning import steps

    def slow(context: Any, _journal: Any) -> steps.Outcome:
        while not going.is_set():
            context.sleep(0.05)
        raise steps.evaluation.EvaluationError("enough")

    monkeypatch.setitem(steps.STEPS, "snapshot", slow)  # type: ignore[misc]
    process.request(rig.ledger)
    worker = rig.worker()
    thread = run_in_thread(worker)
    try:
        rig.until(lambda: rig.all(Cycle)[0].state is CycleState.RUNNING)
        rig.until(lambda: len(rig.tool.placed) == 14)
        assert rig.all(Cycle)[0].state is CycleState.RUNNING
        going.set()
        assert rig.until(rig.ended).reason == "snapshot: enough"
    finally:
        worker.stop()
        thread.join(30)


def test_a_cycle_that_prefills_is_not_disturbed(rig: Rig) -> None:
    with rig.worker() as worker:
        with worker._context.alone("predict", 1), worker._context.alone("push", 1):
            worker.run_once()
            assert rig.tool.placed == {}
        worker.run_once()
        assert len(rig.tool.placed) == 14


def test_while_predictions_come_in_the_tool_is_told_now_and_then(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [1, 1, 1, 0]
    with rig.worker() as worker:
        monkeypatch.setattr(worker, "_predict", lambda _project_id: left.pop(0) if left else 0)
        pushed: list[int] = []
        monkeypatch.setattr(workers, "push", lambda *_: (pushed.append(len(left)), PushReport())[1])
        for _ in range(4):
            worker.run_once()
    assert pushed == [3, 0]  # the first batch, and when all are in


def test_a_cancelled_cycle_stops(rig: Rig) -> None:
    with rig.ledger.session() as session:
        session.execute(update(Project).values(training={**process.TRAINING, "epochs": 100_000}))
    cycle_id = process.request(rig.ledger)
    worker = rig.worker()
    thread = run_in_thread(worker)
    try:
        rig.until(lambda: any("epoch" in e.data for e in rig.all(CycleEvent)))
        with rig.ledger.session() as session:
            triggers.cancel(session, session.get_one(Cycle, cycle_id), "cancelled by ada")
        rig.until(lambda: rig.all(CycleEvent)[-1].message == "Stopped: cancelled by ada.", 20)
    finally:
        worker.stop()
        thread.join(30)
    assert rig.all(Cycle)[0].state is CycleState.CANCELLED
    assert not (rig.state / "models" / f"cycle-{cycle_id}").exists()


def test_an_event_of_the_inbox_is_worked_off(rig: Rig) -> None:
    with rig.ledger.session() as session:
        payload = {"action": "START_TRAINING", "project": {"id": 7}}
        session.add(InboxEvent(key="k", tool_project_id=7, action="START_TRAINING", payload=payload))
    with rig.worker() as worker:
        rig.until(lambda: worker.run_once() is not None and rig.all(InboxEvent)[0].state is InboxState.DONE)
        assert rig.all(Cycle)[0].trigger == "Start training"


# trouble


def test_without_its_tool_it_goes_on_and_catches_up(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rig.tool.down = True
    with rig.worker() as worker:
        worker.run_once()
        assert rig.statuses() == {"done": 10, "review": 4}  # needs no tool
        asked = len(rig.tool.asked)
        for _ in range(5):
            worker.run_once()
        assert len(rig.tool.asked) == asked  # left alone for a while
        assert "Label Studio does not answer; trying again in" in caplog.text
        rig.tool.down = False
        rig.until(lambda: worker.run_once() is not None and len(rig.tool.placed) == 14, 20)
        assert "the labeling tool answers again" in caplog.text
        assert rig.tool.asked[asked:][:2] == ["tasks", "annotations"]  # first what was missed meanwhile


def test_after_an_outage_every_project_is_read_anew(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with rig.ledger.session() as session:
        for number in (8, 9):
            session.add(
                Project(name=f"p{number}", tool_url="http://tool", tool_project_id=number, classes=["x"])
            )
    read: list[int] = []

    def reconcile(_ledger: Any, project: Project, _tool: Any) -> int:
        read.append(project.id)
        return 0

    def away() -> int:
        raise ToolUnavailableError("Label Studio does not answer")

    monkeypatch.setattr(workers.inbox, "reconcile", reconcile)
    with rig.worker(reconcile_s=1000) as worker:
        worker.run_once()
        worker.run_once()
        assert read == [1, 2, 3]
        worker._attempts.attempt("a push", away)
        rig.until(lambda: worker.run_once() is not None and len(read) == 6, 20)
        assert read == [1, 2, 3, 1, 2, 3]
        worker.run_once()
        assert len(read) == 6


def test_a_defect_in_one_job_does_not_stop_the_others(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(workers.inbox, "work_off", broken)
    with rig.worker() as worker:
        worker.run_once()
        assert len(rig.tool.placed) == 14
        worker.run_once()
    assert caplog.text.count("inbox failed unexpectedly") == 1


def test_a_champion_that_cannot_be_loaded_is_said_and_waited_for(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from active_learning import registry
    from backend import patience

    monkeypatch.setattr(patience, "FIRST_S", 60.0)  # longer than the slowest machine's first round
    with rig.ledger.session() as session:
        project = session.get_one(Project, 1)
        version = registry.register(session, project, rig.state / "models" / "gone", "0" * 64)
        registry.promote(session, version)
    with rig.worker() as worker:
        worker.run_once()
        worker.run_once()
    assert caplog.text.count("prefill of spills: ") == 1
    assert "holds no checkpoint" in caplog.text
    assert {t.status for t in rig.all(Task)} == {TaskStatus.DONE, TaskStatus.WAITING}


def test_a_ledger_that_fails_for_a_moment(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise LedgerError("the ledger is away")

    with rig.worker() as worker:
        with monkeypatch.context() as patched:
            patched.setattr(rig.ledger, "session", away)
            assert worker.run_once() == 0
        assert "the ledger: the ledger is away; trying again in" in caplog.text
        rig.until(lambda: worker.run_once() is not None and len(rig.tool.placed) == 14, 20)


def test_the_resident_model_follows_the_champion(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[list[int]] = []
    with rig.worker() as worker:
        monkeypatch.setattr(worker._context.predictors, "keep", lambda ids: kept.append(list(ids)))
        worker.run_once()
        with rig.ledger.session() as session:
            from active_learning import registry

            project = session.get_one(Project, 1)
            registry.promote(
                session, registry.register(session, project, rig.state / "models" / "m", "0" * 64)
            )
        worker.run_once()
    assert kept == [[], [1]]


def test_ctrl_c_stops_it(rig: Rig) -> None:
    worker = rig.start()
    rig.until(lambda: rig.all(WorkerLease))
    worker.send_signal(signal.SIGINT)
    assert worker.wait(60) == 0
    assert "KeyboardInterrupt" not in rig.said()


def test_signal_handlers_are_put_back(rig: Rig) -> None:
    before = signal.getsignal(signal.SIGTERM)
    worker = rig.worker()
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    worker.run()
    assert signal.getsignal(signal.SIGTERM) is before
