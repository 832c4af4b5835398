"""Pieces of work are tried again, each by itself."""

from __future__ import annotations

import time

import pytest

from active_learning.pace import Pace
from active_learning.ports import ToolUnavailableError
from backend import attempts as module
from backend.attempts import Attempts
from model.errors import ELNetError


def test_what_was_done_is_counted_and_done_again() -> None:
    attempts = Attempts()
    assert [attempts.attempt("a", lambda: 3) for _ in range(2)] == [3, 3]
    assert [attempts.attempt("a", lambda: None) for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("error", [ELNetError("no"), ValueError("no"), ToolUnavailableError("away")])
def test_a_failure_rests_and_stops_nothing_else(error: Exception) -> None:
    attempts, tried = Attempts(), 0

    def fail() -> int:
        nonlocal tried
        tried += 1
        raise error

    assert [attempts.attempt("a", fail) for _ in range(3)] == [0, 0, 0]
    assert tried == 1
    assert attempts.attempt("b", lambda: 1) == 1
    assert attempts.tool_is_down is isinstance(error, ToolUnavailableError)
    assert attempts.attempt("c", lambda: 1, needs_tool=True) == (0 if attempts.tool_is_down else 1)


def test_a_long_look_that_finds_nothing_rests_nine_times_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHEAP_S", 0.01)
    attempts, looks = Attempts(), 0

    def look() -> int:
        nonlocal looks
        looks += 1
        time.sleep(0.05)
        return 0

    began = time.monotonic()
    while time.monotonic() - began < 1.2:
        attempts.attempt("a", look)
    assert 2 <= looks <= 3


def test_a_long_look_that_finds_something_does_not_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHEAP_S", 0.0)
    attempts = Attempts()
    assert [attempts.attempt("a", lambda: 1) for _ in range(3)] == [1, 1, 1]


def test_a_pace_rests_at_least_so_long() -> None:
    pace = Pace(60)
    assert pace.is_due
    with pace.measured():
        pass
    assert not pace.is_due
