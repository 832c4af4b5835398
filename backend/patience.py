"""How long to leave alone what has just failed."""

from __future__ import annotations

import random
import time

FIRST_S = 1.0
LONGEST_S = 60.0


class Patience:
    """Exponential backoff with jitter: 1, 2, 4 ... 60 seconds, each shortened by up to a half at random."""

    def __init__(self) -> None:
        self._failures = 0
        self._ready_at = 0.0

    @property
    def is_over(self) -> bool:
        """Whether it may be tried (again)."""
        return time.monotonic() >= self._ready_at

    def failed(self) -> float:
        """It failed; returns the seconds to wait."""
        delay = min(LONGEST_S, FIRST_S * 2.0**self._failures) * random.uniform(0.5, 1)
        self._failures = min(self._failures + 1, 10)
        self._ready_at = time.monotonic() + delay
        return delay

    def succeeded(self) -> None:
        """It went well: the next failure waits the shortest time."""
        self._failures = 0
