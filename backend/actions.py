"""Who did what at the desk, through its API, or to its users: append-only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from active_learning.ledger import ActionRecord, Project


@dataclass(frozen=True, slots=True)
class Who:
    """Who acts, and from which address; None: at a terminal of this machine."""

    name: str
    address: str | None = None


def record(
    session: Session,
    who: Who,
    action: str,
    thing: str | None = None,
    *,
    project: Project | None = None,
    **detail: Any,
) -> None:
    """Write an action down, in the transaction that does it: both stay, or neither.

    Args:
        session: a writing session; the caller commits.
        who: acts.
        action: what they do, as `user.role` or `threshold.set`.
        thing: that it is done to: a user's name, a model version's.
        project: that it concerns.
        detail: whatever else is worth knowing, as JSON; no secrets.
    """
    session.add(
        ActionRecord(
            who=who.name[:200],
            action=action,
            thing=thing[:300] if thing else None,
            project_id=project.id if project else None,
            address=who.address,
            detail=detail,
        )
    )


def latest(
    session: Session,
    limit: int,
    *,
    who: str | None = None,
    project: Project | None = None,
    before: int | None = None,
) -> list[ActionRecord]:
    """The newest actions with the projects that they concern, the newest first.

    Args:
        session: a reading session.
        limit: how many at most.
        who: only this one's.
        project: only what concerns it.
        before: only those older than the action of this id, to page on.
    """
    wanted = select(ActionRecord).order_by(ActionRecord.id.desc()).limit(limit)
    wanted = wanted.options(joinedload(ActionRecord.project))
    if who is not None:
        wanted = wanted.where(ActionRecord.who == who)
    if project is not None:
        wanted = wanted.where(ActionRecord.project_id == project.id)
    if before is not None:
        wanted = wanted.where(ActionRecord.id < before)
    return list(session.scalars(wanted))
