"""The inbox: events are worked off one by one, in the order in which they came.

The state that they leave does not hang on that order, nor on how often an event came: see `labels` and
`tasks`. An event that cannot be worked off is tried three times, then set aside with its error; it never
holds up another one.
"""

from __future__ import annotations

import logging

from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import labels, triggers
from active_learning.ledger import Cycle, InboxEvent, InboxState, Ledger, Project
from active_learning.ledger.failures import LedgerError
from active_learning.ledger.types import utc_now
from active_learning.ports import LabelingTool, ToolUnavailableError
from active_learning.tasks import add_tasks, mark_gone
from backend.events import Effects, EventError, decode_event
from backend.reconciler import reconcile
from model.errors import ELNetError

__all__ = ["MAX_ATTEMPTS", "reconcile", "work_off"]

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3


def work_off(ledger: Ledger, tool: LabelingTool, limit: int = 200) -> int:
    """Work off waiting events.

    Args:
        ledger: the ledger.
        tool: the labeling tool; asked who its machine user is, and for listings where an event says only that
            something was deleted.
        limit: how many events to take up at most.

    Returns:
        How many left the queue, worked off or set aside.

    Raises:
        ToolUnavailableError: the tool was needed and did not answer. Events that need it still wait, the
            others are worked off.
        LedgerError: the ledger failed; nothing is lost.
    """
    waiting = select(InboxEvent.id).where(InboxEvent.state == InboxState.WAITING)
    with ledger.session(write=False) as session:
        ids = list(session.scalars(waiting.order_by(InboxEvent.id).limit(limit)))
    if not ids:
        return 0
    machine = tool.machine_annotator()
    left = 0
    unavailable: ToolUnavailableError | None = None
    for event_id in ids:
        try:
            left += _work(ledger, tool, machine, event_id)
        except ToolUnavailableError as error:
            unavailable = error
    if unavailable is not None:
        raise unavailable
    return left


def _work(ledger: Ledger, tool: LabelingTool, machine: str, event_id: int) -> bool:
    """Work off one event; whether it left the queue."""
    try:
        project, effects = _read(ledger, machine, event_id)
        if effects.reconcile:
            reconcile(ledger, project, tool)
        with ledger.session() as session:
            event = session.get_one(InboxEvent, event_id, with_for_update=True)
            _apply(session, session.get_one(Project, project.id), effects, event)
            if effects.errors:
                _failed(event, "; ".join(effects.errors))
            else:
                event.state, event.done_at = InboxState.DONE, utc_now()
                event.error = "; ".join(effects.notes) or None
            for note in effects.notes:
                log.warning("project %s: %s", project.name, note)
            return event.state is not InboxState.WAITING
    except (ToolUnavailableError, LedgerError):
        raise
    except Exception as error:
        # The boundary between foreign input and the queue: whatever is wrong with one event, a defect of ours
        # included, must neither stop the worker nor hold up the events behind it.
        if not isinstance(error, ELNetError):
            log.exception("event %d cannot be worked off", event_id)
        with ledger.session() as session:
            event = session.get_one(InboxEvent, event_id, with_for_update=True)
            _failed(event, f"{type(error).__name__}: {error}")
            return event.state is not InboxState.WAITING


def _read(ledger: Ledger, machine: str, event_id: int) -> tuple[Project, Effects]:
    """Decode an event outside of any writing transaction: a large mask takes its time."""
    with ledger.session(write=False) as session:
        event = session.get_one(InboxEvent, event_id)
        # A new tool at another address may count its projects from 1 again: the newest project is meant.
        project = session.scalar(
            select(Project)
            .where(Project.tool_project_id == event.tool_project_id)
            .order_by(Project.id.desc())
            .limit(1)
        )
    if project is None:
        raise EventError(
            f"no project of the ledger has the tool's id {event.tool_project_id}: create it by "
            "`elnet project create`, or remove the webhook from that project"
        )
    return project, decode_event(event.action, event.payload, project.classes, machine)


def _apply(session: Session, project: Project, effects: Effects, event: InboxEvent) -> None:
    add_tasks(session, project, effects.tasks)
    for annotation in effects.annotations:
        labels.record(session, project, annotation)
    if effects.buried:
        labels.bury(session, project, effects.buried)
    if effects.gone:
        mark_gone(session, project, effects.gone)
    if effects.train:
        _request_training(session, project, effects, event)


def _request_training(session: Session, project: Project, effects: Effects, event: InboxEvent) -> None:
    """One cycle, however often the button was pressed while it was asked for or under way."""
    answered = select(Cycle.id).where(Cycle.project_id == project.id, Cycle.requested_at >= event.received_at)
    if session.scalars(answered).first() is not None:
        effects.notes.append("a cycle was asked for since the button was pressed")
        return
    try:
        triggers.request(session, project, "Start training")
    except triggers.CycleActiveError as error:
        effects.notes.append(str(error))


def _failed(event: InboxEvent, error: str) -> None:
    """Count an attempt; after the last one the event is set aside."""
    event.attempts += 1
    event.error = error
    if event.attempts >= MAX_ATTEMPTS:
        event.state, event.done_at = InboxState.FAILED, utc_now()
    log.warning("event %d (%s), attempt %d: %s", event.id, event.action, event.attempts, error)
