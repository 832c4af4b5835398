"""What people said: append-only, and the same whatever the order in which it arrives.

A `Label` is one revision of one annotation. Which of them counts, and where a task stands, is worked out from
all that the ledger holds, never from what came last: so an event that is late, repeated or ahead of its
predecessor changes nothing in the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning.ledger import (
    Label,
    LabelSource,
    Prediction,
    Project,
    Promotion,
    RouteDecision,
    Task,
    TaskStatus,
    Tombstone,
)
from active_learning.ledger.locking import lock_project
from active_learning.ledger.types import hash_masks
from active_learning.living import PEOPLE, current_label, current_labels, labels_since, living
from active_learning.ports import ToolAnnotation
from active_learning.routing import is_blind
from model.errors import ELNetError
from model.metrics import class_ious

__all__ = [
    "PEOPLE",
    "LabelError",
    "UnknownTaskError",
    "bury",
    "current_label",
    "current_labels",
    "labels_since",
    "record",
    "settle",
]


class LabelError(ELNetError):
    """An annotation that cannot be recorded; the text says why."""


class UnknownTaskError(LabelError):
    """An annotation of a task that the ledger does not hold yet: import the task, then record it again."""


def record(session: Session, project: Project, annotation: ToolAnnotation) -> Label | None:
    """Write down an annotation as the tool shows it, and where its task stands now.

    Args:
        session: a writing session; the caller commits.
        project: the project.
        annotation: decoded, masks (N, H, W) bool in the project's class order, None for a skip.

    Returns:
        The new label; None if this revision of the annotation was recorded before.

    Raises:
        UnknownTaskError: the ledger does not hold its task.
        LabelError: it has no masks and is no skip, or not one mask for each class.
    """
    lock_project(session, project.id)
    task = session.scalar(
        select(Task)
        .where(Task.project_id == project.id, Task.tool_task_id == annotation.task_id)
        .execution_options(populate_existing=True)
    )
    if task is None:
        raise UnknownTaskError(
            f"annotation {annotation.id} belongs to task {annotation.task_id}, which project "
            f"{project.name!r} does not hold; import the task first"
        )
    masks = _masks(project, annotation)
    revision = _revision(annotation, hash_masks(masks))
    known = select(Label.id).where(
        Label.project_id == project.id,
        Label.tool_annotation_id == annotation.id,
        Label.revision == revision,
    )
    if session.scalar(known) is not None:
        return None
    prefill = _prefill(session, project, task, annotation)
    if masks is not None and not masks.any():
        masks = _sized(masks, task, prefill)
    source = _source(session, task, annotation)
    ious = None if annotation.machine else _agreement(masks, prefill)
    label = Label(
        project_id=project.id,
        task_id=task.id,
        tool_annotation_id=annotation.id,
        revision=revision,
        source=source,
        annotator=annotation.annotator,
        cancelled=annotation.cancelled,
        masks=masks,
        soft_edges=annotation.soft_edges,
        prediction_id=prefill.id if prefill else None,
        prefill_iou=fmean(ious) if ious else None,
        class_ious=ious if ious and len(ious) > 1 else None,
        blind=_is_blind(project, task, source, prefill),
        lead_time_s=annotation.lead_time_s,
        updated_at=annotation.updated_at,
    )
    session.add(label)
    settle(session, [task])
    return label


def bury(session: Session, project: Project, tool_annotation_ids: Iterable[int]) -> None:
    """Write down that annotations were deleted in the tool, known to the ledger or not, once or repeatedly.

    Their labels stay in the ledger, but no longer count.
    """
    lock_project(session, project.id)
    ids = set(tool_annotation_ids)
    known = select(Tombstone.tool_annotation_id).where(
        Tombstone.project_id == project.id, Tombstone.tool_annotation_id.in_(ids)
    )
    for tool_annotation_id in sorted(ids - set(session.scalars(known))):
        session.add(Tombstone(project_id=project.id, tool_annotation_id=tool_annotation_id))
    of_them = select(Label.task_id).where(Label.project_id == project.id, Label.tool_annotation_id.in_(ids))
    affected = select(Task).where(Task.id.in_(of_them)).execution_options(populate_existing=True)
    settle(session, session.scalars(affected).all())


def settle(session: Session, tasks: Sequence[Task]) -> None:
    """Set each task's status from the ledger's content: labels, skips, failure, last route decision.

    A task that is gone stays gone.
    """
    session.flush()
    for task in tasks:
        if task.status is not TaskStatus.GONE:
            task.status = _status(session, task)


def _status(session: Session, task: Task) -> TaskStatus:
    said = living(task.project_id, task.id)
    skips = set(session.scalars(select(said.c.cancelled).where(said.c.source.in_(PEOPLE))))
    if False in skips:
        return TaskStatus.DONE
    if True in skips:
        return TaskStatus.SKIPPED
    if task.failure is not None:
        return TaskStatus.FAILED
    decisions = select(RouteDecision.status).where(RouteDecision.task_id == task.id)
    return session.scalar(decisions.order_by(RouteDecision.id.desc()).limit(1)) or TaskStatus.WAITING


def _masks(project: Project, annotation: ToolAnnotation) -> NDArray[np.bool_] | None:
    if annotation.cancelled:
        return None
    masks = annotation.masks
    if masks is None:
        raise LabelError(f"annotation {annotation.id} has no masks and is no skip; decode its regions first")
    if masks.ndim != 3 or len(masks) != len(project.classes):
        raise LabelError(
            f"annotation {annotation.id} has masks of shape {masks.shape}, but project {project.name!r} has "
            f"the classes {', '.join(project.classes)}; decode one (H, W) mask for each"
        )
    return masks


def _revision(annotation: ToolAnnotation, content: str) -> str:
    said = (
        content,
        str(annotation.cancelled),
        str(annotation.machine),
        annotation.annotator,
        annotation.updated_at.astimezone(UTC).isoformat(),
    )
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _source(session: Session, task: Task, annotation: ToolAnnotation) -> LabelSource:
    """Audit, if that was where the task had been sent when the annotation was made."""
    if annotation.machine:
        return LabelSource.MACHINE
    then = (
        select(RouteDecision.status)
        .where(RouteDecision.task_id == task.id, RouteDecision.at <= annotation.updated_at)
        .order_by(RouteDecision.id.desc())
        .limit(1)
    )
    return LabelSource.AUDIT if session.scalar(then) is TaskStatus.AUDIT else LabelSource.HUMAN


def _is_blind(project: Project, task: Task, source: LabelSource, prefill: Prediction | None) -> bool:
    """Whether the mask was hidden that the label is compared with."""
    if source is not LabelSource.AUDIT or prefill is None:
        return False
    return is_blind(project, prefill.model_version.name, task.id, holdout=task.holdout)


def _prefill(session: Session, project: Project, task: Task, annotation: ToolAnnotation) -> Prediction | None:
    """The prediction that it began with, or else that of whoever was champion when it was made."""
    of_task = select(Prediction).where(Prediction.task_id == task.id)
    if annotation.parent_prediction is not None:
        named = of_task.where(Prediction.tool_prediction_id == annotation.parent_prediction)
        if (prediction := session.scalars(named).first()) is not None:
            return prediction
    champion = (
        select(Promotion.model_version_id)
        .where(Promotion.project_id == project.id, Promotion.at <= annotation.updated_at)
        .order_by(Promotion.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    return session.scalar(
        of_task.where(Prediction.model_version_id == champion, Prediction.created_at <= annotation.updated_at)
    )


def _sized(masks: NDArray[np.bool_], task: Task, prefill: Prediction | None) -> NDArray[np.bool_]:
    """Empty masks at the image's size, where that is known: a tool that shows no region may not tell it."""
    if prefill is not None:
        return np.zeros_like(prefill.masks)
    if task.height and task.width:
        return np.zeros((len(masks), task.height, task.width), np.bool_)
    return masks


def _agreement(masks: NDArray[np.bool_] | None, prefill: Prediction | None) -> list[float] | None:
    """IoU of the prefill and what was submitted, of each class."""
    if masks is None or prefill is None or masks.shape != prefill.masks.shape:
        return None
    return class_ious(prefill.masks, masks)
