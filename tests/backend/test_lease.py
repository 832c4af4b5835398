"""One worker per ledger."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from datetime import timedelta

import pytest
from sqlalchemy import delete, select, update

from active_learning.ledger import Ledger, WorkerLease
from active_learning.ledger.failures import LedgerError
from active_learning.ledger.types import utc_now
from backend import lease as leases
from backend.lease import Lease, LeaseError


@pytest.fixture(autouse=True)
def _fast_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.05)


def never() -> None:
    pytest.fail("the lease was not lost")


def held(ledger: Ledger) -> WorkerLease | None:
    with ledger.session(write=False) as session:
        return session.scalar(select(WorkerLease))


def leave(ledger: Ledger, *, pid: int, age_s: float = 0, host: str | None = None, space: str = "") -> None:
    """A lease that some worker left behind."""
    with ledger.session() as session:
        session.add(
            WorkerLease(
                name=leases.NAME,
                holder=f"another:{space or leases._process_space()}",
                host=host or socket.gethostname(),
                pid=pid,
                heartbeat_at=utc_now() - timedelta(seconds=age_s),
            )
        )


@pytest.fixture
def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_it_is_taken_and_given_back(ledger: Ledger) -> None:
    with Lease(ledger, never):
        row = held(ledger)
        assert row is not None
        assert (row.host, row.pid) == (socket.gethostname(), os.getpid())
    assert held(ledger) is None


def test_a_second_worker_is_refused_and_told_who_works(ledger: Ledger) -> None:
    with Lease(ledger, never):
        second = Lease(ledger, never)
        said = rf"host {socket.gethostname()}, pid {os.getpid()}.*stop it first"
        with pytest.raises(LeaseError, match=said):
            second.__enter__()
        assert held(ledger) is not None


@pytest.mark.postgresql
def test_the_same_on_postgresql(postgresql_url: str) -> None:
    lost = threading.Event()
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        with Lease(ledger, lost.set):
            with pytest.raises(LeaseError, match="already runs"):
                Lease(ledger, never).__enter__()
            with ledger.session() as session:
                session.execute(update(WorkerLease).values(holder="somebody else"))
            assert lost.wait(10)
        leave_alone = held(ledger)
        assert leave_alone is not None


def test_the_heart_beats(ledger: Ledger) -> None:
    with Lease(ledger, never):
        row = held(ledger)
        assert row is not None
        first = row.heartbeat_at
        for _ in range(100):
            now = held(ledger)
            assert now is not None
            if now.heartbeat_at > first:
                break
            threading.Event().wait(0.05)
        else:
            pytest.fail("no heartbeat")


def test_a_silent_one_is_taken_over(ledger: Ledger) -> None:
    leave(ledger, pid=os.getppid(), age_s=31)
    with Lease(ledger, never):
        row = held(ledger)
        assert row is not None
        assert row.pid == os.getpid()


def test_one_that_died_here_is_taken_over_at_once(ledger: Ledger, dead_pid: int) -> None:
    leave(ledger, pid=dead_pid)
    with Lease(ledger, never):
        pass


@pytest.mark.parametrize("where", [{"host": "another-host"}, {"space": "another-container"}])
def test_a_process_that_cannot_be_seen_is_not_taken_for_dead(
    ledger: Ledger, dead_pid: int, where: dict[str, str]
) -> None:
    leave(ledger, pid=dead_pid, **where)
    with pytest.raises(LeaseError):
        Lease(ledger, never).__enter__()


def test_another_users_process_is_alive(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(leases.os, "kill", refuse)
    leave(ledger, pid=1)
    with pytest.raises(LeaseError):
        Lease(ledger, never).__enter__()


def test_a_taken_over_worker_hears_of_it_and_leaves_the_other_alone(ledger: Ledger) -> None:
    lost = threading.Event()
    with Lease(ledger, lost.set):
        with ledger.session() as session:
            session.execute(update(WorkerLease).values(holder="somebody else"))
        assert lost.wait(10)
    row = held(ledger)
    assert row is not None
    assert row.holder == "somebody else"


def test_a_lease_that_vanished_is_lost(ledger: Ledger) -> None:
    lost = threading.Event()
    with Lease(ledger, lost.set):
        with ledger.session() as session:
            session.execute(delete(WorkerLease))
        assert lost.wait(10)


def test_a_ledger_out_of_reach_loses_it_before_others_may_take_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = threading.Event()
    monkeypatch.setattr(leases, "STALE_S", 0.5)
    with Lease(ledger, lost.set) as lease:

        def fail(_session: object) -> bool:
            raise LedgerError("the ledger is away")

        monkeypatch.setattr(lease, "_renew", fail)
        assert not lost.wait(0.2)
        assert lost.wait(10)
