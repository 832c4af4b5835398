"""The champions' predictors, resident in the web process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy import select

from active_learning.inference import MaskPredictor
from active_learning.ledger import Ledger, ModelVersion, Project
from backend.settings import Settings

if TYPE_CHECKING:
    from active_learning.predictors import PredictorPool

Predictors = Callable[[ModelVersion], MaskPredictor]


class ResidentPredictors:
    """Loads a champion when it is first needed and lets go of those that serve no more.

    PyTorch is imported at the first call: most requests are answered from the ledger and never need it.
    """

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings, self._ledger = settings, ledger
        self._pool: PredictorPool | None = None
        self._lock = threading.Lock()

    def __call__(self, version: ModelVersion) -> MaskPredictor:
        """The predictor of a model version.

        Raises:
            model.errors.ELNetError: its checkpoint is gone, damaged, or cannot be fetched.
        """
        with self._lock:
            if self._pool is None:
                from backend.model_files import predictors_of

                self._pool = predictors_of(self._settings)
        with self._ledger.session(write=False) as session:
            serving = {champion for champion in session.scalars(select(Project.champion_id)) if champion}
        self._pool.keep(serving | {version.id})
        return self._pool.get(version)
