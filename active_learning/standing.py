"""Where a project stands: how many images are where, and whether anything is still on its way."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import pending
from active_learning.ledger import InboxEvent, InboxState, Project, TaskCount, TaskStatus


def counts(session: Session, project: Project) -> dict[TaskStatus, int]:
    """How many of the project's images have each status; every status is a key."""
    counted = select(TaskCount).where(TaskCount.project_id == project.id)
    found = {row.status: row.tasks for row in session.scalars(counted)}
    return {status: found.get(status, 0) for status in TaskStatus}


def is_settled(session: Session, project: Project) -> bool:
    """Whether every event is worked off, every image has its prefill and its route, and the tool knows it.

    Images that cannot be read (FAILED) count as settled once the tool knows that.
    """
    waiting = select(InboxEvent.id).where(InboxEvent.state == InboxState.WAITING).limit(1)
    if session.scalar(waiting) is not None:
        return False
    rows = pending.plan(session, project)
    if any(row.status is TaskStatus.WAITING for row in rows):
        return False
    return not any(_is_on_its_way(row, project) for row in rows)


def _is_on_its_way(row: pending.Row, project: Project) -> bool:
    if project.champion is not None and row.status in pending.SHOWN:
        version = project.champion.name
        if row.prediction_id is None or pending.lacks_prefill(row, project, version):
            return True
    return pending.to_accept(row) or pending.to_withdraw(row) or pending.moved(row)
