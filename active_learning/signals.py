"""What a predicted mask says of its own quality, without ground truth.

Two signals make the score: the Soft Dice Confidence, an estimate of the Dice coefficient from the
probabilities alone (arXiv 2402.10665), and the stability of the mask under a shifted threshold (SAM,
arXiv 2304.02643, section 5). Boundary entropy and edge agreement are kept beside them: the first orders the
review queue, both wait for a better score.

An empty mask has neither: it is scored by how far its likeliest pixels are from being foreground.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

if TYPE_CHECKING:  # it brings torch, which the web process need not load for what the ledger holds already
    from model.predictor import ImagePrediction

BAND_PX = 3  # half the width of the boundary band, for the entropy
EDGE_TOLERANCE_PX = 2  # as in the boundary F measure
PEAK_SHARE = 0.001  # the likeliest pixels of an image: this share of them,
PEAK_PIXELS = 16  # and no fewer, so that one hot pixel decides nothing
_REGRESSED = (
    "score", "soft_dice_confidence", "mask_confidence", "stability", "boundary_entropy", "entropy",
    "edge_agreement", "foreground_share", "peak",
)  # fmt: skip
_MAY_LACK = ("flip_agreement", "learned_iou")
_LEAST_SHARE = 0.002  # keeps the logarithm of a small mask's share within bounds

Plane = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class ClassSignals:
    """The signals of one class's mask; all of them in [0, 1].

    Attributes:
        soft_dice_confidence: 2 sum(p y) / sum(p + y), with y the thresholded p; 0 for an empty mask.
        mask_confidence: mean probability within the mask; 0 for an empty one.
        stability: IoU of the masks at logit(cut) +1 and -1; 1 when even the looser one is empty.
        boundary_entropy: mean binary entropy in bits within `BAND_PX` of the mask's boundary; over the whole
            image when the mask has no boundary.
        entropy: the same over the whole image: little for its quality, but a strategy orders by it.
        edge_agreement: boundary F measure of the mask's outline and the edge head; None without an edge head.
        flip_agreement: Dice coefficient, over all pixels, of the masks of two flipped views drawn at random;
            1 where no view has foreground, None of an image that was seen in one view.
        learned_iou: the IoU that the network's quality head foresees; None without one, or for an empty mask.
        foreground_share: share of the pixels that are foreground.
        peak: mean probability of the likeliest pixels (`PEAK_SHARE`, at least `PEAK_PIXELS`).
        empty: no pixel is foreground.
        score: what follows from them, see `class_score`.
    """

    soft_dice_confidence: float
    mask_confidence: float
    stability: float
    boundary_entropy: float
    entropy: float
    edge_agreement: float | None
    foreground_share: float
    peak: float
    empty: bool
    score: float
    flip_agreement: float | None = None
    learned_iou: float | None = None


@dataclass(frozen=True, slots=True)
class Signals:
    """The signals of a prediction: every class's, in the project's order.

    Attributes:
        classes: one entry per class.
        usable: False when the model gave something other than finite probabilities in [0, 1]. Such a
            prediction has the score 0 and goes to a human, whatever the threshold.
    """

    classes: tuple[ClassSignals, ...]
    usable: bool = True

    @property
    def worst(self) -> ClassSignals:
        """The class with the lowest score: it decides."""
        return min(self.classes, key=lambda c: c.score)

    @property
    def empty(self) -> bool:
        """No class has any foreground."""
        return all(c.empty for c in self.classes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for the ledger."""
        return {"usable": self.usable, "classes": [asdict(c) for c in self.classes]}


def measure(prediction: ImagePrediction, cut: float, valid: NDArray[np.bool_] | None = None) -> Signals:
    """`signals` of what a `model.predictor.Predictor` says of an image."""
    return signals(
        prediction.probability, prediction.edge, cut, valid, prediction.votes, prediction.learned_iou
    )


