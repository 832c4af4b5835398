"""Claims that hold between machines: each cycle has a lease in the ledger while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable

from active_learning.ledger import Ledger
from backend.lease import CYCLE, HeldError, Lease


class LeasedClaims:
    """See `active_learning.claims.Claims`. A dead worker's cycles are free when its leases have gone stale.

    Args:
        ledger: the ledger.
        lost: called, in a heartbeat's thread, when a lease is lost: the worker must stop.
        slots: cycles at a time; None: as many as there are.
    """

    def __init__(self, ledger: Ledger, lost: Callable[[], None], slots: int | None = None) -> None:
        self._ledger = ledger
        self._lost = lost
        self._slots = slots
        self._held: dict[int, Lease] = {}
        self._lock = threading.Lock()

    def take(self, cycle_id: int) -> bool:
        """See `Claims`.

        Raises:
            LedgerError: the ledger cannot be had.
        """
        with self._lock:
            if cycle_id in self._held or (self._slots is not None and len(self._held) >= self._slots):
                return False
            lease = Lease(self._ledger, self._lost, f"{CYCLE}{cycle_id}")
            try:
                lease.__enter__()
            except HeldError:
                return False
            self._held[cycle_id] = lease
            return True

    def holds(self, cycle_id: int) -> bool:
        """See `Claims`.

        Raises:
            LedgerError: the ledger cannot be had.
        """
        lease = self._held.get(cycle_id)
        return lease is not None and lease.is_held()

    def give_back(self, cycle_id: int) -> None:
        """See `Claims`."""
        with self._lock:
            lease = self._held.pop(cycle_id, None)
        if lease is not None:
            lease.__exit__()
