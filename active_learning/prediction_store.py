"""Predictions into the ledger: each with its route, and what failed to a human."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import routing
from active_learning.inference import Made
from active_learning.ledger import Ledger, Prediction, RouteDecision, Task, TaskStatus
from active_learning.ledger.bulk import insert
from active_learning.ledger.locking import lock_project
from active_learning.quality import current_calibrator
from active_learning.signals import features


def store(ledger: Ledger, project_id: int, champion_id: int, made: list[Made]) -> int | None:
    """Store what was made, and route it, in one transaction.

    Returns:
        How many predictions are new; None, with nothing stored, if another champion serves by now.
    """
    ids = [one.task_id for one in made]
    with ledger.session() as session:
        project = lock_project(session, project_id)
        if project.champion_id != champion_id:
            return None
        calibrator = current_calibrator(session, champion_id)
        known = {task.id: task for task in session.scalars(select(Task).where(Task.id.in_(ids)))}
        rows = []
        for one in made:
            task = known[one.task_id]
            if one.row is None:
                _fail(session, task, one.failure or "")
                continue
            told = one.row["signals"]
            quality = float(calibrator.predict([one.row["score"]], [features(told)])[0])
            quality = quality if told["usable"] else 0.0
            rows.append({"task_id": task.id, "model_version_id": champion_id, "quality": quality, **one.row})
            for name, value in (one.image or {}).items():
                if value is not None and getattr(task, name) is None:
                    setattr(task, name, value)
        stored = _insert(session, rows)
        session.flush()
        routing.route(session, project, [known[row["task_id"]] for row in rows])
    return stored


def _insert(session: Session, rows: list[dict[str, Any]]) -> int:
    """Store predictions; where another process was quicker, the first one stays. Returns how many are new."""
    if not rows:
        return 0
    unless_there = ["task_id", "model_version_id"]
    new = insert(session, Prediction).on_conflict_do_nothing(index_elements=unless_there)
    return len(session.scalars(new.returning(Prediction.id), rows).all())


def _fail(session: Session, task: Task, reason: str) -> None:
    """Hand a task that cannot be predicted to a human; what people have labelled stays theirs."""
    if task.status not in routing.OPEN:
        return
    task.status, task.failure, task.quality = TaskStatus.FAILED, reason, None
    session.add(RouteDecision(task_id=task.id, status=TaskStatus.FAILED, reason=reason))
