"""The retraining cycles: what each did and why, live; starting, cancelling and resuming them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from flask import Blueprint, flash, redirect, request, url_for
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug import Response
from werkzeug.exceptions import NotFound

from active_learning import triggers
from active_learning.journal import ACTIVE, last_epoch
from active_learning.ledger import Cycle, CycleState, ModelVersion, Project
from active_learning.ledger.types import utc_now
from active_learning.triggers import CycleActiveError, CycleDoneError, Outlook
from backend.desk.access import note
from backend.desk.project_page import open_project, render, signed_in
from backend.desk.summaries import metrics_of
from backend.desk.words import sentence

blueprint = Blueprint("desk_cycles", __name__, url_prefix="/desk")

PAGE: Final = 20  # cycles
STEPS: Final = {  # in their order, and what each does
    "snapshot": "freeze the labels",
    "train": "fine-tune",
    "evaluate": "judge on the holdout",
    "gate": "compare with the champion",
    "promote": "let it serve",
    "challenge": "leave it to a lead",
    "reject": "put it aside",
    "recalibrate": "calibrate predicted IoU",
    "prefill": "predict what is unlabelled",
}


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
        training: the last that its training reported; None: it does not train now.
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

    @property
    def can_resume(self) -> bool:
        """Whether it stopped before its end."""
        return self.state in {CycleState.FAILED, CycleState.CANCELLED}


@dataclass(frozen=True, slots=True)
class Cycles:
    """The cycles of a project.

    Attributes:
        cycles: newest first, a page of them.
        older: id of the last one here, where more follow: the next page's `before`.
        active: the one that is asked for or under way.
        outlook: what the next one waits for.
    """

    cycles: list[CycleFacts]
    older: int | None
    active: int | None
    outlook: Outlook


def facts(session: Session, project: Project, before: int | None = None) -> Cycles:
    """The cycles with an id below `before`, or the newest ones."""
    mine = select(Cycle).where(Cycle.project_id == project.id)
    if before is not None:
        mine = mine.where(Cycle.id < before)
    rows = session.scalars(mine.order_by(Cycle.id.desc()).limit(PAGE + 1)).all()
    active = triggers.active_cycle(session, project)
    versions = _challengers(session, rows[:PAGE])
    return Cycles(
        [_facts(session, cycle, versions) for cycle in rows[:PAGE]],
        rows[PAGE - 1].id if len(rows) > PAGE else None,
        active.id if active else None,
        triggers.outlook(session, project, utc_now()),
    )


def cycle_facts(session: Session, cycle: Cycle) -> CycleFacts:
    """Of one cycle."""
    return _facts(session, cycle, _challengers(session, [cycle]))


def _challengers(session: Session, cycles: Sequence[Cycle]) -> dict[int | None, tuple[str, float | None]]:
    """Id -> name and IoU of the versions that the cycles trained."""
    ids = {cycle.challenger_id for cycle in cycles if cycle.challenger_id is not None}
    names = select(ModelVersion.id, ModelVersion.name).where(ModelVersion.id.in_(ids))
    metrics = metrics_of(session, ids)
    return {id_: (name, metrics[id_].get("fg_iou")) for id_, name in session.execute(names)}


def _facts(
    session: Session, cycle: Cycle, versions: Mapping[int | None, tuple[str, float | None]]
) -> CycleFacts:
    version, iou = versions.get(cycle.challenger_id, (None, None))
    return CycleFacts(
        cycle.id,
        cycle.state,
        cycle.step,
        cycle.trigger,
        version,
        iou,
        cycle.requested_at,
        cycle.started_at,
        cycle.finished_at,
        cycle.seconds,
        _training(session, cycle),
        cycle.reason,
    )


def _training(session: Session, cycle: Cycle) -> Training | None:
    if cycle.state is not CycleState.RUNNING or cycle.step != "train":
        return None
    said = last_epoch(session, cycle.id)
    return None if said is None else Training(said["epoch"], said["epochs"], said["loss"])


def find_cycle(session: Session, project: Project, cycle_id: int) -> Cycle:
    """The cycle of a number in an address.

    Raises:
        NotFound: the project has none of this number.
    """
    cycle = session.get(Cycle, cycle_id)
    if cycle is None or cycle.project_id != project.id:
        raise NotFound(f"{project.name!r} has no cycle {cycle_id}.")
    return cycle


def ask_for(session: Session, project: Project) -> CycleFacts:
    """Ask for a cycle.

    Raises:
        CycleActiveError: one is active.
    """
    cycle = triggers.request(session, project, f"desk, by {signed_in()}")
    note(session, "cycles.start", str(cycle.id), project=project)
    return cycle_facts(session, cycle)


def stop(session: Session, project: Project, cycle_id: int) -> CycleFacts:
    """Cancel a cycle.

    Raises:
        NotFound: the project has none of this number.
        CycleDoneError: it has already ended.
    """
    cycle = find_cycle(session, project, cycle_id)
    if not triggers.cancel(session, cycle, f"cancelled by {signed_in()}"):
        raise CycleDoneError(f"cycle {cycle_id} has already ended: {cycle.state}")
    note(session, "cycles.cancel", str(cycle_id), project=project)
    return cycle_facts(session, cycle)


def go_on(session: Session, project: Project, cycle_id: int) -> CycleFacts:
    """Resume a cycle that failed or was cancelled, with the step that it did not finish.

    Raises:
        NotFound: the project has none of this number.
        CycleDoneError: it came to its end.
        CycleActiveError: it is active, or another one of the project is.
    """
    cycle = find_cycle(session, project, cycle_id)
    triggers.resume(session, cycle, signed_in())
    note(session, "cycles.resume", str(cycle_id), project=project)
    return cycle_facts(session, cycle)


@blueprint.get("/<int:project_id>/cycles")
def show(project_id: int) -> str:
    """The page."""
    before = request.args.get("before", type=int)
    with open_project(project_id) as (session, project):
        return render("cycles.html", project, facts=facts(session, project, before), steps=STEPS)


@blueprint.post("/<int:project_id>/cycles")
def start(project_id: int) -> Response:
    """Ask for a cycle now."""
    try:
        with open_project(project_id, write=True) as (session, project):
            cycle_id = ask_for(session, project).id
    except CycleActiveError as error:
        flash(sentence(error), "error")
        return redirect(url_for("desk_cycles.show", project_id=project_id), 303)
    return _back(project_id, cycle_id, f"Cycle {cycle_id} is asked for; the worker begins it within seconds.")


@blueprint.post("/<int:project_id>/cycles/<int:cycle_id>/cancel")
def cancel(project_id: int, cycle_id: int) -> Response:
    """Stop a cycle; what serves goes on serving."""
    try:
        with open_project(project_id, write=True) as (session, project):
            stop(session, project, cycle_id)
    except CycleDoneError as error:
        return _back(project_id, cycle_id, sentence(error), "error")
    return _back(project_id, cycle_id, f"Cycle {cycle_id} is cancelled; what serves goes on serving.")


@blueprint.post("/<int:project_id>/cycles/<int:cycle_id>/resume")
def resume(project_id: int, cycle_id: int) -> Response:
    """Let a cycle that failed or was cancelled go on with the step that it did not finish."""
    try:
        with open_project(project_id, write=True) as (session, project):
            step = go_on(session, project, cycle_id).step or "its first step"
    except (CycleActiveError, CycleDoneError) as error:
        return _back(project_id, cycle_id, sentence(error), "error")
    return _back(project_id, cycle_id, f"Cycle {cycle_id} goes on with {step}.")


def _back(project_id: int, cycle_id: int, message: str, level: str = "ok") -> Response:
    flash(message, level)
    return redirect(url_for("desk_cycles.cycle", project_id=project_id, cycle_id=cycle_id), 303)
