"""A project with a past: images, labels, snapshots, versions that were judged, cycles."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from active_learning import registry
from active_learning.ledger import (
    Cycle,
    CycleEvent,
    CycleState,
    Label,
    LabelSource,
    Ledger,
    ModelState,
    ModelVersion,
    Prediction,
    Project,
    Snapshot,
    Task,
)
from active_learning.snapshot_files import stem_of

T0 = datetime(2026, 11, 20, 3, 0, tzinfo=UTC)
FIGURES = ("fg_iou", "fg_iou_per_image", "miou_2class", "dice", "boundary_f1", "boundary_iou", "cl_dice")


class History:
    """Project "spills" with 12 labelled images, ledger ids 1 to 12, the tool's ids 101 to 112."""

    def __init__(self, ledger: Ledger, images: int = 12) -> None:
        self.ledger = ledger
        self.sha256s: dict[int, str] = {}
        with ledger.session() as session:
            project = Project(name="spills", tool_url="http://tool", tool_project_id=7, classes=["oil"])
            session.add(project)
            session.flush()
            self.project_id = project.id
            for number in range(1, images + 1):
                uri = f"{number}.png"
                session.add(Task(project_id=project.id, tool_task_id=100 + number, image_uri=uri, scene=uri))
                session.flush()
                self._label(session, number, annotator="1" if number % 4 else "2")

    def _label(self, session: Any, task: int, annotator: str, later: int = 0) -> None:
        masks = np.ones((1, 6, 8), np.bool_)
        masks[0, 0, : task % 8] = False
        masks[0, 5, 7] = not later
        session.add(
            Label(
                project_id=self.project_id,
                task_id=task,
                tool_annotation_id=task,
                revision=f"{task}-{later}",
                source=LabelSource.HUMAN,
                annotator=annotator,
                masks=masks,
                updated_at=T0 + timedelta(days=later),
            )
        )

    def label_anew(self, task: int) -> None:
        with self.ledger.session() as session:
            self._label(session, task, "1", later=1)

    def snapshot(self, train: Sequence[int], holdout: Sequence[int], **changed: str) -> int:
        """Freeze labels of tasks; `t3="x"` gives task 3 another content than its label's."""
        with self.ledger.session() as session:
            labels = {label.task_id: label for label in session.scalars(select(Label).order_by(Label.id))}

            def entry(task: int) -> dict[str, Any]:
                return {
                    "stem": stem_of(task),
                    "task_id": task,
                    "tool_task_id": 100 + task,
                    "scene": f"{task}.png",
                    "label_id": labels[task].id,
                    "content": changed.get(f"t{task}", labels[task].content),
                    "source": "audit" if task % 3 == 0 else "human",
                    "weight": 1.0,
                }

            manifest = {
                "classes": ["oil"],
                "train": list(map(entry, train)),
                "holdout": list(map(entry, holdout)),
                "left_out": [],
            }
            sha256 = hashlib.sha256(repr(manifest).encode()).hexdigest()
            snapshot = Snapshot(project_id=self.project_id, sha256=sha256, manifest=manifest)
            session.add(snapshot)
            session.flush()
            return snapshot.id

    def scores(self, ious: Mapping[int, float], **figures: Any) -> dict[str, Any]:
        """Metrics as `evaluation.evaluate` writes them, of task -> IoU; every figure is their mean."""
        mean = float(np.mean(list(ious.values())))
        per_image = [
            {"image": stem_of(task), "iou": iou, "smoothed_iou": iou, "boundary_f1": iou / 2}
            for task, iou in ious.items()
        ]
        return {"n": len(ious), **dict.fromkeys(FIGURES, mean), "per_image": per_image, **figures}

    def version(
        self,
        name: str,
        snapshot: int | None = None,
        parent: str | None = None,
        metrics: dict[str, Any] | None = None,
        *,
        promote: bool = False,
        who: str | None = None,
        state: ModelState | None = None,
    ) -> int:
        with self.ledger.session() as session:
            project = session.get_one(Project, self.project_id)
            version = registry.register(
                session,
                project,
                Path(name),
                hashlib.sha256(name.encode()).hexdigest(),
                snapshot=session.get(Snapshot, snapshot) if snapshot else None,
                parent=registry.find(session, project, parent) if parent else None,
                metrics=metrics,
                name=name,
            )
            if promote:
                registry.promote(session, version, who)
            if state is not None:
                version.state = state
            return version.id

    def predict(self, version: int, *tasks: int, quality: float = 0.5) -> None:
        with self.ledger.session() as session:
            for task in tasks:
                session.add(
                    Prediction(
                        task_id=task,
                        model_version_id=version,
                        score=quality,
                        quality=quality,
                        signals={},
                        masks=np.ones((1, 6, 8), np.bool_),
                    )
                )

    def cycle(self, state: CycleState = CycleState.REQUESTED, **values: Any) -> int:
        with self.ledger.session() as session:
            row = {"trigger": "command by ada", "requested_at": T0, **values}
            cycle = Cycle(project_id=self.project_id, state=state, **row)
            session.add(cycle)
            session.flush()
            return cycle.id

    def event(self, cycle: int, step: str, message: str, after_s: float = 0, **data: Any) -> int:
        with self.ledger.session() as session:
            at = T0 + timedelta(seconds=after_s)
            event = CycleEvent(cycle_id=cycle, step=step, message=message, data=data, at=at)
            session.add(event)
            session.flush()
            return event.id

    def epoch(self, cycle: int, epoch: int, epochs: int, loss: float, after_s: float = 0) -> int:
        said = {"epoch": epoch, "epochs": epochs, "loss": loss, "images_per_s": 2.0}
        return self.event(cycle, "train", f"Epoch {epoch} of {epochs}", after_s, **said)

    def champion(self) -> str | None:
        with self.ledger.session(write=False) as session:
            champion = session.get_one(Project, self.project_id).champion
            return champion.name if champion else None

    def states(self) -> dict[str, str]:
        """Version -> state."""
        with self.ledger.session(write=False) as session:
            return {version.name: version.state.value for version in session.scalars(select(ModelVersion))}

    def cycle_state(self, cycle: int) -> CycleState:
        with self.ledger.session(write=False) as session:
            return session.get_one(Cycle, cycle).state


@pytest.fixture
def history(ledger: Ledger) -> History:
    return History(ledger)


@pytest.fixture
def make_history() -> type[History]:
    """Makes the same in a ledger of another kind."""
    return History
