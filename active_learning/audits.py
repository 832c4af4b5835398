"""The audits so far: what a mask drawn at random was predicted to be worth, and what a human made of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning.ledger.tables import Label, LabelSource, ModelVersion, Prediction, Project, Task
from active_learning.living import current_ids


@dataclass(frozen=True, slots=True)
class Audit:
    """One audited mask.

    Attributes:
        task: its id in the labeling tool.
        version: name of the model version whose mask it was.
        predicted: IoU that was foreseen, by the newest calibration of that version.
        iou: with the label.
        annotator: the tool's id of the human.
        lead_time_s: that the human took, if the tool says so.
        at: when the label was last changed.
    """

    task: int
    version: str
    predicted: float
    iou: float
    annotator: str
    lead_time_s: float | None
    at: datetime


def audits(session: Session, project: Project) -> list[Audit]:
    """The audits that count, newest first: of the living labels by people that a random draw asked for.

    Images that were labelled without a prefill, such as those of a holdout that was drawn before the first
    model, are not among them: there was no mask to audit.
    """
    rows = session.execute(
        select(
            Task.tool_task_id,
            ModelVersion.name,
            Prediction.quality,
            Label.prefill_iou,
            Label.annotator,
            Label.lead_time_s,
            Label.updated_at,
        )
        .join(Label, Label.task_id == Task.id)
        .join(Prediction, Label.prediction_id == Prediction.id)
        .join(ModelVersion, Prediction.model_version_id == ModelVersion.id)
        .where(Label.id.in_(current_ids(project.id, (LabelSource.AUDIT,))), Label.prefill_iou.is_not(None))
        .order_by(Label.updated_at.desc(), Label.id.desc())
    )
    return [
        Audit(task, version, predicted, iou, annotator, lead_time_s, at)
        for task, version, predicted, iou, annotator, lead_time_s, at in rows
        if iou is not None
    ]
