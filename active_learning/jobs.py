"""The engine under the cycles: DBOS, started, fed from the ledger and shut down.

DBOS is one per process. Nothing of it leaves the machine: no admin port, no conductor, no telemetry. What it
stores is JSON (its default would pickle).
"""

from __future__ import annotations

import logging
from typing import Self

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID, error
from sqlalchemy import make_url, select
from sqlalchemy.exc import SQLAlchemyError

from active_learning.context import CycleContext
from active_learning.cycle import retrain, surround, wait_until_idle
from active_learning.journal import ACTIVE, Journal, resumptions
from active_learning.ledger import Cycle, CycleState
from model.errors import ELNetError

log = logging.getLogger(__name__)

APPLICATION_VERSION = "1"  # raise it when the order of steps changes: workflows under way then begin anew
EXECUTOR = "embedded"  # the one worker of a ledger: each start recovers what the one before it left
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
        """Launch DBOS; workflows that the last worker left unfinished go on after their last finished step.

        Raises:
            CycleRunningError: a worker runs in this process already.
            JobsError: the jobs database cannot be used.
        """
        logging.getLogger("dbos").addHandler(logging.NullHandler())  # else DBOS adds one that prints
        config = DBOSConfig(
            name="elnet-loop",
            system_database_url=self._url,
            application_version=APPLICATION_VERSION,
            executor_id=EXECUTOR,
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
        """Start the workflows of requested cycles, and end cycles whose workflow is lost.

        Returns:
            How many workflows were started.
        """
        with self._context.ledger.session(write=False) as session:
            active = session.scalars(select(Cycle.id).where(Cycle.state.in_(ACTIVE)).order_by(Cycle.id)).all()
        return sum(self._tend(cycle_id) for cycle_id in active)

    def _tend(self, cycle_id: int) -> bool:
        with self._context.ledger.session(write=False) as session:
            attempts = [_workflow_id(cycle_id, n) for n in range(resumptions(session, cycle_id) + 1)]
        for earlier in attempts[:-1]:  # one that has not heard of its cancellation yet goes on, or ends
            status = DBOS.get_workflow_status(earlier)
            if status is not None and status.status in _UNDER_WAY:
                return False
        workflow_id = attempts[-1]
        workflow = DBOS.get_workflow_status(workflow_id)
        if workflow is not None and workflow.status in _UNDER_WAY:
            if workflow.app_version in (None, APPLICATION_VERSION):
                return False
            # Left by another version of the code. The ledger knows its finished steps: nothing is done twice.
            log.info("cycle %d was begun by another version of elnet-loop and starts anew", cycle_id)
            DBOS.delete_workflow(workflow_id)
            workflow = None
        if workflow is not None:
            died = workflow.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED"
            why = "its worker died over it again and again" if died else "see the worker's log"
            reason = f"the workflow ended {workflow.status} before the cycle did: {why}"
            if Journal(self._context.ledger, cycle_id).end(CycleState.FAILED, reason):
                log.error("cycle %d failed: %s", cycle_id, reason)
            return False
        with SetWorkflowID(workflow_id):
            DBOS.start_workflow(retrain, cycle_id)
        log.info("cycle %d started", cycle_id)
        return True

    def stop(self) -> None:
        """Interrupt running steps, which go on at the next start, and shut DBOS down."""
        self._context.stop.set()
        if not wait_until_idle(STOP_S):
            log.warning("a cycle did not stop within %.0f s; it goes on at the next start", STOP_S)
        self._shut_down()

    def _shut_down(self) -> None:
        DBOS.destroy()
        surround(None)


def _workflow_id(cycle_id: int, resumed: int) -> str:
    """Each resumption is a workflow of its own: one that has ended cannot go on."""
    return f"cycle-{cycle_id}" + (f"-{resumed}" if resumed else "")
