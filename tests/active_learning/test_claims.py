"""Claims of a process that shares its ledger with no other."""

from __future__ import annotations

from active_learning.claims import SoleClaims


def test_a_cycle_runs_once_at_a_time() -> None:
    claims = SoleClaims()
    assert claims.take(1)
    assert not claims.take(1)
    assert claims.take(2)
    claims.give_back(1)
    claims.give_back(1)
    assert claims.take(1)
    assert claims.holds(1)
