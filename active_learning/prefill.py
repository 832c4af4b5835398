"""Predictions for the tasks that lack one: image -> masks -> signals -> predicted IoU -> route.

Everything here may be repeated and may be cut off anywhere. What is stored is stored together with its route
in one transaction; what is not is still lacking and is found again. Images are read and the model is run
outside of any transaction.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, exists, func, select, true
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, joinedload

from active_learning import queue, routing
from active_learning.inference import (
    CUT,
    Answer,
    Made,
    MaskPredictor,
    PrefillError,
    ask,
    opened,
    rows_of,
)
from active_learning.ledger import Ledger, ModelVersion, Prediction, Project, RouteDecision, Task, TaskStatus
from active_learning.ledger.locking import lock_project
from active_learning.ledger.types import utc_now
from active_learning.pace import Pace, remainder
from active_learning.ports import ImageSource
from active_learning.push import PushReport, push
from active_learning.quality import current_calibrator
from active_learning.signals import features
from model.raster import Raster

__all__ = [
    "CUT",
    "WHOLE",
    "MaskPredictor",
    "PrefillError",
    "PushReport",
    "Share",
    "Upkeep",
    "predict_share",
    "predict_tasks",
    "predict_waiting",
    "push",
]

log = logging.getLogger(__name__)

FIRST_RETRY = timedelta(minutes=1)  # of an image that failed; then 4, 16, 64 minutes ...
LAST_RETRY = timedelta(days=1)  # ... up to this


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several workers predicts: the tasks whose id divided by `of` leaves `number`.

    Who has done with its share helps the others, so none waits for a slow or a dead one. What two predict at
    the same time is stored once.
    """

    number: int = 0
    of: int = 1

    def holds(self) -> ColumnElement[bool]:
        """Of a task."""
        return Task.id % self.of == self.number if self.of > 1 else true()


WHOLE: Final = Share()


def predict_waiting(
    ledger: Ledger,
    project_id: int,
    predictor: MaskPredictor | None,
    images: ImageSource,
    *,
    batch: int = 8,
    limit: int | None = None,
    seconds: float | None = None,
    share: Share = WHOLE,
    upkeep: Upkeep | None = None,
) -> int:
    """Predict what no human has labelled and the champion has not seen; route it; order the queue.

    An image that cannot be read or predicted becomes FAILED with the reason, and is tried again later: after
    a minute, then ever more rarely, and at once by the next champion. The others go on.

    Args:
        ledger: the ledger.
        project_id: the project.
        predictor: the champion's; None before there is a champion.
        images: where the pixels come from.
        batch: images that go to the predictor at a time.
        limit: how many tasks to try at most; None: all.
        seconds: no batch begins after so many, or after ten times what it took to find out what is waiting;
            None: no end.
        share: of the tasks.
        upkeep: keeps looks at the whole project to a part of the time, over many calls; None: each time.

    Returns:
        How many predictions were stored.

    Raises:
        PrefillError: the predictor is not the champion's, or predicts another number of classes.
        ToolUnavailableError: the images come from a tool that does not answer; what was stored stays.
    """
    upkeep = upkeep or Upkeep()
    stored = 0
    try:
        stored = predict_share(ledger, project_id, predictor, images, batch, limit, seconds, share)
    finally:
        upkeep.keep(ledger, project_id, stored)
    return stored


def predict_share(
    ledger: Ledger,
    project_id: int,
    predictor: MaskPredictor | None,
    images: ImageSource,
    batch: int,
    limit: int | None,
    seconds: float | None,
    share: Share,
) -> int:
    """`predict_waiting` without the rest: what else is to be routed and ordered is another's."""
    began = time.monotonic()
    waiting = _lacking(ledger, project_id, utc_now(), limit, share)
    if not waiting and share.of > 1:
        waiting = _lacking(ledger, project_id, utc_now(), limit or batch, WHOLE, by_chance=True)
    if not waiting:
        return 0
    now = time.monotonic()
    until = math.inf if seconds is None else now + max(seconds, remainder(now - began))
    return _predict(ledger, project_id, waiting, predictor, images, batch, routing.OPEN, until)


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
            if _lacking(ledger, project_id, utc_now(), 1):
                self._anew = True
                queue.place_new(ledger, project_id)
            elif moved or self._anew or _is_unordered(ledger, project_id):
                queue.reorder(ledger, project_id)
                self._anew = False


