"""Stopping and taking turns."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from active_learning.context import CycleContext, Interrupted, interruptible
from active_learning.inference import PrefillError
from active_learning.ledger import Ledger
from active_learning.predictors import PredictorPool


@pytest.fixture
def context(ledger: Ledger, tmp_path: Path) -> CycleContext:
    nothing: Any = None
    return CycleContext(ledger, nothing, nothing, PredictorPool(), tmp_path)


def test_a_stop_interrupts_checks_and_sleeps(context: CycleContext) -> None:
    context.check()
    context.sleep(0.01)
    threading.Timer(0.2, context.stop.set).start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        context.sleep(60)
    assert time.monotonic() - started < 10
    with pytest.raises(Interrupted):
        context.check()


def test_an_interruption_is_no_failure() -> None:
    assert not issubclass(Interrupted, Exception)


def test_a_tool_can_be_stopped_between_its_calls() -> None:
    stop = threading.Event()
    pages = interruptible(["a", "b"], stop)
    assert pages.index("b") == 1
    stop.set()
    with pytest.raises(Interrupted):
        pages.index("b")


def test_one_at_a_time_prefills_a_project(context: CycleContext) -> None:
    with context.alone("predict", 1):
        with context.alone_if_free("predict", 1) as free:
            assert not free
        with context.alone_if_free("predict", 2) as free:
            assert free
    with context.alone_if_free("predict", 1) as free:
        assert free
        with context.alone_if_free("predict", 1) as again:
            assert not again
    with context.alone_if_free("predict", 1) as free:
        assert free


def test_waiting_for_the_other_can_be_interrupted(context: CycleContext) -> None:
    with context.alone("predict", 1):
        threading.Timer(0.2, context.stop.set).start()
        with pytest.raises(Interrupted), context.alone("predict", 1):
            pytest.fail("two at a time")


def test_a_champion_that_was_promoted_meanwhile_is_taken(
    loop: Any, make_predictor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = CycleContext(loop.ledger, loop.images, loop.tool, PredictorPool(), tmp_path)
    loop.add(loop.image(0.8))
    loop.promote("elnet-0001")

    def load(version: Any) -> Any:
        if version.name == "elnet-0001":
            loop.promote("elnet-0002")  # while the first one is loaded
        return make_predictor(version.name)

    monkeypatch.setattr(context.predictors, "get", load)
    assert context.predict_waiting(loop.project_id) == 1


def test_a_predictor_that_does_not_fit_is_no_matter_of_time(
    loop: Any, make_predictor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = CycleContext(loop.ledger, loop.images, loop.tool, PredictorPool(), tmp_path)
    loop.add(loop.image(0.8))
    loop.promote("elnet-0001")
    monkeypatch.setattr(context.predictors, "get", lambda _version: make_predictor("another"))
    with pytest.raises(PrefillError, match="'another'"):
        context.predict_waiting(loop.project_id)


def test_the_other_is_waited_for(context: CycleContext) -> None:
    order: list[str] = []
    taken = threading.Event()

    def first() -> None:
        with context.alone("predict", 1):
            taken.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert taken.wait(10)
    with context.alone("predict", 1):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
