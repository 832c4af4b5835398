"""Promises rehearsed on samples whose answers are known."""

from __future__ import annotations

import numpy as np

from active_learning.guarantee import Promise
from active_learning.rehearsal import Graded, halves, rehearse


def graded(n: int = 200) -> Graded:
    """Two siblings a scene; the score tells the IoU up to a little noise."""
    random = np.random.default_rng(0)
    ious = random.uniform(0, 1, n)
    scores = np.clip(ious + random.normal(0, 0.05, n), 0, 1)
    return Graded(scores.tolist(), ious.tolist(), [f"scene-{i // 2}" for i in range(n)], [None] * n)


def test_siblings_stay_on_one_side() -> None:
    scenes = graded().scenes
    for first, second in halves(scenes, 5):
        assert (first ^ second).all()
        assert first.sum() == 100
        names = np.array(scenes)
        assert not set(names[first]) & set(names[second])


def test_promises_are_counted_as_kept_and_against_what_was_possible() -> None:
    found = rehearse(graded(), Promise(0.5, 0.2, 0.9), 20)
    assert found.kept >= 0.9
    assert 0.2 < found.coverage < found.best < 0.75
    assert found.refused < 0.2
    assert found.risk is not None
    assert 0 <= found.risk < 0.2


def test_what_cannot_be_promised_accepts_nothing() -> None:
    found = rehearse(graded(), Promise(1.0, 0.1, 0.9), 5)
    assert (found.kept, found.coverage, found.risk, found.best, found.refused) == (1, 0, None, 0, 1)


def test_a_single_scene_has_no_halves_to_learn_from() -> None:
    alone = Graded([0.5, 0.6], [0.4, 0.7], ["one", "one"], [None, None])
    found = rehearse(alone, Promise(0.5, 0.2, 0.9), 2)
    assert (found.coverage, found.refused) == (0, 1)
