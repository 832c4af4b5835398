"""An accept threshold with a guarantee: Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052).

A lead promises: *of the masks accepted, at most `risk` may have an IoU below `iou`, with this confidence*.
The thresholds that could be set are tested one after another, from the strictest on. Each test asks whether
so few failures among the audited masks above it could be chance if more than `risk` of all accepted ones
failed: an exact binomial test at level 1 - confidence. The first threshold that does not pass ends the
sequence, and the last one that did is the answer: the loosest that keeps the promise. Because the order is
fixed beforehand and nothing is tested after the first failure, the confidence holds for the answer, not only
for each test (fixed-sequence testing).

What it rests on. The audited masks are a random sample of those that the threshold will be applied to: of the
same version, of the same kind of images. Siblings of one scene are not independent, so each scene counts
once. The sequence begins where enough masks reach for a few failures to be forgiven, more of them with more
audits (`start_of`): a sequence that begins with the fewest masks that could pass ends there by a single one.
Where it begins hangs on the number of audits alone, never on what was right or wrong.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from model.errors import ELNetError

STEPS = 40  # thresholds that are tried: so many equal shares of the audited masks
FORGIVEN = 4  # failures at most at which the sequence may begin
_MOST = 1_000_000  # audits: beyond, more of them are no answer


class GuaranteeError(ELNetError):
    """A promise that says nothing, or samples that cannot be used."""


@dataclass(frozen=True, slots=True)
class Promise:
    """Of the masks accepted, at most `risk` may have an IoU below `iou`, with this confidence.

    Attributes:
        iou: in (0, 1]: a mask with less is a failure.
        risk: in (0, 1).
        confidence: in (0, 1), of keeping it, over the chance of which masks were audited.
        classes: name -> IoU in (0, 1]: a mask is a failure too where this class has less.

    Raises:
        GuaranteeError: a number out of its range.
    """

    iou: float
    risk: float
    confidence: float = 0.9
    classes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for bar in (self.iou, *self.classes.values()):
            if not 0 < bar <= 1:  # true for NaN too
                raise GuaranteeError(f"the IoU that counts as good must lie in (0, 1], not {bar}")
        if not (0 < self.risk < 1 and 0 < self.confidence < 1):
            raise GuaranteeError(
                f"risk and confidence must lie between 0 and 1, not {self.risk} and {self.confidence}; no "
                "number of audits can show a risk of 0"
            )

    def __str__(self) -> str:
        return (
            f"of the accepted masks at most {self.risk:.3g} have {self.failure}, "
            f"with confidence {self.confidence:.3g}"
        )

    @property
    def failure(self) -> str:
        """What is wrong with a mask that counts as a failure."""
        bars = [
            f"below {self.iou:.3g}",
            *(f"of {name} below {bar:.3g}" for name, bar in self.classes.items()),
        ]
        return f"an IoU {', or '.join(bars)}"

    def fails(
        self, iou: float, class_ious: Sequence[float] | None = None, names: Sequence[str] = ()
    ) -> bool | None:
        """Whether a mask is a failure; None if that of a class decides, and is not known.

        Args:
            iou: mean over the classes, with the truth.
            class_ious: of each class, in the order of `names`.
            names: of the project's classes.
        """
        if iou < self.iou:
            return True
        if not self.classes:
            return False
        known = [iou] if class_ious is None and len(names) == 1 else class_ious
        if known is None:
            return None
        found = dict(zip(names, known, strict=True))
        return any(found[name] < bar for name, bar in self.classes.items())


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What can be promised on the audits that there are.

    Attributes:
        threshold: the loosest predicted IoU from which on accepting keeps the promise; None: there is none.
        samples: audited scenes in all.
        reached: of them, those at or above the threshold, and `failures` of these below the promised IoU.
        risk_bound: the most that their share among all accepted is likely to be: the upper end of the exact
            interval at the promise's confidence; 1 without a threshold.
        coverage: share of the audited scenes at or above the threshold.
        best_risk: the smallest risk, in steps of 0.01, that could be promised today at the same IoU and
            confidence; None: none below 1.
        more: how many audits more would be needed if they turned out as those so far, with a threshold half
            of the images reach; None: the promise can be kept, or no number would do.
    """

    threshold: float | None
    samples: int
    reached: int
    failures: int
    risk_bound: float
    coverage: float
    best_risk: float | None
    more: int | None


