"""When to retrain: enough new labels, a schedule, an alarm; a cooldown, and never two cycles at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from active_learning import cron
from active_learning.journal import ACTIVE, RESUMED
from active_learning.ledger import Cycle, CycleEvent, CycleState, Project, Snapshot
from active_learning.ledger.locking import lock_project
from active_learning.ledger.types import utc_now
from active_learning.living import labels_since
from active_learning.thresholds import last_change, switched_off
from model.errors import ELNetError

ALARM_LABELS = 10  # new labels that a cycle after an alarm waits for: what changed must be in them


class CycleActiveError(ELNetError):
    """A cycle of this project is under way, and there can be only one."""


class CycleDoneError(ELNetError):
    """A cycle that came to its end has nothing to go on with."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A reason to retrain, whether it holds, and why or why not, in words."""

    name: str
    met: bool
    why: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """Whether a cycle should begin.

    Attributes:
        conditions: every one that is looked at.
        held_back: why none begins whatever they say: one runs, or the last one is too near; None: nothing
            holds it back.
    """

    conditions: tuple[Condition, ...]
    held_back: str | None

    @property
    def starts(self) -> str | None:
        """The trigger, for `request`; None when nothing is to begin."""
        met = [condition.why for condition in self.conditions if condition.met]
        return "; ".join(met) if met and self.held_back is None else None


def due(session: Session, project: Project, now: datetime) -> str | None:
    """The trigger of a cycle that should begin now, for `request`; None when there is nothing to do."""
    last = last_cycle(session, project)
    if _held_back(project, last, now) is not None:  # asked for every few seconds, and the rest takes queries
        return None
    return outlook(session, project, now).starts


def outlook(session: Session, project: Project, now: datetime) -> Outlook:
    """Whether the project should be retrained, and why.

    It should when one of the conditions is met: enough new labels (`wanted`), the time of its schedule, or
    that auto-accept has switched itself off since the last cycle was asked for. A schedule needs a new label
    too, and an alarm a few (`ALARM_LABELS`): without them there is nothing to learn. Nothing begins while a
    cycle is active, or before `cooldown_s` have passed since the last one was asked for and since it ended.
    All of it is read from the ledger, so a restart neither forgets nor repeats anything.

    Args:
        session: a session on the ledger.
        project: the project.
        now: the time of day, aware of its zone.
    """
    last = last_cycle(session, project)
    held_back = _held_back(project, last, now)
    if held_back is not None and last is not None and last.state in ACTIVE:
        return Outlook((), held_back)  # what is looked at below changes while it runs
    snapshot = _last_snapshot(session, project)
    count = labels_since(session, project, snapshot)
    asked = last.requested_at if last is not None else None
    conditions = (
        _enough_labels(project, snapshot, count),
        _schedule(project, asked, count, now),
        _alarm(session, project, asked, count, min(ALARM_LABELS, _wanted(project, snapshot))),
    )
    return Outlook(conditions, held_back)


def last_cycle(session: Session, project: Project) -> Cycle | None:
    """The project's newest cycle."""
    return session.scalar(
        select(Cycle).where(Cycle.project_id == project.id).order_by(Cycle.id.desc()).limit(1)
    )


def _held_back(project: Project, last: Cycle | None, now: datetime) -> str | None:
    if last is None:
        return None
    if last.state in ACTIVE:
        return f"cycle {last.id} is {last.state.value}"
    until = max(last.requested_at, last.finished_at or last.requested_at) + timedelta(
        seconds=project.cooldown_s
    )
    return (
        f"the cooldown after cycle {last.id} ends at {until:%Y-%m-%d %H:%M:%S} UTC" if now < until else None
    )


def _enough_labels(project: Project, snapshot: Snapshot | None, count: int) -> Condition:
    wanted = _wanted(project, snapshot)
    since = "in all" if snapshot is None else f"since snapshot {snapshot.sha256[:12]}"
    if count >= wanted:
        return Condition("labels", True, f"labels: {count} new {since}")
    return Condition("labels", False, f"{count} of {wanted} new labels {since}")


