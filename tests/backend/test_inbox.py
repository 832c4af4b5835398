"""Events in any order, twice, late, poisoned: the same state in the end."""

from __future__ import annotations

import shutil
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from active_learning import labels
from active_learning.ledger import (
    Cycle,
    CycleState,
    InboxEvent,
    InboxState,
    Label,
    LabelSource,
    Ledger,
    Project,
    Task,
    TaskStatus,
    Tombstone,
)
from active_learning.ledger.failures import LedgerError
from active_learning.ledger.types import hash_masks, utc_now
from active_learning.ports import ToolUnavailableError
from backend import inbox


def put(ledger: Ledger, *events: dict) -> None:
    with ledger.session() as session:
        for number, event in enumerate(events):
            key = f"{len(session.scalars(select(InboxEvent.id)).all())}-{number}"
            project = event.get("project") or {}
            row = InboxEvent(
                key=key, tool_project_id=project.get("id"), action=event["action"], payload=event
            )
            session.add(row)
            session.flush()


def events(ledger: Ledger) -> list[InboxEvent]:
    with ledger.session(write=False) as session:
        return list(session.scalars(select(InboxEvent).order_by(InboxEvent.id)))


def state(ledger: Ledger) -> dict:
    """What the ledger says, without its own ids and times."""
    with ledger.session(write=False) as session:
        project = session.scalars(select(Project)).one()
        return {
            "tasks": {t.tool_task_id: (t.status, t.image_uri) for t in session.scalars(select(Task))},
            "current": {
                label.task.tool_task_id: (label.tool_annotation_id, label.source, hash_masks(label.masks))
                for label in labels.current_labels(session, project, list(LabelSource))
            },
            "buried": set(session.scalars(select(Tombstone.tool_annotation_id))),
            "labels": {(x.tool_annotation_id, x.revision) for x in session.scalars(select(Label))},
        }


def test_nothing_to_do_asks_nobody(ledger, memory_tool):
    memory_tool.down = True
    assert inbox.work_off(ledger, memory_tool) == 0


def test_an_annotation_becomes_a_label_and_its_task_is_made(ledger, project, memory_tool, payloads):
    put(ledger, payloads.created(5, 12, 1), payloads.created(6, 13, 2, completed_by=2))
    assert inbox.work_off(ledger, memory_tool) == 2
    found = state(ledger)
    assert found["tasks"][12][0] is TaskStatus.DONE
    assert found["tasks"][13][0] is TaskStatus.WAITING  # the machine's annotation labels nothing
    assert found["current"][12][1] is LabelSource.HUMAN
    assert found["current"][13][1] is LabelSource.MACHINE
    assert [e.state for e in events(ledger)] == [InboxState.DONE] * 2
    assert inbox.work_off(ledger, memory_tool) == 0


