"""Which images wait for a prediction of the version that serves, and how several workers share them out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, exists, func, select, true
from sqlalchemy.orm import Session

from active_learning import routing
from active_learning.ledger import Ledger, ModelVersion, Prediction, Project, RouteDecision, Task, TaskStatus
from active_learning.ledger.types import utc_now

FIRST_RETRY = timedelta(minutes=1)  # of an image that failed; then 4, 16, 64 minutes ...
LAST_RETRY = timedelta(days=1)  # ... up to this


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several workers predicts: the tasks whose id divided by `of` leaves `number`.

    Who has done with its share helps the others, so none waits for a slow or a dead one. What two predict at
    the same time is stored once.
    """

    number: int = 0
    of: int = 1

    def holds(self) -> ColumnElement[bool]:
        """Of a task."""
        return Task.id % self.of == self.number if self.of > 1 else true()


WHOLE: Final = Share()


def waiting_tasks(
    ledger: Ledger,
    project_id: int,
    limit: int | None = None,
    share: Share = WHOLE,
    *,
    by_chance: bool = False,
) -> list[int]:
    """Open tasks without a prediction of the champion: the head of the queue first, failed ones last.

    A task that failed under this champion waits for its next try, ever longer.

    Args:
        ledger: the ledger.
        project_id: the project.
        limit: how many at most; None: all.
        share: of the tasks.
        by_chance: in no order.

    Returns:
        Their ids in the ledger.
    """
    with ledger.session(write=False) as session:
        champion = session.get_one(Project, project_id).champion
        if champion is None:
            return []
        seen = exists().where(Prediction.task_id == Task.id, Prediction.model_version_id == champion.id)
        place = (func.random(),) if by_chance else (Task.priority.desc().nulls_last(), Task.id)
        lacking = select(Task.id).where(Task.project_id == project_id, ~seen, share.holds()).order_by(*place)
        fresh = [status for status in routing.OPEN if status is not TaskStatus.FAILED]
        found = list(session.scalars(lacking.where(Task.status.in_(fresh)).limit(limit)))
        if limit is None or len(found) < limit:
            resting = _resting(session, project_id, champion, utc_now())
            failed = session.scalars(lacking.where(Task.status == TaskStatus.FAILED))
            found += [task_id for task_id in failed if task_id not in resting]
    return found[:limit]


def _resting(session: Session, project_id: int, champion: ModelVersion, now: datetime) -> set[int]:
    """Tasks that failed under this champion, and whose next try is still to come."""
    failures = session.execute(
        select(RouteDecision.task_id, func.count(), func.max(RouteDecision.at))
        .join(Task, Task.id == RouteDecision.task_id)
        .where(
            Task.project_id == project_id,
            Task.status == TaskStatus.FAILED,
            RouteDecision.status == TaskStatus.FAILED,
            RouteDecision.at >= (champion.promoted_at or champion.created_at),
        )
        .group_by(RouteDecision.task_id)
    )
    return {
        task_id
        for task_id, count, last in failures
        if now < last + min(LAST_RETRY, FIRST_RETRY * 4 ** min(count - 1, 8))
    }
