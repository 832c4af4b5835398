from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from active_learning import routing, standing
from active_learning.ledger import Ledger, ModelVersion, Prediction, Project, RouteDecision, Task, TaskStatus
from active_learning.ledger.bulk import update_rows
from active_learning.ledger.draws import audit_draw
from active_learning.tallies import BINS, bin_of, open_routes, reaching

MASKS = np.zeros((1, 2, 2), np.bool_)
NUMBERS = count(1)
# Round ones, and pairs that lie side by side, so that thresholds cut bins between them.
QUALITY = st.one_of(
    st.floats(0, 1),
    st.integers(0, BINS).map(lambda i: i / BINS),
    st.sampled_from([math.nextafter(0.75, 0), 0.75, 0.7501, 0.7502, math.nextafter(0.29, 0), 0.29, 0.2905]),
)
SIGNALS = st.sampled_from([{"usable": True}, {"usable": False}, {}, {"usable": True, "peak": math.nan}])


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
    """A project of three versions, changed in every way in which the loop changes one, or a hand does."""

    def __init__(self, ledger: Ledger, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.ledger, self.draw = ledger, draw
        number = next(NUMBERS)
        with ledger.session() as session:
            project = Project(
                name=f"project {number}", tool_url="http://tool", tool_project_id=number,
                classes=["oil", "ship"], audit_share=0.3, accept_threshold=0.5,
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

    def add(self) -> None:
        with self.ledger.session() as session:
            rows = [
                Task(project_id=self.id, tool_task_id=next(NUMBERS), image_uri="x", scene="x",
                     holdout=self.draw(st.booleans()), status=self.draw(st.sampled_from(TaskStatus)))
                for _ in range(self.draw(st.integers(1, 6)))
            ]  # fmt: skip
            session.add_all(rows)
            session.flush()
            self.tasks += [row.id for row in rows]

    def predict(self) -> None:
        version = self.draw(st.sampled_from(self.versions))
        with self.ledger.session() as session:
            held = select(Prediction.task_id).where(Prediction.model_version_id == version)
            lacking = sorted(set(self.tasks) - set(session.scalars(held)))
            for task_id in lacking:
                if not self.draw(st.booleans()):
                    continue
                quality = self.draw(QUALITY)
                session.add(
                    Prediction(task_id=task_id, model_version_id=version, masks=MASKS,
                               score=quality, quality=quality, signals=self.draw(SIGNALS))
                )  # fmt: skip

    def promote(self) -> None:
        self._set(champion_id=self.draw(st.sampled_from([None, *self.versions])))

    def draw_more(self) -> None:
        self._set(audit_share=self.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])))

    def move(self) -> None:
        with self.ledger.session() as session:
            task = session.get_one(Task, self.draw(st.sampled_from(self.tasks)))
            task.status = self.draw(st.sampled_from(TaskStatus))
            task.holdout = self.draw(st.booleans())
            task.priority = self.draw(st.none() | QUALITY)

    def regrade(self) -> None:
        with self.ledger.session() as session:
            ids = session.scalars(select(Prediction.id).where(Prediction.task_id.in_(self.tasks))).all()
            if ids:
                update_rows(session, Prediction, [{"id": i, "quality": self.draw(QUALITY)} for i in ids])
                session.execute(
                    update(Prediction).where(Prediction.id == ids[0]).values(signals=self.draw(SIGNALS))
                )

    def settle(self) -> None:
        routing.settle(self.ledger, self.id)

    def route(self) -> None:
        with self.ledger.session() as session:
            routing.route(session, session.get_one(Project, self.id))

    def forget(self) -> None:
        """No part of the loop deletes these; counts hold all the same."""
        gone = self.tasks.pop()
        decided = select(RouteDecision.id).where(RouteDecision.task_id == gone)
        with self.ledger.session() as session:
            if session.scalar(decided.limit(1)) is None:  # else it is referred to for good
                session.execute(delete(Prediction).where(Prediction.task_id == gone))
                session.execute(delete(Task).where(Task.id == gone))
        if not self.tasks:
            self.add()

    def _set(self, **values: Any) -> None:
        with self.ledger.session() as session:
            session.execute(update(Project).where(Project.id == self.id).values(values))


STEPS = ("add", "predict", "predict", "promote", "draw_more", "move", "regrade", "settle", "route", "forget")


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_the_counts_are_those_of_a_look_at_every_task(ledger: Ledger, data: st.DataObject) -> None:
    """Also where routes are stale: straight after a promotion, a new share, a changed status."""
    place = Place(ledger, data.draw)
    for step in data.draw(st.lists(st.sampled_from(STEPS), max_size=14)):
        getattr(place, step)()
        check(ledger, place.id, [data.draw(QUALITY)])


@given(QUALITY)
def test_a_bin_begins_where_it_is_cut(quality: float) -> None:
    assert 0 <= bin_of(quality) <= BINS
    assert bin_of(math.nextafter(quality, 0)) <= bin_of(quality)


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
