"""What people made of predicted masks: the audits, labels worth a second look, and how far two people agree.

A label is suspected where the mask that it began with was predicted to be good and the label says otherwise:
by how much the predicted IoU exceeds the IoU with the label. Either the model or the human is wrong there,
and where the predicted IoU is calibrated it is often the human (benchmarks/label_noise.py). That mask was
made before the label was, so no model is asked about what it has learned by heart.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations, groupby
from statistics import fmean, variance

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from active_learning.ledger import Label, LabelSource, ModelVersion, Prediction, Project, Task
from active_learning.living import PEOPLE, current_ids, living
from model.metrics import iou

LEAST_BLIND = 5  # audits, of which anchoring is told
SHORTFALL = 0.2  # of the IoU with a label against the predicted one, from which on a second look is asked for


@dataclass(frozen=True, slots=True)
class Judgement:
    """One predicted mask beside a human's label.

    Attributes:
        task: its id in the labeling tool.
        version: name of the model version whose mask it was.
        predicted: IoU that was foreseen, by the newest calibration of that version.
        iou: with the label.
        annotator: the tool's id of the human.
        lead_time_s: that the human took, if the tool says so.
        at: when the label was last changed.
        blind: the human did not see the mask.
    """

    task: int
    version: str
    predicted: float
    iou: float
    annotator: str
    lead_time_s: float | None
    at: datetime
    blind: bool

    @property
    def shortfall(self) -> float:
        """By how much the IoU is lower than predicted."""
        return self.predicted - self.iou


@dataclass(frozen=True, slots=True)
class Anchoring:
    """How far people are drawn towards a mask that they are shown.

    Both groups of audits were drawn at random from the same masks, so the difference of their mean IoUs is
    what seeing the mask adds to its agreement with the label. What was predicted of each mask is taken off
    first: it says which masks are harder, and so leaves less to chance.

    Attributes:
        blind: audits whose mask was not shown.
        shown: the others.
        difference: of the mean IoUs, each less the predicted one: shown ones less blind ones.
        error: standard error of the difference.
    """

    blind: int
    shown: int
    difference: float
    error: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two people's labels of one image: the annotators' ids and the IoU of what they drew."""

    task: int
    annotators: tuple[str, str]
    iou: float


def judgements(
    session: Session, project: Project, sources: Collection[LabelSource] = PEOPLE
) -> list[Judgement]:
    """Of the labels that count and came from one of the sources, newest first.

    Images that were labelled without a prefill, such as those of a holdout that was drawn before the first
    model, are not among them: there was no mask to judge.
    """
    return [one for _, one in judged(session, project, sources)]


def judged(
    session: Session, project: Project, sources: Collection[LabelSource] = PEOPLE
) -> list[tuple[LabelSource, Judgement]]:
    """`judgements`, and where each label came from: one look for those who need audits and others."""
    rows = session.execute(
        select(
            Label.source,
            Task.tool_task_id,
            ModelVersion.name,
            Prediction.quality,
            Label.prefill_iou,
            Label.annotator,
            Label.lead_time_s,
            Label.updated_at,
            Label.blind,
        )
        .join(Label, Label.task_id == Task.id)
        .join(Prediction, Label.prediction_id == Prediction.id)
        .join(ModelVersion, Prediction.model_version_id == ModelVersion.id)
        .where(Label.id.in_(current_ids(project.id, sources)), Label.prefill_iou.is_not(None))
        .order_by(Label.updated_at.desc(), Label.id.desc())
    )
    return [
        (source, Judgement(task, version, predicted, found, annotator, lead_time_s, at, blind))
        for source, task, version, predicted, found, annotator, lead_time_s, at, blind in rows
        if found is not None
    ]


def audits(session: Session, project: Project) -> list[Judgement]:
    """The audits that count, newest first: labels that a random draw asked for."""
    return judgements(session, project, (LabelSource.AUDIT,))


def anchoring(done: Sequence[Judgement]) -> Anchoring | None:
    """Of audits; None with fewer than `LEAST_BLIND` of either group."""
    groups = [[-one.shortfall for one in done if one.blind is blind] for blind in (True, False)]
    blind, shown = groups
    if min(len(blind), len(shown)) < LEAST_BLIND:
        return None
    error = math.sqrt(sum(variance(group) / len(group) for group in groups))
    return Anchoring(len(blind), len(shown), fmean(shown) - fmean(blind), error)


def suspects(session: Session, project: Project, least: float = SHORTFALL) -> list[Judgement]:
    """Labels worth a second look, those that fall shortest of what was predicted first.

    Args:
        session: any.
        project: the project.
        least: smallest shortfall, in [0, 1].
    """
    return doubtful(judgements(session, project), least)


def doubtful(said: Iterable[Judgement], least: float = SHORTFALL) -> list[Judgement]:
    """Those of judgements that are `suspects`."""
    return sorted((one for one in said if one.shortfall >= least), key=lambda one: -one.shortfall)


def agreements(session: Session, project: Project) -> list[Agreement]:
    """Every two people's labels of one image, lowest IoU first; of each person the latest that counts."""
    said = living(project.id, sources=PEOPLE)
    counts = (said.c.id == Label.id) & said.c.cancelled.is_(False)
    several = (
        select(Label.task_id)
        .join(said, counts)
        .group_by(Label.task_id)
        .having(func.count(Label.annotator.distinct()) > 1)
    )
    rows = session.execute(
        select(Task.tool_task_id, Label.annotator, Label.masks)
        .join(said, counts)
        .join(Task, Task.id == Label.task_id)
        .where(Label.task_id.in_(several))
        .order_by(Task.tool_task_id, Label.updated_at, Label.id)
    ).all()
    found = []
    for task, labels in groupby(rows, key=lambda row: row[0]):
        drawn = {annotator: masks for _, annotator, masks in labels if masks is not None}
        for (one, first), (other, second) in combinations(sorted(drawn.items()), 2):
            if first.shape == second.shape:
                found.append(Agreement(task, (one, other), iou(first, second)))
    return sorted(found, key=lambda pair: pair.iou)
