"""The order of the review queue: what a human sees first teaches most.

A hybrid of three terms, each in [0, 1]:

* uncertainty: half what the predicted IoU lacks, half the entropy on the mask's boundary;
* foreground: how likely the image holds any, because most tiles of a survey hold none and plain uncertainty
  barely beats chance there (nnActive, arXiv 2511.19183);
* novelty: how far the image's embedding is from everything that goes before it in the queue and from what was
  labelled since the champion saw it. Tiles of one scene look alike, and one of them is enough at first.

Novelty is greedy farthest-first over the head of the queue; the tail is ordered by what it is worth beside
that head. Before the first model the order is random, by a seed. The audit's order is random always: it is a
sample, and must stay one when only its beginning is worked off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, select, true, update
from sqlalchemy.orm import Session

from active_learning.ledger import Ledger
from active_learning.ledger.locking import lock_project
from active_learning.ledger.tables import Prediction, Project, Task, TaskStatus
from active_learning.routing import seeded

UNCERTAINTY, FOREGROUND, NOVELTY = 0.5, 0.2, 0.3  # weights; they sum to 1
HEAD = 128  # how many tasks are chosen greedily: more than a cycle's worth of labels
QUEUES = (TaskStatus.REVIEW, TaskStatus.AUDIT)  # where people work
DIGITS = 4  # a priority is rounded, so that noise does not write thousands of tasks to the tool


@dataclass(frozen=True, slots=True)
class Candidate:
    """A task that waits for a human, with what the champion said of it."""

    task_id: int
    value: float  # uncertainty and foreground, weighted: in [0, 1 - NOVELTY]
    embedding: NDArray[np.float32] | None


def place_new(ledger: Ledger, project_id: int) -> int:
    """Give a place to the tasks that have none, without thinking the whole order over.

    Each counts as novel. Quick, for the time while many are still to be predicted.

    Returns:
        How many got one.
    """
    with ledger.session(write=False) as session:
        project = session.get_one(Project, project_id)
        priorities: dict[int, float | None] = {}
        for row in _standings(session, project, Task.priority.is_(None)):
            if row.status is TaskStatus.REVIEW and row.signals is not None:
                priorities[row.id] = round(_value(row.quality, row.signals) + NOVELTY, DIGITS)
            elif row.status in QUEUES:
                priorities[row.id] = _chance(project, row)
    return _write(ledger, project_id, priorities)


def reorder(ledger: Ledger, project_id: int) -> int:
    """Set `Task.priority` of every task that waits for a human; nobody else has one.

    A task whose prediction by the champion is still to come keeps the priority it has. The thinking, which
    may take a second, is done in a session that only reads.

    Args:
        ledger: the ledger.
        project_id: the project.

    Returns:
        How many priorities changed.
    """
    with ledger.session(write=False) as session:
        changes = _changes(session, session.get_one(Project, project_id))
    return _write(ledger, project_id, changes)


def _write(ledger: Ledger, project_id: int, priorities: dict[int, float | None]) -> int:
    if priorities:
        with ledger.session() as session:
            lock_project(session, project_id)
            session.execute(update(Task), [{"id": i, "priority": p} for i, p in sorted(priorities.items())])
    return len(priorities)


def _standings(session: Session, project: Project, which: ColumnElement[bool]) -> Sequence[Any]:
    """Tasks among `which`, each with what the champion said of it."""
    by_champion = (Prediction.task_id == Task.id) & (Prediction.model_version_id == project.champion_id)
    said = (Prediction.quality, Prediction.signals, Prediction.embedding)
    return session.execute(
        select(Task.id, Task.status, Task.priority, *said)
        .outerjoin(Prediction, by_champion)
        .where(which, Task.project_id == project.id)
        .order_by(Task.id)
    ).all()


def _changes(session: Session, project: Project) -> dict[int, float | None]:
    """Task id -> its priority, where it is another than it has."""
    rows = _standings(session, project, true())
    candidates: list[Candidate] = []
    labelled: list[NDArray[np.float32]] = []
    priorities: dict[int, float | None] = {}
    for row in rows:
        if row.status is TaskStatus.REVIEW and row.signals is not None:
            candidates.append(Candidate(row.id, _value(row.quality, row.signals), row.embedding))
        elif row.status is TaskStatus.REVIEW and row.priority is not None:
            priorities[row.id] = row.priority
        elif row.status in QUEUES:
            priorities[row.id] = _chance(project, row)
        else:
            priorities[row.id] = None
            if row.status is TaskStatus.DONE and row.embedding is not None:
                labelled.append(row.embedding)
    for candidate, worth in zip(candidates, prioritise(candidates, labelled), strict=True):
        priorities[candidate.task_id] = round(worth, DIGITS)
    return {row.id: priorities[row.id] for row in rows if priorities[row.id] != row.priority}


def _chance(project: Project, row: Any) -> float:
    """A place by chance, the same each time."""
    return round(seeded(row.status.value, project.id, row.id), DIGITS)


def prioritise(candidates: list[Candidate], labelled: list[NDArray[np.float32]]) -> list[float]:
    """The worth of each candidate when the queue is worked off from its best on.

    Greedy: take the candidate whose value and novelty together are highest, measure the others' novelty
    against it too, and go on, `HEAD` times. What a candidate is worth when it is taken never rises from one
    to the next, so it serves as the priority.

    Args:
        candidates: in any fixed order; those without an embedding count as novel.
        labelled: embeddings of what was labelled since, (C,) each.

    Returns:
        Priorities in [0, 1], in the candidates' order.
    """
    if not candidates:
        return []
    values = np.array([c.value for c in candidates], dtype=np.float64)
    points, given = _directions([c.embedding for c in candidates], labelled)
    novelty: NDArray[np.float64] = np.ones(len(candidates))
    for row in given:
        novelty = np.minimum(novelty, _distance(points, row))
    worth: NDArray[np.float64] = values + NOVELTY * novelty
    waiting = np.ones(len(candidates), dtype=np.bool_)
    for _ in range(min(HEAD, len(candidates))):
        best = int(np.argmax(np.where(waiting, worth, -1)))
        waiting[best] = False
        novelty = np.where(waiting, np.minimum(novelty, _distance(points, points[best])), novelty)
        worth = np.where(waiting, values + NOVELTY * novelty, worth)
    return [float(w) for w in np.clip(worth, 0, 1)]


def _value(quality: float, measured: dict[str, Any]) -> float:
    """Uncertainty and foreground of a prediction, weighted. The least sure class counts."""
    classes = measured["classes"]
    entropy: float = max(c["boundary_entropy"] for c in classes)
    foreground: float = max(1.0 if not c["empty"] else c["peak"] for c in classes)
    return UNCERTAINTY * (1 - quality + entropy) / 2 + FOREGROUND * foreground


def _directions(
    embeddings: list[NDArray[np.float32] | None], labelled: list[NDArray[np.float32]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit vectors from the queue's mean embedding: raw embeddings all point the same way.

    Returns:
        (n, C) for the queue, zeros where there is no embedding, and (m, C) for the labelled.
    """
    known = [e for e in embeddings if e is not None]
    if not known:
        return np.zeros((len(embeddings), 1), np.float32), np.zeros((0, 1), np.float32)
    width = len(known[0])
    mean = np.mean(known, axis=0)
    queue = np.stack([mean if e is None else e for e in embeddings]) - mean
    others = np.stack([e for e in labelled if len(e) == width] or [mean]) - mean
    return _unit(queue), _unit(others)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1; rows of (almost) no length, or that are not finite, become zeros."""
    clean = np.nan_to_num(vectors.astype(np.float32), posinf=0, neginf=0)
    length = np.linalg.norm(clean, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = np.where(length > 1e-6, clean / np.maximum(length, 1e-6), 0)
    return scaled


def _distance(points: NDArray[np.float32], row: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine distance to one direction, in [0, 1]: 0 the same, 1 at a right angle or beyond, or unknown."""
    distance: NDArray[np.float64] = np.clip(1 - points @ row, 0, 1).astype(np.float64)
    return distance
