"""A small loop without a network: a fake tool, fake images, a fake model, and a ledger that is real."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import select

from active_learning import labels, registry, routing
from active_learning.ledger import Label, Ledger, ModelVersion, Prediction, Project, RouteDecision, Task
from active_learning.ports import (
    Acceptance,
    ImageUnavailableError,
    Placement,
    Prefill,
    ToolAnnotation,
    ToolTask,
    ToolUnavailableError,
)
from model.predictor import ImagePrediction
from model.raster import Raster

SIDE = 32
CRASH = 13  # an image with this green value in its first pixel breaks the model


@dataclass
class FakeImages:
    """uri -> an image, or the reason why it cannot be had."""

    known: dict[str, Raster | str] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)

    def open(self, image_uri: str) -> Raster:
        self.opened.append(image_uri)
        found = self.known.get(image_uri, f"{image_uri} is gone")
        if isinstance(found, str):
            raise ImageUnavailableError(found)
        return found


class FakePredictor:
    """The probability is the red channel, the edge is nowhere, the embedding a hash of the pixels."""

    def __init__(self, version: str = "elnet-0001", classes: int = 1) -> None:
        self.version = version
        self.classes = classes
        self.broken = False
        self.batches: list[int] = []

    def predict(self, images: Sequence[Raster]) -> list[ImagePrediction]:
        self.batches.append(len(images))
        if self.broken or any(image.pixels[0, 0, 1] == CRASH for image in images):
            raise RuntimeError("the kernel died")
        return [self._one(image) for image in images]

    def _one(self, image: Raster) -> ImagePrediction:
        plane = image.pixels[..., 0].astype(np.float32) / 255
        probability = np.repeat(plane[None], self.classes, axis=0)
        seed = hashlib.sha256(image.pixels.tobytes()).digest()
        embedding = np.frombuffer(seed, dtype=np.uint8).astype(np.float32)
        return ImagePrediction(probability, np.zeros_like(probability), embedding)


class FakeTool:
    """A labeling tool in memory.

    `down` names methods that raise `ToolUnavailableError` before they do anything, `lossy` those that do it
    and raise then, as when the answer is lost.
    """

    MACHINE = "machine"

    def __init__(self) -> None:
        self.predictions: dict[int, tuple[int, Prefill]] = {}
        self.annotated: dict[int, tuple[int, str, NDArray[np.bool_]]] = {}  # id -> task, user, masks
        self.data: dict[int, dict[str, Any]] = {}
        self.version: str | None = None
        self.down: set[str] = set()
        self.lossy: set[str] = set()
        self.calls: list[str] = []
        self._ids = iter(range(1000, 10**9))

    def of_machine(self) -> dict[int, int]:
        """Task -> the machine's annotation."""
        return {task: i for i, (task, user, _) in self.annotated.items() if user == self.MACHINE}

    def label(self, task_id: int, masks: NDArray[np.bool_], user: str = "ada") -> int:
        annotation = next(self._ids)
        self.annotated[annotation] = (task_id, user, masks)
        return annotation

    def tasks(self, tool_project_id: int) -> Iterator[ToolTask]:
        self._begin("tasks")
        yield from (ToolTask(i, data["image"], data) for i, data in self.data.items())

    def annotations(self, tool_project_id: int, classes: Sequence[str]) -> Iterator[ToolAnnotation]:
        self._begin("annotations")
        now = datetime.now(UTC)
        for i, (task, user, masks) in self.annotated.items():
            yield ToolAnnotation(i, task, masks, user, user == self.MACHINE, False, now)

    def push_prefills(
        self, tool_project_id: int, classes: Sequence[str], prefills: Sequence[Prefill]
    ) -> dict[int, int]:
        self._begin("push_prefills")
        for prefill in prefills:
            self.predictions[prefill.tool_task_id] = (next(self._ids), prefill)
        self._end("push_prefills")
        return {p.tool_task_id: self.predictions[p.tool_task_id][0] for p in prefills}

    def push_placements(self, tool_project_id: int, placements: Iterable[Placement]) -> list[int]:
        self._begin("push_placements")
        written = []
        for placement in placements:
            place = {"route": placement.route, "quality": placement.quality, "priority": placement.priority}
            self.data[placement.tool_task_id] = {**placement.data, **place}
            written.append(placement.tool_task_id)
        self._end("push_placements")
        return written

    def accept(
        self, tool_project_id: int, classes: Sequence[str], acceptances: Sequence[Acceptance]
    ) -> dict[int, int]:
        self._begin("accept")
        made = {}
        for acceptance in acceptances:
            self._remove(acceptance.tool_task_id)
            made[acceptance.tool_task_id] = self.label(
                acceptance.tool_task_id, acceptance.masks, user=self.MACHINE
            )
        self._end("accept")
        return made

    def withdraw(self, tool_project_id: int, tool_task_ids: Sequence[int]) -> None:
        self._begin("withdraw")
        for task_id in tool_task_ids:
            self._remove(task_id)
        self._end("withdraw")

    def machine_annotator(self) -> str:
        return self.MACHINE

    def serve_version(self, tool_project_id: int, version: str) -> None:
        self._begin("serve_version")
        self.version = version
        self._end("serve_version")

    def _remove(self, task_id: int) -> None:
        if (annotation := self.of_machine().get(task_id)) is not None:
            del self.annotated[annotation]

    def _begin(self, name: str) -> None:
        self.calls.append(name)
        if name in self.down:
            raise ToolUnavailableError(f"{name}: the tool does not answer")

    def _end(self, name: str) -> None:
        if name in self.lossy:
            raise ToolUnavailableError(f"{name}: the answer was lost")


