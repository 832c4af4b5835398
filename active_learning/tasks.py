"""The images of a project as the labeling tool lists them -> rows of the ledger."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import labels
from active_learning.ledger import Project, Task, TaskStatus
from active_learning.ledger.locking import lock_project
from active_learning.ports import ToolTask
from model.scenes import scene_of

_CHUNK = 500  # ids in one query
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # Label Studio puts it before the names of uploads


def add_tasks(session: Session, project: Project, tasks: Iterable[ToolTask]) -> list[Task]:
    """Make a row for every task that the ledger does not hold yet.

    Args:
        session: a writing session; the caller commits.
        project: the project.
        tasks: as the tool shows them; known ones stay as they are, gone ones stay gone.

    Returns:
        The new rows. A row that was gone before its task was told is filled, and not among them.
    """
    told = {task.id: task for task in tasks}
    known = _rows(session, project, told)
    for tool_task_id, row in known.items():
        if not row.image_uri:
            _fill(row, told[tool_task_id])
    new = [
        _fill(Task(project_id=project.id, tool_task_id=tool_task_id), task)
        for tool_task_id, task in told.items()
        if tool_task_id not in known
    ]
    session.add_all(new)
    session.flush()
    return new


def refresh_tasks(session: Session, project: Project, tasks: Iterable[ToolTask]) -> int:
    """Take over what the tool lists now: new tasks, changed data; what was gone and is listed lives again.

    Returns:
        How many rows are new or changed.
    """
    told = {task.id: task for task in tasks}
    changed = len(add_tasks(session, project, told.values()))
    for tool_task_id, row in _rows(session, project, told).items():
        task = told[tool_task_id]
        if row.image_uri != task.image_uri or row.data != dict(task.data):
            row.image_uri, row.data = task.image_uri, dict(task.data)  # never the scene: its side is decided
            changed += 1
        if row.status is TaskStatus.GONE:
            row.status = TaskStatus.WAITING
            labels.settle(session, [row])
            changed += 1
    return changed


def mark_gone(session: Session, project: Project, tool_task_ids: Iterable[int]) -> int:
    """Tasks were deleted in the tool, known to the ledger or not.

    A deletion may be told before its task: then a row keeps the place, so that the task is not added later.

    Returns:
        How many rows changed.
    """
    ids = set(tool_task_ids)
    known = _rows(session, project, ids)
    living = [row for row in known.values() if row.status is not TaskStatus.GONE]
    for row in living:
        row.status = TaskStatus.GONE
    unknown = [
        Task(
            project_id=project.id,
            tool_task_id=tool_task_id,
            image_uri="",
            scene=f"gone/{tool_task_id}",
            status=TaskStatus.GONE,
        )
        for tool_task_id in sorted(ids - known.keys())
    ]
    session.add_all(unknown)
    session.flush()
    return len(living) + len(unknown)


def _rows(session: Session, project: Project, tool_task_ids: Iterable[int]) -> dict[int, Task]:
    """The tool's task id -> row, of those that the ledger holds."""
    lock_project(session, project.id)
    found: dict[int, Task] = {}
    ids = sorted(set(tool_task_ids))
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK]
        query = select(Task).where(Task.project_id == project.id, Task.tool_task_id.in_(part))
        rows = session.scalars(query.execution_options(populate_existing=True))
        found |= {row.tool_task_id: row for row in rows}
    return found


def _fill(row: Task, task: ToolTask) -> Task:
    """Write what the tool says into a row."""
    data = dict(task.data)
    row.image_uri, row.data = task.image_uri, data
    row.scene = _scene(task.image_uri, data) or f"task/{task.id}"
    affine, crs = data.get("affine"), data.get("crs")
    if isinstance(affine, list) and len(affine) == 6 and all(isinstance(v, int | float) for v in affine):
        row.affine = [float(value) for value in affine]
        row.crs = crs if isinstance(crs, str) else None
    return row


def _scene(image_uri: str, data: Mapping[str, Any]) -> str:
    """What the import wrote down, else what the file's name says."""
    if isinstance(data.get("scene"), str) and data["scene"]:
        return str(data["scene"])[:500]
    try:
        parts = urlsplit(image_uri)
    except ValueError:
        return image_uri[:500]
    path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    stem = _UPLOAD_PREFIX.sub("", PurePosixPath(path).stem)
    return scene_of(stem)[:500] if stem else ""
