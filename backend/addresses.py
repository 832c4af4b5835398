"""Where things open in Label Studio."""

from __future__ import annotations

from active_learning.ledger import Project


def project_url(project: Project) -> str:
    """The project's list of tasks."""
    return f"{project.tool_url}/projects/{project.tool_project_id}/data"


def task_url(project: Project, task: int) -> str:
    """A task, by its id in Label Studio."""
    return f"{project_url(project)}?task={task}"
