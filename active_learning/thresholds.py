"""The accept threshold: who moved it, when and why. What one costs is told by `active_learning.risk`."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning.ledger.locking import lock_project
from active_learning.ledger.tables import Project, ThresholdChange
from active_learning.risk import RiskPoint, ThresholdError, WhatIf, check, risk_bound, risk_coverage, what_if
from active_learning.routing import route

__all__ = [
    "RiskPoint",
    "ThresholdError",
    "WhatIf",
    "history",
    "risk_bound",
    "risk_coverage",
    "set_threshold",
    "undo",
    "what_if",
]


def set_threshold(
    session: Session, project: Project, value: float | None, who: str, why: str
) -> ThresholdChange:
    """Move the accept threshold, write down the change, and route every current prediction again.

    Args:
        session: a writing session; the caller commits.
        project: the project.
        value: predicted IoU in [0, 1] from which a mask is accepted; None: nothing is accepted.
        who: the lead.
        why: the reason, for those who come later.

    Raises:
        ThresholdError: not in [0, 1], the same as now, or nobody or no reason is named.
    """
    check(value)
    if not who.strip() or not why.strip():
        raise ThresholdError("a change of the threshold needs who made it and why")
    lock_project(session, project.id)
    before = project.accept_threshold
    if before == value:
        raise ThresholdError(f"the threshold of project {project.name!r} is {_shown(value)} already")
    change = ThresholdChange(
        project_id=project.id, who=who.strip()[:200], from_value=before, to_value=value, why=why.strip()
    )
    session.add(change)
    project.accept_threshold = value
    session.flush()
    route(session, project)
    return change


def undo(session: Session, project: Project, who: str) -> ThresholdChange:
    """Take back the last change, by a new one. Undoing twice brings it back.

    Raises:
        ThresholdError: it was never changed.
    """
    last = next(iter(history(session, project)), None)
    if last is None:
        raise ThresholdError(f"the threshold of project {project.name!r} was never changed")
    why = f"undoes the change to {_shown(last.to_value)} by {last.who} of {last.at:%Y-%m-%d %H:%M} UTC"
    return set_threshold(session, project, last.from_value, who, why)


def history(session: Session, project: Project) -> list[ThresholdChange]:
    """Every change of the project's threshold, the newest first."""
    return list(
        session.scalars(
            select(ThresholdChange)
            .where(ThresholdChange.project_id == project.id)
            .order_by(ThresholdChange.id.desc())
        )
    )


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
