"""The retraining cycles: what each did and why, live; starting, cancelling and resuming them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from flask import Blueprint
from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning.journal import ACTIVE
from active_learning.ledger import Cycle, CycleEvent, CycleState, ModelVersion
from backend.desk.project_page import open_project, render

blueprint = Blueprint("desk_cycles", __name__, url_prefix="/desk")


@dataclass(frozen=True, slots=True)
class Training:
    """How far a cycle's training is; `loss` is the mean of the last epoch."""

    epoch: int
    epochs: int
    loss: float


@dataclass(frozen=True, slots=True)
class CycleFacts:
    """One cycle.

    Attributes:
        step: under way, or the last.
        version: that it trained; None: none yet.
        iou: of that, on the holdout, pooled.
        seconds: step -> wall time, of those that are done.
        training: the last that its training reported.
        reason: why it ended as it did.
    """

    id: int
    state: CycleState
    step: str | None
    trigger: str
    version: str | None
    iou: float | None
    requested_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    seconds: dict[str, float]
    training: Training | None
    reason: str | None

    @property
    def active(self) -> bool:
        """Whether it is asked for or under way."""
        return self.state in ACTIVE


def cycle_facts(session: Session, cycle: Cycle) -> CycleFacts:
    """Of one cycle."""
    version = session.get(ModelVersion, cycle.challenger_id) if cycle.challenger_id else None
    return CycleFacts(
        cycle.id,
        cycle.state,
        cycle.step,
        cycle.trigger,
        version.name if version else None,
        version.metrics.get("fg_iou") if version else None,
        cycle.requested_at,
        cycle.started_at,
        cycle.finished_at,
        cycle.seconds,
        _training(session, cycle),
        cycle.reason,
    )


def _training(session: Session, cycle: Cycle) -> Training | None:
    events = select(CycleEvent.data).where(CycleEvent.cycle_id == cycle.id, CycleEvent.step == "train")
    said = session.scalars(events.order_by(CycleEvent.id.desc()))
    return next((Training(d["epoch"], d["epochs"], d["loss"]) for d in said if "epochs" in d), None)


@blueprint.get("/<int:project_id>/cycles")
def show(project_id: int) -> str:
    """The page."""
    with open_project(project_id) as (session, project):
        mine = select(Cycle).where(Cycle.project_id == project.id).order_by(Cycle.id.desc())
        return render("cycles.html", project, cycles=[cycle_facts(session, c) for c in session.scalars(mine)])