def test_skip_then_deletion_of_the_skip(ledger, project, memory_tool, payloads):
    put(ledger, payloads.created(5, 12, was_cancelled=True, result=[]))
    inbox.work_off(ledger, memory_tool)
    assert state(ledger)["tasks"][12][0] is TaskStatus.SKIPPED
    put(ledger, payloads.event("ANNOTATIONS_DELETED", annotations=[{"id": 5}]))
    inbox.work_off(ledger, memory_tool)
    assert state(ledger)["tasks"][12][0] is TaskStatus.WAITING


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A ledger with the project, to be copied."""
    path = tmp_path_factory.mktemp("inbox") / "empty.sqlite"
    with Ledger(f"sqlite:///{path}") as ledger:
        ledger.upgrade()
        values = {"name": "t", "tool_url": "u", "tool_project_id": 7, "classes": ["building", "road"]}
        with ledger.session() as session:
            session.add(Project(**values))
    return path


def story(payloads) -> list[dict]:
    """Two tasks: one labelled, changed and changed again; one labelled twice, the later one deleted; a third
    is deleted with its label; the machine accepts the fourth, which a human then skips.
    """
    return [
        payloads.event("TASKS_CREATED", tasks=[payloads.task(n) for n in (1, 2, 3, 4)]),
        payloads.created(10, 1, 1),
        payloads.created(10, 1, 2, action="ANNOTATION_UPDATED"),
        payloads.created(10, 1, 3, action="ANNOTATION_UPDATED", result=[]),
        payloads.created(20, 2, 4),
        payloads.created(21, 2, 5),
        payloads.event("ANNOTATIONS_DELETED", annotations=[{"id": 21}]),
        payloads.created(30, 3, 6),
        payloads.event("TASKS_DELETED", tasks=[{"id": 3}]),
        payloads.created(40, 4, 7, completed_by=2),
        payloads.created(41, 4, 8, was_cancelled=True),
    ]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_order_and_repetition_do_not_matter(data, empty, tmp_path_factory, memory_tool, payloads):
    told = story(payloads)
    shuffled = data.draw(st.permutations(told)) + data.draw(st.lists(st.sampled_from(told), max_size=6))
    folder = tmp_path_factory.mktemp("order")
    found = []
    for number, some in enumerate([told, shuffled]):
        path = folder / f"{number}.sqlite"
        shutil.copy(empty, path)
        with Ledger(f"sqlite:///{path}") as ledger:
            put(ledger, *some)
            assert inbox.work_off(ledger, memory_tool) == len(some)
            found.append(state(ledger))
    shutil.rmtree(folder)
    assert found[0] == found[1]
    assert found[0]["tasks"][1][0] is TaskStatus.DONE
    assert found[0]["current"][2][0] == 20
    assert found[0]["tasks"][3][0] is TaskStatus.GONE
    assert found[0]["tasks"][4][0] is TaskStatus.SKIPPED


def test_a_poisoned_event_is_tried_three_times_and_never_blocks(ledger, project, memory_tool, payloads):
    poisoned = payloads.created(5, 12)
    poisoned["annotation"]["result"][0]["value"]["rle"] = [1, 2, 3]
    no_task = payloads.event("ANNOTATION_CREATED", annotation=payloads.annotation(6, 99))
    put(ledger, poisoned, no_task, payloads.created(7, 14))
    assert inbox.work_off(ledger, memory_tool) == 1
    assert 14 in state(ledger)["current"]
    assert [e.attempts for e in events(ledger)] == [1, 1, 0]
    assert inbox.work_off(ledger, memory_tool) == 0
    assert inbox.work_off(ledger, memory_tool) == 2
    first, second, _ = events(ledger)
    assert first.state is second.state is InboxState.FAILED
    assert first.attempts == inbox.MAX_ATTEMPTS
    assert "annotation 5" in first.error
    assert "truncated" in first.error
    assert "'task' must be" in second.error
    assert inbox.work_off(ledger, memory_tool) == 0


def test_a_defect_of_ours_is_set_aside_too(ledger, project, memory_tool, payloads, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("defect")

    monkeypatch.setattr(inbox, "add_tasks", broken)
    put(ledger, payloads.created(5, 12))
    for _ in range(inbox.MAX_ATTEMPTS):
        inbox.work_off(ledger, memory_tool)
    assert events(ledger)[0].error == "ZeroDivisionError: defect"
    assert events(ledger)[0].state is InboxState.FAILED


def test_the_good_part_of_a_list_counts(ledger, project, memory_tool, payloads):
    bad = payloads.annotation(6, 13, result=[payloads.region(payloads.mask(0), image_rotation=90)])
    put(
        ledger,
        payloads.event(
            "ANNOTATIONS_CREATED",
            annotation=[payloads.annotation(5, 12), bad],
            task=[payloads.task(12), payloads.task(13)],
        ),
    )
    inbox.work_off(ledger, memory_tool)
    assert state(ledger)["current"].keys() == {12}
    assert "rotated" in events(ledger)[0].error


def test_an_unknown_project_is_told(ledger, memory_tool, payloads):
    put(ledger, payloads.created(5, 12))
    for _ in range(inbox.MAX_ATTEMPTS):
        inbox.work_off(ledger, memory_tool)
    assert "elnet project create" in events(ledger)[0].error


def test_notes_stay_with_the_event(ledger, project, memory_tool, payloads, caplog):
    config = payloads.project["label_config"]
    payloads.project["label_config"] = config.replace('<Label value="road"/>', "")
    put(ledger, payloads.event("PROJECT_UPDATED"))
    inbox.work_off(ledger, memory_tool)
    [event] = events(ledger)
    assert event.state is InboxState.DONE
    assert "no longer has road" in event.error
    assert "no longer has road" in caplog.text


def test_while_the_tool_is_away_nothing_is_lost_or_counted(ledger, project, memory_tool, payloads):
    put(ledger, payloads.created(5, 12))
    memory_tool.down = True
    with pytest.raises(ToolUnavailableError):
        inbox.work_off(ledger, memory_tool)
    assert events(ledger)[0].attempts == 0
    memory_tool.down = False
    assert inbox.work_off(ledger, memory_tool) == 1


def test_a_deletion_without_ids_is_looked_up_and_others_need_not_wait(
    ledger, project, memory_tool, payloads, monkeypatch
):
    put(ledger, payloads.created(5, 12))
    inbox.work_off(ledger, memory_tool)
    put(ledger, payloads.event("ANNOTATIONS_DELETED"), payloads.created(6, 13))

    def away(*_):
        raise ToolUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(memory_tool, "tasks", away)
        with pytest.raises(ToolUnavailableError):
            inbox.work_off(ledger, memory_tool)
    assert [e.state for e in events(ledger)] == [InboxState.DONE, InboxState.WAITING, InboxState.DONE]
    memory_tool.listed = {n: payloads.task(n) for n in (12, 13)}
    memory_tool.annotated = {6: payloads.annotation(6, 13)}
    assert inbox.work_off(ledger, memory_tool) == 1
    found = state(ledger)
    assert found["buried"] == {5}
    assert found["tasks"][12][0] is TaskStatus.WAITING
    assert found["tasks"][13][0] is TaskStatus.DONE


def test_a_failing_ledger_is_no_fault_of_the_event(ledger, project, memory_tool, payloads, monkeypatch):
    def full(*_):
        raise LedgerError("the disk is full")

    put(ledger, payloads.created(5, 12))
    with monkeypatch.context() as patch:
        patch.setattr(inbox, "add_tasks", full)
        with pytest.raises(LedgerError):
            inbox.work_off(ledger, memory_tool)
    assert events(ledger)[0].attempts == 0


def cycles(ledger: Ledger) -> list[Cycle]:
    with ledger.session(write=False) as session:
        return list(session.scalars(select(Cycle)))


def test_start_training_asks_for_one_cycle_however_often_it_is_pressed(
    ledger, project, memory_tool, payloads
):
    put(ledger, *[payloads.event("START_TRAINING")] * 3)
    assert inbox.work_off(ledger, memory_tool) == 3
    [cycle] = cycles(ledger)
    assert cycle.trigger == "Start training"
    assert "since the button was pressed" in events(ledger)[1].error
    put(ledger, payloads.event("START_TRAINING"))
    inbox.work_off(ledger, memory_tool)
    assert "is requested already" in events(ledger)[3].error
    with ledger.session() as session:
        row = session.get_one(Cycle, cycle.id)
        row.state, row.finished_at = CycleState.REJECTED, utc_now() + timedelta(seconds=1)
    put(ledger, payloads.event("START_TRAINING"))
    inbox.work_off(ledger, memory_tool)
    assert len(cycles(ledger)) == 2


def test_the_newest_of_two_projects_with_one_number_is_meant(ledger, project, memory_tool, payloads):
    with ledger.session() as session:
        newer = Project(
            name="other", tool_url="http://other", tool_project_id=7, classes=["building", "road"]
        )
        session.add(newer)
    put(ledger, payloads.created(5, 12))
    inbox.work_off(ledger, memory_tool)
    with ledger.session(write=False) as session:
        assert session.scalars(select(Task)).one().project_id == newer.id


def test_recorded_deliveries_in_the_order_they_came(ledger, memory_tool, recorded):
    with ledger.session() as session:
        values = {"name": "elnet", "tool_url": "u", "tool_project_id": 1, "classes": ["building", "road"]}
        session.add(Project(**values))
    names = [
        "webhook_tasks_created",
        "webhook_annotation_created",
        "webhook_annotation_updated",
        "webhook_annotation_created_skipped",
        "webhook_annotations_created",
        "webhook_annotations_deleted",
        "webhook_project_updated",
        "webhook_start_training",
    ]
    put(ledger, *[recorded(name)["body"] for name in names])
    assert inbox.work_off(ledger, memory_tool) == len(names)
    assert all(e.state is InboxState.DONE and e.error is None for e in events(ledger))
    found = state(ledger)
    assert {n: s for n, (s, _) in found["tasks"].items()} == {
        12: TaskStatus.WAITING,  # its annotation was deleted
        13: TaskStatus.SKIPPED,
        **dict.fromkeys((14, 15, 16, 17), TaskStatus.WAITING),
    }
    assert found["current"].keys() == {14, 15}
    assert {source for _, source, _ in found["current"].values()} == {LabelSource.MACHINE}
    assert len(cycles(ledger)) == 1
