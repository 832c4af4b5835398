"""How a worker goes on until it hears that it is to stop."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from active_learning.context import Interrupted

log = logging.getLogger(__name__)


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set the event; only the main thread can hear them."""

    def hear(number: int, _frame: FrameType | None) -> None:
        log.info("%s: the worker is stopping", signal.Signals(number).name)
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work_until(stop: threading.Event, work: Callable[[], int], pause_s: float) -> None:
    """Do a piece of work again and again until the worker is to stop; pause where there was none.

    The event is set at the end, however that came: no part of a worker outlives another.
    """
    try:
        while not stop.is_set():
            if not work():
                stop.wait(pause_s)
    except Interrupted:
        pass
    finally:
        stop.set()
