from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
from alembic import command
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import MetaData, delete, func, select, text, update
from sqlalchemy.orm import Session

from active_learning import routing, standing
from active_learning.ledger import Ledger, ModelVersion, Prediction, Project, RouteDecision, Task, TaskStatus
from active_learning.ledger.bulk import update_rows
from active_learning.ledger.database import alembic_config
from active_learning.ledger.draws import audit_draw
from active_learning.ledger.types import encode_masks, utc_now
from active_learning.tallies import BINS, bin_of, open_routes, reaching

MASKS = np.zeros((1, 2, 2), np.bool_)
NUMBERS = count(1)


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with Ledger(url) as ledger:
        ledger.upgrade()
        yield ledger


def slowly(session: Session, project: Project) -> tuple[int, int, int, list[float]]:
    """What is counted, as it is defined: by a look at every open task and `routing.decide`."""
    by_champion = (Prediction.task_id == Task.id) & (Prediction.model_version_id == project.champion_id)
    rows = session.execute(
        select(Task.id, Task.holdout, Prediction.id, Prediction.quality, Prediction.signals)
        .outerjoin(Prediction, by_champion)
        .where(Task.project_id == project.id, Task.status.in_(routing.OPEN))
    )
    found = dict.fromkeys(TaskStatus, 0)
    qualities = []
    for task_id, holdout, prediction_id, quality, signals in rows:
        if prediction_id is None:
            found[TaskStatus.WAITING] += 1
        elif holdout:
            found[TaskStatus.AUDIT] += 1
        else:
            assert project.champion is not None
            usable = None if signals.get("usable") is False else quality
            draw = audit_draw(task_id, project.champion.name)
            route, _ = routing.decide(usable, None, project.audit_share, draw)
            if route is TaskStatus.REVIEW and usable is not None:
                qualities.append(usable)
            else:
                found[route] += 1
    return found[TaskStatus.WAITING], found[TaskStatus.AUDIT], found[TaskStatus.REVIEW], qualities


def check(ledger: Ledger, project_id: int, thresholds: list[float]) -> None:
    with ledger.session(write=False) as session:
        project = session.get_one(Project, project_id)
        waiting, audit, unusable, qualities = slowly(session, project)
        routes = open_routes(session, project)
        assert (routes.waiting, routes.audit, routes.unusable) == (waiting, audit, unusable)
        assert routes.graded == len(qualities)
        assert (
            routes.bins.tolist() == np.bincount([bin_of(q) for q in qualities], minlength=BINS + 1).tolist()
        )
        for threshold in {0.0, 1.0, *thresholds, *qualities}:
            near = (math.nextafter(threshold, 0), threshold, math.nextafter(threshold, 1))
            for floor in near:
                assert reaching(session, project, routes, floor) == sum(q >= floor for q in qualities)
        assert reaching(session, project, routes, None) == 0
        by_status = (
            select(Task.status, func.count()).where(Task.project_id == project_id).group_by(Task.status)
        )
        there = {row[0]: row[1] for row in session.execute(by_status)}
        assert {s: n for s, n in standing.counts(session, project).items() if n} == there


