"""Routes and order of a project, kept up to date while its images are predicted."""

from __future__ import annotations

from sqlalchemy import exists, select

from active_learning import queue, routing
from active_learning.ledger import Ledger, Project, Task
from active_learning.pace import Pace
from active_learning.waiting import waiting_tasks


class Upkeep:
    """Keeps routes and order of a project up to date while its images are predicted."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._anew = False  # something was predicted since the whole order was thought over

    def keep(self, ledger: Ledger, project_id: int, stored: int) -> None:
        """Route what its last decision no longer fits, and order the queue: at once where nothing was stored.

        While some are still to be predicted, the new ones get a place among the others; the whole order is
        thought over when all are there.
        """
        self._anew = self._anew or stored > 0
        if stored and not self._pace.is_due:
            return
        with self._pace.measured():
            moved = routing.settle(ledger, project_id)
            if waiting_tasks(ledger, project_id, 1):
                self._anew = True
                queue.place_new(ledger, project_id)
            elif moved or self._anew or _is_unordered(ledger, project_id):
                queue.reorder(ledger, project_id)
                self._anew = False


def _is_unordered(ledger: Ledger, project_id: int) -> bool:
    """Whether a task waits for a human without a place in the queue, or another strategy ordered it."""
    lost = exists().where(
        Task.project_id == project_id,
        Task.status.in_(queue.QUEUES),
        Task.priority.is_(None),
    )
    changed = exists().where(Project.id == project_id, Project.ordered_by.is_distinct_from(Project.strategy))
    with ledger.session(write=False) as session:
        return bool(session.scalar(select(changed | lost)))
