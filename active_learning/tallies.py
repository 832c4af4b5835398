"""What the ledger counts by itself: where open images would go, and how the predicted IoU is distributed.

Triggers keep the counts (revision 0013), so reading them takes as long at a million tasks as at a thousand.
They are of what the tables hold, whether or not it is routed yet: of the champion's predictions of every
image on which no human has spoken.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, String, exists, func, literal, select, type_coerce
from sqlalchemy.orm import Session

from active_learning.ledger import (
    CountedAs,
    ModelVersion,
    Prediction,
    Project,
    QualityCount,
    Task,
    TaskCount,
)
from active_learning.routing import OPEN

BINS = 1000  # of quality; the last one, of number 1000, holds 1 alone


@dataclass(frozen=True, slots=True)
class OpenRoutes:
    """The open tasks, as far as no threshold changes where they go.

    Attributes:
        waiting: without a prediction by the champion.
        audit: drawn for the audit or the holdout.
        unusable: without a usable quality: a human must see them.
        bins: (BINS + 1,) of the others, which the threshold parts, how many have a predicted IoU of
            [i / BINS, (i + 1) / BINS).
    """

    waiting: int
    audit: int
    unusable: int
    bins: NDArray[np.int64]

    @property
    def graded(self) -> int:
        """How many the threshold parts."""
        return int(self.bins.sum())


def open_routes(session: Session, project: Project) -> OpenRoutes:
    """Where the open tasks of a project would go."""
    kind = type_coerce(QualityCount.counted_as, String)
    counted = select(kind, QualityCount.bin, QualityCount.tasks)
    counted = counted.where(QualityCount.model_version_id == project.champion_id)
    there = select(literal("open"), literal(0), func.coalesce(func.sum(TaskCount.tasks), 0))
    there = there.where(TaskCount.project_id == project.id, TaskCount.status.in_(OPEN))
    bins = np.zeros(BINS + 1, np.int64)
    totals: Counter[str] = Counter()
    for what, number, tasks in session.execute(counted.union_all(there)):  # in one query: of one moment
        totals[what] += tasks
        if what == CountedAs.GRADED:
            bins[number] = tasks
    waiting = totals["open"] - sum(totals[what] for what in CountedAs)
    return OpenRoutes(waiting, totals[CountedAs.AUDIT], totals[CountedAs.UNUSABLE], bins)


def reaching(session: Session, project: Project, routes: OpenRoutes, threshold: float | None) -> int:
    """How many of the open tasks reach a threshold, and so would be accepted; exactly."""
    if threshold is None:
        return 0
    cut = bin_of(threshold)
    return int(routes.bins[cut + 1 :].sum()) + _reaching_of(session, project, routes, cut, threshold)


def bin_of(quality: float) -> int:
    """The bin of a predicted IoU in [0, 1], as the database computes it too."""
    return math.floor(quality * BINS)


def _reaching_of(session: Session, project: Project, routes: OpenRoutes, cut: int, threshold: float) -> int:
    """How many of a bin reach the threshold. Tasks are read only where some do, and some do not."""
    low, high = _first_of(cut), _first_of(cut + 1)
    counted = int(routes.bins[cut])
    if not counted or not _is_any(session, project, low, threshold):
        return counted
    if not _is_any(session, project, threshold, high):
        return 0
    is_usable = func.coalesce(Prediction.signals["usable"].as_boolean(), True)
    draw = func.elnet_audit_draw(Task.id, ModelVersion.name)
    reached = session.scalar(
        select(func.count())
        .select_from(Prediction)
        .join(Prediction.task)
        .join(Prediction.model_version)
        .where(_of(project, threshold, high), Task.status.in_(OPEN), Task.holdout.is_(False))
        .where(is_usable, draw >= project.audit_share)
    )
    return min(reached or 0, counted)  # more may have come since it was counted


def _of(project: Project, low: float, high: float) -> ColumnElement[bool]:
    """The champion's predictions with a quality in [low, high)."""
    return (
        (Prediction.model_version_id == project.champion_id)
        & (Prediction.quality >= low)
        & (Prediction.quality < high)
    )


def _is_any(session: Session, project: Project, low: float, high: float) -> bool:
    return low < high and bool(session.scalar(select(exists().where(_of(project, low, high)))))


def _first_of(number: int) -> float:
    """The lowest number of a bin."""
    found = number / BINS
    while bin_of(found) < number:
        found = math.nextafter(found, 2)
    while bin_of(math.nextafter(found, -1)) >= number:
        found = math.nextafter(found, -1)
    return found
