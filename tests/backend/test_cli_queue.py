from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from active_learning import registry
from active_learning.ledger import (
    Label,
    LabelSource,
    Ledger,
    Prediction,
    Project,
    RouteDecision,
    Task,
    TaskStatus,
)
from active_learning.ledger.types import utc_now

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


@pytest.fixture
def audited(own_settings: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> None:
    """Two audited masks of two versions, one label without a prefill, one image that waits."""
    monkeypatch.setenv("COLUMNS", "300")
    masks = np.ones((1, 4, 4), np.bool_)
    with ledger.session() as session:
        project = Project(name="spills", tool_url="http://tool", tool_project_id=7, classes=["oil"])
        session.add(project)
        session.flush()
        for number, (predicted, iou) in enumerate([(0.9, 0.5), (0.6, 0.7), (None, None), (0.8, None)]):
            status = TaskStatus.DONE if number < 3 else TaskStatus.AUDIT
            task = Task(
                project_id=project.id,
                tool_task_id=10 + number,
                image_uri="i",
                scene=f"s{number}",
                status=status,
            )
            session.add(task)
            session.flush()
            prediction = None
            if predicted is not None:
                name = f"elnet-{number}"
                version = registry.register(session, project, Path(name), str(number) * 64, name=name)
                prediction = Prediction(
                    task_id=task.id,
                    model_version_id=version.id,
                    score=predicted,
                    quality=predicted,
                    signals={},
                    masks=masks,
                )
                session.add(prediction)
                session.flush()
                if number == 1:
                    registry.promote(session, version)
            if status is TaskStatus.DONE:
                session.add(
                    Label(
                        project_id=project.id,
                        task_id=task.id,
                        tool_annotation_id=100 + number,
                        revision=str(number),
                        source=LabelSource.AUDIT,
                        annotator="3",
                        prediction_id=prediction.id if prediction else None,
                        prefill_iou=iou,
                        lead_time_s=12.5,
                        updated_at=utc_now() + timedelta(seconds=number),
                        masks=masks,
                    )
                )


@pytest.mark.usefixtures("audited")
def test_audits_are_shown_newest_or_worst_first(elnet: Elnet) -> None:
    rows = elnet("audit", "--json").json()
    assert [(row["task"], row["version"], row["predicted"], row["iou"]) for row in rows] == [
        (11, "elnet-1", 0.6, 0.7),
        (10, "elnet-0", 0.9, 0.5),
    ]
    assert (rows[0]["annotator"], rows[0]["lead_time_s"], rows[0]["blind"]) == ("3", 12.5, False)
    assert [row["task"] for row in elnet("audit", "--worst", "-n", 1, "--json").json()] == [10]
    answer = elnet("audit")
    assert answer.err == (
        "2 masks were audited, 1 of them of elnet-1: mean IoU 0.600, predicted 0.750, off by 0.250 on the "
        "average. 1 image waits in the Audit view.\n"
    )
    assert "elnet-0" in answer.out


@pytest.mark.usefixtures("audited")
def test_how_far_masks_draw_people_is_told_once_some_audits_were_blind(elnet: Elnet, ledger: Ledger) -> None:
    masks = np.ones((1, 4, 4), np.bool_)
    with ledger.session() as session:
        project = session.get_one(Project, 1)
        version = session.get_one(Prediction, 1).model_version_id
        for number in range(12):
            blind = number % 2 == 0
            task = Task(
                project_id=1, tool_task_id=50 + number, image_uri="i", scene=f"b{number}",
                status=TaskStatus.DONE,
            )  # fmt: skip
            session.add(task)
            session.flush()
            prediction = Prediction(
                task_id=task.id, model_version_id=version, score=0.7, quality=0.7, signals={}, masks=masks
            )
            session.add(prediction)
            session.flush()
            session.add(
                Label(
                    project_id=project.id, task_id=task.id, tool_annotation_id=500 + number, revision="r",
                    source=LabelSource.AUDIT, annotator="3", prediction_id=prediction.id, blind=blind,
                    prefill_iou=0.5 if blind else 0.8, updated_at=utc_now(), masks=masks,
                )
            )  # fmt: skip
    told = elnet("audit").err
    assert "6 of them were blind: where people saw the mask, its IoU with their label is +0." in told
    assert sum(row["blind"] for row in elnet("audit", "-n", 50, "--json").json()) == 6


def test_before_the_first_audit_it_says_so(own_settings: Path, elnet: Elnet, ledger: Ledger) -> None:
    with ledger.session() as session:
        session.add(Project(name="spills", tool_url="http://tool", tool_project_id=7, classes=["oil"]))
    answer = elnet("audit")
    assert answer.err == "No mask was audited yet; 0 images wait in the Audit view.\n"
    assert elnet("audit", "--json").json() == []
    assert elnet("audit", "--reliability").out == "No audit tells of the version that serves 'spills' yet.\n"
    assert elnet("audit", "--reliability", "--json").json() is None


@pytest.mark.usefixtures("audited")
def test_whether_masks_are_as_good_as_predicted_is_told_by_the_audits(elnet: Elnet) -> None:
    answer = elnet("audit", "--reliability")
    assert answer.code == 0
    assert "Predicted IoU is the score as it is, for there are too few audits" in answer.err
    [one] = elnet("audit", "--reliability", "--json").json()["bins"]
    assert one["audits"] == 2
