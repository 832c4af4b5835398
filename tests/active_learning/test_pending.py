from __future__ import annotations

from typing import Any

import pytest

from active_learning import pending
from active_learning.ledger import Project, TaskStatus
from active_learning.pending import Row
from active_learning.prefill import predict_waiting


def row(status: TaskStatus = TaskStatus.REVIEW, pushed: dict[str, Any] | None = None, **values: Any) -> Row:
    standing = {
        "task_id": 1,
        "tool_task_id": 101,
        "quality": 0.5,
        "priority": 0.5,
        "holdout": False,
        "prediction_id": 9,
        "tool_prediction_id": 1009,
    }
    return Row(status=status, pushed=pushed or {}, **{**standing, **values})


@pytest.mark.parametrize(
    ("standing", "lacks"),
    [
        (row(pushed={"model_version": "v1"}), False),
        (row(pushed={"model_version": "v0"}), True),
        (row(), True),
        (row(pushed={"model_version": "v1"}, tool_prediction_id=None), True),
        (row(prediction_id=None, tool_prediction_id=None), False),
        (row(TaskStatus.DONE), False),
        (row(TaskStatus.FAILED), False),
        (row(TaskStatus.ACCEPTED), True),
        (row(TaskStatus.AUDIT), True),
    ],
)
def test_which_tasks_lack_a_prefill(standing, lacks):
    project = Project(audit_share=0.1, blind_share=0.0)
    assert pending.lacks_prefill(standing, project, "v1") is lacks


def test_a_prefill_is_sent_again_when_its_mask_is_to_be_hidden_or_shown():
    project = Project(audit_share=1.0, blind_share=1.0)
    held, hidden = {"model_version": "v1"}, {"model_version": "v1", "blind": True}
    assert pending.lacks_prefill(row(TaskStatus.AUDIT, held), project, "v1")
    assert not pending.lacks_prefill(row(TaskStatus.AUDIT, hidden), project, "v1")
    assert pending.lacks_prefill(row(TaskStatus.REVIEW, hidden), project, "v1")
    assert not pending.lacks_prefill(row(TaskStatus.REVIEW, held), project, "v1")


@pytest.mark.parametrize(
    ("standing", "accept", "withdraw"),
    [
        (row(TaskStatus.ACCEPTED), True, False),
        (row(TaskStatus.ACCEPTED, {"accepting": 9}), True, False),
        (row(TaskStatus.ACCEPTED, {"accepting": 9, "accepted": 9, "annotation": 5}), False, False),
        (row(TaskStatus.ACCEPTED, {"accepting": 8, "accepted": 8, "annotation": 5}), True, False),
        (row(TaskStatus.ACCEPTED, prediction_id=None), False, False),
        (row(TaskStatus.REVIEW), False, False),
        (row(TaskStatus.REVIEW, {"accepting": 9}), False, True),
        (row(TaskStatus.DONE, {"accepted": 9, "annotation": 5}), False, True),
    ],
)
def test_what_is_to_be_accepted_and_withdrawn(standing, accept, withdraw):
    assert pending.to_accept(standing) is accept
    assert pending.to_withdraw(standing) is withdraw


@pytest.mark.parametrize(
    ("pushed", "moved"),
    [
        ({"status": "review", "quality": 0.5, "priority": 0.5}, False),
        ({"status": "audit", "quality": 0.5, "priority": 0.5}, True),
        ({"status": "review", "quality": 0.498, "priority": 0.51}, False),
        ({"status": "review", "quality": 0.49, "priority": 0.5}, True),
        ({"status": "review", "quality": 0.5, "priority": 0.47}, True),
        ({"status": "review", "quality": 0.5}, True),
        ({}, True),
    ],
)
def test_which_placements_have_moved(pushed, moved):
    assert pending.moved(row(pushed=pushed)) is moved


def test_a_place_without_numbers_is_told_once():
    told = row(TaskStatus.FAILED, {"status": "failed"}, quality=None, priority=None)
    assert not pending.moved(told)


def test_the_plan_shows_the_champions_prediction_and_the_head_of_the_queue_first(loop, make_predictor):
    ids = loop.add(loop.image(0.8), loop.image(0.55))
    version = loop.promote()
    predict_waiting(loop.ledger, loop.project_id, make_predictor(), loop.images)
    with loop.ledger.session(write=False) as session:
        project = session.get_one(Project, loop.project_id)
        first, second = pending.plan(session, project)
        (named,) = pending.plan(session, project, [ids[0]])
    assert first.priority > second.priority
    assert first.prediction_id == loop.predictions(first.task_id)[0].id
    assert loop.predictions(first.task_id)[0].model_version_id == version
    assert named.task_id == ids[0]
    assert named.pushed == {}


def test_labels_of_people_are_told_from_the_machines(loop):
    (task,) = loop.add("x")
    machines = loop.label(task, machine=True)

    def says() -> tuple[bool, bool]:
        with loop.ledger.session(write=False) as session:
            project = session.get_one(Project, loop.project_id)
            standing = row(pushed={"annotation": machines}, task_id=task)
            return (
                pending.has_human_label(session, standing),
                pending.became_human(session, project, standing),
            )

    assert says() == (False, False)
    theirs = loop.label(task)
    assert says() == (True, False)
    loop.bury(theirs)
    assert says() == (False, False)
    loop.label(task, annotation=machines)
    assert says() == (True, True)
