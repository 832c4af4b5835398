"""What the labeling tool does not know yet: each task beside what the tool last confirmed of it.

Keys of `Task.pushed`: `status`, `quality`, `priority` (its placement), `model_version` (of its prefill),
`blind` (the prefill was sent without its mask),
`accepting` (the prediction that was sent to be accepted), `accepted` (the one that was confirmed) and
`annotation` (the tool's id of it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from active_learning import routing
from active_learning.ledger import Label, LabelSource, Prediction, Project, Task, TaskStatus, Tombstone

QUALITY_STEP = 0.005  # smaller moves are not worth a call of the tool each
PRIORITY_STEP = 0.02
SHOWN = (TaskStatus.REVIEW, TaskStatus.AUDIT, TaskStatus.ACCEPTED)  # the tool shows their prefill


class Row(NamedTuple):
    """A task without its masks, and the champion's prediction of it."""

    task_id: int
    tool_task_id: int
    status: TaskStatus
    quality: float | None
    priority: float | None
    pushed: dict[str, Any]
    holdout: bool
    prediction_id: int | None
    tool_prediction_id: int | None


def plan(session: Session, project: Project, ids: Sequence[int] | None = None) -> list[Row]:
    """The project's tasks that the tool still has, the head of the queue first; of `ids`, if given."""
    by_champion = (Prediction.task_id == Task.id) & (Prediction.model_version_id == project.champion_id)
    place = (Task.id, Task.tool_task_id, Task.status, Task.quality, Task.priority, Task.pushed, Task.holdout)
    query = (
        select(*place, Prediction.id, Prediction.tool_prediction_id)
        .outerjoin(Prediction, by_champion)
        .where(Task.project_id == project.id, Task.status != TaskStatus.GONE)
        .order_by(Task.priority.desc().nulls_last(), Task.id)
    )
    if ids is not None:
        query = query.where(Task.id.in_(ids))
    rows = (Row(*row) for row in session.execute(query))
    return [row._replace(pushed=row.pushed or {}) for row in rows]


def lacks_prefill(row: Row, project: Project, version: str) -> bool:
    """The tool does not hold the prediction of the champion, named `version`, as it is to be shown."""
    if row.status not in SHOWN or row.prediction_id is None:
        return False
    # Its id alone does not tell: once another version was pushed, the tool no longer holds this one.
    if row.tool_prediction_id is None or row.pushed.get("model_version") != version:
        return True
    return bool(row.pushed.get("blind")) != hides_mask(row, project, version)


def hides_mask(row: Row, project: Project, version: str) -> bool:
    """The prefill is to be shown without its mask."""
    return routing.hides_mask(project, version, row.task_id, row.status, holdout=row.holdout)


def to_accept(row: Row) -> bool:
    """The prediction is accepted, and the tool has no annotation of it, or one of an earlier prediction."""
    if row.status is not TaskStatus.ACCEPTED or row.prediction_id is None:
        return False
    return row.pushed.get("accepted") != row.prediction_id


def to_withdraw(row: Row) -> bool:
    """The tool holds, or may hold, an annotation of the machine for a task that is not accepted any more."""
    told = row.pushed.get("accepting") is not None or row.pushed.get("annotation") is not None
    return told and row.status is not TaskStatus.ACCEPTED


def moved(row: Row) -> bool:
    """Its route differs from what the tool heard, or its quality or priority by more than a step."""
    return (
        row.pushed.get("status") != row.status.value
        or _differ(row.pushed.get("quality"), row.quality, QUALITY_STEP)
        or _differ(row.pushed.get("priority"), row.priority, PRIORITY_STEP)
    )


def became_human(session: Session, project: Project, row: Row) -> bool:
    """A person went on from the machine's annotation, so it is theirs now."""
    theirs = exists().where(
        Label.project_id == project.id,
        Label.tool_annotation_id == row.pushed.get("annotation"),
        Label.source != LabelSource.MACHINE,
    )
    return bool(session.scalar(select(theirs)))


def has_human_label(session: Session, row: Row) -> bool:
    """A person labelled or refused this task, and did not delete that since."""
    deleted = exists().where(
        Tombstone.project_id == Label.project_id,
        Tombstone.tool_annotation_id == Label.tool_annotation_id,
    )
    theirs = exists().where(Label.task_id == row.task_id, Label.source != LabelSource.MACHINE, ~deleted)
    return bool(session.scalar(select(theirs)))


def _differ(one: float | None, other: float | None, step: float) -> bool:
    if one is None or other is None:
        return one is not other
    return abs(one - other) >= step
