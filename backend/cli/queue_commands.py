"""`elnet queue`: what people get next, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from active_learning import queue as queues
from active_learning.ledger import TaskStatus
from backend.cli.common import JsonOption, ProjectOption, find_project, ledger_session, show


def queue(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="So many images.")] = 20,
    audit: Annotated[
        bool, typer.Option("--audit", help="Of the Audit view, not of the review queue.")
    ] = False,
    project: ProjectOption = None,
    json_: JsonOption = False,
) -> None:
    """The next images of the review queue (or of the audit), in their order, and why each stands there."""
    view = TaskStatus.AUDIT if audit else TaskStatus.REVIEW
    with ledger_session(write=False) as session:
        found = find_project(session, project)
        rows = [
            {
                "task": place.task,
                "priority": place.priority,
                "predicted_iou": place.quality,
                "scene": place.scene,
                "why": place.why,
                "open": f"{found.tool_url}/projects/{found.tool_project_id}/data?task={place.task}",
            }
            for place in queues.upcoming(session, found, view, limit)
        ]
    empty = f"Nothing of {found.name!r} waits in the {'audit' if audit else 'review queue'}."
    show(rows, as_json=json_, empty=empty)
