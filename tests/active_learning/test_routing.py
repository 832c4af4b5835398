from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from active_learning import routing
from active_learning.ledger import Prediction, Project, Task, TaskStatus
from active_learning.ledger.draws import audit_draw


def store(loop: Any, task_id: int, version: int, quality: float, usable: bool = True) -> int:
    with loop.ledger.session() as session:
        prediction = Prediction(
            task_id=task_id,
            model_version_id=version,
            masks=np.zeros((1, 4, 4), np.bool_),
            score=quality,
            quality=quality,
            signals={"usable": usable, "classes": []},
        )
        session.add(prediction)
        session.flush()
        return prediction.id


def route(loop: Any, *ids: int) -> int:
    with loop.ledger.session() as session:
        tasks = [session.get_one(Task, i) for i in ids] if ids else None
        return routing.route(session, session.get_one(Project, loop.project_id), tasks)


@pytest.mark.parametrize(
    ("quality", "threshold", "draw", "status", "words"),
    [
        (0.95, 0.9, 0.5, TaskStatus.ACCEPTED, "0.950 reaches the threshold 0.9"),
        (0.9, 0.9, 0.5, TaskStatus.ACCEPTED, "reaches"),
        (0.8999, 0.9, 0.5, TaskStatus.REVIEW, "0.899 is below the threshold 0.9"),
        (0.95, 0.9, 0.05, TaskStatus.AUDIT, "drawn at random for the audit (10% of all masks)"),
        (0.85, 0.9, 0.05, TaskStatus.AUDIT, "predicted IoU 0.850"),
        (0.85, None, 0.05, TaskStatus.AUDIT, "drawn at random"),
        (None, 0.9, 0.05, TaskStatus.REVIEW, "no usable score"),
        (1.0, None, 0.5, TaskStatus.REVIEW, "no accept threshold"),
        (None, 0.0, 0.5, TaskStatus.REVIEW, "no usable score"),
        (math.nan, 0.0, 0.5, TaskStatus.REVIEW, "no usable score"),
        (math.inf, 0.0, 0.5, TaskStatus.REVIEW, "no usable score"),
        (1.5, 0.0, 0.5, TaskStatus.REVIEW, "no usable score"),
    ],
)
def test_a_decision_and_its_reason(quality, threshold, draw, status, words):
    decided, reason = routing.decide(quality, threshold, audit_share=0.1, draw=draw)
    assert decided is status
    assert words in reason


