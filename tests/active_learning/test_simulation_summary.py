from __future__ import annotations

import json

import pytest

from active_learning.simulation import FULL, Round
from active_learning.simulation_summary import summarise


def row(strategy: str, seed: int, labels: int, fg_iou: float) -> Round:
    promised = (0.4, None if seed else 0.15, seed / 2)  # only the first seed's run accepts anything
    return Round(
        strategy, seed, labels, True, fg_iou, fg_iou, 0.5, 0.7, 0.2, *promised, labels / 10, labels, 1.0
    )


def test_the_summary_is_of_medians_and_says_where_the_target_is_reached() -> None:
    rounds = [
        *(row("a", seed, 10, iou) for seed, iou in enumerate([0.2, 0.4, 0.9])),
        *(row("a", seed, 20, iou) for seed, iou in enumerate([0.3, 0.6, 0.8])),
        *(row("b", seed, 10, 0.1) for seed in range(3)),
        *(row(FULL, seed, 99, 0.5 / 0.95) for seed in range(3)),
    ]
    first, second, other, _ = summarise(rounds)
    assert (first.fg_iou, first.lowest, first.highest, first.seeds) == (0.4, 0.2, 0.9, 3)
    assert (first.accepted, first.realised_risk, first.promise_kept) == (0.4, 0.15, 0.5)
    assert first.rose is None
    assert second.rose == pytest.approx(2 / 3)
    assert other.rose is None
    assert first.labels_for_target == second.labels_for_target == pytest.approx(15)
    assert other.labels_for_target is None
    assert json.dumps([s.strategy for s in (first, other)]) == '["a", "b"]'
