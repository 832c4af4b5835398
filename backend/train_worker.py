"""A worker that only runs retraining cycles, on a machine and a GPU of its own."""

from __future__ import annotations

import logging
from uuid import uuid4

from active_learning.context import interruptible
from active_learning.jobs import CycleJobs
from active_learning.ledger import Ledger
from active_learning.ports import ImageSource
from active_learning.predictors import PredictorPool
from backend.attempts import Attempts
from backend.lease import Lease
from backend.settings import Settings, SettingsError
from backend.stopping import Term
from backend.surroundings import cycle_context
from model.checkpoint import load_trunk

log = logging.getLogger(__name__)


class TrainWorker:
    """Runs one cycle at a time, whichever of all projects was asked for first and is run by nobody.

    It speaks with no labeling tool: what a new champion is to predict is left to the other workers.

    Args:
        settings: as the other workers', but for the device and what a training may take.
        ledger: the ledger, upgraded; PostgreSQL.
        images: the pixels of tasks.
        predictors: of the model versions; default: their checkpoints, on the device of the settings.

    Raises:
        SettingsError: the ledger is SQLite, which one worker at a time runs cycles on.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        images: ImageSource,
        predictors: PredictorPool | None = None,
    ) -> None:
        if not settings.database_url or settings.database_url.startswith("sqlite"):
            raise SettingsError(
                "a worker that only trains needs a ledger in PostgreSQL: set ELNET_DATABASE_URL, or let the "
                "one worker do everything (`elnet worker`)"
            )
        self._settings = settings
        self._ledger = ledger
        self._term = Term()
        images = interruptible(images, self._term.over)
        self._context = cycle_context(settings, ledger, images, None, predictors, self._term, slots=1)
        self._jobs = CycleJobs(self._context, settings.jobs_url)
        self._attempts = Attempts()
        self.name = f"train-{uuid4().hex[:12]}"

    def stop(self) -> None:
        """Ask `run` to end; safe from any thread and from a signal handler."""
        self._term.end()

    def run(self) -> None:
        """Work until `stop`, SIGTERM or SIGINT. A cycle that runs then is left to another worker.

        Raises:
            LeaseError: the ledger was out of reach for so long that this worker counts as dead.
            LedgerError: the ledger cannot be had, or is of another version.
            WeightsError: the trunk's weights are not on this machine.
            FilesError: what it trains could not be stored.
        """
        self._ledger.check()
        load_trunk(self._settings.trunk)  # a machine that cannot train must take no cycle
        self._context.checkpoints.check()
        if self._settings.files is None:
            log.warning(
                "ELNET_FILES is not set: other machines find what is trained here only where they mount %s",
                self._context.folder,
            )
        with self._term.ended_by_signals(), Lease(self._ledger, self._term.lose, self.name), self._jobs:
            log.info("%s started on %r", self.name, self._ledger)
            self._term.spend(self._start_cycles, self._settings.poll_s)
        self._term.check_lease()

    def _start_cycles(self) -> int:
        started = self._attempts.attempt("cycles", self._jobs.work_off)
        if self._jobs.idle:
            self._context.predictors.keep([])  # the GPU's memory is the next training's
        return started