def _schedule(project: Project, asked: datetime | None, count: int, now: datetime) -> Condition:
    if project.schedule is None:
        return Condition("schedule", False, "there is none")
    then = cron.next_time(project.schedule, asked or project.created_at)
    if now < then:
        return Condition("schedule", False, f"{project.schedule}: next at {then:%Y-%m-%d %H:%M} UTC")
    if not count:
        return Condition("schedule", False, f"{project.schedule}: it is time, and no label is new")
    return Condition("schedule", True, f"schedule: {project.schedule}, {count} new labels")


def _alarm(session: Session, project: Project, asked: datetime | None, count: int, wanted: int) -> Condition:
    why = switched_off(session, project)
    change = last_change(session, project)
    if why is None or change is None:
        return Condition("alarm", False, "auto-accept has not switched itself off")
    if not project.retrain_on_alarm:
        return Condition("alarm", False, "auto-accept is off, and the policy wants no cycle for that")
    if asked is not None and change.at <= asked:
        return Condition("alarm", False, "a cycle was asked for since auto-accept switched itself off")
    if count < wanted:
        return Condition("alarm", False, f"auto-accept is off: {count} of {wanted} new labels")
    return Condition("alarm", True, f"alarm: auto-accept switched itself off, {count} new labels")


def wanted(session: Session, project: Project) -> int:
    """How many new labels start a cycle.

    Those of `labels_for_gain`, where the project asks for a gain and its champion's IoU is known. Else
    `labels_per_cycle`, or `label_growth` of those held if it is more.

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


def resume(session: Session, cycle: Cycle, by: str) -> None:
    """Let a cycle that failed or was cancelled go on with the step that it did not finish.

    That step is planned anew, with the settings as they are now; what was finished stays, its snapshot too.

    Args:
        session: a writing session; the caller commits.
        cycle: the cycle.
        by: who wants it.

    Raises:
        CycleDoneError: it came to its end; there is nothing to go on with.
        CycleActiveError: it is active, or another one of the project is.
    """
    lock_project(session, cycle.project_id)
    session.refresh(cycle)
    if cycle.state in {CycleState.PROMOTED, CycleState.PASSED, CycleState.REJECTED}:
        raise CycleDoneError(f"cycle {cycle.id} came to its end: {cycle.state.value}; ask for a new one")
    if (other := active_cycle(session, cycle.project)) is not None:
        which = "it" if other is cycle else f"cycle {other.id}"
        raise CycleActiveError(f"cycle {cycle.id} cannot be resumed: {which} is {other.state.value}")
    message = f"Resumed by {by}; it had ended {cycle.state.value}: {cycle.reason}"
    cycle.state, cycle.reason, cycle.finished_at = CycleState.REQUESTED, None, None
    session.add(CycleEvent(cycle_id=cycle.id, step=RESUMED, message=message))
    session.flush()


def _last_snapshot(session: Session, project: Project) -> Snapshot | None:
    return session.scalar(
        select(Snapshot).where(Snapshot.project_id == project.id).order_by(Snapshot.id.desc()).limit(1)
    )


def labels_for_gain(iou: float, gain: float, held: int) -> int | None:
    """How many more labels a gain takes, by the learning curve 1 - IoU = exp(-c n) through what is known.

    n' = (log(1 - iou - gain) / log(1 - iou) - 1) n: each label is taken to remove the same share of what is
    wrong. A rule of thumb; real curves flatten, so it is the least that it takes.

    Args:
        iou: of the model that serves, on the holdout.
        gain: of IoU.
        held: n, labels that it was trained on.

    Returns:
        At least 1; None where the formula has no answer: an IoU of 0, or one that cannot rise so far.
    """
    if not held or not 0 < iou < 1 or iou + gain >= 1:
        return None
    return max(1, math.ceil(round((math.log(1 - iou - gain) / math.log(1 - iou) - 1) * held, 6)))


def _wanted(project: Project, snapshot: Snapshot | None) -> int:
    held = len(snapshot.manifest["train"]) if snapshot is not None else 0
    if project.gain is not None and project.champion is not None:
        iou = project.champion.metrics.get("fg_iou", 0.0)
        needed = labels_for_gain(iou, project.gain, held)
        if needed is not None:
            return needed
    return max(project.labels_per_cycle, math.ceil(round(project.label_growth * held, 6)))
