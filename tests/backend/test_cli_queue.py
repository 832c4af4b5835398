from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from active_learning.ledger import Ledger, Project, RouteDecision, Task, TaskStatus

Elnet = Callable[..., Any]


@pytest.fixture
def filled(own_settings: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> None:
    """A project with three images to review, one to audit, one done."""
    monkeypatch.setenv("COLUMNS", "300")
    with ledger.session() as session:
        project = Project(name="spills", tool_url="http://tool", tool_project_id=7, classes=["oil"])
        session.add(project)
        session.flush()
        for number, (status, priority, quality) in enumerate(
            [
                (TaskStatus.REVIEW, 0.2, 0.7),
                (TaskStatus.REVIEW, None, None),
                (TaskStatus.AUDIT, 0.9, 0.95),
                (TaskStatus.REVIEW, 0.8, 0.4),
                (TaskStatus.DONE, None, 0.5),
            ]
        ):
            task = Task(
                project_id=project.id,
                tool_task_id=10 + number,
                image_uri="i",
                scene=f"s{number}",
                status=status,
                priority=priority,
                quality=quality,
            )
            session.add(task)
            session.flush()
            for reason in ("an earlier reason", f"reason {number}"):
                session.add(RouteDecision(task_id=task.id, status=TaskStatus.REVIEW, reason=reason))


@pytest.mark.usefixtures("filled")
def test_the_queue_is_shown_in_its_order_with_the_reasons(elnet: Elnet) -> None:
    rows = elnet("queue", "--json").json()
    assert [row["task"] for row in rows] == [13, 10, 11]
    assert rows[0] == {
        "task": 13,
        "priority": 0.8,
        "predicted_iou": 0.4,
        "scene": "s3",
        "why": "reason 3",
        "open": "http://tool/projects/7/data?task=13",
    }
    assert (rows[2]["priority"], rows[2]["predicted_iou"]) == (None, None)
    assert [row["task"] for row in elnet("queue", "-n", 1, "--json").json()] == [13]
    assert [row["task"] for row in elnet("queue", "--audit", "--json").json()] == [12]
    answer = elnet("queue")
    assert answer.code == 0
    assert "reason 3" in answer.out
    assert "an earlier reason" not in answer.out


def test_an_empty_queue_says_so(own_settings: Path, elnet: Elnet, ledger: Ledger) -> None:
    with ledger.session() as session:
        session.add(Project(name="spills", tool_url="http://tool", tool_project_id=7, classes=["oil"]))
    assert elnet("queue").out == "Nothing of 'spills' waits in the review queue.\n"
    assert elnet("queue", "--audit").out == "Nothing of 'spills' waits in the audit.\n"
    assert elnet("queue", "--limit", 0).code == 2
