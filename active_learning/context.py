"""What a retraining cycle needs around it, and how it is told to stop."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from active_learning import prefill
from active_learning.ledger import Ledger, ModelVersion, Project
from active_learning.ports import ImageSource, LabelingTool
from active_learning.predictors import PredictorPool
from active_learning.training_process import UNLIMITED, Allowance

LOCK_POLL_S = 0.5
T = TypeVar("T")


class Interrupted(BaseException):
    """The worker is stopping: leave the step unfinished, the next start goes on with it.

    Not an `Exception`, so that no handler takes it for a failure of the step.
    """


@dataclass(eq=False)
class CycleContext:
    """The surroundings of the cycles in one worker.

    Attributes:
        folder: holds snapshots/, models/cycle-<id>/ (-<n> when resumed) and cycles/<id>/.
        training: defaults of `model.training.TrainConfig`; a project's own settings go before them.
        allowance: what a training may take of this machine.
        patience_s: how long a step waits for a labeling tool that does not answer.
        stop: set when the worker is to stop.
    """

    ledger: Ledger
    images: ImageSource
    tool: LabelingTool
    predictors: PredictorPool
    folder: Path
    device: str = "auto"
    training: Mapping[str, Any] = field(default_factory=dict)
    allowance: Allowance = UNLIMITED
    patience_s: float = 900.0
    stop: threading.Event = field(default_factory=threading.Event)
    _locks: defaultdict[int, threading.Lock] = field(
        default_factory=lambda: defaultdict(threading.Lock), repr=False
    )

    def check(self) -> None:
        """Raise `Interrupted` if the worker is to stop."""
        if self.stop.is_set():
            raise Interrupted

    def sleep(self, seconds: float) -> None:
        """Wait, but not beyond the worker's stop."""
        self.stop.wait(seconds)
        self.check()

    def predict_waiting(self, project_id: int, limit: int) -> int:
        """`prefill.predict_waiting` with the resident champion, whichever that is by then."""
        champion = self._champion(project_id)
        while True:
            predictor = self.predictors.get(champion) if champion is not None else None
            batch = self.predictors.batch_size
            try:
                return prefill.predict_waiting(
                    self.ledger, project_id, predictor, self.images, batch=batch, limit=limit
                )
            except prefill.PrefillError:
                before, champion = champion, self._champion(project_id)
                if (before and before.id) == (champion and champion.id):
                    raise  # it is not that another one was promoted meanwhile

    def _champion(self, project_id: int) -> ModelVersion | None:
        with self.ledger.session(write=False) as session:
            return session.get_one(Project, project_id).champion

    @contextmanager
    def prefilling(self, project_id: int) -> Iterator[None]:
        """Be the only one who predicts and pushes for a project; waits for the other to finish."""
        lock = self._locks[project_id]
        while not lock.acquire(timeout=LOCK_POLL_S):
            self.check()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def prefilling_if_free(self, project_id: int) -> Iterator[bool]:
        """The same without waiting: yields whether nobody else is at it."""
        lock = self._locks[project_id]
        free = lock.acquire(blocking=False)
        try:
            yield free
        finally:
            if free:
                lock.release()


class _Interruptible:
    """Passes every call on, unless the worker is to stop."""

    def __init__(self, target: Any, stop: threading.Event) -> None:
        self._target = target
        self._stop = stop

    def __getattr__(self, name: str) -> Any:
        if self._stop.is_set():
            raise Interrupted
        return getattr(self._target, name)


def interruptible(target: T, stop: threading.Event) -> T:
    """The same tool or image source; between its calls a long piece of work can be stopped."""
    return cast(T, _Interruptible(target, stop))
