from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import labels, registry
from active_learning.ledger import (
    Label,
    LabelSource,
    Ledger,
    Prediction,
    Project,
    RouteDecision,
    Snapshot,
    Task,
    TaskStatus,
    Tombstone,
)
from active_learning.ledger.types import hash_masks
from active_learning.ports import ToolAnnotation

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SIZE = 8
_numbers = itertools.count(1)


def mask(columns: int) -> NDArray[np.bool_]:
    """One class, the first columns of an 8 x 8 image."""
    masks = np.zeros((1, SIZE, SIZE), np.bool_)
    masks[..., :columns] = True
    return masks


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def say(
    annotation: int, columns: int | None = 4, minutes: float = 0, task: int = 1, **rest: Any
) -> ToolAnnotation:
    given = {"annotator": "ada", "machine": False}
    return ToolAnnotation(
        id=annotation,
        task_id=task,
        masks=None if columns is None else mask(columns),
        cancelled=columns is None,
        updated_at=at(minutes),
        **{**given, **rest},
    )


@dataclass
class World:
    """A project with tasks 1 to 3 of the tool."""

    session: Session
    project: Project
    tasks: dict[int, Task]

    def record(self, *said: ToolAnnotation) -> list[Label | None]:
        return [labels.record(self.session, self.project, annotation) for annotation in said]

    def bury(self, *ids: int) -> None:
        labels.bury(self.session, self.project, ids)

    def route(self, status: TaskStatus, minutes: float, task: int = 1) -> None:
        quality = 0.95 if status is TaskStatus.ACCEPTED else None
        decision = RouteDecision(
            task_id=self.tasks[task].id, status=status, quality=quality, reason="", at=at(minutes)
        )
        self.session.add(decision)
        self.tasks[task].status = status
        self.session.flush()

    def predict(self, columns: int, name: str, minutes: float, tool_id: int | None = None) -> Prediction:
        version = registry.register(self.session, self.project, Path("models") / name, "0" * 64, name=name)
        prediction = Prediction(
            task_id=self.tasks[1].id,
            model_version_id=version.id,
            masks=mask(columns),
            score=0.5,
            quality=0.5,
            signals={},
            tool_prediction_id=tool_id,
            created_at=at(minutes),
        )
        self.session.add(prediction)
        self.session.flush()
        return prediction

    @property
    def status(self) -> TaskStatus:
        return self.tasks[1].status


def build(session: Session) -> World:
    number = next(_numbers)
    project = Project(
        name=f"project {number}", tool_url="http://tool", tool_project_id=number, classes=["oil"]
    )
    session.add(project)
    session.flush()
    tasks = {
        i: Task(project_id=project.id, tool_task_id=i, image_uri=f"{i}.png", scene=str(i)) for i in (1, 2, 3)
    }
    session.add_all(tasks.values())
    session.flush()
    return World(session, project, tasks)


@pytest.fixture
def world(ledger: Ledger) -> Any:
    with ledger.session() as session:
        yield build(session)


def test_a_label_is_written_down_once(world: World) -> None:
    (first, again) = world.record(say(7), say(7))
    assert first is not None
    assert again is None
    assert first.source is LabelSource.HUMAN
    assert np.array_equal(first.masks, mask(4))  # type: ignore[arg-type]
    assert world.status is TaskStatus.DONE


def test_the_latest_revision_counts_also_when_it_comes_first(world: World) -> None:
    world.record(say(7, 6, minutes=2), say(7, 2, minutes=1))
    found = labels.current_label(world.session, world.tasks[1])
    assert found is not None
    assert np.array_equal(found.masks, mask(6))  # type: ignore[arg-type]
    assert len(world.session.scalars(select(Label)).all()) == 2


@pytest.mark.parametrize("columns", [None, 2])
def test_of_two_revisions_at_one_time_the_same_counts_in_either_order(
    ledger: Ledger, columns: int | None
) -> None:
    said = (say(7, 6), say(7, columns))
    with ledger.session() as session:
        worlds = build(session), build(session)
        worlds[0].record(*said)
        worlds[1].record(*said[::-1])
        found = [labels.current_label(session, world.tasks[1]) for world in worlds]
        assert len({label and label.content for label in found}) == 1
        assert worlds[0].status is worlds[1].status


def test_the_latest_annotation_counts(world: World) -> None:
    world.record(say(7, 2, minutes=5), say(8, 3, minutes=9, annotator="bob"))
    assert labels.current_label(world.session, world.tasks[1]).annotator == "bob"  # type: ignore[union-attr]


