"""What happened in a project last: moves of the threshold, of the policy, promotions, ends of cycles."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from active_learning.ledger import Cycle, ModelVersion, PolicyChange, Project, Promotion, ThresholdChange


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened: when, by whom (None: by the loop itself), what, and why."""

    at: datetime
    who: str | None
    what: str
    why: str | None = None


def happenings(session: Session, project: Project, limit: int) -> list[Happening]:
    """The last ones, newest first."""
    found: list[Happening] = []
    for change in session.scalars(_last(ThresholdChange, project, limit)):
        what = f"accept threshold {shown(change.from_value)} → {shown(change.to_value)}"
        found.append(Happening(change.at, change.who, what, change.why))
    for policy in session.scalars(_last(PolicyChange, project, limit)):
        what = f"{policy.setting} {policy.from_value} → {policy.to_value}"
        found.append(Happening(policy.at, policy.who, what, policy.why))
    for cycle in session.scalars(_last(Cycle, project, limit)):
        if cycle.finished_at is not None:
            what = f"cycle {cycle.id} {cycle.state.value}"
            found.append(Happening(cycle.finished_at, None, what, cycle.reason))
    names = select(Promotion, ModelVersion.name).join(
        ModelVersion, ModelVersion.id == Promotion.model_version_id
    )
    mine = names.where(Promotion.project_id == project.id).order_by(Promotion.id.desc()).limit(limit)
    for move, name in session.execute(mine):
        what = f"{name} serves again" if move.rollback else f"{name} promoted"
        found.append(Happening(move.at, move.who, what))
    return sorted(found, key=lambda one: one.at, reverse=True)[:limit]


def shown(threshold: float | None) -> str:
    """A threshold for people."""
    return "none" if threshold is None else f"{threshold:.3g}"


def _last(table: Any, project: Project, limit: int) -> Select[Any]:
    return select(table).where(table.project_id == project.id).order_by(table.id.desc()).limit(limit)
