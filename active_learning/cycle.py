"""The durable retraining cycle: snapshot, train, evaluate, gate, promote or reject, recalibrate, prefill.

A DBOS workflow over a `Cycle` row. The ledger holds everything that another worker needs to go on after a
crash, also what people see: steps that are finished are not run again. The workflow's only argument is the
cycle's id and its steps return words, so DBOS stores nothing else, as JSON.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress

from dbos import DBOS

from active_learning.checkpoints import FilesUnavailableError
from active_learning.context import CycleContext, Interrupted
from active_learning.journal import CycleEndedError, Journal
from active_learning.ledger import CycleState
from active_learning.ledger.failures import LedgerError
from active_learning.ports import ToolUnavailableError
from active_learning.steps import BEGINNINGS, STEPS, decision, ending
from model.errors import ELNetError

log = logging.getLogger(__name__)


class CycleRunningError(ELNetError):
    """Two workers in one process."""


ENDED = "ended"
_TRANSIENT = (ToolUnavailableError, LedgerError, FilesUnavailableError)
_LONGEST_WAIT_S = 60.0

_context: CycleContext | None = None
_running: set[int] = set()
_changed = threading.Condition()


def surround(context: CycleContext | None) -> None:
    """Set what the workflows of this process work with; DBOS itself is one per process, too.

    Raises:
        CycleRunningError: something else is set already.
    """
    global _context
    if context is not None and _context is not None:
        raise CycleRunningError("a worker runs in this process already; stop it first")
    _context = context


def is_idle() -> bool:
    """Whether no workflow runs in this process."""
    return not _running


def wait_until_idle(timeout_s: float) -> bool:
    """Wait until no workflow runs in this process; False if one still does."""
    with _changed:
        return _changed.wait_for(lambda: not _running, timeout_s)


def enter(context: CycleContext, cycle_id: int) -> bool:
    """Claim a cycle for this process, which is not idle from now on; False where that cannot be had."""
    if not context.claims.take(cycle_id):
        return False
    with _changed:
        _running.add(cycle_id)
    return True


def leave(context: CycleContext, cycle_id: int) -> None:
    """The cycle does not run here any more."""
    context.claims.give_back(cycle_id)
    with _changed:
        _running.discard(cycle_id)
        _changed.notify_all()


@DBOS.workflow(name="retrain")
def retrain(cycle_id: int) -> str:
    """Run a cycle that `enter` has claimed to its end.

    A step that fails ends the cycle in the ledger, so the workflow itself fails only when the ledger cannot
    be written; `jobs.CycleJobs.work_off` settles that later.

    Returns:
        The state that the cycle ended in, or `ENDED` if it was cut short.
    """
    context = _context
    if context is None:
        raise RuntimeError("surround() must be called before a workflow starts")
    try:
        return _run(context, cycle_id)
    finally:
        leave(context, cycle_id)


def _run(context: CycleContext, cycle_id: int) -> str:
    decided = ""
    for step in ("snapshot", "train", "evaluate", "gate"):
        decided = _durably(context, step, cycle_id)
        if decided == ENDED:
            return ENDED
    for step in (decided, "recalibrate", "prefill"):
        if _durably(context, step, cycle_id) == ENDED:
            return ENDED
    state, reason = ending(context, cycle_id)  # no step of its own: it may be repeated
    if Journal(context.ledger, cycle_id).end(state, reason):
        log.info("cycle %d ended %s: %s", cycle_id, state, reason)
    return str(state)


def _durably(context: CycleContext, step: str, cycle_id: int) -> str:
    return DBOS.run_step({"name": step}, perform, context, step, cycle_id)


def perform(context: CycleContext, step: str, cycle_id: int) -> str:
    """Run one step, unless it is finished, and write down how it went.

    Returns:
        `ENDED` if the cycle goes no further, else what the gate has decided: "" (nothing yet), "promote" or
        "reject".

    Raises:
        Interrupted: the worker is stopping; the step counts as not run.
    """
    journal = Journal(context.ledger, cycle_id)
    try:
        _patiently(context, journal, step)
        return decision(context, cycle_id)
    except CycleEndedError as ended:
        log.info("cycle %d: stopped during %s: %s", cycle_id, step, ended)
        journal.stopped(step, f"Stopped: {ended}.")
    except Interrupted:
        log.info("cycle %d: %s is interrupted, the worker is stopping", cycle_id, step)
        with suppress(LedgerError):
            journal.note(step, "The worker is stopping; the next one begins this step again.")
        raise
    except ELNetError as error:
        _fail(context, journal, step, str(error))
    except Exception as error:  # the boundary of a step: whatever went wrong ends this cycle, with its reason
        log.exception("cycle %d: %s failed unexpectedly", cycle_id, step)
        _fail(context, journal, step, f"unexpected {type(error).__name__}: {error}")
    return ENDED


def _patiently(context: CycleContext, journal: Journal, step: str) -> None:
    """Run a step; wait and try again, for a while, when tool, ledger or files do not answer."""
    give_up = time.monotonic() + context.patience_s
    delay, began = 1.0, False
    while True:
        try:
            journal.check()
            _check_claim(context, journal)
            # A crash can fall between the ledger's record of a finished step and that of DBOS.
            if journal.is_finished(step):
                return
            if not began:
                journal.begin(step, BEGINNINGS[step])
                began = True
            started = time.monotonic()
            outcome = STEPS[step](context, journal)
            journal.finish(step, time.monotonic() - started, outcome.message, outcome.data)
            log.info("cycle %d: %s: %s", journal.cycle_id, step, outcome.message)
            return
        except _TRANSIENT as error:
            if time.monotonic() + delay > give_up:
                raise
            log.warning("cycle %d: %s: %s; trying again in %.0f s", journal.cycle_id, step, error, delay)
            with suppress(LedgerError):
                journal.note(step, f"{error}. Trying again in {delay:.0f} s.", retry_in_s=delay)
        context.sleep(delay)
        delay = min(_LONGEST_WAIT_S, 2 * delay)


def _fail(context: CycleContext, journal: Journal, step: str, reason: str) -> None:
    _check_claim(context, journal)
    if journal.end(CycleState.FAILED, f"{step}: {reason}"):
        log.error("cycle %d failed: %s: %s", journal.cycle_id, step, reason)


def _check_claim(context: CycleContext, journal: Journal) -> None:
    """Raise `Interrupted` if this worker was taken for dead and another one runs the cycle."""
    if not context.claims.holds(journal.cycle_id):
        raise Interrupted
