"""What people see of a cycle: its row and its events, written so that a crash in between does no harm.

Every change of state asks that the cycle be active, so a cancellation is never overwritten.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from active_learning.ledger import Cycle, CycleEvent, CycleState, Ledger
from active_learning.ledger.types import utc_now
from model.errors import ELNetError

ACTIVE = (CycleState.REQUESTED, CycleState.RUNNING)
RESUMED = "resumed"  # the step of the event that says so
TAKEN_OVER = "taken over"


class CycleEndedError(ELNetError):
    """The cycle is no longer active: somebody cancelled it. The text is the reason."""


def resumptions(session: Session, cycle_id: int) -> int:
    """How often somebody has resumed a cycle that had failed or was cancelled."""
    resumed = select(func.count()).where(CycleEvent.cycle_id == cycle_id, CycleEvent.step == RESUMED)
    return session.scalar(resumed) or 0


def takeovers(session: Session, cycle_id: int) -> int:
    """How often, since it was last resumed, a worker has gone on with what another one had left."""
    mine = CycleEvent.cycle_id == cycle_id
    last = select(func.coalesce(func.max(CycleEvent.id), 0)).where(mine, CycleEvent.step == RESUMED)
    since = CycleEvent.id > last.scalar_subquery()
    return session.scalar(select(func.count()).where(mine, CycleEvent.step == TAKEN_OVER, since)) or 0


def last_epoch(session: Session, cycle_id: int) -> dict[str, Any] | None:
    """What a cycle's training reported last: `epoch`, `epochs`, `loss`; None: it has not come so far."""
    epochs = CycleEvent.data["epochs"].as_integer()
    events = select(CycleEvent.data).where(
        CycleEvent.cycle_id == cycle_id, CycleEvent.step == "train", epochs.is_not(None)
    )
    return session.scalar(events.order_by(CycleEvent.id.desc()).limit(1))


class Journal:
    """One cycle's row and events."""

    def __init__(self, ledger: Ledger, cycle_id: int) -> None:
        self._ledger = ledger
        self.cycle_id = cycle_id

    def check(self) -> None:
        """Raise `CycleEndedError` if the cycle is no longer active."""
        with self._ledger.session(write=False) as session:
            cycle = session.get(Cycle, self.cycle_id)
        if cycle is None:
            raise CycleEndedError(f"cycle {self.cycle_id} is gone")
        if cycle.state not in ACTIVE:
            raise CycleEndedError(cycle.reason or cycle.state.value)

    def is_finished(self, step: str) -> bool:
        """Whether the step has its seconds."""
        with self._ledger.session(write=False) as session:
            return step in session.get_one(Cycle, self.cycle_id).seconds

    def begin(self, step: str, message: str) -> None:
        """The step is under way.

        Raises:
            CycleEndedError: the cycle was cancelled.
        """
        with self._ledger.session() as session:
            cycle = session.get_one(Cycle, self.cycle_id, with_for_update=True)
            if cycle.state not in ACTIVE:
                raise CycleEndedError(cycle.reason or cycle.state.value)
            cycle.state, cycle.step = CycleState.RUNNING, step
            cycle.started_at = cycle.started_at or utc_now()
            session.add(self._event(step, message, began=True))

    def note(self, step: str, message: str, **data: Any) -> None:
        """Add an event."""
        with self._ledger.session() as session:
            session.add(self._event(step, message, **data))

    def finish(self, step: str, seconds: float, message: str, data: dict[str, Any]) -> None:
        """The step is done: its wall seconds, and what came of it."""
        with self._ledger.session() as session:
            cycle = session.get_one(Cycle, self.cycle_id, with_for_update=True)
            cycle.seconds = {**cycle.seconds, step: round(seconds, 3)}
            session.add(self._event(step, message, **data, finished=True))

    def end(self, state: CycleState, reason: str) -> bool:
        """Move the cycle to its end state; False if it has one already."""
        with self._ledger.session() as session:
            ended = session.execute(
                update(Cycle)
                .where(Cycle.id == self.cycle_id, Cycle.state.in_(ACTIVE))
                .values(state=state, reason=reason, finished_at=utc_now())
                .returning(Cycle.step)
            ).first()
            if ended is not None:
                message = f"The cycle ended {state.value}: {reason}"
                session.add(self._event(ended.step or "start", message, state=state.value))
        return ended is not None

    def stopped(self, step: str, message: str) -> None:
        """A cycle that somebody else ended goes no further."""
        with self._ledger.session() as session:
            cycle = session.get(Cycle, self.cycle_id, with_for_update=True)
            if cycle is not None:
                if cycle.state not in ACTIVE:  # else it was resumed at this moment
                    cycle.finished_at = cycle.finished_at or utc_now()
                session.add(self._event(step, message))

    def _event(self, step: str, message: str, **data: Any) -> CycleEvent:
        return CycleEvent(cycle_id=self.cycle_id, step=step, message=message, data=data)
