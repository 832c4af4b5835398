"""Claims on cycles, between workers and between machines."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, select

from active_learning.ledger import Ledger, WorkerLease
from backend import lease as leases
from backend.claims import LeasedClaims
from backend.lease import NAME, Lease, share_of


@pytest.fixture(autouse=True)
def _fast_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.05)


def claims(ledger: Ledger, slots: int | None = None) -> LeasedClaims:
    return LeasedClaims(ledger, lambda: None, slots)


def test_a_cycle_is_claimed_by_one(ledger: Ledger) -> None:
    one, other = claims(ledger), claims(ledger)
    assert one.take(1)
    assert not one.take(1)  # it runs here already
    assert not other.take(1)
    assert other.take(2)
    assert (one.holds(1), one.holds(2), other.holds(1), other.holds(2)) == (True, False, False, True)
    one.give_back(1)
    assert other.take(1)
    for cycle_id in (1, 2, 3):
        other.give_back(cycle_id)
    with ledger.session(write=False) as session:
        assert session.scalars(select(WorkerLease)).all() == []


def test_a_worker_takes_no_more_than_it_has_slots(ledger: Ledger) -> None:
    one = claims(ledger, slots=1)
    assert one.take(1)
    assert not one.take(2)
    one.give_back(1)
    assert one.take(2)
    one.give_back(2)


def test_a_claim_that_was_lost_is_known(ledger: Ledger) -> None:
    lost: list[bool] = []
    one = LeasedClaims(ledger, lambda: lost.append(True))
    assert one.take(1)
    with ledger.session() as session:
        session.execute(delete(WorkerLease))
    assert not one.holds(1)
    one._held[1]._heart.join(10)
    assert lost == [True]
    one.give_back(1)


def test_a_cycle_is_no_worker_that_predicts(ledger: Ledger) -> None:
    one = claims(ledger)
    with Lease(ledger, lambda: None), Lease(ledger, lambda: None, "train-a"):
        assert one.take(1)
        assert share_of(ledger, NAME).of == 1
        one.give_back(1)
