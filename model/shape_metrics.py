"""How well the shapes of two masks agree: outlines, the bands inside them, and centrelines.

All take (H, W) bool masks and return a figure in [0, 1]. Pixels that are not valid count nowhere. Where
neither mask has foreground the figure is 1, where only one has it is 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, minimum_filter
from skimage.morphology import skeletonize

Mask = NDArray[np.bool_]
BOUNDARY_TOLERANCE = (
    2.0  # px; 2 % of the diagonal, as in Boundary IoU, is coarse for thin objects (7 px at 256)
)
_BAND = 0.02  # of the diagonal


def boundary_f(a: Mask, b: Mask, tolerance: float = BOUNDARY_TOLERANCE, valid: Mask | None = None) -> float:
    """F measure of two outlines, in [0, 1] (Martin et al. 2004; Csurka et al. 2013).

    The outline of a mask is its pixels that touch (by a side) a background pixel; the image's border and
    pixels that are not valid are not background, so where a mask leaves the picture it has no outline.
    Precision is the share of a's outline within `tolerance` of b's, recall the converse, distances between
    pixel centres. Without any outline (both empty, both full) it is 1 if the masks are equal, else 0.

    Args:
        a: (H, W) bool.
        b: (H, W) bool.
        tolerance: px.
        valid: (H, W) bool; None: every pixel.
    """
    _check(a, b, valid)
    if valid is None:
        valid = np.ones(a.shape, np.bool_)
    outline_a, outline_b = _outline(a, valid), _outline(b, valid)
    total_a, total_b = int(outline_a.sum()), int(outline_b.sum())
    if total_a == total_b == 0:
        return float(np.array_equal(a & valid, b & valid))
    near_a, near_b = _within(outline_a, tolerance), _within(outline_b, tolerance)
    precision = int((outline_a & near_b).sum()) / max(total_a, 1)
    recall = int((outline_b & near_a).sum()) / max(total_b, 1)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary_iou(a: Mask, b: Mask, valid: Mask | None = None, band: float = _BAND) -> float:
    """IoU of the bands inside two outlines (Cheng et al. 2021, arXiv 2103.16562).

    The band of a mask is its pixels within d of its contour, d being `band` of the image's diagonal, in
    chessboard distance, at least 1 px. As in the authors' code the image's border counts as contour.

    Args:
        a: (H, W) bool.
        b: (H, W) bool.
        valid: (H, W) bool; None: every pixel.
        band: share of the diagonal.
    """
    _check(a, b, valid)
    if valid is not None:
        a, b = a & valid, b & valid
    height, width = a.shape
    distance = max(1, round(band * math.hypot(height, width)))
    band_a, band_b = _band(a, distance), _band(b, distance)
    union = int((band_a | band_b).sum())
    return int((band_a & band_b).sum()) / union if union else 1.0


def cl_dice(a: Mask, b: Mask, valid: Mask | None = None) -> float:
    """Centreline Dice: the harmonic mean of how much of each skeleton lies in the other mask.

    Shit et al. 2021, arXiv 2003.07311, equations 1 and 2: it rewards connected roads over wide ones.

    Args:
        a: (H, W) bool.
        b: (H, W) bool.
        valid: (H, W) bool; None: every pixel.
    """
    _check(a, b, valid)
    if valid is not None:
        a, b = a & valid, b & valid
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    line_a, line_b = skeletonize(a), skeletonize(b)
    precision = int((line_a & b).sum()) / int(line_a.sum())
    sensitivity = int((line_b & a).sum()) / int(line_b.sum())
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def _check(a: Mask, b: Mask, valid: Mask | None) -> None:
    if a.shape != b.shape or (valid is not None and valid.shape != a.shape):
        found = None if valid is None else valid.shape
        raise ValueError(f"masks of different shapes: {a.shape}, {b.shape}, valid {found}")


def _outline(mask: Mask, valid: Mask) -> Mask:
    beside_background: Mask = binary_dilation(~mask & valid)  # by a side
    return mask & valid & beside_background


def _within(outline: Mask, tolerance: float) -> Mask:
    """Pixels no farther than `tolerance` from the outline: at a few px a disk beats a distance map."""
    radius = int(tolerance)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    near: Mask = binary_dilation(outline, y * y + x * x <= tolerance * tolerance)
    return near


def _band(mask: Mask, distance: int) -> Mask:
    """The mask less its erosion by a square of `distance` to each side."""
    eroded = minimum_filter(mask.view(np.uint8), size=2 * distance + 1, mode="constant", cval=0)
    band: Mask = mask & (eroded == 0)
    return band
