"""A worker that only predicts, beside the one that does everything: for another GPU, or another machine."""

from __future__ import annotations

import logging
from functools import partial
from uuid import uuid4

from active_learning.context import LOOKAHEAD, TURN_S, interruptible
from active_learning.inference import MaskPredictor
from active_learning.ledger import Ledger
from active_learning.ports import ImageSource
from active_learning.predictors import PredictorPool, by_champion
from active_learning.prefill import predict_share
from backend.attempts import Attempts
from backend.lease import PREFILL, Lease, share_of
from backend.model_files import predictors_of
from backend.settings import Settings
from backend.stopping import Term

log = logging.getLogger(__name__)


class PrefillWorker:
    """Predicts its share of every project's images, each project for a turn, and routes them.

    It finds the checkpoints by `files` of the settings; without that, under the path where they were made.

    Args:
        settings: as the other worker's, but for the device.
        ledger: the ledger, upgraded.
        images: the pixels of tasks.
        predictors: of the model versions; default: their checkpoints, on the device of the settings.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        images: ImageSource,
        predictors: PredictorPool | None = None,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._term = Term()
        self._images = interruptible(images, self._term.over)
        self._predictors = predictors or predictors_of(settings)
        self._attempts = Attempts()
        self.name = f"{PREFILL}{uuid4().hex[:12]}"

    def stop(self) -> None:
        """Ask `run` to end; safe from any thread and from a signal handler."""
        self._term.end()

    def run(self) -> None:
        """Work until `stop`, SIGTERM or SIGINT.

        Raises:
            LeaseError: the ledger was out of reach for so long that this worker counts as dead.
            LedgerError: the ledger cannot be had, or is of another version.
        """
        self._ledger.check()
        with self._term.ended_by_signals(), Lease(self._ledger, self._term.lose, self.name):
            log.info("%s started on %r", self.name, self._ledger)
            self._term.spend(self._predict_once, self._settings.poll_s)
        self._term.check_lease()

    def _predict_once(self) -> int:
        """A turn for each project; returns how many predictions were stored."""
        projects, stored = self._attempts.projects(self._ledger), 0
        for project in projects:
            work = partial(self._predict, project.id)
            stored += self._attempts.attempt(f"prefill of {project.name}", work)
        self._predictors.keep([p.champion_id for p in projects if p.champion_id is not None])
        return stored

    def _predict(self, project_id: int) -> int:
        share = share_of(self._ledger, self.name)

        def predict(predictor: MaskPredictor | None) -> int:
            batch = self._predictors.batch_size
            return predict_share(
                self._ledger, project_id, predictor, self._images, batch, LOOKAHEAD, TURN_S, share
            )

        stored = by_champion(self._ledger, project_id, self._predictors, predict)
        if stored:
            log.info("predicted %d images of project %d", stored, project_id)
        return stored
