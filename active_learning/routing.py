"""Accept, review or audit: where each task goes, and why, in a sentence that a lead understands."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, case, func, or_, select, true
from sqlalchemy.orm import Session

from active_learning.ledger import Ledger
from active_learning.ledger.tables import Prediction, Project, RouteDecision, Task, TaskStatus

# No human has spoken on these, so the loop may move them. The others are people's, or gone.
OPEN = (TaskStatus.WAITING, TaskStatus.REVIEW, TaskStatus.ACCEPTED, TaskStatus.AUDIT, TaskStatus.FAILED)
NO_MODEL = "no model version serves yet"
_CHUNK = 500  # task ids in one query


def decide(
    quality: float | None, threshold: float | None, audit_share: float, draw: float
) -> tuple[TaskStatus, str]:
    """Route one prediction.

    Args:
        quality: predicted IoU in [0, 1]; None or not finite when there is none that can be used.
        threshold: the project's accept threshold; None: nothing is accepted without a human.
        audit_share: share of the acceptable that humans check, in [0, 1].
        draw: uniform in [0, 1), see `audit_draw`.

    Returns:
        REVIEW, ACCEPTED or AUDIT, and the reason.
    """
    if quality is None or not math.isfinite(quality) or not 0 <= quality <= 1:
        return TaskStatus.REVIEW, "the model gave no usable score for this image, so a human must see it"
    if threshold is None:
        return TaskStatus.REVIEW, "the project has no accept threshold, so a human must see every mask"
    if quality < threshold:
        return TaskStatus.REVIEW, f"predicted IoU {_shown(quality)} is below the threshold {threshold:g}"
    reached = f"predicted IoU {_shown(quality)} reaches the threshold {threshold:g}"
    if draw < audit_share:
        return TaskStatus.AUDIT, f"{reached}; drawn at random for the audit ({audit_share:.0%} of such masks)"
    return TaskStatus.ACCEPTED, reached


def audit_draw(task_id: int, version: str) -> float:
    """A number in [0, 1) that looks random and is the same after a crash.

    It hangs on the task and the model version only: moving the threshold to and fro draws nobody anew.
    """
    return seeded("audit", version, task_id)


def seeded(*parts: object) -> float:
    """A uniform number in [0, 1) made from a hash of the parts; the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def route(session: Session, project: Project, tasks: Iterable[Task] | None = None) -> int:
    """Route tasks by the champion's predictions, and write down every decision that is new.

    Tasks that a human labelled or refused, and those that are gone, stay as they are; so do those that wait
    for a prediction of the champion. Without a champion everything goes to a human.

    Args:
        session: a writing session; the caller commits.
        project: whose threshold and audit share count.
        tasks: which tasks; None: all of the project.

    Returns:
        How many decisions differ from the last one of their task.
    """
    if tasks is None:
        return _route_where(session, project, true())
    ids = [task.id for task in tasks]
    parts = [ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK)]
    return sum(_route_where(session, project, Task.id.in_(part)) for part in parts)


def route_stale(session: Session, project: Project) -> int:
    """Route again whatever its last decision no longer fits.

    A promotion, a rollback, a new calibration, a moved threshold, a deleted label or a crash can leave such
    tasks behind. Arguments and return value as for `route`.
    """
    return _route_where(session, project, _stale(project))


def settle(ledger: Ledger, project_id: int) -> int:
    """`route_stale` in a transaction of its own, and no writing one when there is nothing to do."""
    with ledger.session(write=False) as session:
        project = session.get_one(Project, project_id)
        if session.execute(_standings(project, _stale(project)).limit(1)).first() is None:
            return 0
    with ledger.session() as session:
        return route_stale(session, session.get_one(Project, project_id))


class _Standing(NamedTuple):
    """A task, its prediction by the champion, and its last decision."""

    task: Task
    prediction_id: int | None
    quality: float | None
    usable: bool | None
    decision: RouteDecision | None


_USABLE = Prediction.signals["usable"].as_boolean()


def _standings(project: Project, which: ColumnElement[bool]) -> Select[Any]:
    """The open tasks among `which`, as rows of `_Standing`."""
    last = (
        select(RouteDecision.task_id, func.max(RouteDecision.id).label("id"))
        .join(Task, Task.id == RouteDecision.task_id)
        .where(Task.project_id == project.id)
        .group_by(RouteDecision.task_id)
        .subquery()
    )
    by_champion = (Prediction.task_id == Task.id) & (Prediction.model_version_id == project.champion_id)
    return (
        select(Task, Prediction.id, Prediction.quality, _USABLE, RouteDecision)
        .outerjoin(Prediction, by_champion)
        .outerjoin(last, last.c.task_id == Task.id)
        .outerjoin(RouteDecision, RouteDecision.id == last.c.id)
        .where(which, Task.project_id == project.id, Task.status.in_(OPEN))
        .order_by(Task.id)
    )


def _stale(project: Project) -> ColumnElement[bool]:
    """Tasks whose status is not what `_apply` would give them, as far as SQL can tell."""
    if project.champion_id is None:
        return Task.status.not_in((TaskStatus.REVIEW, TaskStatus.FAILED))
    return Prediction.id.is_not(None) & or_(
        RouteDecision.id.is_(None),
        RouteDecision.status != Task.status,
        RouteDecision.prediction_id.is_distinct_from(Prediction.id),
        RouteDecision.quality.is_distinct_from(case((_USABLE.is_(False), None), else_=Prediction.quality)),
        RouteDecision.threshold.is_distinct_from(project.accept_threshold),
    )


def _route_where(session: Session, project: Project, which: ColumnElement[bool]) -> int:
    """Route the open tasks among `which`, locked against a label that arrives at the same time."""
    query = _standings(project, which).with_for_update(of=Task)
    rows = session.execute(query, execution_options={"populate_existing": True})
    return sum(_apply(session, project, _Standing(*row)) for row in rows.all())


def _apply(session: Session, project: Project, standing: _Standing) -> bool:
    """Route one task; True if that is a new decision."""
    task = standing.task
    quality = None if standing.usable is False else standing.quality
    if project.champion is None:
        if task.status is TaskStatus.FAILED:
            return False
        status, reason = TaskStatus.REVIEW, NO_MODEL
    elif standing.prediction_id is None:
        return False
    else:
        draw = audit_draw(task.id, project.champion.name)
        status, reason = decide(quality, project.accept_threshold, project.audit_share, draw)
    task.status, task.quality, task.failure = status, quality, None
    decision = RouteDecision(
        task_id=task.id,
        prediction_id=standing.prediction_id,
        status=status,
        quality=quality,
        threshold=project.accept_threshold,
        reason=reason,
    )
    if standing.decision is not None and _same(standing.decision, decision):
        return False
    session.add(decision)
    return True


def _same(one: RouteDecision, other: RouteDecision) -> bool:
    fields = ("prediction_id", "status", "quality", "threshold", "reason")
    return all(getattr(one, name) == getattr(other, name) for name in fields)


def _shown(quality: float) -> str:
    """Rounded down, so that 0.8999 is never shown as the 0.9 that it did not reach."""
    return f"{math.floor(quality * 1000) / 1000:.3f}"
