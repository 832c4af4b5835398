"""How often one may try to sign in: by address, and by name. Kept in this process's memory."""

from __future__ import annotations

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

_BY_ADDRESS = parse("60/15minutes")  # an office may share one
_BY_NAME = parse("10/15minutes")


class SignInLimits:
    """The tries of one application."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def take(self, network: str, name: str) -> bool:
        """Count a try, before it is looked at, so that none slips past; False if it is one too many."""
        return self._limiter.hit(_BY_ADDRESS, "address", network) and self._limiter.hit(
            _BY_NAME, "name", name[:200].casefold()
        )

    def forget(self, name: str) -> None:
        """It was the right password: the failures of this name count no more."""
        self._limiter.clear(_BY_NAME, "name", name[:200].casefold())
