"""What the settings say of the surroundings of a worker's retraining cycles."""

from __future__ import annotations

from collections.abc import Callable

from active_learning.context import CycleContext
from active_learning.ledger import Ledger
from active_learning.ports import ImageSource, LabelingTool
from active_learning.predictors import PredictorPool
from active_learning.training_process import Allowance
from active_learning.waiting import WHOLE, Share
from backend.claims import LeasedClaims
from backend.model_files import checkpoints_of, predictors_of
from backend.settings import Settings
from backend.stopping import Term


def cycle_context(
    settings: Settings,
    ledger: Ledger,
    images: ImageSource,
    tool: LabelingTool | None,
    predictors: PredictorPool | None,
    term: Term,
    *,
    share: Callable[[], Share] = lambda: WHOLE,
    slots: int | None = None,
) -> CycleContext:
    """The surroundings of the cycles in one worker.

    Args:
        settings: the worker's.
        ledger: the ledger.
        images: the pixels of tasks.
        tool: None: another worker speaks with it, and predicts.
        predictors: of the model versions; default: their checkpoints, on the device of the settings.
        term: the worker's; it loses the term with the lease of a cycle.
        share: of every project's tasks, that this worker predicts.
        slots: cycles at a time; None: as many as there are.
    """
    return CycleContext(
        ledger=ledger,
        images=images,
        tool=tool,
        predictors=predictors or predictors_of(settings),
        checkpoints=checkpoints_of(settings),
        folder=settings.state.resolve(),
        device=settings.device,
        training={"trunk": settings.trunk},
        allowance=Allowance(**settings.trainer.model_dump()),
        share=share,
        claims=LeasedClaims(ledger, term.lose, slots),
        stop=term.over,
    )