class Place:
    """A project of three versions, changed at random in every way in which the loop or a hand does."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.ledger, self.random = ledger, random.Random(seed)
        with ledger.session() as session:
            project = Project(
                name="oil", tool_url="http://tool", tool_project_id=1, classes=["oil", "ship"],
                audit_share=0.3, accept_threshold=0.5,
            )  # fmt: skip
            session.add(project)
            session.flush()
            self.id = project.id
            names = ("elnet-0001", "elnet-0002", "sjø/2")
            versions = [
                ModelVersion(project_id=self.id, name=name, path=name, sha256="0" * 64) for name in names
            ]
            session.add_all(versions)
            session.flush()
            self.versions = [version.id for version in versions]
        self.tasks: list[int] = []
        self.add()
        self.predict()
        self.promote()

    def quality(self) -> float:
        """Often a round one, or one beside another, so that thresholds cut bins between them."""
        near = (
            math.nextafter(0.75, 0),
            0.75,
            0.7501,
            0.7502,
            math.nextafter(0.29, 0),
            0.29,
            0.2905,
            0.0,
            1.0,
        )
        return self.random.choice((self.random.random(), self.random.choice(near)))

    def signals(self) -> dict[str, Any]:
        return self.random.choice(
            [{"usable": True}, {"usable": False}, {}, {"usable": True, "peak": math.nan}]
        )

    def some(self, ids: Iterable[int]) -> list[int]:
        return [i for i in ids if self.random.random() < 0.4]

    def add(self) -> None:
        with self.ledger.session() as session:
            rows = [
                Task(project_id=self.id, tool_task_id=next(NUMBERS), image_uri="x", scene="x",
                     holdout=self.random.random() < 0.2, status=self.random.choice(list(TaskStatus)))
                for _ in range(12)
            ]  # fmt: skip
            session.add_all(rows)
            session.flush()
            self.tasks += [row.id for row in rows]

    def predict(self) -> None:
        with self.ledger.session() as session:
            for version in self.versions:
                held = select(Prediction.task_id).where(Prediction.model_version_id == version)
                for task_id in self.some(set(self.tasks) - set(session.scalars(held))):
                    quality = self.quality()
                    session.add(
                        Prediction(task_id=task_id, model_version_id=version, masks=MASKS,
                                   score=quality, quality=quality, signals=self.signals())
                    )  # fmt: skip

    def promote(self) -> None:
        self._set(champion_id=self.random.choice([None, *self.versions, *self.versions]))

    def draw_more(self) -> None:
        self._set(audit_share=self.random.choice([0.0, 0.1, 0.5, 1.0]))

    def move(self) -> None:
        with self.ledger.session() as session:
            for task in session.scalars(select(Task).where(Task.id.in_(self.some(self.tasks)))):
                task.status = self.random.choice(list(TaskStatus))
                task.priority = self.random.random()

    def draw_holdout(self) -> None:
        with self.ledger.session() as session:
            for task in session.scalars(select(Task).where(Task.id.in_(self.some(self.tasks)))):
                task.holdout = not task.holdout

    def regrade(self) -> None:
        with self.ledger.session() as session:
            ids = self.some(session.scalars(select(Prediction.id)))
            update_rows(session, Prediction, [{"id": i, "quality": self.quality()} for i in ids])

    def measure_anew(self) -> None:
        with self.ledger.session() as session:
            for prediction in session.scalars(select(Prediction)):
                prediction.signals = self.signals()

    def settle(self) -> None:
        routing.settle(self.ledger, self.id)

    def route(self) -> None:
        with self.ledger.session() as session:
            routing.route(session, session.get_one(Project, self.id))

    def forget(self) -> None:
        """No part of the loop deletes these; counts hold all the same."""
        with self.ledger.session() as session:
            kept = set(session.scalars(select(RouteDecision.task_id)))
            gone = set(self.some(set(self.tasks) - kept))
            session.execute(delete(Prediction).where(Prediction.task_id.in_(gone)))
            session.execute(delete(Task).where(Task.id.in_(gone)))
        self.tasks = [i for i in self.tasks if i not in gone]

    def _set(self, **values: Any) -> None:
        with self.ledger.session() as session:
            session.execute(update(Project).where(Project.id == self.id).values(values))


STEPS = (
    "add", "predict", "promote", "draw_more", "move", "draw_holdout", "regrade", "measure_anew", "settle",
    "route", "forget",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_the_counts_are_those_of_a_look_at_every_task(ledger: Ledger, seed: int) -> None:
    """Also where routes are stale: straight after a promotion, a new share, a changed status."""
    place = Place(ledger, seed)
    steps = [*STEPS, *place.random.choices(STEPS, k=20)]
    place.random.shuffle(steps)
    for step in steps:
        getattr(place, step)()
        check(ledger, place.id, [place.quality()])


def test_an_older_ledger_is_counted_when_it_is_upgraded(url: str) -> None:
    with Ledger(url) as ledger:
        with ledger.engine.connect() as connection:
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "0011")
        older = MetaData()
        older.reflect(ledger.engine)
        with ledger.engine.begin() as connection:
            for table, row in _older_rows():
                connection.execute(older.tables[table].insert(), row)
            connection.execute(older.tables["projects"].update().values(champion_id=1))
        ledger.upgrade()
        check(ledger, 1, [0.5])
        with ledger.session(write=False) as session:
            routes = open_routes(session, session.get_one(Project, 1))
    assert routes.waiting == 1
    assert routes.audit > 1
    assert (routes.unusable, routes.graded) == (1, 200 - routes.audit - 1)


UNDRAWN = next(i for i in range(2, 200) if audit_draw(i, "elnet-0001") >= 0.2)


def _older_rows() -> Iterator[tuple[str, dict[str, Any]]]:
    now = utc_now()
    yield "projects", {
        "id": 1, "name": "oil", "tool_url": "http://tool", "tool_project_id": 1, "classes": ["oil"],
        "audit_share": 0.2, "holdout_share": 0.2, "labels_per_cycle": 50, "cooldown_s": 0.0, "training": {},
        "created_at": now,
    }  # fmt: skip
    yield "model_versions", {
        "id": 1, "project_id": 1, "name": "elnet-0001", "state": "champion", "path": "m", "sha256": "0" * 64,
        "metrics": {}, "created_at": now,
    }  # fmt: skip
    for number in range(1, 203):
        yield "tasks", {
            "id": number, "project_id": 1, "tool_task_id": number, "image_uri": "x", "data": {}, "scene": "x",
            "status": "done" if number == 202 else "review", "created_at": now, "holdout": number == 1,
        }  # fmt: skip
        if number != 201:
            yield "predictions", {
                "task_id": number, "model_version_id": 1, "score": 0.5, "quality": number / 300,
                "signals": {"usable": number != UNDRAWN}, "created_at": now, "masks": encode_masks(MASKS),
            }  # fmt: skip


@given(st.floats(0, 1))
def test_bins_are_in_the_order_of_quality(quality: float) -> None:
    assert 0 <= bin_of(math.nextafter(quality, 0)) <= bin_of(quality) <= BINS


def test_the_database_draws_as_python_does(ledger: Ledger) -> None:
    with ledger.session(write=False) as session:
        for version in ("elnet-0001", "sjø/2"):
            for task_id in (1, 17, 123456, 2**31 - 1):
                drawn = session.scalar(select(func.elnet_audit_draw(task_id, version)))
                assert drawn == audit_draw(task_id, version)


def test_what_is_rolled_back_is_not_counted(ledger: Ledger) -> None:
    with ledger.session() as session:
        project = Project(name="oil", tool_url="http://tool", tool_project_id=1, classes=["oil"])
        session.add(project)
        session.flush()
        session.add(Task(project_id=project.id, tool_task_id=1, image_uri="x", scene="x"))
        session.flush()
        assert standing.counts(session, project)[TaskStatus.WAITING] == 1
        session.rollback()
    with ledger.session(write=False) as session:
        assert session.execute(text("SELECT count(*) FROM task_counts")).scalar_one() == 0