@given(st.floats(), st.floats(0, 1) | st.none(), st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_nothing_below_the_threshold_is_ever_accepted(quality, threshold, share, draw):
    status, _ = routing.decide(quality, threshold, share, draw)
    if status is TaskStatus.ACCEPTED:
        assert threshold is not None
        assert threshold <= quality <= 1


def test_the_audit_draw_is_fixed_uniform_and_differs_between_versions():
    draws = [audit_draw(task, "elnet-0001") for task in range(4000)]
    assert draws == [audit_draw(task, "elnet-0001") for task in range(4000)]
    assert 0.08 < np.mean([d < 0.1 for d in draws]) < 0.12
    others = [audit_draw(task, "elnet-0002") for task in range(4000)]
    assert abs(np.corrcoef(draws, others)[0, 1]) < 0.05


def test_without_a_champion_everything_goes_to_a_human(loop):
    ids = loop.add("x", "y")
    assert route(loop) == 2
    assert [loop.task(i).status for i in ids] == [TaskStatus.REVIEW] * 2
    assert loop.decisions(ids[0])[0].reason == "no model version serves yet"
    assert route(loop) == 0


def test_predictions_of_the_champion_are_routed_and_those_without_wait(loop):
    good, bad, lacking = loop.add("x", "y", "z")
    version = loop.promote()
    prediction = store(loop, good, version, 0.95)
    store(loop, bad, version, 0.5)
    assert route(loop) == 2
    assert [loop.task(i).status for i in (good, bad, lacking)] == ["accepted", "review", "waiting"]
    (decision,) = loop.decisions(good)
    assert (decision.prediction_id, decision.quality, decision.threshold) == (prediction, 0.95, 0.9)
    assert loop.task(good).quality == 0.95
    assert loop.task(bad).quality == 0.5


def test_an_unusable_prediction_goes_to_a_human_even_when_everything_is_accepted(loop):
    (task,) = loop.add("x")
    store(loop, task, loop.promote(), 0.0, usable=False)
    loop.configure(accept_threshold=0.0)
    route(loop)
    assert loop.task(task).status is TaskStatus.REVIEW
    assert loop.task(task).quality is None


def test_only_the_tasks_that_were_named_are_routed(loop):
    one, other = loop.add("x", "y")
    version = loop.promote()
    store(loop, one, version, 0.95)
    store(loop, other, version, 0.95)
    route(loop, one)
    assert loop.task(other).status is TaskStatus.WAITING


def test_what_people_said_is_left_alone(loop):
    done, gone = loop.add("x", "y")
    version = loop.promote()
    for task in (done, gone):
        store(loop, task, version, 0.99)
    loop.label(done)
    with loop.ledger.session() as session:
        session.get_one(Task, gone).status = TaskStatus.GONE
    assert route(loop) == 0
    assert loop.task(done).status is TaskStatus.DONE
    assert loop.task(gone).status is TaskStatus.GONE


def test_a_decision_is_written_once_and_again_only_when_it_changes(loop):
    (task,) = loop.add("x")
    store(loop, task, loop.promote(), 0.95)
    assert [route(loop), route(loop), route(loop, task)] == [1, 0, 0]
    loop.configure(accept_threshold=0.99)
    assert route(loop) == 1
    assert [d.status for d in loop.decisions(task)] == ["accepted", "review"]


def test_the_audit_share_is_drawn_from_all_masks_good_or_bad(loop):
    ids = loop.add(*["x"] * 200)
    version = loop.promote()
    for task in ids:
        store(loop, task, version, 0.95 if task % 2 else 0.3)
    loop.configure(audit_share=0.2)
    route(loop)
    drawn = {i for i in ids if loop.task(i).status is TaskStatus.AUDIT}
    assert 20 < len(drawn) < 60
    assert drawn == {i for i in ids if audit_draw(i, "elnet-0001") < 0.2}


def test_settle_routes_again_after_a_promotion_back_and_forth(loop):
    (task,) = loop.add("x")
    first = loop.promote("elnet-0001")
    store(loop, task, first, 0.95)
    route(loop)
    second = loop.promote("elnet-0002")
    assert routing.settle(loop.ledger, loop.project_id) == 0  # waits for the new champion's prediction
    assert loop.task(task).status is TaskStatus.ACCEPTED
    store(loop, task, second, 0.3)
    assert routing.settle(loop.ledger, loop.project_id) == 1
    assert loop.task(task).status is TaskStatus.REVIEW
    loop.promote("elnet-0001")
    assert routing.settle(loop.ledger, loop.project_id) == 1
    assert loop.task(task).status is TaskStatus.ACCEPTED
    assert routing.settle(loop.ledger, loop.project_id) == 0


@pytest.mark.parametrize("change", ["quality", "threshold", "unusable", "status"])
def test_settle_finds_whatever_a_decision_no_longer_fits(loop, change):
    (task,) = loop.add("x")
    version = loop.promote()
    prediction = store(loop, task, version, 0.95)
    route(loop)
    with loop.ledger.session() as session:
        if change == "quality":
            session.get_one(Prediction, prediction).quality = 0.4
        elif change == "unusable":
            session.get_one(Prediction, prediction).signals = {"usable": False, "classes": []}
        elif change == "threshold":
            session.get_one(Project, loop.project_id).accept_threshold = 0.99
        else:
            session.get_one(Task, task).status = TaskStatus.WAITING
    routing.settle(loop.ledger, loop.project_id)
    expected = TaskStatus.ACCEPTED if change == "status" else TaskStatus.REVIEW
    assert loop.task(task).status is expected
    assert routing.settle(loop.ledger, loop.project_id) == 0


def test_settle_goes_through_many_tasks_in_small_transactions(loop, monkeypatch):
    monkeypatch.setattr(routing, "_CHUNK", 2)
    ids = loop.add(*["x"] * 5)
    assert routing.settle(loop.ledger, loop.project_id) == 5
    assert {loop.task(i).status for i in ids} == {TaskStatus.REVIEW}


def test_settle_sends_what_waits_to_humans_when_there_is_no_model(loop):
    (task,) = loop.add("x")
    assert routing.settle(loop.ledger, loop.project_id) == 1
    assert loop.task(task).status is TaskStatus.REVIEW