class Loop:
    """A project in a real ledger with everything fake around it."""

    def __init__(self, ledger: Ledger, classes: Sequence[str] = ("oil",)) -> None:
        self.ledger = ledger
        self.tool = FakeTool()
        self.images = FakeImages()
        self._revisions = 0
        with ledger.session() as session:
            project = Project(
                name="spills",
                tool_url="http://tool",
                tool_project_id=7,
                classes=list(classes),
                accept_threshold=0.9,
                audit_share=0.0,
                labels_per_cycle=3,
                cooldown_s=60.0,
            )
            session.add(project)
            session.flush()
            self.project_id = project.id

    def configure(self, **values: Any) -> None:
        with self.ledger.session() as session:
            project = session.get_one(Project, self.project_id)
            for name, value in values.items():
                setattr(project, name, value)

    def image(self, probability: float, seed: int = 0, crash: bool = False) -> Raster:
        """A square that the fake model sees with this probability; `seed` makes it another image."""
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        pixels[8:24, 8:24, 0] = round(255 * probability)
        pixels[..., 2] = seed % 256
        pixels[0, 0, 1] = CRASH if crash else 0
        return Raster(pixels, np.ones((SIDE, SIDE), np.bool_))

    def add(self, *images: Raster | str, scene: str | None = None) -> list[int]:
        """Add tasks with these images, or with the reason why there is none; returns the ledger's ids."""
        with self.ledger.session() as session:
            rows = []
            for image in images:
                number = len(self.images.known) + 1
                uri = f"img/{number}.png"
                self.images.known[uri] = image
                rows.append(
                    Task(
                        project_id=self.project_id,
                        tool_task_id=100 + number,
                        image_uri=uri,
                        data={"image": uri},
                        scene=scene or f"scene-{number}",
                    )
                )
            session.add_all(rows)
            session.flush()
            return [row.id for row in rows]

    def promote(self, name: str = "elnet-0001") -> int:
        """Register a model version of this name, if there is none yet, and make it the champion."""
        with self.ledger.session() as session:
            project = session.get_one(Project, self.project_id)
            sha256 = hashlib.sha256(name.encode()).hexdigest()
            version = registry.register(session, project, Path("models") / name, sha256, name=name)
            registry.promote(session, version)
            return version.id

    def label(
        self,
        task_id: int,
        masks: NDArray[np.bool_] | None = None,
        *,
        annotation: int | None = None,
        machine: bool = False,
        later_s: float = 1.0,
        took_s: float | None = None,
    ) -> int:
        """Record an annotation, a person's by default (masks None: the square of `image`); returns its id."""
        if masks is None:
            masks = np.zeros((1, SIDE, SIDE), np.bool_)
            masks[:, 8:24, 8:24] = True
        self._revisions += 1
        with self.ledger.session() as session:
            task = session.get_one(Task, task_id)
            user = FakeTool.MACHINE if machine else "ada"
            if annotation is None:
                annotation = self.tool.label(task.tool_task_id, masks, user)
            said = ToolAnnotation(
                id=annotation,
                task_id=task.tool_task_id,
                masks=masks,
                annotator=user,
                machine=machine,
                cancelled=False,
                updated_at=datetime.now(UTC) + timedelta(seconds=later_s + self._revisions),
                lead_time_s=took_s,
            )
            labels.record(session, session.get_one(Project, self.project_id), said)
        return annotation

    def routed(
        self,
        version: int,
        qualities: Sequence[float],
        *,
        masks: NDArray[np.bool_] | None = None,
        signals: dict[str, Any] | None = None,
        embeddings: Any = None,
    ) -> list[int]:
        """New tasks whose predictions by the version say so (masks None: empty ones), routed; their ids."""
        ids = self.add(*["x"] * len(qualities))
        if masks is None:
            masks = np.zeros((1, SIDE, SIDE), np.bool_)
        with self.ledger.session() as session:
            for i, (task_id, quality) in enumerate(zip(ids, qualities, strict=True)):
                session.add(
                    Prediction(
                        task_id=task_id,
                        model_version_id=version,
                        masks=masks,
                        score=quality,
                        quality=quality,
                        signals=signals or {"usable": True, "classes": []},
                        embedding=None if embeddings is None else np.asarray(embeddings[i], np.float32),
                    )
                )
            session.flush()
            routing.route(session, session.get_one(Project, self.project_id))
        return ids

    def bury(self, annotation: int) -> None:
        with self.ledger.session() as session:
            labels.bury(session, session.get_one(Project, self.project_id), [annotation])

    def task(self, task_id: int) -> Task:
        return self._one(select(Task).where(Task.id == task_id))

    def project(self) -> Project:
        return self._one(select(Project).where(Project.id == self.project_id))

    def predictions(self, task_id: int) -> list[Prediction]:
        return self._all(select(Prediction).where(Prediction.task_id == task_id).order_by(Prediction.id))

    def decisions(self, task_id: int) -> list[RouteDecision]:
        query = select(RouteDecision).where(RouteDecision.task_id == task_id)
        return self._all(query.order_by(RouteDecision.id))

    def labels(self, task_id: int) -> list[Label]:
        return self._all(select(Label).where(Label.task_id == task_id).order_by(Label.id))

    def versions(self) -> list[ModelVersion]:
        return self._all(select(ModelVersion).order_by(ModelVersion.id))

    def _all(self, query: Any) -> list[Any]:
        with self.ledger.session(write=False) as session:
            return list(session.scalars(query))

    def _one(self, query: Any) -> Any:
        (found,) = self._all(query)
        return found


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database: a test that takes it runs on both kinds."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql_url"))
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


@pytest.fixture
def loop(ledger: Ledger) -> Loop:
    """A project "spills" with one class, threshold 0.9, no audit, and no model yet."""
    return Loop(ledger)


@pytest.fixture
def make_loop() -> type[Loop]:
    """Makes a project in a ledger: `make_loop(ledger)`."""
    return Loop


@pytest.fixture
def make_predictor() -> type[FakePredictor]:
    """Makes a fake model: `make_predictor("elnet-0001")`."""
    return FakePredictor