def test_an_empty_mask_is_a_label_and_a_skip_is_none(world: World) -> None:
    world.record(say(7, 0), say(8, None, task=2))
    (only,) = labels.current_labels(world.session, world.project)
    assert only.masks is not None
    assert not only.masks.any()
    assert world.status is TaskStatus.DONE
    assert world.tasks[2].status is TaskStatus.SKIPPED
    assert labels.current_label(world.session, world.tasks[2]) is None


def test_a_skip_beside_a_label_does_not_undo_it(world: World) -> None:
    world.record(say(7), say(8, None, minutes=5, annotator="bob"))
    assert world.status is TaskStatus.DONE


def test_a_label_that_became_a_skip_no_longer_counts(world: World) -> None:
    world.record(say(7, None, minutes=5), say(7, minutes=1))
    assert world.status is TaskStatus.SKIPPED
    assert labels.current_labels(world.session, world.project) == []


def test_a_deletion_keeps_the_label_but_takes_its_weight(world: World) -> None:
    world.route(TaskStatus.REVIEW, minutes=-5)
    world.record(say(7))
    world.bury(7, 7)
    world.bury(7)
    assert world.status is TaskStatus.REVIEW
    assert labels.current_label(world.session, world.tasks[1]) is None
    assert len(world.session.scalars(select(Label)).all()) == 1
    assert len(world.session.scalars(select(Tombstone)).all()) == 1


def test_a_deletion_may_come_before_the_annotation(world: World) -> None:
    world.bury(7)
    (label,) = world.record(say(7))
    assert label is not None
    assert world.status is TaskStatus.WAITING


def test_after_a_deletion_an_older_annotation_counts_again(world: World) -> None:
    world.record(say(7, 2), say(8, 5, minutes=3))
    world.bury(8)
    assert labels.current_label(world.session, world.tasks[1]).tool_annotation_id == 7  # type: ignore[union-attr]
    assert world.status is TaskStatus.DONE


def test_a_failed_image_is_failed_again_without_its_label(world: World) -> None:
    world.tasks[1].failure = "gone"
    world.record(say(7))
    assert world.status is TaskStatus.DONE
    world.bury(7)
    assert world.status is TaskStatus.FAILED


def test_a_task_that_is_gone_stays_gone_and_its_labels_are_kept(world: World) -> None:
    world.tasks[1].status = TaskStatus.GONE
    (label,) = world.record(say(7))
    assert label is not None
    assert world.status is TaskStatus.GONE
    assert labels.current_labels(world.session, world.project) == []


def test_a_machine_label_settles_nothing_and_never_outranks_a_person(world: World) -> None:
    everyone = tuple(LabelSource)
    world.route(TaskStatus.ACCEPTED, minutes=-5)
    world.record(say(9, 5, minutes=50, machine=True))
    assert world.status is TaskStatus.ACCEPTED
    assert labels.current_labels(world.session, world.project) == []
    assert [x.source for x in labels.current_labels(world.session, world.project, everyone)] == [
        LabelSource.MACHINE
    ]
    world.record(say(7, 2))
    assert world.status is TaskStatus.DONE
    assert [x.tool_annotation_id for x in labels.current_labels(world.session, world.project, everyone)] == [
        7
    ]


def test_a_machine_that_writes_over_a_persons_annotation_does_not_win(world: World) -> None:
    world.record(say(7, 2), say(7, 5, minutes=9, machine=True))
    found = labels.current_label(world.session, world.tasks[1])
    assert found is not None
    assert np.array_equal(found.masks, mask(2))  # type: ignore[arg-type]


def test_the_source_is_what_the_task_was_sent_to_people_for(world: World) -> None:
    world.route(TaskStatus.AUDIT, minutes=10)
    world.route(TaskStatus.REVIEW, minutes=20)
    said = [say(7, minutes=5), say(8, minutes=15), say(9, minutes=25), say(10, minutes=15, machine=True)]
    sources = [label.source.value for label in world.record(*said) if label]
    assert sources == ["human", "audit", "human", "machine"]
    audited = labels.current_labels(world.session, world.project, (LabelSource.AUDIT,))
    assert audited == []  # a later label by a person counts
    world.bury(9)
    audited = labels.current_labels(world.session, world.project, (LabelSource.AUDIT,))
    assert [label.tool_annotation_id for label in audited] == [8]


