"""The gate between champion and challenger: no promotion if not better.

The rule. Both are evaluated on the same holdout; the difference is taken image by image. The challenger is
promoted when

1. its output is sane: every number finite, and not everything empty or full where the truth is not;
2. its mean IoU per image is higher than the champion's; and
3. the lower end of the paired bootstrap's 90 % interval of that difference is above -margin: the data make
   a loss of more than `margin` unlikely (5 %).

With fewer than `MIN_IMAGES` images the interval is wider than the steps that models make, and 3 would hold
every challenger back; it is left out. Nor can 2 be told from chance there, and what is known beforehand
counts: a challenger that has learned from more labels is usually the better one. Such a challenger is held
back only when the holdout speaks against it: when its mean is lower by a standard error or more. The reason
says so. (In replays with 6 and 13 images, 2 alone held back 11 of 32 challengers, of which 7 were better on
other images: docs/decisions.md.)

The first model has no champion to beat. It is promoted if it is sane and its mean IoU, over the images where
there is something to find, is at least `FLOOR`: below that a human labels faster without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import ELNetError

MARGIN = 0.05  # IoU that may be lost by bad luck
MIN_IMAGES = 20
FLOOR = 0.05  # mean IoU of a first model
RESAMPLES = 4000
INTERVAL = 0.9
_FULL = 0.999  # share of foreground that counts as full


class GateError(ELNetError):
    """Champion and challenger cannot be compared."""


@dataclass(frozen=True, slots=True)
class ImageScore:
    """One model on one image of the holdout.

    Attributes:
        image: its name, the same for both models.
        iou: mean over the classes, in [0, 1].
        predicted_share: foreground that was predicted, as a share of the valid pixels of all classes' planes.
        truth_share: the same of the truth.
    """

    image: str
    iou: float
    predicted_share: float
    truth_share: float


@dataclass(frozen=True, slots=True)
class GateDecision:
    """What the gate says.

    Attributes:
        promote: whether the challenger becomes the champion.
        reason: one sentence for people.
        delta: challenger's mean IoU per image less the champion's; None when there was nothing to compare.
        interval: the bootstrap's 90 % interval of delta; None when there was none, or too few images.
    """

    promote: bool
    reason: str
    delta: float | None = None
    interval: tuple[float, float] | None = None


def image_scores(per_image: Sequence[Mapping[str, Any]]) -> list[ImageScore]:
    """From `model.metrics.Scores.per_image`."""
    return [ImageScore(s["image"], s["iou"], s["predicted_share"], s["truth_share"]) for s in per_image]


def decide(
    challenger: Sequence[ImageScore],
    champion: Sequence[ImageScore] | None,
    margin: float = MARGIN,
    seed: int = 0,
    *,
    more_labels: bool = False,
) -> GateDecision:
    """Judge a challenger by the rule above.

    Args:
        challenger: its scores on the holdout.
        champion: the champion's on the same images, in any order; None when there is no champion.
        margin: IoU, 0 or more.
        seed: of the bootstrap; the same seed gives the same decision.
        more_labels: the challenger has learned from more of them than the champion.

    Raises:
        GateError: the two were not evaluated on the same images.
    """
    if not challenger:
        return GateDecision(False, "not promoted: the holdout holds no image to judge it on")
    if fault := _fault(challenger):
        return GateDecision(False, f"not promoted: {fault}")
    mean = float(np.mean([s.iou for s in challenger]))
    images = "1 image" if len(challenger) == 1 else f"{len(challenger)} images"
    if champion is None:
        found = [s.iou for s in challenger if s.truth_share > 0]
        if found and np.mean(found) < FLOOR:
            return GateDecision(
                False,
                f"not promoted: the first model hardly finds anything, mean IoU {np.mean(found):.3f} where "
                f"there is something, and {FLOOR:g} is asked for; more labels will help",
            )
        return GateDecision(
            True, f"promoted: the first model, its output is sane, mean IoU {mean:.3f} on {images}"
        )
    differences = _paired(challenger, champion)
    delta = float(differences.mean())
    change = f"mean IoU {mean:.3f} against the champion's {mean - delta:.3f} ({delta:+.4f}) on {images}"
    if len(differences) < MIN_IMAGES:
        return _decide_on_few(differences, change, more_labels)
    low, high = bootstrap(differences, seed)
    sure = f"90 % interval {low:+.4f} to {high:+.4f}"
    if delta <= 0:
        return GateDecision(False, f"not promoted: no better, {change}, {sure}", delta, (low, high))
    if low <= -margin:
        unsure = f"not promoted: better by chance perhaps, {change}, but {sure} goes below -{margin:g}"
        return GateDecision(False, unsure, delta, (low, high))
    return GateDecision(True, f"promoted: {change}, {sure}", delta, (low, high))


def _decide_on_few(differences: NDArray[np.float64], change: str, more_labels: bool) -> GateDecision:
    delta, n = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    few = f"{change}; too few images to say how sure that is"
    if delta > 0 or not more_labels:
        verdict = "promoted" if delta > 0 else "not promoted"
        return GateDecision(delta > 0, f"{verdict}: {few}, so the mean alone decided", delta)
    if delta > -error:
        doubt = f"within the standard error of {error:.3f}, and it has learned from more labels"
        return GateDecision(True, f"promoted: {few}; that is {doubt}", delta)
    beyond = f"but that is not within the standard error of {error:.3f}"
    return GateDecision(False, f"not promoted: {few}, {beyond}", delta)


def bootstrap(differences: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean of paired differences (Efron and Tibshirani 1993, chapter 13).

    Args:
        differences: (n,) float, one per image.
        seed: of the resampling.

    Returns:
        Lower and upper end of the `INTERVAL`.
    """
    rng = np.random.default_rng(seed)
    means = [
        differences[rng.integers(0, len(differences), len(differences))].mean() for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return float(low), float(high)


def _fault(scores: Sequence[ImageScore]) -> str | None:
    """Why the output is not sane; None if it is."""
    for s in scores:
        if not all(map(math.isfinite, (s.iou, s.predicted_share, s.truth_share))):
            return f"its result on {s.image} is not a finite number"
    if all(s.predicted_share <= 0 for s in scores) and any(s.truth_share > 0 for s in scores):
        return "it finds nothing on any image of the holdout, though there is something"
    if all(s.predicted_share >= _FULL for s in scores) and any(s.truth_share < _FULL for s in scores):
        return "it paints every image of the holdout full, though they are not"
    return None


def _paired(challenger: Sequence[ImageScore], champion: Sequence[ImageScore]) -> NDArray[np.float64]:
    """Challenger less champion, image by image."""
    old = {s.image: s.iou for s in champion}
    if len(old) != len(champion) or sorted(old) != sorted(s.image for s in challenger):
        raise GateError(
            f"the challenger was judged on {len(challenger)} images and the champion on {len(champion)}, "
            "and they are not the same ones; evaluate both on the same holdout"
        )
    differences = np.array([s.iou - old[s.image] for s in challenger], dtype=np.float64)
    if not np.isfinite(differences).all():
        raise GateError(
            "the champion's result on an image of the holdout is not a finite number; evaluate it again"
        )
    return differences
