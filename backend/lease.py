"""Who works on a ledger: each worker has a lease in it, renewed by a heartbeat, and each cycle that runs.

One of them speaks with the labeling tool, under the name `NAME`; others have names of their own, and help it
to predict or to train.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Self
from uuid import uuid4

from sqlalchemy import ColumnElement, and_, delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from active_learning.ledger import Ledger, WorkerLease
from active_learning.ledger.failures import LedgerError
from active_learning.ledger.types import utc_now
from active_learning.waiting import WHOLE, Share
from model.errors import ELNetError

log = logging.getLogger(__name__)

NAME = "worker"
PREFILL = "prefill-"  # how the names of those who only predict begin
CYCLE = "cycle-"  # and of a cycle that runs
HEARTBEAT_S = 5.0
STANDBY_S = 1.0  # between two looks at whether the lease is free
STALE_S = 25.0
FORGET_S = 3600.0  # after which a silent helper is not told of any more


class LeaseError(ELNetError):
    """Another worker holds this ledger, or has taken it over."""


class HeldError(LeaseError):
    """Another worker holds this ledger."""


class Lease:
    """The right to work on a ledger under a name, held while the context lasts.

    A lease without a heartbeat for `STALE_S` is taken over, and at once if its process is seen to be dead on
    this machine. Between machines the clocks must agree within a few seconds.

    Args:
        ledger: the ledger.
        lost: called, in the heartbeat's thread, when another worker has taken over or might have: the ledger
            could not be reached for so long that the lease went stale.
        name: of the right.
    """

    def __init__(self, ledger: Ledger, lost: Callable[[], None], name: str = NAME) -> None:
        self._ledger = ledger
        self._lost = lost
        self._name = name
        self._holder = f"{uuid4().hex[:24]}:{_process_space()}"
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._take()
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._heart.join()
        try:
            with self._ledger.session() as session:
                session.execute(delete(WorkerLease).where(self._own()))
        except LedgerError as error:
            log.warning("the lease could not be given back, it goes stale in %.0f s: %s", STALE_S, error)

    def _take(self) -> None:
        try:
            with self._ledger.session() as session:
                self._forget(session)
                mine = select(WorkerLease).where(WorkerLease.name == self._name)
                held = session.scalar(mine.with_for_update())
                if held is not None:
                    self._refuse_if_alive(held)
                    session.delete(held)
                    session.flush()
                session.add(
                    WorkerLease(
                        name=self._name,
                        holder=self._holder,
                        host=socket.gethostname(),
                        pid=os.getpid(),
                        heartbeat_at=utc_now(),
                    )
                )
        except IntegrityError as error:  # two workers began in the same moment
            raise HeldError("another worker has just started on this ledger; stop it first") from error

    def _forget(self, session: Session) -> None:
        """Drop what tells nobody anything: helpers that fell silent long ago, cycles that nobody runs."""
        forgotten = utc_now() - timedelta(seconds=FORGET_S)
        session.execute(delete(WorkerLease).where(WorkerLease.heartbeat_at < forgotten))
        others = WorkerLease.name.startswith(CYCLE), WorkerLease.name != self._name
        for held in session.scalars(select(WorkerLease).where(*others)).all():
            if silence_s(held) >= STALE_S or _is_dead(held):
                same = WorkerLease.name == held.name, WorkerLease.heartbeat_at == held.heartbeat_at
                session.execute(delete(WorkerLease).where(*same))

    def _refuse_if_alive(self, held: WorkerLease) -> None:
        age = silence_s(held)
        if age >= STALE_S:
            log.warning("taking over from the worker %s on %s, silent for %.0f s", held.pid, held.host, age)
        elif _is_dead(held):
            log.warning("taking over from the worker %s, which is dead", held.pid)
        else:
            raise HeldError(
                f"a worker already runs on this ledger: host {held.host}, pid {held.pid}, last heard of "
                f"{max(age, 0):.0f} s ago; stop it first (if it is dead, wait {STALE_S:.0f} s)"
            )

    def is_held(self) -> bool:
        """Whether the ledger still knows this lease.

        Raises:
            LedgerError: the ledger cannot be had.
        """
        with self._ledger.session(write=False) as session:
            return session.scalar(select(WorkerLease.name).where(self._own())) is not None

    def _beat(self) -> None:
        last = time.monotonic()
        while not self._released.wait(HEARTBEAT_S):
            try:
                with self._ledger.session() as session:
                    held = self._renew(session)
            except LedgerError as error:
                log.warning("no heartbeat: %s", error)
                held = time.monotonic() - last < STALE_S - HEARTBEAT_S
            else:
                last = time.monotonic() if held else last
            if not held:
                log.error("the lease on the ledger is lost")
                self._lost()
                return

    def _renew(self, session: Session) -> bool:
        changed = session.execute(
            update(WorkerLease).where(self._own()).values(heartbeat_at=utc_now()).returning(WorkerLease.name)
        )
        return changed.first() is not None

    def _own(self) -> ColumnElement[bool]:
        return and_(WorkerLease.name == self._name, WorkerLease.holder == self._holder)


def share_of(ledger: Ledger, name: str) -> Share:
    """What a worker is to predict: the tasks are shared out among those who do and whose heart beats."""
    alive = WorkerLease.heartbeat_at > utc_now() - timedelta(seconds=STALE_S)
    predicts = or_(WorkerLease.name == NAME, WorkerLease.name.startswith(PREFILL))
    with ledger.session(write=False) as session:
        names = session.scalars(
            select(WorkerLease.name).where(alive, predicts).order_by(WorkerLease.name)
        ).all()
    return Share(names.index(name), len(names)) if name in names else WHOLE


def _process_space() -> str:
    """What tells process ids of this container from those of another one under the same host name."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        return "-"


def silence_s(held: WorkerLease) -> float:
    """Seconds since its heartbeat."""
    return (utc_now() - held.heartbeat_at).total_seconds()


def _is_dead(held: WorkerLease) -> bool:
    """Whether the holder was a process of this machine that no longer exists."""
    same_space = held.holder.rpartition(":")[2] == _process_space()
    if not same_space or held.host != socket.gethostname():
        return False
    try:
        os.kill(held.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # alive, and another user's
    return False
