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
    Task,
    TaskStatus,
    Tombstone,
)
from active_learning.ledger.types import utc_now

Elnet = Callable[..., Any]
SIDE = 8


def drawn(rows: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros((1, SIDE, SIDE), np.bool_)
    mask[:, :rows] = True
    return mask


@pytest.fixture
def labelled(own_settings: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> None:
    """Tasks 10 to 14 with labels of different trust: (predicted, IoU with the label), by whom."""
    monkeypatch.setenv("COLUMNS", "300")
    with ledger.session() as session:
        project = Project(name="spills", tool_url="http://tool", tool_project_id=7, classes=["oil"])
        session.add(project)
        session.flush()
        version = registry.register(session, project, Path("m"), "0" * 64, name="elnet-0001")
        kinds = [
            (0.9, 0.1, LabelSource.HUMAN),
            (0.8, 0.7, LabelSource.HUMAN),  # nearly as good as predicted
            (0.9, 0.5, LabelSource.AUDIT),
            (0.2, 0.1, LabelSource.HUMAN),  # nobody trusted that mask
            (0.9, 0.0, LabelSource.MACHINE),  # no human has spoken
        ]
        for number, (predicted, iou, source) in enumerate(kinds):
            task = Task(
                project_id=project.id,
                tool_task_id=10 + number,
                image_uri="i",
                scene=f"s{number}",
                status=TaskStatus.DONE,
            )
            session.add(task)
            session.flush()
            prediction = Prediction(
                task_id=task.id,
                model_version_id=version.id,
                score=predicted,
                quality=predicted,
                signals={},
                masks=drawn(4),
            )
            session.add(prediction)
            session.flush()
            session.add(label(project, task, 100 + number, "3", 4, source, prediction, iou))


def label(
    project: Project,
    task: Task,
    annotation: int,
    annotator: str,
    rows: int,
    source: LabelSource = LabelSource.HUMAN,
    prediction: Prediction | None = None,
    iou: float | None = None,
) -> Label:
    return Label(
        project_id=project.id,
        task_id=task.id,
        tool_annotation_id=annotation,
        revision=str(annotation),
        source=source,
        annotator=annotator,
        prediction_id=prediction.id if prediction else None,
        prefill_iou=iou,
        updated_at=utc_now() + timedelta(seconds=annotation),
        masks=drawn(rows),
    )


@pytest.mark.usefixtures("labelled")
def test_labels_that_contradict_trusted_masks_are_suspected(elnet: Elnet) -> None:
    rows = elnet("labels", "suspects", "--json").json()
    assert [(row["task"], row["predicted"], row["iou"], row["annotator"]) for row in rows] == [
        (10, 0.9, 0.1, "3"),
        (12, 0.9, 0.5, "3"),
    ]
    assert rows[0]["open"] == "http://tool/projects/7/data?task=10"
    assert [row["task"] for row in elnet("labels", "suspects", "--least", 0, "--json").json()] == [
        10, 12, 11, 13,
    ]  # fmt: skip
    one = elnet("labels", "suspects", "-n", 1)
    assert one.err == "The first 1 of 2 labels.\n"
    assert "task=10" in one.out
    assert "task=12" not in one.out
    assert "falls 1 short" in elnet("labels", "suspects", "--least", 1).out
    assert elnet("labels", "suspects", "--least", 2).code == 2


@pytest.mark.usefixtures("labelled")
def test_the_agreement_of_two_people_is_of_their_latest_living_labels(elnet: Elnet, ledger: Ledger) -> None:
    assert "labelled by two people" in elnet("labels", "agreement").out
    with ledger.session() as session:
        project = session.get_one(Project, 1)
        first, second, third = (session.get_one(Task, number) for number in (1, 2, 3))
        session.add(label(project, first, 200, "4", 2))
        session.add(label(project, first, 201, "5", 4))
        session.add(label(project, second, 202, "4", 1))
        session.add(label(project, second, 203, "4", 3))  # changed their mind
        session.add(label(project, third, 204, "4", 1))
        session.add(Tombstone(project_id=project.id, tool_annotation_id=204))  # and deleted it
    answer = elnet("labels", "agreement")
    assert answer.err == "4 pairs of labels, median IoU 0.625.\n"
    rows = elnet("labels", "agreement", "--json").json()
    assert [(row["task"], row["annotators"], row["iou"]) for row in rows] == [
        (10, ["3", "4"], 0.5),
        (10, ["4", "5"], 0.5),
        (11, ["3", "4"], 0.75),
        (10, ["3", "5"], 1.0),
    ]
    assert len(elnet("labels", "agreement", "-n", 2, "--json").json()) == 2


@pytest.mark.usefixtures("labelled")
def test_an_export_names_what_it_had_to_leave_out(elnet: Elnet, tmp_path: Path) -> None:
    answer = elnet("labels", "export", "--out", tmp_path / "out")
    assert answer.code == 1
    assert "no label that could be exported" in answer.err  # none of these images can be had
    assert not (tmp_path / "out").exists()
