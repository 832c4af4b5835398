"""How a step is run: its beginning and end in the journal, its failures, its second chances. Without DBOS.

What DBOS adds is in test_jobs.py, the real steps in test_steps.py, and all of it together, killed and started
again, in tests/backend/test_worker.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from active_learning import cycle as cycles
from active_learning import triggers
from active_learning.context import CycleContext, Interrupted
from active_learning.cycle import ENDED, perform
from active_learning.journal import Journal
from active_learning.ledger import Cycle, CycleEvent, CycleState, Ledger, Project
from active_learning.ledger.failures import LedgerError
from active_learning.ports import ToolUnavailableError
from active_learning.predictors import PredictorPool
from active_learning.steps import STEPS, Outcome
from model.errors import ELNetError

Step = Callable[[CycleContext, Journal], Outcome]


class Rig:
    """A cycle whose step "train" is what a test makes of it. Waiting takes no time, but is remembered."""

    def __init__(self, ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ledger = ledger
        self._monkeypatch = monkeypatch
        nothing: Any = None
        self.context = CycleContext(ledger, nothing, nothing, PredictorPool(), folder)
        self.waited: list[float] = []
        self.now = 0.0
        monkeypatch.setattr(self.context, "sleep", self.sleep)
        monkeypatch.setattr(cycles.time, "monotonic", lambda: self.now)
        with ledger.session() as session:
            project = Project(name="spills", tool_url="http://tool", tool_project_id=1, classes=["oil"])
            session.add(project)
            session.flush()
            self.cycle_id = triggers.request(session, project, "a test").id

    def sleep(self, seconds: float) -> None:
        self.context.check()
        self.waited.append(seconds)
        self.now += seconds

    def train(self, step: Step) -> str:
        self._monkeypatch.setitem(STEPS, "train", step)  # type: ignore[misc]
        return perform(self.context, "train", self.cycle_id)

    @property
    def cycle(self) -> Cycle:
        with self.ledger.session(write=False) as session:
            return session.get_one(Cycle, self.cycle_id)

    @property
    def messages(self) -> list[str]:
        with self.ledger.session(write=False) as session:
            return list(session.scalars(select(CycleEvent.message).order_by(CycleEvent.id)))


@pytest.fixture
def rig(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(ledger, tmp_path, monkeypatch)


def failing(error: BaseException, times: int = 10**6) -> Step:
    """A step that fails some times before it goes well."""
    left = [times]

    def step(_context: CycleContext, _journal: Journal) -> Outcome:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return Outcome("Trained.", {"version": "elnet-0001"})

    return step


def test_a_step_that_goes_well(rig: Rig) -> None:
    assert rig.train(failing(ELNetError(), times=0)) == ""  # the gate has decided nothing yet
    assert (rig.cycle.state, rig.cycle.step) == (CycleState.RUNNING, "train")
    assert list(rig.cycle.seconds) == ["train"]
    assert rig.messages == ["Fine-tuning adapter and decoder.", "Trained."]


def test_a_finished_step_is_not_run_again(rig: Rig) -> None:
    """As after a crash between the ledger's record and that of DBOS."""
    rig.train(failing(ELNetError(), times=0))
    assert rig.train(failing(ELNetError("ran again"))) == ""
    assert len(rig.messages) == 2


def test_an_error_ends_the_cycle_with_its_reason(rig: Rig) -> None:
    assert rig.train(failing(ELNetError("the disk is full; make room"))) == ENDED
    assert (rig.cycle.state, rig.cycle.reason) == (CycleState.FAILED, "train: the disk is full; make room")
    assert rig.cycle.finished_at is not None
    assert rig.messages[-1] == "The cycle ended failed: train: the disk is full; make room"
    assert rig.waited == []


