"""Coarse masks as the network takes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

RANGE = 16.0  # px: farther from the boundary than this, all distances are the same


def signed_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance to the mask's boundary in px, positive inside; an empty or full mask has none, so +-inf.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) float32, never between -0.5 and 0.5: the boundary lies between pixels.
    """
    if mask.all() or not mask.any():
        return np.where(mask, np.inf, -np.inf).astype(np.float32)
    inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
    return np.where(mask, inside - 0.5, 0.5 - outside).astype(np.float32)


def encode(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Each mask as two planes: itself, and the signed distance to its boundary over `RANGE`.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (2 N, H, W) float32 in [-1, 1]; never all zero, which would mean that there is no prompt.
    """
    planes: list[NDArray[np.float32]] = []
    for mask in masks:
        planes += [mask.astype(np.float32), np.clip(signed_distance(mask) / RANGE, -1, 1)]
    return np.stack(planes).astype(np.float32)
