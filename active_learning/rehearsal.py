"""A promise rehearsed on images with truth: made on one half of the scenes, and looked up on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from active_learning.calibrator import Calibrator, Features, cross_fitted
from active_learning.guarantee import Promise, guarantee


@dataclass(frozen=True, slots=True)
class Graded:
    """Predictions whose IoU is known, as an audit would tell it.

    Attributes:
        scores: (n,) in [0, 1].
        ious: (n,) in [0, 1], with the truth.
        scenes: of the images.
        features: signals of each, see `active_learning.signals.features`.
    """

    scores: Sequence[float]
    ious: Sequence[float]
    scenes: Sequence[str]
    features: Features

    def take(self, which: NDArray[np.bool_]) -> Graded:
        """Those chosen by a mask (n,)."""
        kept = np.flatnonzero(which).tolist()
        return Graded(
            *([part[i] for i in kept] for part in (self.scores, self.ious, self.scenes, self.features))
        )


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """How a promise fared over random halves.

    Attributes:
        kept: share of the halves in which the realised risk was at most the promised one, also where nothing
            was accepted.
        coverage: mean share of the masks that was accepted.
        risk: mean realised risk where something was accepted; None where nothing ever was.
        best: mean of the largest coverage that an oracle could have had by the same qualities.
        refused: share of the halves in which no threshold could be found.
    """

    kept: float
    coverage: float
    risk: float | None
    best: float
    refused: float


def rehearse(graded: Graded, promise: Promise, splits: int) -> Rehearsal:
    """Calibrate and set the threshold on one half of the scenes as the loop does, and accept on the other.

    Args:
        graded: the images.
        promise: what is to hold.
        splits: how many random halves; the same ones each time.
    """
    kept, coverage, risks, best, refused = [], [], [], [], []
    for fit, test in halves(graded.scenes, splits):
        audits, others = graded.take(fit), graded.take(test)
        told = (audits.scores, audits.ious, audits.scenes, audits.features)
        found = guarantee(cross_fitted(*told).tolist(), audits.ious, promise, audits.scenes)
        quality = Calibrator.fit(*told).predict(others.scores, others.features)
        failed = np.array(others.ious) < promise.iou
        accepted = np.zeros(len(quality), np.bool_) if found.threshold is None else quality >= found.threshold
        if accepted.any():
            risks.append(failed[accepted].mean())
        kept.append(not accepted.any() or failed[accepted].mean() <= promise.risk)
        coverage.append(accepted.mean())
        refused.append(found.threshold is None)
        ranked = np.cumsum(failed[np.argsort(-quality, kind="stable")])
        good = ranked <= promise.risk * np.arange(1, len(failed) + 1)
        best.append((np.flatnonzero(good).max() + 1) / len(failed) if good.any() else 0.0)
    return Rehearsal(
        float(np.mean(kept)),
        float(np.mean(coverage)),
        float(np.mean(risks)) if risks else None,
        float(np.mean(best)),
        float(np.mean(refused)),
    )


def halves(scenes: Sequence[str], splits: int) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Random halves of the scenes, as masks (n,) over the images."""
    names, index = np.unique(np.array(scenes), return_inverse=True)
    found = []
    for seed in range(splits):
        first = np.random.default_rng(seed).permutation(len(names)) < len(names) // 2
        found.append((first[index], ~first[index]))
    return found
