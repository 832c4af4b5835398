"""When to retrain: enough new labels, a cooldown, and never two cycles of one project at once."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from active_learning.ledger.tables import Cycle, CycleState, Project, Snapshot
from active_learning.ledger.types import utc_now
from active_learning.living import labels_since
from model.errors import ELNetError

ACTIVE = (CycleState.REQUESTED, CycleState.RUNNING)


class CycleActiveError(ELNetError):
    """A cycle of this project is under way, and there can be only one."""


def due(session: Session, project: Project, now: datetime) -> str | None:
    """Whether the project should be retrained.

    It should when no cycle is active, `cooldown_s` have passed since the last one was asked for and since it
    ended, and as many tasks as are `wanted` carry a living human label that the last snapshot does not hold.
    All of it is read from the ledger, so a restart neither forgets nor repeats anything.

    Args:
        session: a session on the ledger.
        project: the project.
        now: the time of day, aware of its zone.

    Returns:
        The trigger, for `request`; None when there is nothing to do.
    """
    if active_cycle(session, project) is not None:
        return None
    last = session.scalar(
        select(Cycle).where(Cycle.project_id == project.id).order_by(Cycle.id.desc()).limit(1)
    )
    if last is not None:
        ended = max(last.requested_at, last.finished_at or last.requested_at)
        if now < ended + timedelta(seconds=project.cooldown_s):
            return None
    snapshot = _last_snapshot(session, project)
    count = labels_since(session, project, snapshot)
    if count < _wanted(project, snapshot):
        return None
    since = "in all" if snapshot is None else f"since snapshot {snapshot.sha256[:12]}"
    return f"labels: {count} new {since}"


def wanted(session: Session, project: Project) -> int:
    """How many new labels start a cycle: `labels_per_cycle`, or `label_growth` of those held if it is more.

    What labels add falls off with how many there are already, and what a cycle costs does not: a share of
    them keeps both in proportion. Held are the labels that the last snapshot trains on.
    """
    return _wanted(project, _last_snapshot(session, project))


def request(session: Session, project: Project, trigger: str) -> Cycle:
    """Ask for a cycle; the worker starts it. The cooldown is `due`'s, a person may ask at any time.

    Args:
        session: a writing session; the caller commits.
        project: the project.
        trigger: what asked for it, as people will read it, e.g. "command by ada".

    Returns:
        The new cycle, state REQUESTED, with its id.

    Raises:
        CycleActiveError: one is active already, whoever asked for it.
    """
    cycle = Cycle(project_id=project.id, trigger=trigger[:200])
    try:
        with session.begin_nested():  # the database's unique index decides, also between two processes
            session.add(cycle)
    except IntegrityError:
        other = active_cycle(session, project)
        if other is None:
            raise
        raise CycleActiveError(
            f"cycle {other.id} of project {project.name!r} is {other.state.value} already "
            f"({other.trigger}); wait for it, or cancel it"
        ) from None
    return cycle


def active_cycle(session: Session, project: Project) -> Cycle | None:
    """The project's cycle that is requested or running."""
    return session.scalar(select(Cycle).where(Cycle.project_id == project.id, Cycle.state.in_(ACTIVE)))


def cancel(session: Session, cycle: Cycle, reason: str) -> bool:
    """Stop a cycle; the worker ends what it is doing for it within seconds.

    Args:
        session: a writing session; the caller commits.
        cycle: the cycle.
        reason: who and why.

    Returns:
        False when it had already ended, and nothing was changed.
    """
    still_active = (Cycle.id == cycle.id, Cycle.state.in_(ACTIVE))
    ended = {"state": CycleState.CANCELLED, "reason": reason, "finished_at": utc_now()}
    # Conditional, so that an end that the worker writes in this moment is never overwritten.
    changed = session.execute(update(Cycle).where(*still_active).values(**ended).returning(Cycle.id)).all()
    session.refresh(cycle)
    return bool(changed)


def _last_snapshot(session: Session, project: Project) -> Snapshot | None:
    return session.scalar(
        select(Snapshot).where(Snapshot.project_id == project.id).order_by(Snapshot.id.desc()).limit(1)
    )


def _wanted(project: Project, snapshot: Snapshot | None) -> int:
    held = len(snapshot.manifest["train"]) if snapshot is not None else 0
    return max(project.labels_per_cycle, math.ceil(round(project.label_growth * held, 6)))
