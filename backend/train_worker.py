"""A worker that only runs retraining cycles, on a machine and a GPU of its own."""

from __future__ import annotations

import logging
import threading
from uuid import uuid4

from active_learning.context import CycleContext, interruptible
from active_learning.jobs import CycleJobs
from active_learning.ledger import Ledger
from active_learning.ports import ImageSource
from active_learning.predictors import PredictorPool
from active_learning.training_process import Allowance
from backend.attempts import Attempts
from backend.claims import LeasedClaims
from backend.lease import Lease, LeaseError
from backend.model_files import checkpoints_of, predictors_of
from backend.settings import Settings, SettingsError
from backend.stopping import stopped_by_signals, work_until
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
        self._stop = threading.Event()
        self._lost_lease = False
        self._context = CycleContext(
            ledger=ledger,
            images=interruptible(images, self._stop),
            tool=None,
            predictors=predictors or predictors_of(settings),
            checkpoints=checkpoints_of(settings),
            folder=settings.state.resolve(),
            device=settings.device,
            training={"trunk": settings.trunk},
            allowance=Allowance(**settings.trainer.model_dump()),
            claims=LeasedClaims(ledger, self._lose, slots=1),
            stop=self._stop,
        )
        self._jobs = CycleJobs(self._context, settings.jobs_url)
        self._attempts = Attempts()
        self.name = f"train-{uuid4().hex[:12]}"

    def stop(self) -> None:
        """Ask `run` to end; safe from any thread and from a signal handler."""
        self._stop.set()

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
        with stopped_by_signals(self._stop), Lease(self._ledger, self._lose, self.name), self._jobs:
            log.info("%s started on %r", self.name, self._ledger)
            work_until(self._stop, self._start_cycles, self._settings.poll_s)
        if self._lost_lease:
            raise LeaseError("the ledger was out of reach for too long, so this worker stopped")

    def _start_cycles(self) -> int:
        started = self._attempts.attempt("cycles", self._jobs.work_off)
        if self._jobs.idle:
            self._context.predictors.keep([])  # the GPU's memory is the next training's
        return started

    def _lose(self) -> None:
        self._lost_lease = True
        self._stop.set()