def test_a_defect_ends_the_cycle_too(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    assert rig.train(failing(KeyError("a defect"))) == ENDED
    assert rig.cycle.reason == "train: unexpected KeyError: 'a defect'"
    assert "Traceback" in caplog.text


def test_no_step_runs_after_the_end(rig: Rig) -> None:
    rig.train(failing(ELNetError("broken")))
    assert rig.train(failing(ELNetError(), times=0)) == ENDED
    assert rig.cycle.reason == "train: broken"


@pytest.mark.parametrize("error", [ToolUnavailableError("the tool is silent"), LedgerError("it is locked")])
def test_what_may_pass_is_waited_for(rig: Rig, error: ELNetError) -> None:
    assert rig.train(failing(error, times=8)) == ""
    assert rig.waited == [1, 2, 4, 8, 16, 32, 60, 60]
    assert rig.messages[1] == f"{error}. Trying again in 1 s."
    assert rig.messages.count("Fine-tuning adapter and decoder.") == 1
    assert rig.messages[-1] == "Trained."


def test_patience_has_an_end(rig: Rig) -> None:
    assert rig.train(failing(ToolUnavailableError("the tool is silent"))) == ENDED
    assert rig.cycle.reason == "train: the tool is silent"
    assert 800 < sum(rig.waited) <= rig.context.patience_s


def test_a_record_that_fails_makes_the_step_run_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    finish, away = Journal.finish, [LedgerError("it is locked")]

    def away_once(journal: Journal, *arguments: Any) -> None:
        if away:
            raise away.pop()
        finish(journal, *arguments)

    monkeypatch.setattr(Journal, "finish", away_once)
    assert rig.train(failing(ELNetError(), times=0)) == ""
    assert list(rig.cycle.seconds) == ["train"]


def test_a_ledger_that_stays_away_is_for_the_engine_to_settle(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise LedgerError("the ledger is away")

    with monkeypatch.context() as patched:
        for name in ("check", "note", "end"):
            patched.setattr(Journal, name, away)
        with pytest.raises(LedgerError, match="is away"):
            rig.train(failing(ELNetError(), times=0))
    assert rig.cycle.state is CycleState.REQUESTED


def test_a_stop_leaves_the_step_unfinished(rig: Rig) -> None:
    with pytest.raises(Interrupted):
        rig.train(failing(Interrupted()))
    assert rig.cycle.state is CycleState.RUNNING
    assert rig.cycle.seconds == {}
    assert rig.messages[-1] == "The worker is stopping; the next one begins this step again."


def test_a_stop_while_waiting(rig: Rig) -> None:
    rig.context.stop.set()
    with pytest.raises(Interrupted):
        rig.train(failing(ToolUnavailableError("the tool is silent")))
    assert rig.cycle.state is CycleState.RUNNING


def test_a_cancellation_during_a_step(rig: Rig) -> None:
    def cancelled(_context: CycleContext, journal: Journal) -> Outcome:
        with rig.ledger.session() as session:
            triggers.cancel(session, session.get_one(Cycle, rig.cycle_id), "cancelled by ada")
        journal.check()
        return Outcome("never")

    assert rig.train(cancelled) == ENDED
    assert (rig.cycle.state, rig.cycle.reason) == (CycleState.CANCELLED, "cancelled by ada")
    assert rig.messages[-1] == "Stopped: cancelled by ada."


def test_a_cancellation_while_waiting(rig: Rig) -> None:
    def cancelled(_context: CycleContext, _journal: Journal) -> Outcome:
        with rig.ledger.session() as session:
            triggers.cancel(session, session.get_one(Cycle, rig.cycle_id), "cancelled by ada")
        raise ToolUnavailableError("the tool is silent")

    assert rig.train(cancelled) == ENDED
    assert rig.waited == [1]
    assert rig.cycle.state is CycleState.CANCELLED


def test_two_workers_in_one_process(rig: Rig) -> None:
    cycles.surround(rig.context)
    try:
        with pytest.raises(cycles.CycleRunningError, match="already"):
            cycles.surround(rig.context)
    finally:
        cycles.surround(None)


def test_idle_is_waited_for(rig: Rig) -> None:
    assert cycles.wait_until_idle(0)
    assert cycles.enter(rig.context, 1)
    assert not cycles.enter(rig.context, 1)
    assert not cycles.is_idle()
    assert not cycles.wait_until_idle(0.05)
    threading.Timer(0.2, cycles.leave, (rig.context, 1)).start()
    assert cycles.wait_until_idle(20)
    assert cycles.is_idle()
    assert cycles.enter(rig.context, 1)
    cycles.leave(rig.context, 1)
