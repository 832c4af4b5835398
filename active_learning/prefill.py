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

from sqlalchemy import exists, select
from sqlalchemy.orm import joinedload

from active_learning import routing
from active_learning.inference import Answer, MaskPredictor, PrefillError, ask, opened, rows_of
from active_learning.ledger import Ledger, Prediction, Project, Task, TaskStatus
from active_learning.pace import remainder
from active_learning.ports import ImageSource
from active_learning.prediction_store import store
from active_learning.upkeep import Upkeep
from active_learning.waiting import WHOLE, Share, waiting_tasks
from model.raster import Raster

log = logging.getLogger(__name__)


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
    task_ids = waiting_tasks(ledger, project_id, limit, share)
    if not task_ids and share.of > 1:
        task_ids = waiting_tasks(ledger, project_id, limit or batch, by_chance=True)
    if not task_ids:
        return 0
    now = time.monotonic()
    until = math.inf if seconds is None else now + max(seconds, remainder(now - began))
    return _predict(ledger, project_id, task_ids, predictor, images, batch, routing.OPEN, until)


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
        return store(ledger, project_id, champion.id, rows_of(answers, classes))

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
