"""What lost webhooks missed."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from active_learning import labels
from active_learning.ledger import Label, Project, Task, TaskStatus, Tombstone
from active_learning.ports import ToolUnavailableError
from backend import reconciler
from backend.inbox import reconcile


@pytest.fixture
def full(memory_tool, payloads):
    """Tasks 1 to 3, annotations 10 of task 1 and 20 of task 2."""
    memory_tool.listed = {n: payloads.task(n) for n in (1, 2, 3)}
    memory_tool.annotated = {10: payloads.annotation(10, 1, 1), 20: payloads.annotation(20, 2, 2)}
    return memory_tool


def statuses(ledger) -> dict[int, TaskStatus]:
    with ledger.session(write=False) as session:
        return {t.tool_task_id: t.status for t in session.scalars(select(Task))}


def buried(ledger) -> set[int]:
    with ledger.session(write=False) as session:
        return set(session.scalars(select(Tombstone.tool_annotation_id)))


def test_everything_is_found_and_the_second_time_nothing_changes(ledger, project, full):
    assert reconcile(ledger, project, full) == 5
    assert statuses(ledger) == {1: TaskStatus.DONE, 2: TaskStatus.DONE, 3: TaskStatus.WAITING}
    assert reconcile(ledger, project, full) == 0
    assert full.asked == ["tasks", "annotations"] * 2


def test_a_changed_annotation_and_changed_data(ledger, project, full, payloads):
    reconcile(ledger, project, full)
    full.annotated[10] = payloads.annotation(10, 1, 7)
    full.listed[3]["data"]["route"] = "review"
    assert reconcile(ledger, project, full) == 2
    with ledger.session(write=False) as session:
        task = session.scalars(select(Task).where(Task.tool_task_id == 1)).one()
        label = labels.current_label(session, task)
    assert label is not None
    assert label.masks is not None
    assert (label.masks[0] == payloads.mask(7)).all()


def test_what_vanished_is_buried_and_gone_but_stays_in_the_ledger(ledger, project, full):
    reconcile(ledger, project, full)
    del full.annotated[10]
    del full.listed[3]
    assert reconcile(ledger, project, full) == 2
    assert statuses(ledger) == {1: TaskStatus.WAITING, 2: TaskStatus.DONE, 3: TaskStatus.GONE}
    assert buried(ledger) == {10}
    with ledger.session(write=False) as session:
        assert len(session.scalars(select(Label)).all()) == 2


def test_what_slipped_between_two_pages_is_not_taken_for_deleted(ledger, project, full, payloads):
    reconcile(ledger, project, full)
    whole = dict(full.listed), dict(full.annotated)
    answers = iter([1, 2, 3, 4])  # tasks, tasks again, annotations, annotations again

    def forgetful(what):
        number = next(answers)
        full.listed, full.annotated = (dict(part) for part in whole)
        if number == 1:
            del full.listed[1]
        if number == 3:
            del full.annotated[10]

    full._ask = forgetful
    assert reconcile(ledger, project, full) == 0
    assert buried(ledger) == set()
    assert statuses(ledger)[1] is TaskStatus.DONE


def test_an_annotation_made_during_the_listing_is_not_buried(ledger, project, full, payloads):
    reconcile(ledger, project, full)
    ask = full._ask

    def meanwhile(what):
        ask(what)
        if what == "annotations":  # its webhook arrives, the listing does not show it yet
            with ledger.session() as session:
                from backend.annotations import decode_annotation

                said = decode_annotation(payloads.annotation(30, 3, 5), ["building", "road"], "2")
                labels.record(session, session.get_one(Project, project.id), said)

    full._ask = meanwhile
    reconcile(ledger, project, full)
    assert buried(ledger) == set()
    assert statuses(ledger)[3] is TaskStatus.DONE


def test_an_annotation_of_an_unlisted_task_does_not_hold_up_the_others(
    ledger, project, full, payloads, caplog
):
    full.annotated = {5: payloads.annotation(5, 99), **full.annotated}
    assert reconcile(ledger, project, full) == 5
    assert "annotation 5" in caplog.text


def test_many_annotations_are_written_in_parts(ledger, project, full, payloads, monkeypatch):
    monkeypatch.setattr(reconciler, "_BATCH", 3)
    full.annotated = {n: payloads.annotation(n, 1 + n % 3, n) for n in range(100, 110)}
    assert reconcile(ledger, project, full) == 13


def test_the_tool_is_away(ledger, project, full):
    reconcile(ledger, project, full)
    full.down = True
    with pytest.raises(ToolUnavailableError):
        reconcile(ledger, project, full)
    assert statuses(ledger)[1] is TaskStatus.DONE
