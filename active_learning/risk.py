"""What a threshold costs: the risk-coverage table, and a what-if on the current predictions.

The risk is read off the random audits only, see `active_learning.quality.audited`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning.guarantee import upper_bound
from active_learning.ledger import Label, Project
from active_learning.living import PEOPLE
from active_learning.quality import audited, calibration_samples, current_calibrator
from active_learning.tallies import open_routes, reaching
from model.errors import ELNetError

ACCEPTABLE_IOU = 0.8  # an accepted mask below it counts as a failure
CONFIDENCE = 0.95
RECENT = 1000  # labels, whose time says how long the next ones take


class ThresholdError(ELNetError):
    """A threshold that cannot be set, or a risk that cannot be computed."""


def check(threshold: float | None) -> None:
    """Refuse what is no threshold.

    Raises:
        ThresholdError: neither None nor a number in [0, 1].
    """
    if threshold is not None and not 0 <= threshold <= 1:  # true for NaN too
        raise ThresholdError(f"a threshold is a predicted IoU between 0 and 1, or none; not {threshold}")


@dataclass(frozen=True, slots=True)
class RiskPoint:
    """What accepting from a threshold on means on a sample.

    Attributes:
        threshold: accept from this quality on.
        coverage: share that is accepted, in (0, 1].
        accepted: how many that are.
        risk: mean of 1 - IoU over them (the selective risk).
        failures: how many of them have an IoU below the acceptable one.
    """

    threshold: float
    coverage: float
    accepted: int
    risk: float
    failures: int


def risk_coverage(
    qualities: Sequence[float], ious: Sequence[float], acceptable_iou: float = ACCEPTABLE_IOU
) -> list[RiskPoint]:
    """The risk-coverage table of a sample, from the strictest threshold to the loosest.

    Args:
        qualities: predicted IoU, in [0, 1].
        ious: true IoU of the same masks, in [0, 1].
        acceptable_iou: below it a mask is a failure.

    Returns:
        One point per distinct quality, since equal ones can only be accepted together.

    Raises:
        ThresholdError: the lengths differ, or a value is not in [0, 1].
    """
    quality, iou = np.asarray(qualities, dtype=np.float64), np.asarray(ious, dtype=np.float64)
    if quality.shape != iou.shape:
        raise ThresholdError(f"{len(quality)} qualities and {len(iou)} IoUs do not pair up")
    if not all(((v >= 0) & (v <= 1)).all() for v in (quality, iou)):  # false for NaN too
        raise ThresholdError("a quality or an IoU is not in [0, 1]")
    rank = np.argsort(-quality, kind="stable")
    quality, iou = quality[rank], iou[rank]
    lost, failed = np.cumsum(1 - iou), np.cumsum(iou < acceptable_iou)
    ends = [i for i in range(len(quality)) if i + 1 == len(quality) or quality[i + 1] != quality[i]]
    return [
        RiskPoint(float(quality[i]), (i + 1) / len(quality), i + 1, float(lost[i] / (i + 1)), int(failed[i]))
        for i in ends
    ]


def aurc(points: Sequence[RiskPoint]) -> float:
    """Area under the risk-coverage curve: the mean over coverages of the selective risk, in [0, 1].

    Between two points the risk is that of the looser one: masks of equal quality are accepted together
    (Geifman, Uziel and El-Yaniv 2019).
    """
    strict = [0.0, *(point.coverage for point in points)]
    return sum((p.coverage - before) * p.risk for p, before in zip(points, strict, strict=False))


def augrc(points: Sequence[RiskPoint]) -> float:
    """Area under the generalised risk-coverage curve: the mean over coverages of risk times coverage.

    In [0, 1]: the loss that is accepted unseen, as a share of all images; unlike `aurc` it does not let the
    few that are accepted first count most (Traub et al. 2024, arXiv 2407.01032). Points are joined as there.
    """
    strict = [0.0, *(point.coverage for point in points)]
    return sum((p.coverage - before) * p.risk * p.coverage for p, before in zip(points, strict, strict=False))


def rank_correlation(qualities: Sequence[float], ious: Sequence[float]) -> float | None:
    """Spearman's, in [-1, 1]; None where either is the same everywhere, or there are fewer than three."""
    if min(len(set(qualities)), len(set(ious))) < 2 or len(ious) < 3:
        return None
    # Imported here because it takes a second, which every command would pay.
    from scipy.stats import spearmanr

    return float(spearmanr(qualities, ious).statistic)


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What a threshold would do to the current predictions, and what the audits say of it.

    Attributes:
        threshold: None: nothing is accepted.
        accepted: masks that no human would see.
        audit: masks that are drawn for the audit.
        review: the others below it.
        waiting: tasks that the champion has not predicted, and failed ones.
        audited: audited masks that reach it.
        failures: those of them whose IoU with the label is below the acceptable one.
        realised_risk: failures / audited; None without any.
        risk_bound: upper Clopper-Pearson bound of the risk; 1 without any.
        hours: of people's work on the audit and the review, at the time that the last labels took, see
            `seconds_per_label`; None where no label tells its time.
        saved_hours: the same of the accepted masks.
        warning: what keeps the audits from answering; None if nothing does.
    """

    threshold: float | None
    accepted: int
    audit: int
    review: int
    waiting: int
    audited: int
    failures: int
    realised_risk: float | None
    risk_bound: float
    hours: float | None
    saved_hours: float | None
    warning: str | None


def what_if(
    session: Session,
    project: Project,
    threshold: float | None,
    acceptable_iou: float = ACCEPTABLE_IOU,
    confidence: float = CONFIDENCE,
) -> WhatIf:
    """Try a threshold without setting it.

    The audits are graded by the current calibration, which was fitted on them, and they are counted as
    independent of each other, siblings of one scene included: read the bound as a guide, not as a guarantee.

    Args:
        session: a session on the ledger.
        project: the project.
        threshold: the one to try.
        acceptable_iou: an accepted mask with a lower IoU is a failure.
        confidence: of the bound, in (0, 1).

    Raises:
        ThresholdError: the threshold is not in [0, 1].
    """
    [found] = what_ifs(session, project, [threshold], acceptable_iou, confidence)
    return found


def what_ifs(
    session: Session,
    project: Project,
    thresholds: Sequence[float | None],
    acceptable_iou: float = ACCEPTABLE_IOU,
    confidence: float = CONFIDENCE,
) -> list[WhatIf]:
    """`what_if` of several thresholds in one look at the tasks."""
    for threshold in thresholds:
        check(threshold)
    routes = open_routes(session, project)
    champion = project.champion
    samples = calibration_samples(session, project, champion) if champion else audited(session, project)
    calibrator = current_calibrator(session, champion.id) if champion else None
    scores = [s.score for s in samples]
    told = [s.features for s in samples]
    qualities = scores if calibrator is None else calibrator.predict(scores, told).tolist()
    seconds = seconds_per_label(session, project)
    found = []
    for threshold in thresholds:
        floor = math.inf if threshold is None else threshold
        accepted = reaching(session, project, routes, threshold)
        review = routes.graded - accepted + routes.unusable
        reached = [s.iou for s, quality in zip(samples, qualities, strict=True) if quality >= floor]
        failures = sum(iou < acceptable_iou for iou in reached)
        found.append(
            WhatIf(
                threshold=threshold,
                accepted=accepted,
                audit=routes.audit,
                review=review,
                waiting=routes.waiting,
                audited=len(reached),
                failures=failures,
                realised_risk=failures / len(reached) if reached else None,
                risk_bound=upper_bound(failures, len(reached), confidence),
                hours=None if seconds is None else (routes.audit + review) * seconds / 3600,
                saved_hours=None if seconds is None else accepted * seconds / 3600,
                warning=_warning(threshold, qualities, len(reached)),
            )
        )
    return found


def seconds_per_label(session: Session, project: Project) -> float | None:
    """The median time that a label by a person took, of the last `RECENT`, as the labeling tool measured it.

    The median, for a page left open over lunch counts for an hour. None where no label tells its time; one
    of 0 s was not drawn by hand. An annotation that was saved again counts once, with its last time.
    """
    took = (
        select(Label.tool_annotation_id, Label.lead_time_s)
        .where(Label.project_id == project.id, Label.source.in_(PEOPLE), Label.lead_time_s > 0)
        .where(Label.cancelled.is_(False))
        .order_by(Label.id.desc())
        .limit(RECENT)
    )
    seconds: dict[int, float] = {}
    for annotation, lead_time_s in session.execute(took):
        seconds.setdefault(annotation, lead_time_s or 0.0)
    return float(np.median(list(seconds.values()))) if seconds else None


def _warning(threshold: float | None, qualities: Sequence[float], reached: int) -> str | None:
    if threshold is None:
        return None
    if not reached:
        return "no audited mask reaches this threshold, so its risk is unknown"
    lowest = min(qualities)
    if threshold < lowest:
        return (
            f"no mask with a predicted IoU below {lowest:.3f} was ever audited, so the risk there is unknown"
        )
    return None
