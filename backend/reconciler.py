"""Reads the labeling tool for what lost webhooks missed."""

from __future__ import annotations

import logging
from datetime import datetime

from sqlalchemy import exists, select

from active_learning import labels
from active_learning.ledger import Label, Ledger, Project, Task, TaskStatus, Tombstone
from active_learning.ports import LabelingTool, ToolAnnotation
from active_learning.tasks import mark_gone, refresh_tasks

log = logging.getLogger(__name__)

_BATCH = 20  # annotations held in memory and written in one transaction


def reconcile(ledger: Ledger, project: Project, tool: LabelingTool) -> int:
    """Bring the ledger to what the tool holds: tasks, annotations, and what vanished of either.

    What the ledger knew *before* the tool was asked, and two listings do not show, is gone: an annotation
    made meanwhile, or one that slipped between two pages of a listing, is never taken for deleted.

    Args:
        ledger: the ledger.
        project: the project.
        tool: the labeling tool.

    Returns:
        How many tasks and annotations were added, changed or found gone.

    Raises:
        ToolUnavailableError: the tool does not answer; what was read until then stays.
    """
    known_tasks, known_annotations = _living_tasks(ledger, project), _living_annotations(ledger, project)
    changes = _tasks(ledger, project, tool, known_tasks)
    changes += _annotations(ledger, project, tool, known_annotations)
    if changes:
        log.info("project %s: %d changes were read from the tool", project.name, changes)
    return changes


def _tasks(ledger: Ledger, project: Project, tool: LabelingTool, known: set[int]) -> int:
    listed = list(tool.tasks(project.tool_project_id))
    missing = known - {task.id for task in listed}
    if missing:
        missing -= {task.id for task in tool.tasks(project.tool_project_id)}
    with ledger.session() as session:
        row = session.get_one(Project, project.id)
        return refresh_tasks(session, row, listed) + mark_gone(session, row, missing)


def _annotations(ledger: Ledger, project: Project, tool: LabelingTool, known: set[int]) -> int:
    revisions = _revisions(ledger, project)
    seen: set[int] = set()
    new: list[ToolAnnotation] = []
    recorded = 0
    for annotation in tool.annotations(project.tool_project_id, project.classes):
        seen.add(annotation.id)
        if (annotation.id, annotation.updated_at) not in revisions:
            new.append(annotation)
        if len(new) == _BATCH:
            recorded += _record(ledger, project, new)
            new = []
    recorded += _record(ledger, project, new)
    missing = known - seen
    if missing:
        missing -= {a.id for a in tool.annotations(project.tool_project_id, project.classes)}
    if missing:
        with ledger.session() as session:
            labels.bury(session, session.get_one(Project, project.id), missing)
    return recorded + len(missing)


def _record(ledger: Ledger, project: Project, annotations: list[ToolAnnotation]) -> int:
    """Write annotations down; one that cannot be recorded does not hold up the others."""
    if not annotations:
        return 0
    recorded = 0
    with ledger.session() as session:
        row = session.get_one(Project, project.id)
        for annotation in annotations:
            try:
                recorded += labels.record(session, row, annotation) is not None
            except labels.LabelError as error:  # raised before anything was written
                log.warning("project %s: %s", project.name, error)
    return recorded


def _living_tasks(ledger: Ledger, project: Project) -> set[int]:
    """The tool's ids of tasks that are not gone."""
    query = select(Task.tool_task_id).where(Task.project_id == project.id, Task.status != TaskStatus.GONE)
    with ledger.session(write=False) as session:
        return set(session.scalars(query))


def _living_annotations(ledger: Ledger, project: Project) -> set[int]:
    """The tool's ids of annotations that are not buried."""
    buried = exists().where(
        Tombstone.project_id == Label.project_id, Tombstone.tool_annotation_id == Label.tool_annotation_id
    )
    query = select(Label.tool_annotation_id).where(Label.project_id == project.id, ~buried).distinct()
    with ledger.session(write=False) as session:
        return set(session.scalars(query))


def _revisions(ledger: Ledger, project: Project) -> set[tuple[int, datetime]]:
    """What of each annotation is recorded already: the tool changes updated_at with every change."""
    query = select(Label.tool_annotation_id, Label.updated_at).where(Label.project_id == project.id)
    with ledger.session(write=False) as session:
        return {(annotation_id, updated_at) for annotation_id, updated_at in session.execute(query)}
