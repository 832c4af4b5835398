"""What people see of a cycle."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update

from active_learning import triggers
from active_learning.journal import CycleEndedError, Journal
from active_learning.ledger import Cycle, CycleEvent, CycleState, Ledger, Project


@pytest.fixture
def journal(ledger: Ledger) -> Journal:
    with ledger.session() as session:
        project = Project(name="spills", tool_url="http://tool", tool_project_id=1, classes=["oil"])
        session.add(project)
        session.flush()
        return Journal(ledger, triggers.request(session, project, "a test").id)


def cycle(ledger: Ledger) -> Cycle:
    with ledger.session(write=False) as session:
        return session.scalars(select(Cycle)).one()


def events(ledger: Ledger) -> list[tuple[str, str]]:
    with ledger.session(write=False) as session:
        return [(e.step, e.message) for e in session.scalars(select(CycleEvent).order_by(CycleEvent.id))]


def set_state(ledger: Ledger, state: CycleState, reason: str) -> None:
    with ledger.session() as session:
        session.execute(update(Cycle).values(state=state, reason=reason))


def test_a_step_from_beginning_to_end(ledger: Ledger, journal: Journal) -> None:
    journal.begin("train", "Fine-tuning.")
    row = cycle(ledger)
    assert (row.state, row.step) == (CycleState.RUNNING, "train")
    assert row.started_at is not None
    assert not journal.is_finished("train")
    journal.note("train", "Epoch 1.", loss=0.5)
    journal.finish("train", 1.23456, "Trained.", {"version": "elnet-0001"})
    assert journal.is_finished("train")
    assert cycle(ledger).seconds == {"train": 1.235}
    assert events(ledger) == [("train", "Fine-tuning."), ("train", "Epoch 1."), ("train", "Trained.")]


def test_the_start_and_earlier_seconds_stay(ledger: Ledger, journal: Journal) -> None:
    journal.begin("snapshot", "Freezing.")
    started = cycle(ledger).started_at
    journal.finish("snapshot", 1, "Frozen.", {})
    journal.begin("train", "Fine-tuning.")
    journal.finish("train", 2, "Trained.", {})
    assert cycle(ledger).started_at == started
    assert cycle(ledger).seconds == {"snapshot": 1, "train": 2}


def test_the_end_comes_once(ledger: Ledger, journal: Journal) -> None:
    journal.begin("gate", "Deciding.")
    assert journal.end(CycleState.REJECTED, "no better")
    ended = cycle(ledger).finished_at
    assert not journal.end(CycleState.FAILED, "too late")
    row = cycle(ledger)
    assert (row.state, row.reason, row.finished_at) == (CycleState.REJECTED, "no better", ended)
    assert events(ledger)[-1] == ("gate", "The cycle ended rejected: no better")
    assert len(events(ledger)) == 2


def test_a_cycle_that_never_began_can_end(ledger: Ledger, journal: Journal) -> None:
    assert journal.end(CycleState.FAILED, "no worker")
    assert events(ledger) == [("start", "The cycle ended failed: no worker")]


def test_a_cancelled_cycle_goes_no_further(ledger: Ledger, journal: Journal) -> None:
    journal.check()
    set_state(ledger, CycleState.CANCELLED, "cancelled by ada")
    with pytest.raises(CycleEndedError, match="cancelled by ada"):
        journal.check()
    with pytest.raises(CycleEndedError, match="cancelled by ada"):
        journal.begin("train", "Fine-tuning.")
    assert not journal.end(CycleState.PROMOTED, "done")
    row = cycle(ledger)
    assert (row.state, row.step) == (CycleState.CANCELLED, None)


def test_a_cycle_that_is_gone(ledger: Ledger) -> None:
    with pytest.raises(CycleEndedError, match="cycle 99 is gone"):
        Journal(ledger, 99).check()
