"""The first page of a project: where it stands, and what needs a lead, in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from flask import Blueprint
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from active_learning import registry, standing, thresholds, triggers
from active_learning.judgements import suspects
from active_learning.ledger import (
    Cycle,
    CycleState,
    InboxEvent,
    InboxState,
    Project,
    TaskStatus,
    WorkerLease,
)
from active_learning.ledger.types import utc_now
from active_learning.risk import seconds_per_label
from active_learning.thresholds import Watch
from backend.desk.cycles import CycleFacts, cycle_facts
from backend.desk.project_page import open_project, render
from backend.desk.recent import Happening, happenings
from backend.desk.words import count
from backend.lease import NAME, STALE_S, silence_s

blueprint = Blueprint("desk_overview", __name__, url_prefix="/desk")

DOUBT = 5.0  # evidence against the promise from which on a lead is told, long before it breaks


class Level(StrEnum):
    """How much a matter needs a lead."""

    STOP = "stop"  # something does not work, or has switched itself off
    DECIDE = "decide"  # a lead's word is waited for
    NOTE = "note"  # worth knowing


@dataclass(frozen=True, slots=True)
class Matter:
    """What needs attention: a sentence, and the desk's page where it is settled, if there is one."""

    level: Level
    text: str
    page: str | None = None


@dataclass(frozen=True, slots=True)
class Champion:
    """The version that serves; its figures are of the holdout, None where it was not judged."""

    name: str
    iou: float | None
    iou_per_image: float | None
    boundary_f1: float | None
    holdout: int | None
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Overview:
    """Where a project stands.

    Attributes:
        project: its name.
        images: all that are not gone.
        counts: status -> images.
        threshold: predicted IoU from which masks are accepted; None: nothing is.
        promise: the one that stands, as a sentence; None: a number of the lead's own, or nothing.
        watch: what audits say of it since the threshold last moved.
        saved_hours: that people would have taken for the accepted masks, by their median time for a label;
            None where no label tells its time.
        labelled: images that people labelled.
        champion: None before the first model.
        cycle: the one under way, or the last.
        outlook: what the next cycle waits for, in sentences.
        matters: what needs a lead, the gravest first.
        recent: what happened last, newest first.
    """

    project: str
    images: int
    counts: dict[TaskStatus, int]
    threshold: float | None
    promise: str | None
    watch: Watch | None
    saved_hours: float | None
    labelled: int
    champion: Champion | None
    cycle: CycleFacts | None
    outlook: list[str]
    matters: list[Matter]
    recent: list[Happening]


def overview(session: Session, project: Project) -> Overview:
    """Look at a project; only reads."""
    counts = standing.counts(session, project)
    seconds = seconds_per_label(session, project)
    watch = thresholds.watched(session, project)
    promise = thresholds.standing(project)
    last = triggers.last_cycle(session, project)
    return Overview(
        project=project.name,
        images=sum(n for status, n in counts.items() if status is not TaskStatus.GONE),
        counts=counts,
        threshold=project.accept_threshold,
        promise=None if promise is None else str(promise),
        watch=watch,
        saved_hours=None if seconds is None else counts[TaskStatus.ACCEPTED] * seconds / 3600,
        labelled=counts[TaskStatus.DONE],
        champion=_champion(project),
        cycle=None if last is None else cycle_facts(session, last),
        outlook=_outlook(session, project),
        matters=_matters(session, project, counts, watch, last),
        recent=happenings(session, project, 8),
    )


def _champion(project: Project) -> Champion | None:
    version = project.champion
    if version is None:
        return None
    said = version.metrics
    return Champion(
        version.name,
        said.get("fg_iou"),
        said.get("fg_iou_per_image"),
        said.get("boundary_f1"),
        said.get("n"),
        version.promoted_at,
    )


def _outlook(session: Session, project: Project) -> list[str]:
    found = triggers.outlook(session, project, utc_now())
    if found.held_back is not None:
        return [found.held_back]
    shown = {"labels", "schedule"} if project.schedule else {"labels"}
    return [condition.why for condition in found.conditions if condition.met or condition.name in shown]


def _matters(
    session: Session, project: Project, counts: dict[TaskStatus, int], watch: Watch | None, last: Cycle | None
) -> list[Matter]:
    found = [*_machinery(session), *_promise(session, project, watch)]
    if last is not None and last.state is CycleState.FAILED:
        text = f"Cycle {last.id} failed in step {last.step}: {last.reason}"
        found.append(Matter(Level.STOP, text, "desk_cycles.show"))
    for name in registry.challengers(session, project):
        text = f"{name} is better than what serves, by the gate, and waits for a lead's word."
        found.append(Matter(Level.DECIDE, text, "desk_models.show"))
    if counts[TaskStatus.FAILED]:
        text = f"{count(counts[TaskStatus.FAILED], 'image')} cannot be read; people see them first."
        found.append(Matter(Level.DECIDE, text, "desk_queue.show"))
    if doubted := len(suspects(session, project)):
        text = f"{count(doubted, 'label')} worth a second look: the model was sure, the "
        found.append(Matter(Level.NOTE, f"{text}human drew something else.", "desk_quality.show"))
    if project.champion is None and last is None:
        text = "No model version serves yet: label images of the Audit view and the review queue first."
        found.append(Matter(Level.NOTE, text, "desk_queue.show"))
    order = list(Level)
    return sorted(found, key=lambda matter: order.index(matter.level))


def _machinery(session: Session) -> list[Matter]:
    found = []
    worker = session.get(WorkerLease, NAME)
    silent = None if worker is None else silence_s(worker)
    if silent is None or silent > STALE_S:
        since = "No worker runs" if silent is None else f"The worker was last heard of {silent:.0f} s ago"
        found.append(
            Matter(Level.STOP, f"{since}: nothing is predicted or trained. Start one: `elnet worker`.")
        )
    broken = select(func.count()).select_from(InboxEvent).where(InboxEvent.state == InboxState.FAILED)
    if failed := session.scalar(broken) or 0:
        text = f"{count(failed, 'event')} from Label Studio could not be worked off: "
        found.append(Matter(Level.DECIDE, f"{text}`elnet doctor` tells why."))
    return found


def _promise(session: Session, project: Project, watch: Watch | None) -> list[Matter]:
    page = "desk_threshold.show"
    if (why := thresholds.switched_off(session, project)) is not None:
        return [Matter(Level.STOP, f"Auto-accept has switched itself off: {why}.", page)]
    if thresholds.standing(project) is not None and project.accept_threshold is None and project.champion:
        text = f"The promise cannot be kept on the audits of {project.champion.name} yet, so nothing is "
        return [Matter(Level.DECIDE, f"{text}accepted. See how many more it needs.", page)]
    if watch is not None and watch.evidence >= DOUBT:
        text = f"{watch.failures} of {watch.audited} audits of accepted masks were bad: evidence against the "
        limit = f"promise {watch.evidence:.1f}; at {1 / thresholds.FALSE_ALARM:.0f} auto-accept stops."
        return [Matter(Level.NOTE, f"{text}{limit}", page)]
    return []


@blueprint.get("/<int:project_id>")
def show(project_id: int) -> str:
    """The page."""
    with open_project(project_id) as (session, project):
        return render("overview.html", project, facts=overview(session, project))