def guarantee(
    qualities: Sequence[float],
    ious: Sequence[float],
    promise: Promise,
    scenes: Sequence[Hashable] | None = None,
) -> Guarantee:
    """The loosest threshold that keeps a promise, or what it lacks.

    Args:
        qualities: predicted IoU of the audited masks, in [0, 1].
        ious: their IoU with what the auditor drew, in [0, 1].
        promise: what is to hold.
        scenes: of each; None: each is a scene of its own.

    Raises:
        GuaranteeError: lengths differ, or a value is not in [0, 1].
    """
    quality, iou = one_of_each_scene(qualities, ious, scenes)
    failed = iou < promise.iou
    at = _sequence(quality, failed, promise)
    best = next(
        (r / 100 for r in range(1, 100) if _sequence(quality, failed, replace(promise, risk=r / 100))), None
    )
    if not at:
        more = _more(quality, failed, promise)
        return Guarantee(None, len(quality), 0, 0, 1.0, 0.0, best, more)
    reached = quality >= at[-1]
    n, failures = int(reached.sum()), int(failed[reached].sum())
    bound = upper_bound(failures, n, promise.confidence)
    return Guarantee(at[-1], len(quality), n, failures, bound, n / len(quality), best, None)


def upper_bound(failures: int, samples: int, confidence: float) -> float:
    """Upper end of the one-sided Clopper-Pearson interval of a binomial share; 1 without samples."""
    if failures >= samples:
        return 1.0
    # Imported here because it takes a second, which every command would pay.
    from scipy.stats import beta

    return float(beta.ppf(confidence, failures + 1, samples - failures))


def fewest(promise: Promise, failures: int = 0) -> int:
    """How many audited masks it takes for a promise, with so many failures among them."""
    n = math.ceil(math.log(1 - promise.confidence) / math.log(1 - promise.risk) - 1e-9)  # (1 - risk)^n
    while failures and upper_bound(failures, n, promise.confidence) > promise.risk:
        n += 1
    return n


def start_of(samples: int, promise: Promise) -> int:
    """How many audited masks reach the first threshold of the sequence.

    In simulations the threshold came out loosest when one failure was forgiven for each five times the
    `fewest` masks (docs/decisions.md).
    """
    return fewest(promise, min(FORGIVEN, samples // (5 * fewest(promise))))


def _sequence(quality: NDArray[np.float64], failed: NDArray[np.bool_], promise: Promise) -> list[float]:
    """The thresholds that pass, from the strictest on, up to the first that does not."""
    passed: list[float] = []
    for threshold in _candidates(quality, start_of(len(quality), promise)):
        reached = quality >= threshold
        if upper_bound(int(failed[reached].sum()), int(reached.sum()), promise.confidence) > promise.risk:
            break
        passed.append(threshold)
    return passed


def _candidates(quality: NDArray[np.float64], start: int) -> list[float]:
    """Thresholds from strict to loose, that at least so many masks reach."""
    ranked = np.sort(quality)[::-1]
    places = {max(start, math.ceil(len(ranked) * step / STEPS)) for step in range(1, STEPS + 1)}
    return sorted({float(ranked[place - 1]) for place in places if place <= len(ranked)}, reverse=True)


def _more(quality: NDArray[np.float64], failed: NDArray[np.bool_], promise: Promise) -> int | None:
    """See `Guarantee.more`."""
    half = np.sort(quality)[::-1][: max(1, len(quality) // 2)]
    reached = quality >= half[-1] if len(quality) else np.zeros(0, np.bool_)
    share = float(failed[reached].mean()) if reached.any() else 0.0
    if share >= promise.risk:
        return None
    low, high = fewest(promise), 2 * fewest(promise)
    while upper_bound(math.ceil(share * high), high, promise.confidence) > promise.risk:
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while low < high:
        middle = (low + high) // 2
        if upper_bound(math.ceil(share * middle), middle, promise.confidence) <= promise.risk:
            high = middle
        else:
            low = middle + 1
    return max(1, 2 * high - len(quality))


def one_of_each_scene(
    qualities: Sequence[float], ious: Sequence[float], scenes: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One mask of each scene, by a draw that looks at no value.

    Args:
        qualities: predicted IoU, in [0, 1].
        ious: of the same masks, in [0, 1].
        scenes: of each; None: each is a scene of its own.

    Returns:
        (n,) qualities and (n,) IoUs of those that count.

    Raises:
        GuaranteeError: lengths differ, or a value is not in [0, 1].
    """
    named = range(len(qualities)) if scenes is None else scenes
    if not len(qualities) == len(ious) == len(named):
        raise GuaranteeError(
            f"{len(qualities)} qualities, {len(ious)} IoUs and {len(named)} scenes do not pair up"
        )
    values = np.array([qualities, ious], dtype=np.float64).reshape(2, -1)
    if not ((values >= 0) & (values <= 1)).all():  # false for NaN too
        raise GuaranteeError("a quality or an IoU of the audits is not in [0, 1]")
    chosen: dict[Hashable, tuple[bytes, int]] = {}
    for i, scene in enumerate(named):
        draw = hashlib.sha256(f"{scene}/{i}".encode()).digest()
        chosen[scene] = min(chosen.get(scene, (draw, i)), (draw, i))
    kept = sorted(i for _, i in chosen.values())
    return values[0, kept], values[1, kept]
