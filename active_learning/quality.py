"""From a score to a predicted IoU that people can read.

The score of a prediction (`active_learning.signals`) ranks; what humans said in random audits gives it a
scale. Until `MIN_SAMPLES` audits are in, the scale is the identity, and the ledger says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning.calibrator import MIN_SAMPLES, Calibrator, QualityError, cross_fitted
from active_learning.ledger import (
    Calibration,
    Label,
    LabelSource,
    ModelVersion,
    Prediction,
    Project,
    Task,
)
from active_learning.ledger.bulk import update_rows
from active_learning.ledger.locking import lock_project
from active_learning.living import current_ids
from active_learning.signals import features
from active_learning.snapshot_files import stem_of

__all__ = [
    "MIN_SAMPLES",
    "Audited",
    "Calibrator",
    "QualityError",
    "audited",
    "calibration_samples",
    "cross_graded",
    "current_calibrator",
    "recalibrate",
]


def current_calibrator(session: Session, version_id: int) -> Calibrator:
    """The newest calibration of a model version; the identity when it has none."""
    newest = _newest(session, version_id)
    if newest is None:
        return Calibrator()
    return Calibrator.from_dict(newest.kind, newest.samples, newest.parameters)


@dataclass(frozen=True, slots=True)
class Audited:
    """One random audit: what a prediction said of itself, and what it was worth.

    Attributes:
        score: of the prediction that the label began with, or that was judged by it.
        features: its signals, see `active_learning.signals.features`.
        iou: with the label.
        scene: of the image.
        version: id of the model version that made the prediction.
        class_ious: of each class, in the project's order; None for a single class, or where only `iou` is
            known.
    """

    score: float
    features: list[float | None] | None
    iou: float
    scene: str
    version: int
    class_ious: list[float] | None = None


def audited(session: Session, project: Project) -> list[Audited]:
    """The audits that count: of the newest living label by a person, asked for by a random draw.

    Each pairs the prediction that was audited with its IoU against the label, so audits of earlier model
    versions stay true: none of those predictions came from a model that had seen the label.
    """
    return [sample for _, _, sample in _audited_tasks(session, project) if sample is not None]


def calibration_samples(session: Session, project: Project, version: ModelVersion) -> list[Audited]:
    """The audits, and what they tell besides of one version: of the audited images of the holdout.

    On those it was judged before it was promoted, and it has never seen their labels either. Images that were
    drawn for the holdout are among them, though no version had predicted them when they were labelled.
    """
    found = _audited_tasks(session, project)
    audits = [(task_id, sample) for task_id, _, sample in found if sample is not None]
    own = {task_id for task_id, sample in audits if sample.version == version.id}
    judged = {entry["image"]: entry for entry in version.metrics.get("per_image", ()) if "score" in entry}
    again = []
    for task_id, scene, _ in found:
        entry = judged.get(stem_of(task_id))
        if entry is not None and task_id not in own:
            again.append(
                Audited(
                    entry["score"],
                    entry.get("features"),
                    entry["iou"],
                    scene,
                    version.id,
                    entry.get("class_ious"),
                )
            )
    return [sample for _, sample in audits] + again


def cross_graded(samples: Sequence[Audited]) -> NDArray[np.float64]:
    """The predicted IoU of each audit by a map that has not seen its scene, (n,)."""
    return cross_fitted(
        [s.score for s in samples],
        [s.iou for s in samples],
        [s.scene for s in samples],
        [s.features for s in samples],
    )


def _audited_tasks(session: Session, project: Project) -> list[tuple[int, str, Audited | None]]:
    """Task and scene of each label that a random draw asked for; the audit, where it began with a prefill."""
    said = (Prediction.score, Prediction.signals, Prediction.model_version_id)
    rows = session.execute(
        select(Task.id, Task.scene, Label.prefill_iou, Label.class_ious, *said)
        .join(Label, Label.task_id == Task.id)
        .outerjoin(Prediction, Label.prediction_id == Prediction.id)
        .where(Label.id.in_(current_ids(project.id, (LabelSource.AUDIT,))))
        .order_by(Label.id)
    )
    return [
        (
            task_id,
            scene,
            None if iou is None else Audited(score, features(measured), iou, scene, version, of_classes),
        )
        for task_id, scene, iou, of_classes, score, measured, version in rows
    ]


def recalibrate(session: Session, project: Project, version: ModelVersion) -> Calibration:
    """Fit the map on the audits, and give the version's predictions their new quality.

    It does not route; `routing.settle` finds what changed, and `prefill` and `push` begin with it.

    Args:
        session: a writing session; the caller commits.
        project: the project.
        version: whose predictions are graded; usually the champion.

    Returns:
        The calibration that counts. Its kind is "identity" as long as there are fewer than `MIN_SAMPLES`
        audits. Repeated without new audits it is the same row.
    """
    lock_project(session, project.id)
    samples = calibration_samples(session, project, version)
    fitted = Calibrator.fit(
        [s.score for s in samples],
        [s.iou for s in samples],
        [s.scene for s in samples],
        [s.features for s in samples],
    )
    calibration = _newest(session, version.id)
    if calibration is None or not _says(calibration, fitted):
        calibration = Calibration(
            project_id=project.id,
            model_version_id=version.id,
            kind=fitted.kind,
            samples=fitted.samples,
            parameters=fitted.to_dict(),
        )
        session.add(calibration)
    _grade(session, project, version, fitted)
    session.flush()
    return calibration


def _grade(session: Session, project: Project, version: ModelVersion, calibrator: Calibrator) -> None:
    """Set the quality of a version's predictions, and of their tasks if it is the champion."""
    rows = session.execute(
        select(
            Prediction.id,
            Prediction.task_id,
            Prediction.score,
            Prediction.quality,
            Prediction.signals,
        ).where(Prediction.model_version_id == version.id)
    ).all()
    unusable = {row.id for row in rows if row.signals.get("usable") is False}
    qualities = calibrator.predict([row.score for row in rows], [features(row.signals) for row in rows])
    graded = [
        (row, 0.0 if row.id in unusable else quality)
        for row, quality in zip(rows, qualities.tolist(), strict=True)
    ]
    moved = [{"id": row.id, "quality": quality} for row, quality in graded if quality != row.quality]
    update_rows(session, Prediction, moved)
    if rows and project.champion_id == version.id:
        tasks = [
            {"id": row.task_id, "quality": None if row.id in unusable else quality} for row, quality in graded
        ]
        update_rows(session, Task, tasks)


def _newest(session: Session, version_id: int) -> Calibration | None:
    return session.scalar(
        select(Calibration)
        .where(Calibration.model_version_id == version_id)
        .order_by(Calibration.id.desc())
        .limit(1)
    )


def _says(calibration: Calibration, calibrator: Calibrator) -> bool:
    return (calibration.kind, calibration.samples, calibration.parameters) == (
        calibrator.kind,
        calibrator.samples,
        calibrator.to_dict(),
    )