def test_the_correction_is_measured_against_the_prefill_that_it_began_with(world: World) -> None:
    world.predict(8, "elnet-0001", minutes=-20, tool_id=501)
    world.predict(2, "elnet-0002", minutes=-10, tool_id=502)
    (label,) = world.record(say(7, 4, parent_prediction=501))
    assert label is not None
    assert label.prefill_iou == pytest.approx(0.5)


def test_without_a_parent_the_prefill_is_the_champions_of_that_time(world: World) -> None:
    for name, columns in (("elnet-0001", 8), ("elnet-0002", 2)):
        prediction = world.predict(columns, name, minutes=-20)
        registry.promote(world.session, prediction.model_version)
    later = datetime.now(UTC) + timedelta(minutes=1)
    (before, now, unknown) = world.record(
        say(7, 4),
        replace(say(8, 4), updated_at=later),
        replace(say(9, 4), updated_at=later, parent_prediction=999),
    )
    assert before is not None
    assert before.prefill_iou is None  # nobody served at noon
    for label in (now, unknown):
        assert label is not None
        assert label.prefill_iou == pytest.approx(0.5)
        assert label.prediction_id == prediction.id


def test_a_skip_and_a_machine_label_have_no_correction(world: World) -> None:
    world.predict(8, "elnet-0001", minutes=-20, tool_id=501)
    said = (say(7, None, parent_prediction=501), say(8, 8, parent_prediction=501, machine=True))
    assert [label.prefill_iou for label in world.record(*said) if label] == [None, None]


def test_nothing_drawn_without_a_size_becomes_an_empty_mask_of_the_images_size(world: World) -> None:
    nothing = np.zeros((1, 0, 0), np.bool_)
    world.predict(8, "elnet-0001", minutes=-20, tool_id=501)
    world.tasks[2].width, world.tasks[2].height = 30, 20
    said = (
        replace(say(7, 4, parent_prediction=501), masks=nothing),
        replace(say(8, 4, task=2), masks=nothing),
        replace(say(9, 4, task=3), masks=nothing),
    )
    found = [label for label in world.record(*said) if label]
    assert [label.masks.shape for label in found if label.masks is not None] == [
        (1, SIZE, SIZE),
        (1, 20, 30),
        (1, 0, 0),
    ]
    assert found[0].prefill_iou == 0
    assert world.record(replace(said[1], masks=np.zeros((1, 20, 30), np.bool_))) == [None]


def test_an_unknown_task_is_an_error_that_says_so(world: World) -> None:
    with pytest.raises(labels.UnknownTaskError, match=r"annotation 7 belongs to task 99.*import the task"):
        world.record(say(7, task=99))


def test_masks_that_do_not_fit_the_project_are_refused(world: World) -> None:
    with pytest.raises(labels.LabelError, match="classes oil"):
        world.record(replace(say(7), masks=np.zeros((2, SIZE, SIZE), np.bool_)))
    with pytest.raises(labels.LabelError, match="no masks and is no skip"):
        world.record(replace(say(7), masks=None))


def test_projects_do_not_mix(world: World) -> None:
    other = build(world.session)
    world.record(say(7))
    other.bury(7)
    assert world.status is TaskStatus.DONE
    assert labels.current_labels(world.session, other.project) == []


def test_labels_since_counts_what_the_snapshot_does_not_hold(world: World) -> None:
    world.record(say(7, 2), say(8, 3, task=2), say(9, 4, task=3), say(10, 4, task=3, machine=True))
    assert labels.labels_since(world.session, world.project, None) == 3

    def entry(task: int, columns: int) -> dict[str, Any]:
        content = labels.current_label(world.session, world.tasks[task]).content  # type: ignore[union-attr]
        return {"task_id": world.tasks[task].id, "content": content}

    manifest = {"train": [entry(1, 2)], "holdout": [entry(2, 3)], "left_out": [entry(3, 4)]}
    snapshot = Snapshot(project_id=world.project.id, sha256="0" * 64, manifest=manifest)
    assert labels.labels_since(world.session, world.project, snapshot) == 0
    world.record(say(7, 2, minutes=30))  # saved again, unchanged
    assert labels.labels_since(world.session, world.project, snapshot) == 0
    world.record(say(8, 5, minutes=30, task=2))
    assert labels.labels_since(world.session, world.project, snapshot) == 1


# Events in any order, with duplicates


Event = ToolAnnotation | frozenset[int]
ROUTES = ((1, TaskStatus.AUDIT, 2), (2, TaskStatus.REVIEW, 1), (2, TaskStatus.ACCEPTED, 4))


