"""The order of the review queue in the ledger: `Task.priority` of every task that waits for a human.

What is in review stands in the order of the project's strategy (`active_learning.acquisition`); before the
first model in a random one, by a seed. The audit's order is random always: it is a sample, and must stay one
when only its beginning is worked off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, func, null, select, true
from sqlalchemy.orm import Session

from active_learning.acquisition import POINTWISE, POOL, check, pool_of, ranking
from active_learning.candidates import Candidate, Ranking
from active_learning.ledger import Ledger, Prediction, Project, RouteDecision, Task, TaskStatus
from active_learning.ledger.bulk import update_rows
from active_learning.ledger.draws import seeded
from active_learning.ledger.locking import lock_project

QUEUES = (TaskStatus.REVIEW, TaskStatus.AUDIT)  # where people work
READ = 4096  # tasks whose embeddings are read at a time,
WRITTEN = 20_000  # and whose priorities are written in one transaction
DIGITS = 4  # a priority is rounded, so that noise does not write thousands of tasks to the tool


@dataclass(frozen=True, slots=True)
class Place:
    """A task that waits for a human.

    Attributes:
        task: its id in the labeling tool.
        priority: None: it has no place yet.
        quality: predicted IoU; None without a usable prediction.
        scene: of the image.
        why: it was sent to a human, as the last route decision says.
    """

    task: int
    priority: float | None
    quality: float | None
    scene: str
    why: str


def upcoming(session: Session, project: Project, view: TaskStatus, limit: int) -> list[Place]:
    """The first tasks of a view, in the order in which people get them.

    Args:
        session: a session on the ledger.
        project: the project.
        view: REVIEW or AUDIT.
        limit: how many at most.
    """
    columns = (Task.id, Task.tool_task_id, Task.priority, Task.quality, Task.scene)
    waiting = select(*columns).where(Task.project_id == project.id, Task.status == view)
    # In two parts, each along the index ix_tasks_queue: no index puts NULL last in both databases.
    placed = waiting.where(Task.priority.is_not(None)).order_by(Task.priority.desc(), Task.id)
    others = waiting.where(Task.priority.is_(None)).order_by(Task.priority, Task.id)
    rows = [*session.execute(placed.limit(limit))]
    rows += session.execute(others.limit(limit - len(rows)))
    why = reasons(session, [row.id for row in rows])
    return [
        Place(row.tool_task_id, row.priority, row.quality, row.scene, why.get(row.id, "")) for row in rows
    ]


def reasons(session: Session, ids: Sequence[int]) -> dict[int, str]:
    """Task id -> why it stands where it does, as its last route decision says.

    Asked for apart from the tasks: joined, PostgreSQL may look for the last decision of every task before it
    takes a few.
    """
    last = (
        select(func.max(RouteDecision.id))
        .where(RouteDecision.task_id.in_(ids))
        .group_by(RouteDecision.task_id)
    )
    decided = select(RouteDecision.task_id, RouteDecision.reason).where(RouteDecision.id.in_(last))
    return {row.task_id: row.reason for row in session.execute(decided)}


def foreseen(session: Session, project: Project, strategy: str, limit: int) -> list[int]:
    """The first tasks of the review queue as a strategy would order it; nothing is changed.

    Takes as long as choosing the head does: seconds, of a long queue.

    Args:
        session: any.
        project: the project.
        strategy: a key of `active_learning.acquisition.STRATEGIES`.
        limit: how many at most; no more than the `HEAD` that is chosen.

    Returns:
        Ids of the ledger. Tasks whose prediction by the champion is still to come are not among them.

    Raises:
        AcquisitionError: no strategy of this name.
    """
    check(strategy)
    query = select(Task.id).join(Prediction, _by_champion(project)).where(Task.project_id == project.id)
    ordered = list(session.scalars(query.order_by(Task.id)))
    ranked, pool = _ranked(session, project, strategy, ordered)
    # The head is chosen of the pool, so nothing else can be among the first, where there is one.
    parts = [pool] if pool else _candidates(session, project, strategy, ordered)
    placed = [pair for part in parts for pair in _priorities(ranked, part).items()]
    return [task_id for task_id, _ in nsmallest(limit, placed, key=lambda pair: (-pair[1], pair[0]))]


def place_new(ledger: Ledger, project_id: int) -> int:
    """Give a place to the tasks that have none, without thinking the whole order over.

    As if each taught about itself alone. Quick, for the time while many are still to be predicted.

    Returns:
        How many got one.
    """
    with ledger.session(write=False) as session:
        project = session.get_one(Project, project_id)
        lacking = _standings(session, project, Task.priority.is_(None))
        priorities: dict[int, float | None] = {
            row.id: _chance(project, row) for row in lacking if row.status in QUEUES
        }
        alone = ranking(project.strategy, [], [])
        lacking_ids = [row.id for row in lacking if row.ordered]
        for candidates in _candidates(session, project, project.strategy, lacking_ids):
            priorities |= _priorities(alone, candidates)
    return _write(ledger, project_id, priorities)


def reorder(ledger: Ledger, project_id: int) -> int:
    """Set `Task.priority` of every task that waits for a human; nobody else has one.

    A task whose prediction by the champion is still to come keeps the priority it has. The thinking, which
    may take minutes where a million tasks wait, is done in a session that only reads, and never holds more
    than `POOL` of them in memory.

    Args:
        ledger: the ledger.
        project_id: the project.

    Returns:
        How many priorities changed.
    """
    with ledger.session(write=False) as session:
        project = session.get_one(Project, project_id)
        strategy = project.strategy
        changes = _changes(session, project)
    written = _write(ledger, project_id, changes)
    if project.ordered_by != strategy:
        with ledger.session() as session:
            lock_project(session, project_id).ordered_by = strategy
    return written


def _write(ledger: Ledger, project_id: int, priorities: dict[int, float | None]) -> int:
    """In pieces, so that webhooks need not wait; what a crash leaves is found again by the next look."""
    rows = [{"id": i, "priority": p} for i, p in sorted(priorities.items())]
    for start in range(0, len(rows), WRITTEN):
        with ledger.session() as session:
            lock_project(session, project_id)
            update_rows(session, Task, rows[start : start + WRITTEN])
    return len(rows)


def _by_champion(project: Project) -> ColumnElement[bool]:
    """The champion's predictions of what is in review: what it orders."""
    return (
        (Prediction.task_id == Task.id)
        & (Prediction.model_version_id == project.champion_id)
        & (Task.status == TaskStatus.REVIEW)
    )


