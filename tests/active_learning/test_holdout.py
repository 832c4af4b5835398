from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from sqlalchemy import select

from active_learning import holdout, labels, quality, queue, risk, routing
from active_learning.holdout import HoldoutError
from active_learning.ledger import (
    HoldoutScene,
    LabelSource,
    ModelVersion,
    Project,
    Scene,
    Task,
    TaskStatus,
    TrainScene,
)
from active_learning.prefill import predict_waiting
from active_learning.snapshot import take
from active_learning.snapshot_files import stem_of


def draw(loop: Any, images: int) -> int:
    with loop.ledger.session() as session:
        return holdout.draw(session, session.get_one(Project, loop.project_id), images)


def drawn(loop: Any) -> list[Task]:
    with loop.ledger.session(write=False) as session:
        return list(session.scalars(select(Task).where(Task.holdout).order_by(Task.id)))


def scenes(loop: Any, kind: type[Scene]) -> set[str]:
    with loop.ledger.session(write=False) as session:
        return {row.scene for row in session.scalars(select(kind))}


def images(loop: Any, count: int) -> list[Any]:
    return [loop.image(0.9, seed=number) for number in range(count)]


@pytest.fixture
def many(loop: Any) -> Any:
    """Thirty images, each a scene of its own."""
    loop.add(*images(loop, 30))
    return loop


def test_so_many_are_drawn_and_no_more_at_the_next_call(many: Any) -> None:
    assert draw(many, 8) == 8
    first = [task.id for task in drawn(many)]
    assert len(first) == 8
    assert scenes(many, HoldoutScene) == {task.scene for task in drawn(many)}
    assert (draw(many, 8), draw(many, 5)) == (0, 0)
    assert draw(many, 10) == 2
    assert set(first) < {task.id for task in drawn(many)}


def test_the_draw_looks_random_and_hangs_on_the_projects_name(make_loop: Any, ledger: Any) -> None:
    found = []
    for name in ("one", "two"):
        loop = make_loop(ledger)
        loop.configure(name=name, tool_project_id=hash(name) % 1000)
        loop.images.known.clear()
        loop.add(*images(loop, 30))
        draw(loop, 10)
        with ledger.session(write=False) as session:
            query = select(Task).where(Task.project_id == loop.project_id).order_by(Task.id)
            found.append([number for number, task in enumerate(session.scalars(query)) if task.holdout])
    assert len(found[0]) == len(found[1]) == 10
    assert found[0] != found[1]
    assert found[0] != list(range(10))


def test_one_scene_gives_only_a_part(loop: Any) -> None:
    for number in range(6):
        loop.add(*images(loop, 20), scene=f"large-{number}")
    draw(loop, 10)
    of_scene = Counter(task.scene for task in drawn(loop))
    assert sum(of_scene.values()) == 10
    assert max(of_scene.values()) == 4
    assert len(of_scene) == 3  # half of them are left to train on


def test_with_two_scenes_one_is_left_alone(loop: Any) -> None:
    for number in range(2):
        loop.add(*images(loop, 20), scene=f"large-{number}")
    draw(loop, 10)
    assert len({task.scene for task in drawn(loop)}) == 1


def test_too_many_are_refused_and_nothing_is_drawn(loop: Any) -> None:
    loop.add(*images(loop, 3))
    with pytest.raises(HoldoutError, match="has 3 images of 3 scenes; 4 for the holdout would leave too few"):
        draw(loop, 4)
    with pytest.raises(HoldoutError, match="Draw fewer, or import more"):
        draw(loop, 3)
    assert (drawn(loop), scenes(loop, HoldoutScene)) == ([], set())
    assert draw(loop, 2) == 2


def test_what_was_trained_on_or_labelled_is_not_drawn(loop: Any) -> None:
    trained, labelled, *free = loop.add(*images(loop, 6))
    with loop.ledger.session() as session:
        session.add(TrainScene(project_id=loop.project_id, scene=loop.task(trained).scene))
    loop.label(labelled)
    draw(loop, 4)
    assert [task.id for task in drawn(loop)] == free


def test_drawn_images_go_to_people_first_and_stay_there(many: Any, make_predictor: Any) -> None:
    draw(many, 8)
    routing.settle(many.ledger, many.project_id)
    queue.reorder(many.ledger, many.project_id)
    for task in drawn(many):
        assert task.status is TaskStatus.AUDIT
        assert 1 <= task.priority <= 2
        assert many.decisions(task.id)[-1].reason == routing.FOR_HOLDOUT
    others = [task for task in many._all(select(Task)) if not task.holdout]
    assert {task.status for task in others} == {TaskStatus.REVIEW}
    assert all(task.priority < 1 for task in others)

    many.promote()
    many.configure(accept_threshold=0.0)
    predict_waiting(many.ledger, many.project_id, make_predictor(), many.images)
    assert {task.status for task in drawn(many)} == {TaskStatus.AUDIT}
    others = [task for task in many._all(select(Task)) if not task.holdout]
    assert {task.status for task in others} == {TaskStatus.ACCEPTED}
    with many.ledger.session(write=False) as session:
        tried = risk.what_if(session, session.get_one(Project, many.project_id), 0.0)
    assert (tried.accepted, tried.audit) == (22, 8)
    assert routing.settle(many.ledger, many.project_id) == 0


def test_their_labels_are_audits_and_start_no_cycle(many: Any) -> None:
    draw(many, 3)
    first = drawn(many)[0]
    many.label(first.id)
    assert [label.source for label in many.labels(first.id)] == [LabelSource.AUDIT]
    teaches = next(task for task in many._all(select(Task)) if not task.holdout)
    many.label(teaches.id)
    with many.ledger.session(write=False) as session:
        assert labels.labels_since(session, session.get_one(Project, many.project_id), None) == 1


def test_a_snapshot_trains_on_the_others(many: Any, tmp_path: Any) -> None:
    draw(many, 8)
    judging = [task.id for task in drawn(many)]
    teaching = [task.id for task in many._all(select(Task).order_by(Task.id)) if not task.holdout][:12]
    for task_id in judging + teaching:
        many.label(task_id)
    with many.ledger.session() as session:
        frozen = take(session, session.get_one(Project, many.project_id), many.images, tmp_path)
        manifest = frozen.manifest
    assert [entry["task_id"] for entry in manifest["holdout"]] == sorted(judging)
    assert [entry["task_id"] for entry in manifest["train"]] == teaching


def test_they_calibrate_every_version_though_none_had_prefilled_them(many: Any) -> None:
    draw(many, 3)
    for task in drawn(many):
        many.label(task.id)
    version_id = many.promote()
    judged = [{"image": stem_of(task.id), "iou": 0.5, "score": 0.7, "features": None} for task in drawn(many)]
    with many.ledger.session() as session:
        project = session.get_one(Project, many.project_id)
        version = session.get_one(ModelVersion, version_id)
        assert quality.calibration_samples(session, project, version) == []
        version.metrics = {"per_image": judged}
        samples = quality.calibration_samples(session, project, version)
    assert [(s.score, s.iou, s.version) for s in samples] == [(0.7, 0.5, version_id)] * 3
    assert [s.scene for s in samples] == [task.scene for task in drawn(many)]
