"""Accept, review or audit: where each task goes, and why, in a sentence that a lead understands."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, case, func, insert, or_, select, true
from sqlalchemy.orm import Session

from active_learning.ledger import Ledger, Prediction, Project, RouteDecision, Task, TaskStatus
from active_learning.ledger.bulk import update_rows
from active_learning.ledger.draws import audit_draw, seeded
from active_learning.ledger.locking import lock_project

# No human has spoken on these, so the loop may move them. The others are people's, or gone.
OPEN = (TaskStatus.WAITING, TaskStatus.REVIEW, TaskStatus.ACCEPTED, TaskStatus.AUDIT, TaskStatus.FAILED)
NO_MODEL = "no model version serves yet"
FOR_HOLDOUT = "drawn at random for the holdout, which judges every version"
BLIND = "; blind: its mask is not shown"
_CHUNK = 500  # tasks in one query or transaction


def decide(
    quality: float | None, threshold: float | None, audit_share: float, draw: float
) -> tuple[TaskStatus, str]:
    """Route one prediction.

    Args:
        quality: predicted IoU in [0, 1]; None or not finite when there is none that can be used.
        threshold: the project's accept threshold; None: nothing is accepted without a human.
        audit_share: share of all masks, good or bad, that is drawn for the audit, in [0, 1].
        draw: uniform in [0, 1), see `audit_draw`.

    Returns:
        REVIEW, ACCEPTED or AUDIT, and the reason.
    """
    if quality is None or not math.isfinite(quality) or not 0 <= quality <= 1:
        return TaskStatus.REVIEW, "the model gave no usable score for this image, so a human must see it"
    if draw < audit_share:
        drawn = f"drawn at random for the audit ({audit_share:.0%} of all masks)"
        return TaskStatus.AUDIT, f"{drawn}; predicted IoU {_shown(quality)}"
    if threshold is None:
        return TaskStatus.REVIEW, "the project has no accept threshold, so a human must see every mask"
    if quality < threshold:
        return TaskStatus.REVIEW, f"predicted IoU {_shown(quality)} is below the threshold {threshold:g}"
    return TaskStatus.ACCEPTED, f"predicted IoU {_shown(quality)} reaches the threshold {threshold:g}"


def is_blind(project: Project, version: str, task_id: int, *, holdout: bool) -> bool:
    """Whether this version's mask of a task is hidden from whoever audits it.

    A human who begins with a mask is drawn towards it; the share of the audits that are blind
    (`Project.blind_share`) tells by how much. Like the draw of the audit it hangs on task and version only.

    Args:
        project: with its shares.
        version: name of the model version.
        task_id: in the ledger.
        holdout: the task was drawn for the holdout, and so is audited in any case.
    """
    audited = holdout or audit_draw(task_id, version) < project.audit_share
    return audited and seeded("blind", version, task_id) < project.blind_share


def hides_mask(project: Project, version: str, task_id: int, status: TaskStatus, *, holdout: bool) -> bool:
    """Whether an audit of the task is open and blind: until it is labelled nobody is shown its mask.

    Args:
        project: with its shares.
        version: name of the champion.
        task_id: in the ledger.
        status: of the task.
        holdout: as in `is_blind`.
    """
    return status is TaskStatus.AUDIT and is_blind(project, version, task_id, holdout=holdout)


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


def settle(ledger: Ledger, project_id: int) -> int:
    """Route again whatever its last decision no longer fits.

    A promotion, a rollback, a new calibration, a moved threshold, a deleted label or a crash can leave such
    tasks behind. In small transactions, so that webhooks need not wait; in none that writes if there is
    nothing to do.

    Returns:
        How many decisions are new.
    """
    routed = last = 0
    while True:  # each task once: what becomes stale behind us comes again the next time
        with ledger.session(write=False) as session:
            project = session.get_one(Project, project_id)
            stale = _standings(project, _stale(project) & (Task.id > last))
            ids = [row[0] for row in session.execute(stale.limit(_CHUNK))]
        if not ids:
            return routed
        last = ids[-1]
        with ledger.session() as session:
            project = lock_project(session, project_id)
            routed += _route_where(session, project, Task.id.in_(ids))


class _Standing(NamedTuple):
    """A task, its prediction by the champion, and its last decision."""

    task_id: int
    status: TaskStatus
    holdout: bool
    prediction_id: int | None
    quality: float | None
    usable: bool | None
    last: tuple[Any, ...]  # of its last decision: the fields in `_DECIDED`; all None without one


_USABLE = Prediction.signals["usable"].as_boolean()
_DECIDED = ("prediction_id", "status", "quality", "threshold", "reason")


def _standings(project: Project, which: ColumnElement[bool]) -> Select[Any]:
    """The open tasks among `which`: the fields of `_Standing`, then those of the last decision."""
    last = select(func.max(RouteDecision.id)).where(RouteDecision.task_id == Task.id).correlate(Task)
    by_champion = (Prediction.task_id == Task.id) & (Prediction.model_version_id == project.champion_id)
    decided = [getattr(RouteDecision, name) for name in _DECIDED]
    return (
        select(Task.id, Task.status, Task.holdout, Prediction.id, Prediction.quality, _USABLE, *decided)
        .outerjoin(Prediction, by_champion)
        .outerjoin(RouteDecision, RouteDecision.id == last.scalar_subquery())
        .where(which, Task.project_id == project.id, Task.status.in_(OPEN))
        .order_by(Task.id)
    )


def _stale(project: Project) -> ColumnElement[bool]:
    """Tasks whose status is not what `_decision` would give them, as far as SQL can tell."""
    if project.champion_id is None:
        wanted = case((Task.holdout, TaskStatus.AUDIT), else_=TaskStatus.REVIEW)
        return Task.status.not_in((wanted, TaskStatus.FAILED))
    return Prediction.id.is_not(None) & or_(
        RouteDecision.id.is_(None),
        RouteDecision.status != Task.status,
        RouteDecision.prediction_id.is_distinct_from(Prediction.id),
        RouteDecision.quality.is_distinct_from(case((_USABLE.is_(False), None), else_=Prediction.quality)),
        RouteDecision.threshold.is_distinct_from(project.accept_threshold),
    )


def _route_where(session: Session, project: Project, which: ColumnElement[bool]) -> int:
    """Route the open tasks among `which`; returns how many decisions are new."""
    lock_project(session, project.id)  # against a label that arrives at the same time
    rows = session.execute(_standings(project, which)).all()
    standings = [_Standing._make((*row[:6], tuple(row[6:]))) for row in rows]
    tasks: list[dict[str, Any]] = []
    decisions: list[dict[str, Any]] = []
    for standing in standings:
        decision = _decision(project, standing)
        if decision is None:
            continue
        status, quality = decision["status"], decision["quality"]
        tasks.append({"id": standing.task_id, "status": status, "quality": quality, "failure": None})
        if tuple(decision[name] for name in _DECIDED) != standing.last:
            decisions.append({"task_id": standing.task_id, **decision})
    update_rows(session, Task, tasks)
    if decisions:
        session.execute(insert(RouteDecision), decisions)
    return len(decisions)


def _decision(project: Project, standing: _Standing) -> dict[str, Any] | None:
    """Columns of the decision on a task; None where it has to wait or stay as it is."""
    quality = None if standing.usable is False else standing.quality
    if project.champion is None:
        if standing.status is TaskStatus.FAILED:
            return None
        status, reason = TaskStatus.REVIEW, NO_MODEL
        if standing.holdout:
            status, reason = TaskStatus.AUDIT, FOR_HOLDOUT
    elif standing.prediction_id is None:
        return None
    elif standing.holdout:
        status, reason = TaskStatus.AUDIT, FOR_HOLDOUT
    else:
        draw = audit_draw(standing.task_id, project.champion.name)
        status, reason = decide(quality, project.accept_threshold, project.audit_share, draw)
    champion, task_id = project.champion, standing.task_id
    if status is TaskStatus.AUDIT and champion is not None:
        reason += BLIND if is_blind(project, champion.name, task_id, holdout=standing.holdout) else ""
    return {
        "prediction_id": standing.prediction_id,
        "status": status,
        "quality": quality,
        "threshold": project.accept_threshold,
        "reason": reason,
    }


def _shown(quality: float) -> str:
    """Rounded down, so that 0.8999 is never shown as the 0.9 that it did not reach."""
    return f"{math.floor(quality * 1000) / 1000:.3f}"
