"""Which worker runs a cycle: nobody starts one that he has not claimed."""

from __future__ import annotations

import threading
from typing import Protocol


class Claims(Protocol):
    """The cycles that this process runs. Safe under threads."""

    def take(self, cycle_id: int) -> bool:
        """Claim a cycle; False where somebody runs it, this process included, or it has enough to do."""

    def holds(self, cycle_id: int) -> bool:
        """Whether the claim still stands: a worker that was out of reach for long may have lost it."""

    def give_back(self, cycle_id: int) -> None:
        """It does not run here any more. Safe to repeat."""


class SoleClaims:
    """Those of a process that shares its ledger with no other."""

    def __init__(self) -> None:
        self._held: set[int] = set()
        self._lock = threading.Lock()

    def take(self, cycle_id: int) -> bool:
        """See `Claims`."""
        with self._lock:
            if cycle_id in self._held:
                return False
            self._held.add(cycle_id)
            return True

    def holds(self, cycle_id: int) -> bool:
        """See `Claims`."""
        return True

    def give_back(self, cycle_id: int) -> None:
        """See `Claims`."""
        self._held.discard(cycle_id)
