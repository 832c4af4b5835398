"""How a worker goes on until it hears that it is to stop."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from active_learning.context import Interrupted
from backend.lease import LeaseError

log = logging.getLogger(__name__)


class Term:
    """How long a worker works: until it is told to stop, or until it loses a lease.

    Attributes:
        over: set when it is to stop; no part of a worker outlives another.
    """

    def __init__(self) -> None:
        self.over = threading.Event()
        self._lost_lease = False

    def end(self) -> None:
        """Stop; safe from any thread and from a signal handler."""
        self.over.set()

    def lose(self) -> None:
        """A lease is gone: stop before another worker and this one do the same work."""
        self._lost_lease = True
        self.over.set()

    def check_lease(self) -> None:
        """Raise `LeaseError` if that is why the worker stopped."""
        if self._lost_lease:
            raise LeaseError(
                "the lease on the ledger was lost: another worker has taken over, or the ledger was out of "
                "reach for so long that one may have; so this one stopped"
            )

    @contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end it; only the main thread can hear them."""

        def hear(number: int, _frame: FrameType | None) -> None:
            log.info("%s: the worker is stopping", signal.Signals(number).name)
            self.end()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def spend(self, work: Callable[[], int], pause_s: float) -> None:
        """Do a piece of work again and again until it is over; pause where there was none to do.

        It is over after that, however that came.
        """
        try:
            while not self.over.is_set():
                if not work():
                    self.over.wait(pause_s)
        except Interrupted:
            pass
        finally:
            self.end()
