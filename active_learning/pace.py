"""Looks at a whole project take longer the larger it is: they are kept to a small part of the time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

PART: Final = 0.1  # of the time, at most


def remainder(took_s: float) -> float:
    """Seconds that must go to other things, so that what took so long is a `PART` of the time."""
    return took_s * (1 / PART - 1)


class Pace:
    """When something that has to be done again and again is due.

    Args:
        least_s: that it rests in any case.
    """

    def __init__(self, least_s: float = 0.0) -> None:
        self._least = least_s
        self._not_before = 0.0  # time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the rest since the last time was long enough."""
        return time.monotonic() >= self._not_before

    def rest(self, took_s: float) -> None:
        """It was done, and took so long: let it rest for as long as `PART` asks for."""
        self._not_before = time.monotonic() + max(self._least, remainder(took_s))

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Do it, and let it rest."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.rest(time.monotonic() - began)
