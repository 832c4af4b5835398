from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from active_learning import triggers
from active_learning.ledger import Cycle, CycleState, Label, Project, Snapshot
from active_learning.ledger.types import utc_now
from active_learning.triggers import CycleActiveError


def due(loop: Any, now: datetime | None = None) -> str | None:
    with loop.ledger.session(write=False) as session:
        return triggers.due(session, session.get_one(Project, loop.project_id), now or utc_now())


def request(loop: Any, trigger: str = "command by ada") -> int:
    with loop.ledger.session() as session:
        return triggers.request(session, session.get_one(Project, loop.project_id), trigger).id


def end(loop: Any, cycle: int, state: CycleState = CycleState.PROMOTED) -> None:
    with loop.ledger.session() as session:
        row = session.get_one(Cycle, cycle)
        row.state, row.finished_at = state, utc_now()


def freeze(loop: Any) -> None:
    """A snapshot of every label there is."""
    with loop.ledger.session() as session:
        held = [{"task_id": x.task_id, "content": x.content} for x in session.scalars(select(Label))]
        manifest = {"classes": ["oil"], "train": held, "holdout": []}
        session.add(Snapshot(project_id=loop.project_id, sha256="a" * 64, manifest=manifest))


def test_enough_human_labels_are_due_and_fewer_are_not(loop):
    tasks = loop.add("a", "b", "c")
    loop.label(tasks[0])
    loop.label(tasks[1])
    assert due(loop) is None
    loop.label(tasks[2])
    assert due(loop) == "labels: 3 new in all"


def test_machine_labels_deleted_ones_and_second_thoughts_do_not_count(loop):
    tasks = loop.add("a", "b", "c", "d")
    loop.label(tasks[0], machine=True)
    annotation = loop.label(tasks[1])
    loop.label(tasks[1], annotation=annotation)
    loop.bury(loop.label(tasks[2]))
    loop.label(tasks[3])
    assert due(loop) is None
    loop.configure(labels_per_cycle=2)
    assert due(loop) == "labels: 2 new in all"


def test_only_what_the_last_snapshot_lacks_counts(loop):
    for task in loop.add("a", "b", "c"):
        loop.label(task)
    freeze(loop)
    assert due(loop) is None
    for task in loop.add("d", "e", "f"):
        loop.label(task)
    assert due(loop) == f"labels: 3 new since snapshot {'a' * 12}"


def test_a_cycle_may_wait_for_a_share_of_the_labels_that_there_are(loop):
    loop.configure(label_growth=1.5)
    for task in loop.add("a", "b", "c"):
        loop.label(task)
    assert due(loop) == "labels: 3 new in all"  # none are held yet
    freeze(loop)
    *first, last = loop.add("d", "e", "f", "g", "h")
    for task in first:
        loop.label(task)
    assert due(loop) is None
    with loop.ledger.session(write=False) as session:
        assert triggers.wanted(session, loop.project()) == 5  # 1.5 x 3, rounded up
    loop.label(last)
    assert due(loop) == f"labels: 5 new since snapshot {'a' * 12}"
    loop.configure(label_growth=0.1)
    with loop.ledger.session(write=False) as session:
        assert triggers.wanted(session, loop.project()) == 3  # never fewer than labels_per_cycle


def test_no_cycle_is_due_while_one_is_active_or_cooling_down(loop):
    for task in loop.add("a", "b", "c"):
        loop.label(task)
    cycle = request(loop)
    later = utc_now() + timedelta(days=1)
    assert due(loop, later) is None
    end(loop, cycle, CycleState.FAILED)
    assert due(loop) is None
    assert due(loop, utc_now() + timedelta(seconds=59)) is None
    assert due(loop, utc_now() + timedelta(seconds=61)) is not None


def test_there_is_one_active_cycle_per_project(loop):
    first = request(loop, "labels: 50 new in all")
    with pytest.raises(
        CycleActiveError, match=rf"cycle {first} of project 'spills' is requested already \(labels"
    ):
        request(loop)
    end(loop, first, CycleState.REJECTED)
    assert request(loop) != first


def test_the_session_lives_on_after_a_refused_request(loop):
    request(loop)
    with loop.ledger.session() as session:
        project = session.get_one(Project, loop.project_id)
        with pytest.raises(CycleActiveError):
            triggers.request(session, project, "again")
        project.cooldown_s = 5.0
    assert loop.project().cooldown_s == 5.0


def test_a_person_may_ask_during_the_cooldown(loop):
    end(loop, request(loop))
    with loop.ledger.session(write=False) as session:
        assert triggers.active_cycle(session, session.get_one(Project, loop.project_id)) is None
    assert request(loop)


def test_a_long_trigger_is_cut_to_what_the_ledger_holds(loop):
    cycle = request(loop, "x" * 500)
    with loop.ledger.session(write=False) as session:
        assert session.get_one(Cycle, cycle).trigger == "x" * 200


def test_an_active_cycle_can_be_cancelled_and_an_ended_one_stays_as_it_ended(loop):
    cycle = request(loop)

    def cancel(reason: str) -> bool:
        with loop.ledger.session() as session:
            return triggers.cancel(session, session.get_one(Cycle, cycle), reason)

    assert cancel("cancelled by ada")
    assert not cancel("cancelled by bob")
    with loop.ledger.session(write=False) as session:
        row = session.get_one(Cycle, cycle)
        assert (row.state, row.reason) == (CycleState.CANCELLED, "cancelled by ada")
        assert row.finished_at is not None
    assert request(loop)


def test_a_cancellation_never_overwrites_an_end_that_came_first(loop):
    cycle = request(loop)
    with loop.ledger.session() as session:
        stale = session.get_one(Cycle, cycle)
        assert stale.state is CycleState.REQUESTED
        session.connection().exec_driver_sql("UPDATE cycles SET state = 'promoted', reason = 'better'")
        assert not triggers.cancel(session, stale, "too late")
        assert (stale.state, stale.reason) == (CycleState.PROMOTED, "better")


def test_a_running_cycle_can_be_cancelled_and_keeps_what_it_did(loop):
    cycle = request(loop)
    with loop.ledger.session() as session:
        row = session.get_one(Cycle, cycle)
        row.state, row.step, row.seconds = CycleState.RUNNING, "train", {"snapshot": 1.5}
    with loop.ledger.session() as session:
        row = session.get_one(Cycle, cycle)
        assert triggers.cancel(session, row, "cancelled by ada")
        assert row.state is CycleState.CANCELLED  # the caller sees what was written
    with loop.ledger.session(write=False) as session:
        row = session.get_one(Cycle, cycle)
        assert (row.step, row.seconds) == ("train", {"snapshot": 1.5})
        assert row.finished_at >= row.requested_at
        assert triggers.active_cycle(session, session.get_one(Project, loop.project_id)) is None


def test_a_cancellation_is_for_one_cycle_only(loop):
    other = request(loop)
    end(loop, other, CycleState.FAILED)
    cycle = request(loop)
    with loop.ledger.session() as session:
        assert not triggers.cancel(session, session.get_one(Cycle, other), "by mistake")
    with loop.ledger.session(write=False) as session:
        assert session.get_one(Cycle, other).state is CycleState.FAILED
        assert session.get_one(Cycle, cycle).state is CycleState.REQUESTED
