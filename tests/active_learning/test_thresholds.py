from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from active_learning import routing, thresholds
from active_learning.ledger import Prediction, Project
from active_learning.thresholds import ThresholdError


def predicted(loop: Any, *qualities: float) -> list[int]:
    version = loop.promote()
    ids = loop.add(*["x"] * len(qualities))
    with loop.ledger.session() as session:
        for task_id, quality in zip(ids, qualities, strict=True):
            session.add(
                Prediction(
                    task_id=task_id,
                    model_version_id=version,
                    masks=np.zeros((1, 4, 4), np.bool_),
                    score=quality,
                    quality=quality,
                    signals={"usable": True, "classes": []},
                )
            )
        session.flush()
        routing.route(session, session.get_one(Project, loop.project_id))
    return ids


def move(loop: Any, value: float | None, who: str = "lea", why: str = "too strict") -> None:
    with loop.ledger.session() as session:
        thresholds.set_threshold(session, session.get_one(Project, loop.project_id), value, who, why)


def history(loop: Any) -> list[tuple[str, float | None, float | None, str]]:
    with loop.ledger.session(write=False) as session:
        changes = thresholds.history(session, session.get_one(Project, loop.project_id))
        return [(c.who, c.from_value, c.to_value, c.why) for c in changes]


def statuses(loop: Any, ids: list[int]) -> list[str]:
    return [loop.task(i).status.value for i in ids]


def test_a_change_is_written_down_and_everything_is_routed_again(loop):
    ids = predicted(loop, 0.95, 0.85)
    assert statuses(loop, ids) == ["accepted", "review"]
    move(loop, 0.8)
    assert statuses(loop, ids) == ["accepted", "accepted"]
    move(loop, None, why="the lead is on holiday")
    assert statuses(loop, ids) == ["review", "review"]
    assert history(loop) == [
        ("lea", 0.8, None, "the lead is on holiday"),
        ("lea", 0.9, 0.8, "too strict"),
    ]


def test_undo_takes_the_last_change_back_and_undoing_twice_brings_it_back(loop):
    ids = predicted(loop, 0.85)
    move(loop, 0.8)
    for expected, status in ((0.9, "review"), (0.8, "accepted")):
        with loop.ledger.session() as session:
            change = thresholds.undo(session, session.get_one(Project, loop.project_id), "max")
            assert change.to_value == expected
        assert loop.project().accept_threshold == expected
        assert statuses(loop, ids) == [status]
    assert len(history(loop)) == 3
    assert "undoes the change to 0.8 by lea" in history(loop)[1][3]


def test_what_was_never_changed_cannot_be_undone(loop):
    with loop.ledger.session() as session, pytest.raises(ThresholdError, match="never changed"):
        thresholds.undo(session, session.get_one(Project, loop.project_id), "max")


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), 0.9])
def test_a_threshold_that_is_none_or_no_change_is_refused(loop, value):
    with pytest.raises(ThresholdError):
        move(loop, value)
    assert history(loop) == []
    assert loop.project().accept_threshold == 0.9


@pytest.mark.parametrize(("who", "why"), [("", "x"), ("x", " ")])
def test_a_change_needs_who_and_why(loop, who, why):
    with pytest.raises(ThresholdError, match="who made it and why"):
        move(loop, 0.5, who, why)


def test_a_label_by_a_person_stays_when_the_threshold_moves(loop):
    (task,) = predicted(loop, 0.85)
    loop.label(task)
    move(loop, 0.1)
    assert statuses(loop, [task]) == ["done"]
