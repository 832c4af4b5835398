"""An oracle annotator: labels as a patient human with the truth before their eyes would.

It serves the demo and replays of the loop on labelled data. It is no model of real people: it never errs, it
never anchors on a prefill, and its seconds come from the formula at `Effort`, whose constants are assumed,
not measured. They are good for comparing one run with another, not for promising hours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_EIGHT = np.ones((3, 3), dtype=np.bool_)  # pixels that touch at a corner belong together

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Effort:
    """Assumed seconds: look + regions x aim + outline / speed.

    Attributes:
        look_s: to open a task, judge it and submit it.
        aim_s: to find one region that is wrong, pick the tool and begin.
        speed_px_s: pixels of outline that a brush or polygon follows in a second.
    """

    look_s: float = 3.0
    aim_s: float = 2.0
    speed_px_s: float = 40.0

    def seconds(self, regions: int, outline_px: int) -> float:
        """Seconds for a task in which so many regions with so much outline are redrawn."""
        return self.look_s + regions * self.aim_s + outline_px / self.speed_px_s


@dataclass(frozen=True, slots=True)
class Correction:
    """What the oracle submits.

    Attributes:
        mask: (H, W) bool, or (N, H, W) of `annotate`.
        touched: at least one region was drawn or redrawn; False: the prefill was submitted as it is.
        corrected_pixels: pixels that differ from the prefill (from an empty one, without a prefill).
        seconds: the estimate of `Effort`.
    """

    mask: Mask
    touched: bool
    corrected_pixels: int
    seconds: float


def correct(
    prefill: Mask | None, truth: Mask, tolerance_px: int = 2, effort: Effort | None = None
) -> Correction:
    """Correct a prefill towards the truth, and let pass what a human would let pass.

    An error is let pass when it lies within `tolerance_px` of the other mask (a boundary that is a little
    off), or when what is left of it beyond that is a speck of fewer than (tolerance_px + 1)^2 connected
    pixels. Every other error is redrawn: it, and the boundary errors within `tolerance_px` around it, become
    the truth. With a tolerance of 0 the result is the truth. Without a prefill the truth is drawn.

    Args:
        prefill: (H, W) bool, or None.
        truth: (H, W) bool.
        tolerance_px: chessboard distance in pixels, 0 or more.
        effort: the seconds model; default `Effort()`.

    Returns:
        The correction; the same for the same arguments.

    Raises:
        ValueError: the masks differ in shape, or the tolerance is negative.
    """
    if tolerance_px < 0:
        raise ValueError(f"the tolerance must be 0 or more, not {tolerance_px}")
    if truth.ndim != 2 or (prefill is not None and prefill.shape != truth.shape):
        shape = None if prefill is None else prefill.shape
        raise ValueError(f"prefill {shape} and truth {truth.shape} must be (H, W) and of one size")
    start = np.zeros_like(truth) if prefill is None else prefill
    redrawn = truth if prefill is None else _worth_redrawing(start, truth, tolerance_px)
    region = redrawn if prefill is None else _grow(redrawn, tolerance_px)
    mask = np.where(region, truth, start)
    changed = mask != start
    regions = int(ndimage.label(redrawn, _EIGHT)[1])
    seconds = (effort or Effort()).seconds(regions, int((changed & ~_shrink(changed)).sum()))
    return Correction(mask, regions > 0, int(changed.sum()), seconds)


def annotate(
    prefill: Mask | None, truth: Mask, tolerance_px: int = 2, effort: Effort | None = None
) -> Correction:
    """`correct` class by class: one annotation, with what the classes cost together.

    Args:
        prefill: (N, H, W) bool, or None.
        truth: (N, H, W) bool.
        tolerance_px: as in `correct`.
        effort: as in `correct`.
    """
    prefills = [None] * len(truth) if prefill is None else list(prefill)
    parts = [correct(*pair, tolerance_px, effort) for pair in zip(prefills, truth, strict=True)]
    return Correction(
        np.stack([part.mask for part in parts]),
        any(part.touched for part in parts),
        sum(part.corrected_pixels for part in parts),
        sum(part.seconds for part in parts),
    )


def _worth_redrawing(prefill: Mask, truth: Mask, tolerance_px: int) -> Mask:
    """The errors that a human would not let pass."""
    too_much = prefill & ~_grow(truth, tolerance_px)
    too_little = truth & ~_grow(prefill, tolerance_px)
    kept = np.zeros_like(truth)
    for error in (too_much, too_little):  # apart: an extra and a missing region side by side are two
        parts, count = ndimage.label(error, _EIGHT)
        large = np.bincount(parts.ravel(), minlength=count + 1) >= (tolerance_px + 1) ** 2
        large[0] = False
        kept |= large[parts]
    return kept


def _grow(mask: Mask, pixels: int) -> Mask:
    """Dilate by a chessboard distance."""
    grown: Mask = ndimage.maximum_filter(mask.astype(np.uint8), 2 * pixels + 1, mode="constant") > 0
    return grown


def _shrink(mask: Mask) -> Mask:
    """Erode by one pixel; what touches the image's border erodes there too."""
    shrunk: Mask = ndimage.minimum_filter(mask.astype(np.uint8), 3, mode="constant") > 0
    return shrunk
