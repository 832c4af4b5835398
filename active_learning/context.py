"""What a retraining cycle needs around it, and how it is told to stop."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from active_learning import prefill
from active_learning.checkpoints import Checkpoints
from active_learning.claims import Claims, SoleClaims
from active_learning.inference import MaskPredictor
from active_learning.ledger import Ledger
from active_learning.ports import ImageSource, LabelingTool
from active_learning.predictors import PredictorPool, by_champion
from active_learning.training_process import UNLIMITED, Allowance
from active_learning.upkeep import Upkeep
from active_learning.waiting import WHOLE, Share

LOCK_POLL_S = 0.5
TURN_S = 2.0  # that a project's images are predicted before others have their turn
LOOKAHEAD = 1024  # tasks that are looked up for one turn
Duty = Literal["predict", "push"]
T = TypeVar("T")


class Interrupted(BaseException):
    """The worker is stopping: leave the step unfinished, the next start goes on with it.

    Not an `Exception`, so that no handler takes it for a failure of the step.
    """


@dataclass(eq=False)
class CycleContext:
    """The surroundings of the cycles in one worker.

    Attributes:
        tool: None: another worker speaks with it, and predicts.
        folder: holds snapshots/, models/cycle-<id>/ (-<n> when resumed) and cycles/<id>/.
        checkpoints: where those of model versions are kept.
        training: defaults of `model.training.TrainConfig`; a project's own settings go before them.
        allowance: what a training may take of this machine.
        patience_s: how long a step waits for a labeling tool that does not answer.
        share: of every project's tasks, that this worker predicts.
        claims: on the cycles that it runs.
        stop: set when the worker is to stop.
    """

    ledger: Ledger
    images: ImageSource
    tool: LabelingTool | None
    predictors: PredictorPool
    folder: Path
    device: str = "auto"
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    training: Mapping[str, Any] = field(default_factory=dict)
    allowance: Allowance = UNLIMITED
    patience_s: float = 900.0
    share: Callable[[], Share] = lambda: WHOLE
    claims: Claims = field(default_factory=SoleClaims)
    stop: threading.Event = field(default_factory=threading.Event)
    _upkeep: defaultdict[int, Upkeep] = field(default_factory=lambda: defaultdict(Upkeep), repr=False)
    _locks: defaultdict[tuple[Duty, int], threading.Lock] = field(
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

    def predict_waiting(self, project_id: int) -> int:
        """A turn of `prefill.predict_waiting` with the resident champion, whichever that is by then."""

        def predict(predictor: MaskPredictor | None) -> int:
            return prefill.predict_waiting(
                self.ledger,
                project_id,
                predictor,
                self.images,
                batch=self.predictors.batch_size,
                limit=LOOKAHEAD,
                seconds=TURN_S,
                share=self.share(),
                upkeep=self._upkeep[project_id],
            )

        return by_champion(self.ledger, project_id, self.predictors, predict)

    @contextmanager
    def alone(self, what: Duty, project_id: int) -> Iterator[None]:
        """Be the only one in this worker who does that for a project; waits for the other to finish."""
        lock = self._locks[what, project_id]
        while not lock.acquire(timeout=LOCK_POLL_S):
            self.check()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def alone_if_free(self, what: Duty, project_id: int) -> Iterator[bool]:
        """The same without waiting: yields whether nobody else is at it."""
        lock = self._locks[what, project_id]
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
