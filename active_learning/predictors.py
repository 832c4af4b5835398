"""Resident predictors, one per model version in use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from pathlib import Path

from active_learning.checkpoints import Checkpoints
from active_learning.inference import MaskPredictor, PrefillError
from active_learning.ledger import Ledger, ModelVersion, Project
from model.predictor import Predictor


class PredictorPool:
    """Loads a model version once and keeps it until another one takes its place. Safe under threads.

    Args:
        device: "auto", "cpu" or "cuda".
        batch_size: tiles that go through the network at a time.
        flips: views that a prediction is the mean of, see `model.predictor.Predictor`.
        locate: the folder of a version's checkpoint; default: of one that is kept where it was made.
    """

    def __init__(
        self,
        device: str = "auto",
        batch_size: int = 8,
        flips: int = 1,
        locate: Callable[[ModelVersion], Path] | None = None,
    ) -> None:
        self.device = device
        self.batch_size = batch_size
        self.flips = flips
        self._locate = locate or Checkpoints().local
        self._loaded: dict[int, Predictor] = {}
        self._lock = threading.Lock()

    def get(self, version: ModelVersion) -> Predictor:
        """The predictor of a model version, loaded at the first call.

        Raises:
            model.errors.ELNetError: its checkpoint is gone, damaged, or cannot be fetched.
        """
        with self._lock:
            predictor = self._loaded.get(version.id)
            if predictor is None:
                folder = self._locate(version)
                predictor = Predictor(folder, self.device, self.batch_size, flips=self.flips)
                self._loaded[version.id] = predictor
            return predictor

    def keep(self, version_ids: Collection[int]) -> None:
        """Let go of every predictor but these; whoever still uses one may finish."""
        with self._lock:
            for version_id in self._loaded.keys() - set(version_ids):
                del self._loaded[version_id]


def by_champion(
    ledger: Ledger,
    project_id: int,
    predictors: PredictorPool,
    work: Callable[[MaskPredictor | None], int],
) -> int:
    """Do a piece of work with a project's champion, whichever that is by then.

    Args:
        ledger: the ledger.
        project_id: the project.
        predictors: where the champion is resident.
        work: gets the champion's predictor, None before there is one; raises `PrefillError` where another one
            serves by now, and is then done again with that.

    Returns:
        What the work returns.

    Raises:
        PrefillError: the work fails with the version that serves.
    """
    champion = _champion(ledger, project_id)
    while True:
        try:
            return work(predictors.get(champion) if champion is not None else None)
        except PrefillError:
            before, champion = champion, _champion(ledger, project_id)
            if (before and before.id) == (champion and champion.id):
                raise  # it is not that another one was promoted meanwhile


def _champion(ledger: Ledger, project_id: int) -> ModelVersion | None:
    with ledger.session(write=False) as session:
        return session.get_one(Project, project_id).champion