@st.composite
def revisions(draw: st.DrawFn) -> ToolAnnotation:
    annotation = draw(st.integers(1, 3))
    return say(
        annotation,
        draw(st.sampled_from([None, 0, 2, 5])),
        minutes=draw(st.integers(0, 2)),
        task=1 + annotation % 2,
        machine=draw(st.booleans()),
        annotator=draw(st.sampled_from(["ada", "bob"])),
        parent_prediction=draw(st.sampled_from([None, 501])),
    )


def _events() -> st.SearchStrategy[list[Event]]:
    deletions = st.frozensets(st.integers(1, 3), max_size=1)
    return st.tuples(
        st.lists(revisions(), max_size=8, unique_by=_identity), st.lists(deletions, max_size=2)
    ).map(lambda both: [*both[0], *both[1]])


def _identity(said: ToolAnnotation) -> tuple[Any, ...]:
    """Two deliveries of one revision agree on everything."""
    masks = None if said.masks is None else said.masks.tobytes()
    return said.id, masks, said.updated_at, said.machine, said.annotator


def _play(session: Session, events: Sequence[Event]) -> tuple[Any, ...]:
    """The state after the events, without what may differ: row ids and the time of receipt."""
    world = build(session)
    for task, status, minutes in ROUTES:
        world.route(status, minutes, task=task)
    world.predict(4, "elnet-0001", minutes=-1, tool_id=501)
    for event in events:
        world.record(event) if isinstance(event, ToolAnnotation) else world.bury(*event)
    everyone = tuple(LabelSource)
    rows = session.scalars(select(Label).where(Label.project_id == world.project.id))
    return (
        sorted((x.revision, x.tool_annotation_id, x.source, x.content, str(x.prefill_iou)) for x in rows),
        sorted(
            session.scalars(
                select(Tombstone.tool_annotation_id).where(Tombstone.project_id == world.project.id)
            )
        ),
        [task.status for task in world.tasks.values()],
        [x.revision for x in labels.current_labels(session, world.project)],
        [x.revision for x in labels.current_labels(session, world.project, everyone)],
    )


@given(events=_events(), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_and_any_repetition_give_the_same_state(
    ledger: Ledger, events: list[Event], data: st.DataObject
) -> None:
    repeated = data.draw(st.lists(st.sampled_from(events), max_size=4)) if events else []
    shuffled = data.draw(st.permutations([*events, *repeated]))
    with ledger.session() as session:
        straight, mixed = _play(session, events), _play(session, shuffled)
    assert straight == mixed
    assert straight[2] == _statuses(events)


def _statuses(events: Sequence[Event]) -> list[TaskStatus]:
    """What the statuses must be, worked out from all events at once."""
    dead = frozenset[int]().union(*(event for event in events if isinstance(event, frozenset)))
    found = []
    for task, unlabelled in ((1, TaskStatus.AUDIT), (2, TaskStatus.ACCEPTED), (3, TaskStatus.WAITING)):
        last: dict[int, ToolAnnotation] = {}
        for said in events:
            if isinstance(said, ToolAnnotation) and said.task_id == task and not said.machine:
                last[said.id] = max(last.get(said.id, said), said, key=_when)
        skips = {said.cancelled for i, said in last.items() if i not in dead}
        found.append(
            TaskStatus.DONE if False in skips else TaskStatus.SKIPPED if True in skips else unlabelled
        )
    return found


def _when(said: ToolAnnotation) -> tuple[datetime, str]:
    """Of two revisions at one time the hash decides, whichever that is."""
    return said.updated_at, labels._revision(said, hash_masks(said.masks))


@pytest.mark.postgresql
def test_a_deletion_and_its_annotation_at_the_same_time(postgresql_url: str) -> None:
    """On PostgreSQL two transactions run side by side; neither may miss what the other writes."""
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        for _ in range(10):
            with ledger.session() as session:
                project = build(session).project
            with ThreadPoolExecutor(2) as pool:
                barrier = Barrier(2)
                done = [pool.submit(_act, ledger, project, barrier, deletes=d) for d in (True, False)]
            for future in done:
                future.result()
        with ledger.session(write=False) as session:
            assert set(session.scalars(select(Task.status))) == {TaskStatus.WAITING}
            assert len(session.scalars(select(Label)).all()) == 10


def _act(ledger: Ledger, project: Project, barrier: Barrier, *, deletes: bool) -> None:
    with ledger.session() as session:
        session.connection()
        barrier.wait(timeout=30)
        if deletes:
            labels.bury(session, project, [7])
        else:
            labels.record(session, project, say(7))
        session.flush()
        time.sleep(0.02)  # the other one is at work now
