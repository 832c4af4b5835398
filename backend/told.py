"""What Label Studio no longer holds of what it was told: somebody deleted it there, or restored a backup."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select

from active_learning.ledger import Ledger, Project, Task, TaskStatus
from backend.label_studio_api import Json, LabelStudioApi

_SHOWN = (TaskStatus.REVIEW, TaskStatus.AUDIT, TaskStatus.ACCEPTED)
_PLACEMENT = ("status", "quality", "priority")


def lost(ledger: Ledger, tool: LabelStudioApi, project: Project) -> dict[int, tuple[str, ...]]:
    """The ledger's id of a task -> the keys of `Task.pushed` that Label Studio does not bear out."""
    with ledger.session(write=False) as session:
        rows = session.scalars(
            select(Task).where(Task.project_id == project.id, Task.status != TaskStatus.GONE)
        )
        told = {row.tool_task_id: (row.id, row.status, dict(row.pushed)) for row in rows if row.pushed}
    found: dict[int, tuple[str, ...]] = {}
    for task in tool.listed(project.tool_project_id):
        if task["id"] in told:
            task_id, status, pushed = told[task["id"]]
            if keys := _missing(task, status, pushed):
                found[task_id] = keys
    return found


def forget(ledger: Ledger, keys: Mapping[int, tuple[str, ...]]) -> None:
    """Take the keys out of `Task.pushed`, so that the worker tells them again."""
    with ledger.session() as session:
        for task_id, missing in keys.items():
            task = session.get_one(Task, task_id, with_for_update=True)
            task.pushed = {key: value for key, value in (task.pushed or {}).items() if key not in missing}


def _missing(task: Json, status: TaskStatus, pushed: Json) -> tuple[str, ...]:
    keys: tuple[str, ...] = ()
    if status in _SHOWN and "model_version" in pushed and not task["total_predictions"]:
        keys += ("model_version",)
    if status is TaskStatus.ACCEPTED and "accepted" in pushed and not task["total_annotations"]:
        keys += ("accepted", "annotation")
    if "status" in pushed and task["data"].get("route") != pushed["status"]:
        keys += _PLACEMENT
    return keys
