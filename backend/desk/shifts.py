"""What another version changed where nobody has labelled: masks whose predicted IoU moved most.

Images of the holdout are labelled early, often before the versions that they judge, so the ledger seldom
holds masks of theirs; of what waits for people it holds those of every version that served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from active_learning.ledger import ModelVersion, Prediction, Project, Task
from active_learning.routing import OPEN
from backend.desk.pictures import is_hidden

SAMPLE: Final = 1000  # predictions that are looked at, the newest
SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Shift:
    """One image: its id in the labeling tool, and the predicted IoU of both versions' masks."""

    task: int
    quality: float
    other_quality: float
    delta: float


@dataclass(frozen=True, slots=True)
class Shifts:
    """Unlabelled images that two versions have predicted; of an open blind audit nothing is told.

    Attributes:
        images: of the newest `SAMPLE` predictions.
        delta: mean change of predicted IoU from the other version to this one.
        risen: where it rose most.
        fallen: where it fell most.
    """

    images: int
    delta: float
    risen: list[Shift]
    fallen: list[Shift]


def shifts(session: Session, version: ModelVersion, other: ModelVersion) -> Shifts | None:
    """From the other version to this one; None where no unlabelled image has predictions of both."""
    project = session.get_one(Project, version.project_id)
    mine, its = aliased(Prediction), aliased(Prediction)
    newest = select(Prediction.id).where(Prediction.model_version_id == version.id)
    query = (
        select(Task, mine.quality, its.quality)
        .join(mine, mine.task_id == Task.id)
        .join(its, (its.task_id == Task.id) & (its.model_version_id == other.id))
        .where(
            mine.id.in_(newest.order_by(Prediction.id.desc()).limit(SAMPLE)),
            Task.status.in_(OPEN),
        )
    )
    found = [
        Shift(task.tool_task_id, quality, before, quality - before)
        for task, quality, before in session.execute(query)
        if not is_hidden(project, task, version.name)
    ]
    if not found:
        return None
    found.sort(key=lambda shift: shift.delta)
    return Shifts(
        len(found),
        sum(shift.delta for shift in found) / len(found),
        [shift for shift in found[::-1][:SHOWN] if shift.delta > 0],
        [shift for shift in found[:SHOWN] if shift.delta < 0],
    )