def _standings(session: Session, project: Project, which: ColumnElement[bool]) -> Sequence[Any]:
    """Tasks among `which`, and whether the champion's prediction of each gives it its place."""
    return session.execute(
        select(Task.id, Task.status, Task.priority, Task.holdout, Prediction.id.is_not(None).label("ordered"))
        .outerjoin(Prediction, _by_champion(project))
        .where(which, Task.project_id == project.id)
        .order_by(Task.id)
    ).all()


def _candidates(
    session: Session, project: Project, strategy: str, ids: Sequence[int]
) -> Iterator[list[Candidate]]:
    """What the champion said of these tasks, in their order, a piece at a time.

    Without the embeddings, which are most of it, where the strategy does not look at them.
    """
    embedding = null() if strategy in POINTWISE else Prediction.embedding
    said = (Prediction.quality, Prediction.signals, embedding)
    for start in range(0, len(ids), READ):
        rows = session.execute(
            select(Task.id, *said)
            .join(Prediction, _by_champion(project))
            .where(Task.id.in_(ids[start : start + READ]))
            .order_by(Task.id)
        )
        yield [Candidate.of(*row) for row in rows]


def _changes(session: Session, project: Project) -> dict[int, float | None]:
    """Task id -> its priority, where it is another than it has."""
    rows = _standings(session, project, true())
    priorities: dict[int, float | None] = {}
    for row in rows:
        if row.status is TaskStatus.REVIEW and not row.ordered and row.priority is not None:
            priorities[row.id] = row.priority
        elif row.status in QUEUES:
            priorities[row.id] = _chance(project, row)
        else:
            priorities[row.id] = None
    ordered = [row.id for row in rows if row.ordered]
    if ordered:
        ranked, pool = _ranked(session, project, project.strategy, ordered)
        whole = len(pool) == len(ordered)
        for part in [pool] if whole else _candidates(session, project, project.strategy, ordered):
            priorities |= _priorities(ranked, part)
    return {row.id: priorities[row.id] for row in rows if priorities[row.id] != row.priority}


def _ranked(
    session: Session, project: Project, strategy: str, ordered: Sequence[int]
) -> tuple[Ranking, list[Candidate]]:
    """The order of these tasks by a strategy, and the pool that it was chosen of, if it needs one."""
    if strategy in POINTWISE:
        return ranking(strategy, [], []), []
    pool = [c for part in _candidates(session, project, strategy, pool_of(ordered)) for c in part]
    return ranking(strategy, pool, _labelled(session, project)), pool


def _priorities(ranked: Ranking, candidates: Sequence[Candidate]) -> dict[int, float]:
    """Task id -> where it stands, below 1: that is where the holdout begins."""
    found = zip(candidates, ranked.priorities(candidates), strict=True)
    return {candidate.key: min(round(worth, DIGITS), 1 - 10**-DIGITS) for candidate, worth in found}


def _labelled(session: Session, project: Project) -> list[NDArray[np.float32]]:
    """The embeddings of labelled images, by the last version that saw them: adapters change them a little.

    Of more than `POOL`, those seen last.
    """
    last = (
        select(func.max(Prediction.id))
        .join(Task, Task.id == Prediction.task_id)
        .where(Task.project_id == project.id, Task.status == TaskStatus.DONE)
        .where(Prediction.embedding.is_not(None))
        .group_by(Prediction.task_id)
    )
    query = select(Prediction.embedding).where(Prediction.id.in_(last)).order_by(Prediction.id.desc())
    query = query.limit(POOL)
    return [embedding for embedding in session.scalars(query) if embedding is not None]


def _chance(project: Project, row: Any) -> float:
    """A place by chance, the same each time for a project of this name; before all others for the holdout."""
    chance = seeded(row.status.value, project.name, row.id)
    return round(chance + 1 if row.holdout else chance, DIGITS)