def predict_tasks(
    ledger: Ledger,
    project_id: int,
    predictor: MaskPredictor | None,
    images: ImageSource,
    task_ids: Iterable[int],
    *,
    batch: int = 8,
) -> dict[int, Prediction]:
    """The champion's predictions of given tasks: what the ledger holds, and the rest computed now.

    Args:
        ledger: the ledger.
        project_id: the project.
        predictor: the champion's; None: only what the ledger holds.
        images: where the pixels come from.
        task_ids: ids of the ledger, not of the tool. Labelled tasks are predicted too, but never routed.
        batch: images that go to the predictor at a time.

    Returns:
        Task id -> prediction, detached, with its `model_version` loaded. A task whose image cannot be had,
        and every task before there is a champion, is absent.

    Raises:
        PrefillError, ToolUnavailableError: as for `predict_waiting`.
    """
    wanted = list(dict.fromkeys(task_ids))
    held = _held(ledger, project_id, wanted)
    lacking = [task_id for task_id in wanted if task_id not in held]
    if predictor is None or not lacking:
        return held
    places = tuple(set(TaskStatus) - {TaskStatus.GONE})
    if _predict(ledger, project_id, lacking, predictor, images, batch, places):
        held = _held(ledger, project_id, wanted)
    return held


def _lacking(
    ledger: Ledger,
    project_id: int,
    now: datetime,
    limit: int | None = None,
    share: Share = WHOLE,
    *,
    by_chance: bool = False,
) -> list[int]:
    """Open tasks without a prediction of the champion: the head of the queue first, failed ones last."""
    with ledger.session(write=False) as session:
        champion = session.get_one(Project, project_id).champion
        if champion is None:
            return []
        seen = exists().where(Prediction.task_id == Task.id, Prediction.model_version_id == champion.id)
        place = (func.random(),) if by_chance else (Task.priority.desc().nulls_last(), Task.id)
        lacking = select(Task.id).where(Task.project_id == project_id, ~seen, share.holds()).order_by(*place)
        fresh = [status for status in routing.OPEN if status is not TaskStatus.FAILED]
        found = list(session.scalars(lacking.where(Task.status.in_(fresh)).limit(limit)))
        if limit is None or len(found) < limit:
            resting = _resting(session, project_id, champion, now)
            failed = session.scalars(lacking.where(Task.status == TaskStatus.FAILED))
            found += [task_id for task_id in failed if task_id not in resting]
    return found[:limit]


def _resting(session: Session, project_id: int, champion: ModelVersion, now: datetime) -> set[int]:
    """Tasks that failed under this champion, and whose next try is still to come."""
    failures = session.execute(
        select(RouteDecision.task_id, func.count(), func.max(RouteDecision.at))
        .join(Task, Task.id == RouteDecision.task_id)
        .where(
            Task.project_id == project_id,
            Task.status == TaskStatus.FAILED,
            RouteDecision.status == TaskStatus.FAILED,
            RouteDecision.at >= (champion.promoted_at or champion.created_at),
        )
        .group_by(RouteDecision.task_id)
    )
    return {
        task_id
        for task_id, count, last in failures
        if now < last + min(LAST_RETRY, FIRST_RETRY * 4 ** min(count - 1, 8))
    }


def _predict(
    ledger: Ledger,
    project_id: int,
    task_ids: Sequence[int],
    predictor: MaskPredictor | None,
    images: ImageSource,
    batch: int,
    places: Sequence[TaskStatus],
    until: float = math.inf,
) -> int:
    """Predict tasks that are in one of `places`, batch by batch until a time of the monotonic clock.

    Returns:
        How many predictions were stored.
    """
    with ledger.session(write=False) as session:
        project = session.get_one(Project, project_id)
        champion, classes = project.champion, len(project.classes)
    if champion is None:
        return 0
    if predictor is None or predictor.version != champion.name:
        loaded = "none" if predictor is None else repr(predictor.version)
        raise PrefillError(
            f"project {project.name!r} is served by {champion.name!r}, but the loaded predictor is {loaded}; "
            "load the champion's checkpoint"
        )

    def keep(answers: list[Answer]) -> int | None:
        return _store(ledger, project_id, champion.id, rows_of(answers, classes))

    stored, before = 0, None
    with ThreadPoolExecutor(1, "store") as beside:  # what was predicted is stored while more is predicted
        for group in _groups(ledger, champion.id, images, task_ids, batch, places):
            answers = ask(predictor, group)
            if before is not None:
                count = before.result()
                if count is None:
                    break
                stored += count
            before = beside.submit(keep, answers)
            if time.monotonic() >= until:
                break
    count = before.result() if before is not None else 0
    if count is None:
        log.info("project %d has another champion now; the rest is for that one", project_id)
    return stored + (count or 0)


