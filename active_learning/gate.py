"""The gate between champion and challenger: no promotion if not better.

The rule. Both are evaluated on the same holdout; the difference is taken image by image. The challenger is
promoted when

1. its output is sane: every number finite, not everything empty or full where the truth is not, and
   probabilities also on foreign images; and it is as fast as the project asks (`latency_s`);
2. its mean smoothed IoU per image is higher than the champion's;
3. the lower end of the paired bootstrap's 90 % interval of that difference is above -margin: the data make
   a loss of more than `margin` unlikely (5 %);
4. so is the lower end of that of the boundary F measure: no better areas by worse outlines; and
5. no class loses more than `margin` of its mean IoU per image. Of a class the mean counts, not the interval:
   that of a rare one is so wide that it would hold every challenger back.

With fewer than `MIN_IMAGES` images the intervals are wider than the steps that models make, and 3 would hold
every challenger back; 3 to 5 are left out, and the mean alone decides. That is a coin with a bias: draw a
holdout first (`active_learning.holdout`), and label it.

The first model has no champion to beat. It is promoted if it is sane and its mean IoU, over the images where
there is something to find, is at least `FLOOR`: below that a human labels faster without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import ELNetError

MARGIN = 0.05  # IoU that may be lost by bad luck
MIN_IMAGES = 50  # below, the interval is wider than the margin
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
        smoothed_iou: the same, see `model.metrics`: plain IoU is 0 for every version that finds anything on
            an empty image, be it three pixels or half of them, and so does not tell who does better there.
        predicted_share: foreground that was predicted, as a share of the valid pixels of all classes' planes.
        truth_share: the same of the truth.
        boundary_f1: mean over the classes.
        class_ious: IoU of each class; empty for a single one.
    """

    image: str
    iou: float
    smoothed_iou: float
    predicted_share: float
    truth_share: float
    boundary_f1: float = 1.0
    class_ious: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class GateDecision:
    """What the gate says.

    Attributes:
        promote: whether the challenger becomes the champion.
        reason: one sentence for people.
        delta: challenger's mean smoothed IoU per image less the champion's; None when there was nothing to
            compare.
        interval: the bootstrap's 90 % interval of delta; None when there was none, or too few images.
    """

    promote: bool
    reason: str
    delta: float | None = None
    interval: tuple[float, float] | None = None


def image_scores(per_image: Sequence[Mapping[str, Any]]) -> list[ImageScore]:
    """From `model.metrics.Scores.per_image`."""
    return [
        ImageScore(
            s["image"],
            s["iou"],
            s["smoothed_iou"],
            s["predicted_share"],
            s["truth_share"],
            s["boundary_f1"],
            tuple(s.get("class_ious", ())),
        )
        for s in per_image
    ]


def decide(
    challenger: Sequence[ImageScore],
    champion: Sequence[ImageScore] | None,
    margin: float = MARGIN,
    seed: int = 0,
    classes: Sequence[str] = (),
    passed: str = "promoted",
    fault: str | None = None,
) -> GateDecision:
    """Judge a challenger by the rule above.

    Args:
        challenger: its scores on the holdout.
        champion: the champion's on the same images, in any order; None when there is no champion.
        margin: IoU or boundary F, 0 or more.
        seed: of the bootstrap; the same seed gives the same decision.
        classes: their names, for the reason.
        passed: what the reason calls one that the gate lets pass.
        fault: what else speaks against the challenger, such as its output on foreign images.

    Raises:
        GateError: the two were not evaluated on the same images.
    """
    if not challenger:
        return GateDecision(False, "not promoted: the holdout holds no image to judge it on")
    if fault := fault or _fault(challenger):
        return GateDecision(False, f"not promoted: {fault}")
    mean = float(np.mean([s.smoothed_iou for s in challenger]))
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
            True, f"{passed}: the first model, its output is sane, mean smoothed IoU {mean:.3f} on {images}"
        )
    pairs = _paired(challenger, champion)
    differences = _differences(pairs, lambda s: s.smoothed_iou)
    delta = float(differences.mean())
    change = (
        f"mean smoothed IoU {mean:.3f} against the champion's {mean - delta:.3f} ({delta:+.4f}) on {images}"
    )
    if len(differences) < MIN_IMAGES:
        verdict = passed if delta > 0 else "not promoted"
        few = "too few images to say how sure that is, so the mean alone decided"
        return GateDecision(delta > 0, f"{verdict}: {change}; {few}", delta)
    low, high = bootstrap(differences, seed)
    sure = f"90 % interval {low:+.4f} to {high:+.4f}"
    if delta <= 0:
        return GateDecision(False, f"not promoted: no better, {change}, {sure}", delta, (low, high))
    if low <= -margin:
        unsure = f"not promoted: better by chance perhaps, {change}, but {sure} goes below -{margin:g}"
        return GateDecision(False, unsure, delta, (low, high))
    if loss := _loss_elsewhere(pairs, margin, seed, classes):
        return GateDecision(False, f"not promoted: {change}, but {loss}", delta, (low, high))
    return GateDecision(True, f"{passed}: {change}, {sure}", delta, (low, high))


