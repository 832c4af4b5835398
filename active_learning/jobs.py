"""The engine under the cycles: DBOS, started, fed from the ledger and shut down.

DBOS is one per process. Nothing of it leaves the machine: no admin port, no conductor, no telemetry. What it
stores is JSON (its default would pickle).
"""

from __future__ import annotations

import logging
import socket
from typing import Self
from uuid import uuid4

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID, error
from sqlalchemy import make_url, select
from sqlalchemy.exc import SQLAlchemyError

from active_learning.context import CycleContext
from active_learning.cycle import enter, is_idle, leave, retrain, surround, wait_until_idle
from active_learning.journal import ACTIVE, TAKEN_OVER, Journal, resumptions, takeovers
from active_learning.ledger import Cycle, CycleState
from model.errors import ELNetError

log = logging.getLogger(__name__)

MAX_TAKEOVERS = 20  # a cycle that brings its worker down each time is given up
STOP_S = 12.0
_UNDER_WAY = ("DELAYED", "ENQUEUED", "PENDING")


class JobsError(ELNetError):
    """The engine cannot be started; the text says why."""


class CycleJobs:
    """The cycles of one worker.

    Args:
        context: what the steps work with; its `stop` interrupts them.
        jobs_url: SQLAlchemy URL of the database in which DBOS keeps its workflows.
    """

    def __init__(self, context: CycleContext, jobs_url: str) -> None:
        self._context = context
        self._url = jobs_url

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Launch DBOS.

        Raises:
            CycleRunningError: a worker runs in this process already.
            JobsError: the jobs database cannot be used.
        """
        logging.getLogger("dbos").addHandler(logging.NullHandler())  # else DBOS adds one that prints
        config = DBOSConfig(
            name="elnet-loop",
            system_database_url=self._url,
            application_version="1",  # else DBOS makes one of the code
            executor_id=uuid4().hex,  # DBOS takes up nothing by itself: who runs a cycle is for claims to say
            serializer=DBOSPortableJSONSerializer(),
            enable_otlp=False,
            log_level="ERROR",
            sys_db_pool_size=5,
        )
        surround(self._context)
        try:
            DBOS(config=config)
            DBOS.launch()
        except (SQLAlchemyError, error.DBOSException) as fault:
            self._shut_down()
            where = make_url(self._url).render_as_string(hide_password=True)
            reason = str(fault).splitlines()[0]
            raise JobsError(f"the jobs database {where} cannot be used: {reason}") from fault

    def work_off(self) -> int:
        """Start requested cycles, go on with those whose worker is gone, end those whose workflow is lost.

        Returns:
            How many workflows were started.
        """
        with self._context.ledger.session(write=False) as session:
            active = session.scalars(select(Cycle.id).where(Cycle.state.in_(ACTIVE)).order_by(Cycle.id)).all()
        return sum(self._tend(cycle_id) for cycle_id in active)

    def _tend(self, cycle_id: int) -> bool:
        """Start a cycle, or go on with it, where nobody runs it."""
        if not enter(self._context, cycle_id):
            return False
        started = False
        try:
            started = self._start(cycle_id)
        finally:
            if not started:
                leave(self._context, cycle_id)
        return started

    def _start(self, cycle_id: int) -> bool:
        """Start the workflow of a cycle that is ours; False where there is nothing to run."""
        journal = Journal(self._context.ledger, cycle_id)
        with self._context.ledger.session(write=False) as session:
            if session.get_one(Cycle, cycle_id).state not in ACTIVE:
                return False  # whoever held it has just ended it
            resumed, taken = resumptions(session, cycle_id), takeovers(session, cycle_id)
        workflow = DBOS.get_workflow_status(_workflow_id(cycle_id, resumed, taken))
        if workflow is not None:
            reason = ""
            if workflow.status not in _UNDER_WAY:
                reason = f"the workflow ended {workflow.status} before the cycle did: see the worker's log"
            elif taken >= MAX_TAKEOVERS:
                reason = "its worker died over it again and again: see the worker's log"
            if reason:
                if journal.end(CycleState.FAILED, reason):
                    log.error("cycle %d failed: %s", cycle_id, reason)
                return False
            journal.note(TAKEN_OVER, f"The worker is gone; {socket.gethostname()} goes on.")
            taken += 1
        with SetWorkflowID(_workflow_id(cycle_id, resumed, taken)):
            DBOS.start_workflow(retrain, cycle_id)
        log.info("cycle %d %s", cycle_id, "goes on" if taken else "started")
        return True

    @property
    def idle(self) -> bool:
        """Whether no cycle runs here."""
        return is_idle()

    def stop(self) -> None:
        """Interrupt running steps, which go on with the next worker, and shut DBOS down."""
        self._context.stop.set()
        if not wait_until_idle(STOP_S):
            log.warning("a cycle did not stop within %.0f s; it goes on at the next start", STOP_S)
        self._shut_down()

    def _shut_down(self) -> None:
        DBOS.destroy()
        surround(None)


def _workflow_id(cycle_id: int, resumed: int, taken: int) -> str:
    """Each resumption and each worker has a workflow of its own.

    One that has ended cannot go on, and one whose worker is dead, or only seems so, is left alone. The ledger
    tells what is done already.
    """
    return f"cycle-{cycle_id}" + (f"-{resumed}" if resumed else "") + (f".{taken}" if taken else "")