def _groups(
    ledger: Ledger,
    champion_id: int,
    images: ImageSource,
    task_ids: Sequence[int],
    batch: int,
    places: Sequence[TaskStatus],
) -> Iterator[list[tuple[int, Raster | str]]]:
    """The images of tasks that still need a prediction, a batch or less at a time."""
    for start in range(0, len(task_ids), batch):
        yield from opened(images, _uris(ledger, task_ids[start : start + batch], champion_id, places))


def _uris(
    ledger: Ledger, task_ids: Sequence[int], champion_id: int, places: Sequence[TaskStatus]
) -> dict[int, str]:
    """Task id -> image, of those that still need a prediction; others may have been quicker."""
    with ledger.session(write=False) as session:
        rows = session.execute(
            select(Task.id, Task.image_uri).where(
                Task.id.in_(task_ids),
                Task.status.in_(places),
                ~exists().where(Prediction.task_id == Task.id, Prediction.model_version_id == champion_id),
            )
        ).all()
    found = {row.id: row.image_uri for row in rows}
    return {task_id: found[task_id] for task_id in task_ids if task_id in found}


def _store(ledger: Ledger, project_id: int, champion_id: int, made: list[Made]) -> int | None:
    """Store what was made, and route it, in one transaction.

    Returns:
        How many predictions are new; None, with nothing stored, if another champion serves by now.
    """
    ids = [one.task_id for one in made]
    with ledger.session() as session:
        project = lock_project(session, project_id)
        if project.champion_id != champion_id:
            return None
        calibrator = current_calibrator(session, champion_id)
        known = {task.id: task for task in session.scalars(select(Task).where(Task.id.in_(ids)))}
        rows = []
        for one in made:
            task = known[one.task_id]
            if one.row is None:
                _fail(session, task, one.failure or "")
                continue
            told = one.row["signals"]
            quality = float(calibrator.predict([one.row["score"]], [features(told)])[0])
            quality = quality if told["usable"] else 0.0
            rows.append({"task_id": task.id, "model_version_id": champion_id, "quality": quality, **one.row})
            for name, value in (one.image or {}).items():
                if value is not None and getattr(task, name) is None:
                    setattr(task, name, value)
        stored = _insert(session, rows)
        session.flush()
        routing.route(session, project, [known[row["task_id"]] for row in rows])
    return stored


def _insert(session: Session, rows: list[dict[str, Any]]) -> int:
    """Store predictions; where another process was quicker, the first one stays. Returns how many are new."""
    if not rows:
        return 0
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    unless_there = ["task_id", "model_version_id"]
    new = insert(Prediction).on_conflict_do_nothing(index_elements=unless_there).returning(Prediction.id)
    return len(session.scalars(new, rows).all())


def _fail(session: Session, task: Task, reason: str) -> None:
    """Hand a task that cannot be predicted to a human; what people have labelled stays theirs."""
    if task.status not in routing.OPEN:
        return
    task.status, task.failure, task.quality = TaskStatus.FAILED, reason, None
    session.add(RouteDecision(task_id=task.id, status=TaskStatus.FAILED, reason=reason))


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


def _held(ledger: Ledger, project_id: int, task_ids: Sequence[int]) -> dict[int, Prediction]:
    """The champion's predictions that the ledger holds."""
    with ledger.session(write=False) as session:
        found = session.scalars(
            select(Prediction)
            .join(Task, Task.id == Prediction.task_id)
            .join(Project, Project.id == Task.project_id)
            .where(
                Project.id == project_id,
                Prediction.model_version_id == Project.champion_id,
                Prediction.task_id.in_(task_ids),
            )
            .options(joinedload(Prediction.model_version))
        )
        return {prediction.task_id: prediction for prediction in found}
