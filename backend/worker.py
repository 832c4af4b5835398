"""The worker: works off the inbox, keeps prefills up to date, starts retraining cycles.

All but the cycles is worked off from the ledger's state: what is lacking is found again after any crash.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Self

from sqlalchemy.orm import Session

from active_learning import drift, thresholds, triggers
from active_learning.context import Interrupted, interruptible
from active_learning.jobs import CycleJobs
from active_learning.ledger import Ledger, Project, ThresholdChange
from active_learning.ledger.types import utc_now
from active_learning.pace import Pace
from active_learning.ports import ImageSource, LabelingTool
from active_learning.predictors import PredictorPool
from active_learning.push import push
from backend import inbox
from backend.attempts import Attempts
from backend.lease import NAME, STANDBY_S, HeldError, Lease, share_of
from backend.settings import Settings
from backend.stopping import Term
from backend.surroundings import cycle_context

log = logging.getLogger(__name__)

PUSH_S = 10.0  # between two pushes while predictions come in, at least


class Worker:
    """The worker that speaks with the tool, one for each ledger; others may help it to predict and to train.

    As a context manager it holds the lease and runs the cycles; `run` does the rest until it is stopped.

    Args:
        settings: where the state lies, how often to look.
        ledger: the ledger, upgraded.
        tool: the labeling tool behind every project of the ledger.
        images: the pixels of tasks.
        predictors: of the model versions; default: their checkpoints, on the device of the settings.
        cycles: False: leave them to workers that train.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        tool: LabelingTool,
        images: ImageSource,
        predictors: PredictorPool | None = None,
        *,
        cycles: bool = True,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._term = Term()
        self._tool = interruptible(tool, self._term.over)
        self._context = cycle_context(
            settings,
            ledger,
            interruptible(images, self._term.over),
            self._tool,
            predictors,
            self._term,
            share=lambda: share_of(ledger, NAME),
        )
        self._jobs = CycleJobs(self._context, settings.jobs_url) if cycles else None
        self._attempts = Attempts()
        self._stored: defaultdict[int, int] = defaultdict(int)  # predictions of each project's last turn
        self._reconciled: dict[int, tuple[float, int]] = {}  # project id -> time.monotonic(), outages by then
        self._pushing: defaultdict[int, Pace] = defaultdict(partial(Pace, PUSH_S))
        self._looked: set[int] = set()  # projects without new predictions since drift was looked for
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self._ledger.check()
        with ExitStack() as stack:
            stack.enter_context(Lease(self._ledger, self._term.lose))
            if self._jobs is not None:
                stack.enter_context(self._jobs)
            self._held = stack.pop_all()
        log.info("worker started on %r", self._ledger)
        return self

    def __exit__(self, *_: object) -> None:
        self._term.end()
        self._held.close()
        log.info("worker stopped")

    def stop(self) -> None:
        """Ask `run` to end; safe from any thread and from a signal handler."""
        self._term.end()

    def run(self, *, standby: bool = False) -> None:
        """Work until `stop`, SIGTERM or SIGINT.

        Args:
            standby: while another worker holds the ledger, wait until it is gone, however long.

        Raises:
            LeaseError: another worker holds the ledger, or took it over meanwhile.
            LedgerError: the ledger cannot be had, or is of another version.
        """
        with self._term.ended_by_signals(), ExitStack() as stack:
            while not self._term.over.is_set():
                try:
                    stack.enter_context(self)
                    break
                except HeldError as error:
                    if not standby:
                        raise
                    log.info("standing by: %s", error)
                    self._term.over.wait(STANDBY_S)
            with ThreadPoolExecutor(1, "predict") as beside:  # the labeling tool may take its time
                pause = self._settings.poll_s
                predicting = beside.submit(self._term.spend, self._predict_once, pause)
                self._term.spend(lambda: self._listen() + self._tend(), pause)
            predicting.result()
        self._term.check_lease()

    def run_once(self) -> int:
        """Do a bounded part of everything that there is to do, one after the other.

        Returns:
            How many pieces of work were done: 0 means that there was nothing to do.
        """
        try:
            return self._listen() + self._predict_once() + self._tend()
        except Interrupted:
            return 0

    def _listen(self) -> int:
        """Start cycles, and hear what the labeling tool has to say."""
        done = 0 if self._jobs is None else self._attempts.attempt("cycles", self._jobs.work_off)
        done += sum(self._reconcile(project) for project in self._attempts.projects(self._ledger))
        return done + self._attempts.attempt("inbox", lambda: inbox.work_off(self._ledger, self._tool))

    def _predict_once(self) -> int:
        """A turn for each project."""
        projects = self._attempts.projects(self._ledger)
        for project in projects:
            work = partial(self._predict, project.id)
            self._stored[project.id] = self._attempts.attempt(f"prefill of {project.name}", work)
        self._context.predictors.keep([p.champion_id for p in projects if p.champion_id is not None])
        return sum(self._stored[project.id] for project in projects)

    def _tend(self) -> int:
        """Tell the labeling tool, watch over what is accepted, and ask for cycles that are due."""
        done, attempt = 0, self._attempts.attempt
        for project in self._attempts.projects(self._ledger):
            predicted = self._stored[project.id] > 0
            push = partial(self._push, project.id, busy=predicted)
            done += attempt(f"push of {project.name}", push, needs_tool=True)
            done += attempt(f"promise of {project.name}", partial(self._watch, project.id))
            if predicted:
                self._looked.discard(project.id)
            elif project.id not in self._looked:
                done += attempt(f"drift of {project.name}", partial(self._look_for_drift, project.id))
            done += attempt(f"trigger of {project.name}", partial(self._trigger, project.id))
        return done

    def _reconcile(self, project: Project) -> int:
        """Read the tool for what lost events missed; after an outage this is the first that asks it again."""
        last, outages = self._reconciled.get(project.id, (-math.inf, 0))
        if time.monotonic() - last < self._settings.reconcile_s and outages == self._attempts.outages:
            return 0
        return self._attempts.attempt(f"reconciliation of {project.name}", partial(self._read_tool, project))

    def _read_tool(self, project: Project) -> int:
        outages = self._attempts.outages
        done = inbox.reconcile(self._ledger, project, self._tool)
        self._reconciled[project.id] = time.monotonic(), outages
        if self._attempts.tool_is_down:
            self._attempts.tool_is_down = False
            log.info("the labeling tool answers again")
        return done

    def _predict(self, project_id: int) -> int:
        """Predict and route for a turn, unless a cycle is at it."""
        with self._context.alone_if_free("predict", project_id) as free:
            if not free:
                return 0
            stored = self._context.predict_waiting(project_id)
        if stored:
            log.info("predicted %d images of project %d", stored, project_id)
        return stored

    def _push(self, project_id: int, *, busy: bool) -> int:
        """Tell the tool what it does not know yet, unless a cycle is at it.

        While predictions come in (`busy`) that is done now and then only: each batch moves the whole queue.
        """
        pace = self._pushing[project_id]
        if busy and not pace.is_due:
            return 0
        with self._context.alone_if_free("push", project_id) as free:
            if not free:
                return 0
            with pace.measured():
                report = push(self._ledger, project_id, self._tool)
        told: dict[str, int] = {name: count for name, count in asdict(report).items() if count}
        if told:
            said = ", ".join(f"{count} {name}" for name, count in told.items())
            log.info("pushed to project %d: %s", project_id, said)
        return sum(told.values()) - report.unconfirmed

    def _watch(self, project_id: int) -> int:
        """Switch auto-accept off when audits contradict the project's promise."""
        with self._ledger.session(write=False) as session:
            seen = thresholds.watched(session, session.get_one(Project, project_id))
        return 0 if seen is None or not seen.broken else self._switch_off(project_id, thresholds.watch)

    def _look_for_drift(self, project_id: int) -> int:
        """Switch auto-accept off when the imagery has drifted; once after each import."""
        with self._ledger.session(write=False) as session:
            found = drift.drift(session, session.get_one(Project, project_id))
        self._looked.add(project_id)
        return 0 if found is None or not found.alarming else self._switch_off(project_id, drift.watch)

    def _switch_off(
        self, project_id: int, watch: Callable[[Session, Project], ThresholdChange | None]
    ) -> int:
        """Let a watch act on the alarm that it gave to a session that only reads."""
        with self._ledger.session() as session:
            change = watch(session, session.get_one(Project, project_id))
            if change is not None:
                log.warning("auto-accept of project %d is off: %s", project_id, change.why)
        return 1

    def _trigger(self, project_id: int) -> int:
        """Ask for a cycle when one is due."""
        with self._ledger.session(write=False) as session:
            why = triggers.due(session, session.get_one(Project, project_id), utc_now())
        if why is None:
            return 0
        with self._ledger.session() as session:
            cycle = triggers.request(session, session.get_one(Project, project_id), why)
            log.info("cycle %d of project %d requested: %s", cycle.id, project_id, why)
        return 1