def signals(
    probability: Plane,
    edge: Plane | None = None,
    cut: float = 0.5,
    valid: NDArray[np.bool_] | None = None,
    votes: Plane | None = None,
    learned_iou: Plane | None = None,
) -> Signals:
    """Measure a prediction.

    Args:
        probability: (N, H, W) float, foreground probability in [0, 1] per class.
        edge: (N, H, W) float in [0, 1] from the edge head, or None.
        cut: the mask is `probability > cut`; strictly between 0 and 1.
        valid: (H, W) bool; nodata pixels count as certain background.
        votes: (N, H, W) float in [0, 1], the share of flipped views in which a pixel is foreground, or None.
        learned_iou: (N,) float in [0, 1] from the quality head, NaN where it says nothing, or None.

    Returns:
        The signals of every class. Values that are not finite or not in [0, 1] make it unusable.

    Raises:
        ValueError: a shape or the cut is not as said above.
    """
    if probability.ndim != 3 or 0 in probability.shape:
        raise ValueError(f"probability must be a non-empty (N, H, W) array, not {probability.shape}")
    if edge is not None and edge.shape != probability.shape:
        raise ValueError(f"edge must have the shape of probability, {probability.shape}, not {edge.shape}")
    if votes is not None and votes.shape != probability.shape:
        raise ValueError(f"votes must have the shape of probability, {probability.shape}, not {votes.shape}")
    if valid is not None and valid.shape != probability.shape[1:]:
        raise ValueError(f"valid must be {probability.shape[1:]}, not {valid.shape}")
    if not 0 < cut < 1:
        raise ValueError(f"the cut must lie between 0 and 1, not {cut}")
    seen = probability if valid is None else np.where(valid, probability, 0)
    usable = bool(np.isfinite(seen).all() and seen.min() >= 0 and seen.max() <= 1)
    planes = seen if usable else np.clip(np.nan_to_num(seen, nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
    edges, shares, learned = (
        [None] * len(planes) if told is None else list(told) for told in (edge, votes, learned_iou)
    )
    each = zip(planes, edges, shares, learned, strict=True)
    return Signals(tuple(_measure(*of_class, cut) for of_class in each), usable)


def score(measured: Signals) -> float:
    """One number in [0, 1] for a prediction, higher is better: that of its worst class; 0 if unusable."""
    value = measured.worst.score
    return value if measured.usable and math.isfinite(value) else 0.0


def features(measured: Mapping[str, Any]) -> list[float | None] | None:
    """What the predicted IoU is regressed on: the signals of the worst class, from `Signals.to_dict`.

    None for a mask without foreground, an unusable one, and one that was measured before all signals were; a
    None among them for one that can be switched off. These stand at the end, in the order in which they came
    to be, so that a list that was stored earlier is the beginning of one of today.
    """
    classes = measured.get("classes")
    if not measured.get("usable") or not classes:
        return None
    worst = min(classes, key=lambda c: c["score"])
    if worst["empty"] or not worst.keys() >= set(_REGRESSED):
        return None
    told = [0.0 if worst[name] is None else float(worst[name]) for name in _REGRESSED]
    may_lack = [worst.get(name) for name in _MAY_LACK]
    return [*told, math.log(worst["foreground_share"] + _LEAST_SHARE), *may_lack]


def class_score(soft_dice_confidence: float, stability: float, peak: float, empty: bool, cut: float) -> float:
    """Score one class's mask; uncalibrated, a rank rather than a promise.

    A mask with foreground: the geometric mean of the stability (an IoU) and of the Soft Dice Confidence
    turned into an IoU by IoU = D / (2 - D). Either one near 0 pulls it down.

    An empty mask is right exactly when nothing is there: 1 - peak / cut, which is 1 when no pixel is likely
    at all and falls to 0 as the likeliest ones come near the cut, where a mask would begin. This rule is
    ours; no paper stands behind it.
    """
    if empty:
        return float(np.clip(1 - peak / cut, 0, 1))
    overlap = soft_dice_confidence / (2 - soft_dice_confidence)
    return float(np.clip(math.sqrt(overlap * stability), 0, 1))


def _measure(
    p: Plane, edge: Plane | None, votes: Plane | None, learned_iou: float | None, cut: float
) -> ClassSignals:
    """The signals of one (H, W) plane of probabilities in [0, 1]."""
    mask = p > cut
    empty = not mask.any()
    total = float(p.sum(dtype=np.float64)) + int(mask.sum())
    soft_dice = 2 * float(p[mask].sum(dtype=np.float64)) / total if total else 0.0
    odds = cut / (1 - cut)
    strict, loose = (int((p > odds * k / (1 + odds * k)).sum()) for k in (math.e, 1 / math.e))
    stability = strict / loose if loose else 1.0
    band = outline(mask, BAND_PX)
    peak = _peak(p)
    bits = _binary_entropy(p)
    entropy = float(bits.mean(dtype=np.float64))
    return ClassSignals(
        soft_dice_confidence=soft_dice,
        mask_confidence=0.0 if empty else float(p[mask].mean(dtype=np.float64)),
        stability=stability,
        boundary_entropy=float(bits[band].mean(dtype=np.float64)) if band.any() else entropy,
        entropy=entropy,
        edge_agreement=None if edge is None else _edge_agreement(mask, edge, cut),
        foreground_share=float(mask.mean()),
        peak=peak,
        empty=empty,
        score=class_score(soft_dice, stability, peak, empty, cut),
        flip_agreement=None if votes is None else _flip_agreement(votes),
        learned_iou=None if empty or learned_iou is None or math.isnan(learned_iou) else float(learned_iou),
    )


def outline(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """(H, W) bool: the pixels that are within `width` (chessboard distance) of the mask's boundary."""
    return _dilated(mask, width) & _dilated(~mask, width)


def _dilated(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """(H, W) bool: within `width` (chessboard distance) of the mask; eight times as fast as scipy's."""
    reached = mask
    for axis in (0, 1):
        reach = 0
        while reach < width:
            step = min(2 * reach + 1, width - reach)  # each time up to three times as far
            before, reached = reached, reached.copy()
            there, back = _shifts(before.ndim, axis, step)
            reached[there] |= before[back]
            reached[back] |= before[there]
            reach += step
    return reached


def _shifts(ndim: int, axis: int, step: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """All but the first and all but the last `step` lines along an axis."""
    whole = [slice(None)] * ndim
    there, back = slice(step, None), slice(None, -step)
    return (*whole[:axis], there, *whole[axis + 1 :]), (*whole[:axis], back, *whole[axis + 1 :])


def _flip_agreement(votes: Plane) -> float:
    """Two views drawn with replacement both hold a pixel with probability v^2, and v / 2 + v / 2 is one's."""
    total = float(votes.sum(dtype=np.float64))
    return float(np.square(votes, dtype=np.float64).sum()) / total if total else 1.0


def _peak(p: Plane) -> float:
    """Mean of the likeliest pixels of an (H, W) plane."""
    count = min(p.size, max(PEAK_PIXELS, round(PEAK_SHARE * p.size)))
    likeliest = np.partition(p, p.size - count, axis=None)[p.size - count :]
    return float(likeliest.mean(dtype=np.float64))


def _binary_entropy(p: Plane) -> NDArray[np.float32]:
    """Binary entropy of each probability, in bits, in [0, 1]."""
    bits: NDArray[np.float32] = entr(p).astype(np.float32)
    bits += entr(1 - p)
    bits /= math.log(2)
    return np.clip(bits, 0, 1, out=bits)


def _edge_agreement(mask: NDArray[np.bool_], edge: Plane, cut: float) -> float:
    """F measure of the mask's outline and the edge head, each within `EDGE_TOLERANCE_PX` of the other."""
    drawn = outline(mask, 1) & mask
    seen = np.nan_to_num(edge) > cut
    if not drawn.any() or not seen.any():
        return 1.0 if drawn.any() == seen.any() else 0.0
    precision = float(_dilated(drawn, EDGE_TOLERANCE_PX)[seen].mean())
    recall = float(_dilated(seen, EDGE_TOLERANCE_PX)[drawn].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
