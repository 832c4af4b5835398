"""From a score to a predicted IoU that people can read.

The score of a prediction (`active_learning.signals`) ranks; what humans said in random audits gives it a
scale. Until `MIN_SAMPLES` audits are in, the scale is the identity, and the ledger says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from active_learning.calibrator import MIN_SAMPLES, Calibrator, QualityError
from active_learning.ledger.locking import lock_project
from active_learning.ledger.tables import (
    Calibration,
    Label,
    LabelSource,
    ModelVersion,
    Prediction,
    Project,
    Task,
)
from active_learning.living import current_ids
from active_learning.signals import ClassSignals, Signals, score, signals
from active_learning.snapshot_files import stem_of

__all__ = [
    "MIN_SAMPLES",
    "Audited",
    "Calibrator",
    "ClassSignals",
    "QualityError",
    "Signals",
    "audited",
    "audited_by",
    "current_calibrator",
    "recalibrate",
    "score",
    "signals",
]


def current_calibrator(session: Session, version_id: int) -> Calibrator:
    """The newest calibration of a model version; the identity when it has none."""
    newest = _newest(session, version_id)
    if newest is None:
        return Calibrator()
    return Calibrator.from_dict(newest.kind, newest.samples, newest.parameters)


@dataclass(frozen=True, slots=True)
class Audited:
    """One random audit: the score of the prediction that the label began with, and what it was worth."""

    score: float
    iou: float
    scene: str


def audited(session: Session, project: Project) -> list[Audited]:
    """The audits that count: of the newest living label by a person, asked for by a random draw.

    Each pairs the prediction that was audited with its IoU against the label, so audits of earlier model
    versions stay true: none of those predictions came from a model that had seen the label.
    """
    rows = session.execute(
        select(Prediction.score, Label.prefill_iou, Task.scene)
        .join(Label, Label.prediction_id == Prediction.id)
        .join(Task, Task.id == Label.task_id)
        .where(Label.id.in_(current_ids(project.id, (LabelSource.AUDIT,))), Label.prefill_iou.is_not(None))
        .order_by(Label.id)
    )
    return [Audited(score, iou, scene) for score, iou, scene in rows if iou is not None]


def audited_by(session: Session, project: Project, version: ModelVersion) -> list[Audited]:
    """The audits that tell of one version: of masks that it made without knowing the label.

    They are its own predictions that were audited, and the audited images of the holdout, on which it was
    judged before it was promoted.
    """
    own = session.execute(
        select(Task.id, Prediction.score, Label.prefill_iou, Task.scene)
        .join(Label, Label.prediction_id == Prediction.id)
        .join(Task, Task.id == Label.task_id)
        .where(Label.id.in_(current_ids(project.id, (LabelSource.AUDIT,))), Label.prefill_iou.is_not(None))
        .where(Prediction.model_version_id == version.id)
        .order_by(Label.id)
    ).all()
    known = {task_id for task_id, *_ in own}
    samples = [Audited(score, iou, scene) for _, score, iou, scene in own if iou is not None]
    judged = {e["image"]: e for e in version.metrics.get("per_image", ()) if "score" in e}
    labelled = session.execute(
        select(Task.id, Task.scene)
        .join(Label, Label.task_id == Task.id)
        .where(Label.id.in_(current_ids(project.id, (LabelSource.AUDIT,))))
        .order_by(Task.id)
    )
    for task_id, scene in labelled:
        entry = judged.get(stem_of(task_id))
        if entry is not None and task_id not in known:
            samples.append(Audited(entry["score"], entry["iou"], scene))
    return samples


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
    samples = audited(session, project)
    fitted = Calibrator.fit(
        [s.score for s in samples], [s.iou for s in samples], groups=[s.scene for s in samples]
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
            Prediction.signals["usable"].as_boolean(),
        ).where(Prediction.model_version_id == version.id)
    ).all()
    qualities = calibrator.predict([row.score for row in rows])
    graded = [
        (row, 0.0 if row[4] is False else quality)
        for row, quality in zip(rows, qualities.tolist(), strict=True)
    ]
    moved = [{"id": row.id, "quality": quality} for row, quality in graded if quality != row.quality]
    if moved:
        session.execute(update(Prediction), moved)
    if rows and project.champion_id == version.id:
        tasks = [
            {"id": row.task_id, "quality": None if row[4] is False else quality} for row, quality in graded
        ]
        session.execute(update(Task), tasks)


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