def too_slow(seconds: float, limit: float | None) -> str | None:
    """What speaks against a version by the project's `latency_s`; None if nothing does.

    Args:
        seconds: median of an image, on the worker.
        limit: the project's; None: there is none.
    """
    if limit is None or seconds <= limit:
        return None
    return f"it takes {seconds:.3g} s for an image, and the policy allows {limit:g} (latency_s)"


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
        if not all(map(math.isfinite, (s.iou, s.smoothed_iou, s.predicted_share, s.truth_share))):
            return f"its result on {s.image} is not a finite number"
    if all(s.predicted_share <= 0 for s in scores) and any(s.truth_share > 0 for s in scores):
        return "it finds nothing on any image of the holdout, though there is something"
    if all(s.predicted_share >= _FULL for s in scores) and any(s.truth_share < _FULL for s in scores):
        return "it paints every image of the holdout full, though they are not"
    return None


Pair = tuple[ImageScore, ImageScore]  # the challenger's and the champion's, of one image


def _paired(challenger: Sequence[ImageScore], champion: Sequence[ImageScore]) -> list[Pair]:
    """Image by image."""
    old = {s.image: s for s in champion}
    if len(old) != len(champion) or sorted(old) != sorted(s.image for s in challenger):
        raise GateError(
            f"the challenger was judged on {len(challenger)} images and the champion on {len(champion)}, "
            "and they are not the same ones; evaluate both on the same holdout"
        )
    return [(s, old[s.image]) for s in challenger]


def _differences(pairs: Sequence[Pair], figure: Callable[[ImageScore], float]) -> NDArray[np.float64]:
    """Challenger less champion, (n,)."""
    differences = np.array([figure(new) - figure(old) for new, old in pairs], dtype=np.float64)
    if not np.isfinite(differences).all():
        raise GateError(
            "the champion's result on an image of the holdout is not a finite number; evaluate it again"
        )
    return differences


def _loss_elsewhere(pairs: Sequence[Pair], margin: float, seed: int, classes: Sequence[str]) -> str | None:
    """What is lost besides a better mean IoU: outlines, or a class; None if nothing is."""
    low, _ = bootstrap(_differences(pairs, lambda s: s.boundary_f1), seed)
    if low <= -margin:
        return f"its outlines may be worse: the 90 % interval of boundary F goes down to {low:+.4f}"
    # A champion that was judged before classes were told apart has none to compare.
    several = min(len(score.class_ious) for pair in pairs for score in pair)
    for number in range(several):
        lost = float(np.mean([old.class_ious[number] - new.class_ious[number] for new, old in pairs]))
        if lost > margin:
            name = classes[number] if number < len(classes) else f"class {number + 1}"
            return f"{name} loses {lost:.4f} of its mean IoU"
    return None
