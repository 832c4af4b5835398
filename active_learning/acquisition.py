"""The order of the review queue: what a human sees first teaches most about the rest.

An image is worth what its label tells about the images that nobody looks at. Its neighbours in the trunk's
embedding are the images that it tells about, and each of them counts by how much the champion gets wrong
there, as far as it can be foreseen: what the predicted IoU lacks, times the root of the mask's share of the
image. One minus the IoU is the share of wrong pixels in prediction and truth together, so without the root
that product is the number of wrong pixels; the root keeps one huge mask from outweighing many small ones.
Images that likely hold nothing count little: most tiles of a survey hold none, and plain uncertainty barely
beats chance there (nnActive, arXiv 2511.19183).

The queue's head is chosen greedily by facility location weighted in this way (Wei, Iyer and Bilmes 2015,
"Submodularity in data subset selection and active learning"): the next image is the one that raises most the
similarity of every waiting image to its nearest labelled or chosen one. So near-copies of what is labelled or
already chosen come late, and so do outliers: noise and odd images are unlike everything, and teach nothing
about anything else. With few labels that matters most (TypiClust, arXiv 2202.02794).

Before the first model the order is random, by a seed. The audit's order is random always: it is a sample, and
must stay one when only its beginning is worked off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, func, select, true, update
from sqlalchemy.orm import Session

from active_learning.ledger import Ledger
from active_learning.ledger.locking import lock_project
from active_learning.ledger.tables import Prediction, Project, Task, TaskStatus
from active_learning.routing import seeded

EMPTY_SHARE = 0.02  # an empty mask counts like one of this share of the image, times its likeliest pixels
HEAD = 128  # how many tasks are chosen greedily: more than a cycle's worth of labels
SAMPLE = 2048  # of a longer queue, so many images stand for the rest when gains are summed,
POOL = 16_384  # and so many are candidates for the head
QUEUES = (TaskStatus.REVIEW, TaskStatus.AUDIT)  # where people work
DIGITS = 4  # a priority is rounded, so that noise does not write thousands of tasks to the tool


@dataclass(frozen=True, slots=True)
class Candidate:
    """A task that waits for a human, with what the champion said of it."""

    task_id: int
    value: float  # what the champion gets wrong there, foreseen, in [0, 1]
    embedding: NDArray[np.float32] | None


def place_new(ledger: Ledger, project_id: int) -> int:
    """Give a place to the tasks that have none, without thinking the whole order over.

    As if each taught about itself alone. Quick, for the time while many are still to be predicted.

    Returns:
        How many got one.
    """
    with ledger.session(write=False) as session:
        project = session.get_one(Project, project_id)
        priorities: dict[int, float | None] = {}
        for row in _standings(session, project, Task.priority.is_(None)):
            if row.status is TaskStatus.REVIEW and row.signals is not None:
                priorities[row.id] = round(_priority(_value(row.quality, row.signals)), DIGITS)
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
    """Tasks among `which`; those in review, which it orders, with what the champion said of them."""
    by_champion = (
        (Prediction.task_id == Task.id)
        & (Prediction.model_version_id == project.champion_id)
        & (Task.status == TaskStatus.REVIEW)
    )
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
    labelled = _labelled(session, project)
    for candidate, worth in zip(candidates, prioritise(candidates, labelled), strict=True):
        priorities[candidate.task_id] = round(worth, DIGITS)
    return {row.id: priorities[row.id] for row in rows if priorities[row.id] != row.priority}


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
    """A place by chance, the same each time for a project of this name."""
    return round(seeded(row.status.value, project.name, row.id), DIGITS)


def prioritise(candidates: list[Candidate], labelled: list[NDArray[np.float32]]) -> list[float]:
    """Where each candidate stands in the queue.

    The head is chosen greedily, as said at the top of this module; the others are ordered by the gain that is
    left for them.

    A priority is the gain g at the time of the choice, as g / (10 + g); a gain is the similarity that is
    added to each waiting image, times what that image counts, summed. An image that gets its label leaves the
    others' gains as they were, so the order need not be written anew for each label.

    Args:
        candidates: in any order; one without an embedding is like nothing else.
        labelled: embeddings of labelled images, (C,) each.

    Returns:
        Priorities in [0, 1), in the candidates' order.
    """
    if not candidates:
        return []
    values = np.array([c.value for c in candidates], dtype=np.float32)
    points, given = _directions([c.embedding for c in candidates], labelled)
    mixed = np.argsort([seeded("queue", c.task_id) for c in candidates])  # stays when one leaves
    pool, others = np.sort(mixed[:POOL]), np.sort(mixed[:SAMPLE])
    alike = _similarity(points[pool], points[others])  # (pool, sample)
    alike[pool[:, None] == others] = 1  # also where there is no embedding
    covered = _similarity(points[others], given).max(axis=1, initial=0)  # (sample,)
    chosen, gains_then, covered = _facility_location(alike, values[others], covered)
    parts = np.array_split(points, len(points) // 8192 + 1)
    gains = np.concatenate([_gains(_similarity(p, points[others]), values[others], covered) for p in parts])
    gains = np.where(points.any(axis=1), gains, values)
    gains = np.minimum(gains, gains_then[-1])
    gains[pool[chosen]] = gains_then
    return [_priority(float(gain)) for gain in gains]


def _priority(gain: float) -> float:
    """[0, infinity) -> [0, 1), with digits enough for gains of hundredths and of hundreds."""
    return gain / (10 + gain)


def _facility_location(
    alike: NDArray[np.float32], weights: NDArray[np.float32], covered: NDArray[np.float32]
) -> tuple[list[int], list[float], NDArray[np.float32]]:
    """Choose up to `HEAD` rows, each time the one with the largest gain.

    Gains only fall as rows are chosen, so a gain of before is a bound: the next row is found when the best
    of the bounds is one that was computed just now (Minoux 1978).

    Returns:
        The rows in the order of their choice, the gain of each at that time, and what they cover of each
        column.
    """
    bounds = _gains(alike, weights, covered)
    chosen: list[int] = []
    gains: list[float] = []
    while len(chosen) < min(HEAD, len(alike)):
        best = int(np.argmax(bounds))
        bounds[best] = _gains(alike[best : best + 1], weights, covered)[0]
        if best != int(np.argmax(bounds)):
            continue
        chosen.append(best)
        gains.append(float(bounds[best]))
        covered = np.maximum(covered, alike[best])
        bounds[best] = -1
    return chosen, gains, covered


def _gains(
    alike: NDArray[np.float32], weights: NDArray[np.float32], covered: NDArray[np.float32]
) -> NDArray[np.float32]:
    """How much each row adds to what is covered: the weighted sum over columns."""
    chunks = np.array_split(alike, alike.size >> 22) if alike.size >> 23 else [alike]  # 16 MiB at a time
    return np.concatenate([np.maximum(part - covered, 0) @ weights for part in chunks])


def _value(quality: float, measured: dict[str, Any]) -> float:
    """What the champion gets wrong, foreseen: in [0, 1]. The class with most foreground counts."""
    if not measured["usable"]:
        return 1.0
    share = max(EMPTY_SHARE * c["peak"] if c["empty"] else c["foreground_share"] for c in measured["classes"])
    return (1 - quality) * math.sqrt(float(share))


def _directions(
    embeddings: list[NDArray[np.float32] | None], labelled: list[NDArray[np.float32]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit vectors from the mean embedding: raw embeddings all point the same way.

    Returns:
        (n, C) for the queue, zeros where there is no embedding, and (m, C) for the labelled.
    """
    known = [e for e in embeddings if e is not None]
    if not known:
        return np.zeros((len(embeddings), 1), np.float32), np.zeros((0, 1), np.float32)
    width = len(known[0])
    alike = [e for e in labelled if len(e) == width]
    mean = np.mean(known + alike, axis=0)  # of both: it stays where it is when an image gets its label
    queue = np.stack([mean if e is None else e for e in embeddings]) - mean
    others = np.stack(alike or [mean]) - mean
    return _unit(queue), _unit(others)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1; rows of (almost) no length, or that are not finite, become zeros."""
    clean = np.nan_to_num(vectors.astype(np.float32), posinf=0, neginf=0)
    length = np.linalg.norm(clean, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = np.where(length > 1e-6, clean / np.maximum(length, 1e-6), 0)
    return scaled


def _similarity(rows: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine similarity of directions, (n, m) in [0, 1]: 0 at a right angle or beyond, or unknown."""
    similarity: NDArray[np.float32] = np.clip(rows @ columns.T, 0, 1)
    return similarity
