from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from active_learning import thresholds, triggers
from active_learning.journal import resumptions
from active_learning.ledger import Cycle, CycleState, Label, ModelVersion, Project, Snapshot
from active_learning.ledger.types import utc_now
from active_learning.triggers import CycleActiveError, CycleDoneError, Outlook, labels_for_gain


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


@pytest.mark.parametrize("state", [CycleState.FAILED, CycleState.CANCELLED])
def test_a_cycle_that_did_not_come_to_its_end_can_be_resumed(loop, state):
    cycle = request(loop)
    end(loop, cycle, state)
    with loop.ledger.session() as session:
        row = session.get_one(Cycle, cycle)
        triggers.resume(session, row, "ada")
        assert (row.state, row.reason, row.finished_at) == (CycleState.REQUESTED, None, None)
        assert resumptions(session, cycle) == 1
        with pytest.raises(CycleActiveError, match="cycle 1 cannot be resumed: it is requested"):
            triggers.resume(session, row, "bob")
        assert resumptions(session, cycle) == 1


@pytest.mark.parametrize("state", [CycleState.PROMOTED, CycleState.PASSED, CycleState.REJECTED])
def test_a_cycle_that_came_to_its_end_is_not_resumed(loop, state):
    cycle = request(loop)
    end(loop, cycle, state)
    with loop.ledger.session() as session, pytest.raises(CycleDoneError, match=f"its end: {state.value}"):
        triggers.resume(session, session.get_one(Cycle, cycle), "ada")


def test_a_cycle_is_not_resumed_beside_another(loop):
    failed = request(loop)
    end(loop, failed, CycleState.FAILED)
    request(loop)
    with loop.ledger.session() as session, pytest.raises(CycleActiveError, match="cycle 2 is requested"):
        triggers.resume(session, session.get_one(Cycle, failed), "ada")


def look(loop: Any, now: datetime | None = None) -> tuple[Outlook, dict[str, tuple[bool, str]]]:
    with loop.ledger.session(write=False) as session:
        found = triggers.outlook(session, session.get_one(Project, loop.project_id), now or utc_now())
    return found, {c.name: (c.met, c.why) for c in found.conditions}


def test_the_outlook_says_why_nothing_begins(loop):
    (task,) = loop.add("a")
    loop.label(task)
    found, conditions = look(loop)
    assert (found.starts, found.held_back) == (None, None)
    assert conditions == {
        "labels": (False, "1 of 3 new labels in all"),
        "schedule": (False, "there is none"),
        "alarm": (False, "auto-accept has not switched itself off"),
    }
    cycle = request(loop)
    assert look(loop)[0].held_back == f"cycle {cycle} is requested"
    end(loop, cycle)
    for task in loop.add("b", "c", "d"):
        loop.label(task)
    found, conditions = look(loop)
    assert conditions["labels"][0]
    assert found.starts is None
    assert f"the cooldown after cycle {cycle} ends at" in found.held_back


def test_a_schedule_starts_a_cycle_at_its_time_once_if_anything_is_new(loop):
    made = datetime(2026, 3, 2, 12, tzinfo=UTC)  # a Monday
    loop.configure(schedule="0 2 * * 2", created_at=made)
    tuesday = datetime(2026, 3, 3, 2, 30, tzinfo=UTC)
    assert look(loop, made)[1]["schedule"] == (False, "0 2 * * 2: next at 2026-03-03 02:00 UTC")
    assert look(loop, tuesday)[1]["schedule"][1].endswith("it is time, and no label is new")
    (task,) = loop.add("a")
    loop.label(task)
    assert due(loop, tuesday) == "schedule: 0 2 * * 2, 1 new labels"
    cycle = request(loop)
    with loop.ledger.session() as session:
        row = session.get_one(Cycle, cycle)
        row.requested_at = row.finished_at = tuesday
        row.state = CycleState.REJECTED
    assert due(loop, tuesday + timedelta(hours=1)) is None
    assert due(loop, tuesday + timedelta(days=7)) is not None


def test_an_alarm_starts_a_cycle_once_if_the_policy_wants_it_and_labels_are_new(loop):
    loop.promote()
    with loop.ledger.session() as session:
        project = session.get_one(Project, loop.project_id)
        thresholds.set_threshold(session, project, None, thresholds.LOOP, "the promise is broken")
    loop.configure(labels_per_cycle=50)
    for task in loop.add(*["a"] * 9):
        loop.label(task)
    assert look(loop)[1]["alarm"] == (False, "auto-accept is off: 9 of 10 new labels")
    (task,) = loop.add("b")
    loop.label(task)
    assert due(loop) == "alarm: auto-accept switched itself off, 10 new labels"
    loop.configure(retrain_on_alarm=False)
    assert due(loop) is None
    loop.configure(retrain_on_alarm=True, cooldown_s=0.0)
    end(loop, request(loop))
    assert due(loop) is None
    assert look(loop)[1]["alarm"][1].startswith("a cycle was asked for since")


def test_the_labels_for_a_gain_follow_the_learning_curve():
    # 1 - IoU = exp(-c n): from 0.6 at 100 labels to 0.64 takes log(0.36) / log(0.4) of them
    assert labels_for_gain(0.6, 0.04, 100) == 12
    assert labels_for_gain(0.9, 0.05, 100) == 31  # the better, the dearer
    assert labels_for_gain(0.6, 1e-6, 10) == 1
    assert [labels_for_gain(*given) for given in ((0.0, 0.1, 9), (0.97, 0.05, 9), (0.6, 0.1, 0))] == [
        None
    ] * 3


def test_a_project_may_wait_for_the_labels_of_a_gain(loop):
    for task in loop.add(*["x"] * 10):
        loop.label(task)
    freeze(loop)
    version = loop.promote()
    with loop.ledger.session() as session:
        session.get_one(ModelVersion, version).metrics = {"fg_iou": 0.6}
    loop.configure(gain=0.2, labels_per_cycle=2)
    with loop.ledger.session(write=False) as session:
        assert triggers.wanted(session, session.get_one(Project, loop.project_id)) == 8
    (task, *others) = loop.add(*["y"] * 8)
    loop.label(task)
    assert look(loop)[1]["labels"] == (False, f"1 of 8 new labels since snapshot {'a' * 12}")
    for task in others:
        loop.label(task)
    assert due(loop) is not None
