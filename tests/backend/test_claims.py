"""Claims on cycles, between workers and between machines."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import timedelta

import pytest
from sqlalchemy import delete, select

from active_learning.ledger import Ledger, WorkerLease
from active_learning.ledger.types import utc_now
from backend import lease as leases
from backend.claims import LeasedClaims
from backend.lease import NAME, Lease, share_of


@pytest.fixture(autouse=True)
def _fast_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.05)


@pytest.fixture
def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


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


def test_the_claim_of_a_worker_that_died_is_forgotten(ledger: Ledger, dead_pid: int) -> None:
    """That of a cycle which has ended, too, that nobody will ever take."""
    one = claims(ledger)
    assert one.take(1)
    with ledger.session() as session:
        for cycle_id, pid, host, age in (
            (2, dead_pid, None, 0),
            (3, 1, "elsewhere", 30),
            (4, 1, "elsewhere", 3),
        ):
            session.add(
                WorkerLease(
                    name=f"cycle-{cycle_id}",
                    holder=f"another:{leases._process_space()}",
                    host=host or socket.gethostname(),
                    pid=pid,
                    heartbeat_at=utc_now() - timedelta(seconds=age),
                )
            )
    with Lease(ledger, lambda: None), ledger.session(write=False) as session:
        assert set(session.scalars(select(WorkerLease.name))) == {NAME, "cycle-1", "cycle-4"}
    one.give_back(1)


def test_a_cycle_is_no_worker_that_predicts(ledger: Ledger) -> None:
    one = claims(ledger)
    with Lease(ledger, lambda: None), Lease(ledger, lambda: None, "train-a"):
        assert one.take(1)
        assert share_of(ledger, NAME).of == 1
        one.give_back(1)
