"""Whether masks are as good as was predicted: the reliability diagram of the predicted IoU, on the audits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy.orm import Session

from active_learning.calibrator import Kind
from active_learning.ledger import Project
from active_learning.quality import calibration_samples, cross_graded, current_calibrator
from active_learning.risk import augrc, aurc, rank_correlation, risk_coverage

BINS = 10  # at most, of equally many audits each,
LEAST = 10  # and no fewer of them than this


@dataclass(frozen=True, slots=True)
class Bin:
    """Audits of about the same predicted IoU.

    Attributes:
        low: least predicted IoU among them.
        high: greatest.
        audits: how many.
        predicted: mean predicted IoU.
        iou: mean IoU with the labels.
        error: standard error of `iou`; 0 of a single audit.
    """

    low: float
    high: float
    audits: int
    predicted: float
    iou: float
    error: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far the predicted IoU can be believed.

    Attributes:
        kind: of the map from signals to predicted IoU; "identity": there were too few audits for one.
        audits: how many tell.
        bins: from the lowest predicted IoU to the highest.
        absolute_error: mean absolute error of one mask's predicted IoU.
        calibration_error: mean over the audits of how far their bin's mean is off.
        rank_correlation: Spearman's, of predicted and true IoU; None where either is the same everywhere.
        aurc: see `active_learning.risk.aurc`; lower is better.
        augrc: see `active_learning.risk.augrc`; lower is better.
    """

    kind: Kind
    audits: int
    bins: list[Bin]
    absolute_error: float
    calibration_error: float
    rank_correlation: float | None
    aurc: float
    augrc: float


def reliability(session: Session, project: Project) -> Reliability | None:
    """Of the version that serves, on the audits that calibrate it; each graded without its own scene.

    None without a version, or without audits.
    """
    if project.champion is None:
        return None
    samples = calibration_samples(session, project, project.champion)
    if not samples:
        return None
    predicted, ious = cross_graded(samples), np.array([s.iou for s in samples])
    found = bins(predicted.tolist(), ious.tolist())
    points = risk_coverage(predicted.tolist(), ious.tolist())
    return Reliability(
        current_calibrator(session, project.champion.id).kind,
        len(samples),
        found,
        float(np.abs(predicted - ious).mean()),
        sum(b.audits * abs(b.predicted - b.iou) for b in found) / len(samples),
        rank_correlation(predicted.tolist(), ious.tolist()),
        aurc(points),
        augrc(points),
    )


def bins(predicted: Sequence[float], ious: Sequence[float]) -> list[Bin]:
    """Bins of equally many samples, by what was predicted; equal predictions stand in one.

    Args:
        predicted: (n,) predicted IoU, in [0, 1].
        ious: (n,) of the same masks.
    """
    quality, iou = np.asarray(predicted, dtype=np.float64), np.asarray(ious, dtype=np.float64)
    count = min(BINS, max(1, len(quality) // LEAST))
    cuts = np.quantile(quality, np.arange(1, count) / count) if len(quality) else np.zeros(0)
    number = np.searchsorted(np.unique(cuts), quality, side="right")
    found = []
    for each in np.unique(number):
        q, i = quality[number == each], iou[number == each]
        error = float(i.std(ddof=1) / np.sqrt(len(i))) if len(i) > 1 else 0.0
        found.append(Bin(float(q.min()), float(q.max()), len(q), float(q.mean()), float(i.mean()), error))
    return found
