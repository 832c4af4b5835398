"""The rounds of a simulation, seed by seed -> a row for each strategy and number of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from active_learning.simulation import FULL, Round

TARGET = 0.95  # of what all labels reach: how many labels are needed for it?


@dataclass(frozen=True, slots=True)
class Summary:
    """A strategy over its seeds: medians, and the range of what is compared.

    Attributes:
        labels: so many there are.
        seeds: runs that the medians are over.
        fg_iou: median, with `lowest` and `highest`.
        rose: of the runs, the share in which this round's `fg_iou` is above the round's before; None in the
            first.
        accepted: median share of the test images that the promise would accept; `realised_risk`, the median
            over the runs that accepted any, and `promise_kept`, the mean, belong to it.
        labels_for_target: labels at which the median curve reaches `TARGET` of what "all" reaches, linear
            between rounds; None: it does not, or "all" was not run. The same in all rows of a strategy.
    """

    strategy: str
    labels: int
    seeds: int
    fg_iou: float
    lowest: float
    highest: float
    fg_iou_per_image: float
    boundary_f1: float
    spearman: float | None
    aurc: float
    accepted: float
    realised_risk: float | None
    promise_kept: float
    corrected_pixels: float
    touched: float
    rose: float | None
    labels_for_target: float | None


def summarise(rounds: Sequence[Round]) -> list[Summary]:
    """The rounds of a plan, strategy by strategy, with medians over the seeds."""
    groups: dict[tuple[str, int], list[Round]] = {}
    for row in rounds:
        groups.setdefault((row.strategy, row.labels), []).append(row)
    complete = [row.fg_iou for row in rounds if row.strategy == FULL]
    target = TARGET * median(complete) if complete else None
    curves: dict[str, list[tuple[int, float]]] = {}
    for (strategy, labels), rows in groups.items():
        curves.setdefault(strategy, []).append((labels, median(r.fg_iou for r in rows)))
    before: list[Round] = []
    found = []
    for (strategy, labels), rows in groups.items():
        last = {row.seed: row.fg_iou for row in before if row.strategy == strategy}
        risks = [row.realised_risk for row in rows if row.realised_risk is not None]
        ranks = [row.spearman for row in rows if row.spearman is not None]
        found.append(
            Summary(
                strategy=strategy,
                labels=labels,
                seeds=len(rows),
                fg_iou=median(row.fg_iou for row in rows),
                lowest=min(row.fg_iou for row in rows),
                highest=max(row.fg_iou for row in rows),
                fg_iou_per_image=median(row.fg_iou_per_image for row in rows),
                boundary_f1=median(row.boundary_f1 for row in rows),
                spearman=median(ranks) if ranks else None,
                aurc=median(row.aurc for row in rows),
                accepted=median(row.accepted for row in rows),
                realised_risk=median(risks) if risks else None,
                promise_kept=fmean(row.promise_kept for row in rows),
                corrected_pixels=median(row.corrected_pixels for row in rows),
                touched=median(row.touched for row in rows),
                rose=sum(row.fg_iou > last[row.seed] for row in rows) / len(rows) if last else None,
                labels_for_target=None if target is None else _reached(curves[strategy], target),
            )
        )
        before = rows
    return found


def _reached(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """The labels at which a curve first reaches the target."""
    for i, (labels, value) in enumerate(curve):
        if value >= target:
            if i == 0:
                return float(labels)
            few, low = curve[i - 1]
            return few + (target - low) / (value - low) * (labels - few)
    return None
