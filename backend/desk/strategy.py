"""What another strategy would make of the review queue, before a lead chooses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from active_learning import queue as queues
from active_learning import standing
from active_learning.ledger import Project, Task, TaskStatus
from backend.desk.queued_images import ORDER, QueuedImage, queued_images

COMPARED: Final = 12  # images of each order that are shown beside each other


@dataclass(frozen=True, slots=True)
class Moved:
    """An image in the order of another strategy: its place there, and now (None: it has none)."""

    image: QueuedImage
    now: int | None


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What another strategy would change.

    Attributes:
        strategy: the one that is tried.
        current: the project's own.
        waiting: images in review.
        now: the first images as the queue stands.
        then: the first images as the strategy would order them; the places of both are from 1 on.
        shared: how many are among the first of both.
    """

    strategy: str
    current: str
    waiting: int
    now: list[QueuedImage]
    then: list[Moved]
    shared: int


def comparison(session: Session, project: Project, strategy: str, limit: int = COMPARED) -> Foreseen:
    """Try a strategy; nothing is changed. Takes seconds where the queue is long.

    Raises:
        AcquisitionError: no strategy of this name.
    """
    first = queues.foreseen(session, project, strategy, limit)
    by_id = {task.id: task for task in session.scalars(select(Task).where(Task.id.in_(first)))}
    places = _places(session, project, first)
    then = queued_images(session, project, [by_id[i] for i in first], 0)
    review = select(Task).where(Task.project_id == project.id, Task.status == TaskStatus.REVIEW)
    now = queued_images(session, project, session.scalars(review.order_by(*ORDER).limit(limit)).all(), 0)
    shared = {image.task for image in now} & {image.task for image in then}
    return Foreseen(
        strategy,
        project.strategy,
        standing.counts(session, project)[TaskStatus.REVIEW],
        now,
        [Moved(image, places.get(i)) for i, image in zip(first, then, strict=True)],
        len(shared),
    )


def _places(session: Session, project: Project, ids: Sequence[int]) -> dict[int, int]:
    """Task id -> its place in the review queue as it stands, from 1 on."""
    place = func.row_number().over(order_by=ORDER).label("place")
    mine = (Task.project_id == project.id, Task.status == TaskStatus.REVIEW)
    ranked = select(Task.id, place).where(*mine).subquery()
    rows = session.execute(select(ranked.c.id, ranked.c.place).where(ranked.c.id.in_(ids)))
    return {task_id: found for task_id, found in rows}  # noqa: C416 - rows are no pairs
