"""Backoff: longer after each failure, bounded, never in step with others."""

from __future__ import annotations

import pytest

from backend import patience
from backend.patience import Patience


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    return clock


def test_it_may_be_tried_at_first(clock: Clock) -> None:
    assert Patience().is_over


def test_after_a_failure_it_rests_as_long_as_it_said(clock: Clock) -> None:
    resting = Patience()
    delay = resting.failed()
    assert 0.5 <= delay <= 1
    assert not resting.is_over
    clock.now += delay + 1e-6
    assert resting.is_over


def test_delays_double_up_to_a_minute(clock: Clock) -> None:
    resting = Patience()
    delays = [resting.failed() for _ in range(2000)]
    for power, delay in enumerate(delays[:6]):
        assert 2**power / 2 <= delay <= 2**power
    assert all(30 <= delay <= 60 for delay in delays[6:])
    assert len(set(delays)) > 1900  # jitter


def test_a_success_begins_anew(clock: Clock) -> None:
    resting = Patience()
    for _ in range(5):
        resting.failed()
    resting.succeeded()
    assert resting.failed() <= 1
