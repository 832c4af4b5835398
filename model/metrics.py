"""How well masks agree: foreground IoU, 2-class mIoU, Dice, and the measures of `model.shape_metrics`.

Papers mix these, so the names say what is meant. *Pooled* sums pixels over all images before dividing, *per
image* divides first and then takes the mean. With several classes every figure is the mean over the classes,
each an independent binary mask. Pixels that are not valid count nowhere.

Empty masks: where neither prediction nor truth has foreground, every measure of that image is 1; where only
one has, it is 0. Pooled figures follow the same rule over the whole set. Only an image's smoothed IoU is
graded there: where the truth is empty, false foreground of a thousandth of the pixels (`SMOOTHING`) gives
1/2, ten times as much 1/11. It tells two versions apart that are both 0 by the rule. For objects of a few
pixels it is well above the IoU, for others nearly the same; no paper's figure should be held against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.shape_metrics import BOUNDARY_TOLERANCE, boundary_f, boundary_iou, cl_dice

Mask = NDArray[np.bool_]
SMOOTHING = 0.001  # of an image's valid pixels
_SHAPE = ("boundary_f1", "boundary_iou", "cl_dice")


@dataclass(frozen=True, slots=True)
class Scores:
    """The figures of a set of images, each in [0, 1].

    Attributes:
        n: images.
        fg_iou: foreground IoU, pooled.
        fg_iou_per_image: foreground IoU, mean over images.
        miou_2class: mean of foreground and background IoU, both pooled.
        dice: foreground Dice (F1 over pixels), pooled.
        boundary_f1: boundary F at 2 px, mean over images.
        boundary_iou: mean over images.
        cl_dice: centreline Dice, mean over images; it says something of thin objects, such as roads.
        per_image: for each image, in order: image, iou, smoothed_iou, dice, boundary_f1, boundary_iou,
            cl_dice, predicted_share and truth_share (foreground of all classes' planes as a share of their
            valid pixels); with several classes also class_ious, of each.
        per_class: class name -> the seven figures of that class; empty for a single class.
    """

    n: int
    fg_iou: float
    fg_iou_per_image: float
    miou_2class: float
    dice: float
    boundary_f1: float
    boundary_iou: float
    cl_dice: float
    per_image: list[dict[str, Any]] = field(default_factory=list)
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """All but the images, for JSON; `per_class` only where there are several."""
        figures = asdict(self)
        del figures["per_image"]
        if not self.per_class:
            del figures["per_class"]
        return figures


class SegmentationMetrics:
    """Collects images one by one and keeps only their counts.

    Args:
        classes: their names, in the order of the mask planes; None for planes that have no names.
        tolerance: of boundary F, in px.
    """

    def __init__(self, classes: Sequence[str] | None = None, tolerance: float = BOUNDARY_TOLERANCE) -> None:
        self._classes = list(classes) if classes is not None else None
        self._tolerance = tolerance
        self._counts: list[NDArray[np.int64]] = []  # (N, 4) of each image
        self._shapes: list[list[list[float]]] = []  # (N, 3) of each image
        self._names: list[str] = []

    def update(self, prediction: Mask, truth: Mask, valid: Mask | None = None, *, name: str = "") -> None:
        """Add an image.

        Args:
            prediction: (N, H, W) bool; (H, W) is taken as one class.
            truth: of the same shape.
            valid: (H, W) bool; None: every pixel.
            name: what `Scores.per_image` calls it; default: its number from 0.
        """
        prediction, truth = _planes(prediction), _planes(truth)
        counts = _count(prediction, truth, valid)
        expected = (
            len(self._classes)
            if self._classes is not None
            else len(self._counts[0])
            if self._counts
            else None
        )
        if expected is not None and len(counts) != expected:
            raise ValueError(f"{len(counts)} mask planes, {expected} were expected")
        self._shapes.append(
            [
                [boundary_f(p, t, self._tolerance, valid), boundary_iou(p, t, valid), cl_dice(p, t, valid)]
                for p, t in zip(prediction, truth, strict=True)
            ]
        )
        self._counts.append(counts)
        self._names.append(name or str(len(self._names)))

    def compute(self) -> Scores:
        """The figures of all images so far.

        Raises:
            ValueError: there was none.
        """
        if not self._counts:
            raise ValueError("no image to score")
        counts = np.stack(self._counts)  # (images, N, 4)
        shapes = np.array(self._shapes)  # (images, N, 3)
        ious, dices = _iou(counts), _dice(counts)
        pooled = counts.sum(axis=0)
        by_class = {
            "fg_iou": _iou(pooled),
            "fg_iou_per_image": ious.mean(axis=0),
            "miou_2class": (_iou(pooled) + _iou(pooled[:, ::-1])) / 2,
            "dice": _dice(pooled),
            **dict(zip(_SHAPE, shapes.mean(axis=0).T, strict=True)),
        }
        names = self._classes or [str(i) for i in range(counts.shape[1])]
        several = len(names) > 1
        return Scores(
            n=len(counts),
            **{key: float(values.mean()) for key, values in by_class.items()},
            per_image=[
                {
                    "image": name,
                    "iou": float(ious[i].mean()),
                    "smoothed_iou": float(_smoothed_iou(counts[i]).mean()),
                    "dice": float(dices[i].mean()),
                    **dict(zip(_SHAPE, shapes[i].mean(axis=0).tolist(), strict=True)),
                    **_shares(counts[i]),
                    **({"class_ious": ious[i].tolist()} if several else {}),
                }
                for i, name in enumerate(self._names)
            ],
            per_class={
                name: {key: float(values[i]) for key, values in by_class.items()}
                for i, name in enumerate(names)
                if several
            },
        )


def iou(a: Mask, b: Mask, valid: Mask | None = None) -> float:
    """Intersection over union of two masks, in [0, 1]; 1 where both are empty.

    Args:
        a: (H, W) bool, or (N, H, W): then the mean over the planes.
        b: of the same shape.
        valid: (H, W) bool; None: every pixel.
    """
    return fmean(class_ious(a, b, valid))


def class_ious(a: Mask, b: Mask, valid: Mask | None = None) -> list[float]:
    """`iou` of each plane by itself, (N,)."""
    found: list[float] = _iou(_count(_planes(a), _planes(b), valid)).tolist()
    return found


def _planes(mask: Mask) -> Mask:
    if mask.dtype != np.bool_:
        raise ValueError(f"a mask must be bool, not {mask.dtype}: threshold it first")
    return mask[None] if mask.ndim == 2 else mask


def _count(prediction: Mask, truth: Mask, valid: Mask | None) -> NDArray[np.int64]:
    """(N, H, W) twice -> (N, 4) pixels: true positive, false positive, false negative, true negative."""
    if prediction.shape != truth.shape or (valid is not None and valid.shape != truth.shape[1:]):
        shapes = f"{prediction.shape}, {truth.shape}, valid {None if valid is None else valid.shape}"
        raise ValueError(f"masks of different shapes: {shapes}")
    if valid is not None:
        prediction, truth = prediction[:, valid], truth[:, valid]
    prediction, truth = prediction.reshape(len(prediction), -1), truth.reshape(len(truth), -1)
    both = (prediction & truth).sum(axis=1)
    predicted, true = prediction.sum(axis=1), truth.sum(axis=1)
    rest = prediction.shape[1] - predicted - true + both
    return np.stack([both, predicted - both, true - both, rest], axis=1).astype(np.int64)


def _iou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(..., 4) -> (...): TP / (TP + FP + FN). Reversed counts give the background's."""
    return _ratio(counts[..., 0], counts[..., :3].sum(axis=-1))


def _smoothed_iou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(..., 4) -> (...): (TP + s) / (TP + FP + FN + s), with s = `SMOOTHING` of the valid pixels."""
    some = np.maximum(SMOOTHING * counts.sum(axis=-1), 1.0)
    smoothed: NDArray[np.float64] = (counts[..., 0] + some) / (counts[..., :3].sum(axis=-1) + some)
    return smoothed


def _dice(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(..., 4) -> (...): 2 TP / (2 TP + FP + FN)."""
    return _ratio(2 * counts[..., 0], counts[..., :3].sum(axis=-1) + counts[..., 0])


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(whole > 0, part / np.maximum(whole, 1), 1.0)


def _shares(counts: NDArray[np.int64]) -> dict[str, float]:
    """Foreground as a share of the valid pixels of all planes; 0 where none is valid."""
    total = max(int(counts.sum()), 1)
    return {
        "predicted_share": int(counts[:, :2].sum()) / total,
        "truth_share": int(counts[:, [0, 2]].sum()) / total,
    }
