"""Polygons in percent of the image <-> masks, holes included.

A pixel belongs to a polygon when its centre does (even-odd rule). Label Studio's polygons have one ring and
no holes, so a hole is joined to its outer ring by a slit of no width: the slit is walked once each way and
covers nothing, and outer ring and hole run in opposite senses, so even-odd and non-zero fills agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rasterio import features
from scipy.spatial import cKDTree

from model.errors import ELNetError

Point = Sequence[float]


class PolygonError(ELNetError):
    """Not the points of a polygon."""


def mask_to_polygons(mask: NDArray[np.bool_], tolerance: float = 0.0) -> list[list[list[float]]]:
    """Outline every 4-connected object.

    Rings are simplified by Douglas and Peucker's rule, which moves no point of an outline further than the
    tolerance; so a pixel changes only if its centre lies within `tolerance` of the object's outline. Below
    0.5 (the distance of a centre from its pixel's edge) nothing changes: the round trip is exact.

    Args:
        mask: (H, W) bool.
        tolerance: in pixels; 0 keeps every corner.

    Returns:
        One ring per object: points [x, y] in percent of width and height, first point not repeated.
    """
    height, width = mask.shape
    scale = 100.0 / np.array([width, height], dtype=np.float64)
    polygons: list[list[list[float]]] = []
    for geometry, _ in features.shapes(mask.astype(np.uint8), mask=mask, connectivity=4):
        outer, *holes = (_simplify(np.array(ring[:-1]), tolerance) for ring in geometry["coordinates"])
        polygons.append((_keyhole(outer, holes) * scale).tolist())
    return polygons


def polygons_to_mask(polygons: Sequence[Sequence[Point]], height: int, width: int) -> NDArray[np.bool_]:
    """Fill polygons and unite them.

    Args:
        polygons: rings of points [x, y] in percent of width and height; parts outside 0..100 are cut off.
        height: of the image in pixels.
        width: the same.

    Returns:
        (H, W) bool: pixels whose centre lies in an odd number of turns of a ring, for any of the rings.

    Raises:
        PolygonError: a ring of fewer than three points, or points that are not two finite numbers.
    """
    scale = np.array([width, height], dtype=np.float64) / 100.0
    shapes = []
    for number, points in enumerate(polygons):
        try:
            ring = np.array(points, dtype=np.float64)
        except (ValueError, TypeError):
            ring = np.empty((0, 0))
        if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not np.isfinite(ring).all():
            raise PolygonError(f"polygon {number} must have at least three points [x, y] of finite numbers")
        ring = ring * scale
        shapes.append({"type": "Polygon", "coordinates": [[*ring.tolist(), ring[0].tolist()]]})
    if not shapes:
        return np.zeros((height, width), dtype=np.bool_)
    filled: NDArray[np.uint8] = features.rasterize(shapes, out_shape=(height, width), fill=0, dtype="uint8")
    return filled.astype(np.bool_)


def _simplify(ring: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Douglas and Peucker (1973) on a closed ring (P, 2); a ring that would vanish is kept as it is."""
    if tolerance <= 0:
        return ring  # GDAL's outlines have points at corners only
    farthest = int(np.argmax(((ring - ring[0]) ** 2).sum(axis=1)))
    closed = np.concatenate([ring, ring[:1]])
    keep = np.zeros(len(closed), dtype=np.bool_)
    keep[[0, farthest, -1]] = True
    chains = [(0, farthest), (farthest, len(ring))]
    while chains:
        a, b = chains.pop()
        if b - a < 2:
            continue
        distance = _distances(closed[a + 1 : b], closed[a], closed[b])
        middle = a + 1 + int(np.argmax(distance))
        if distance[middle - a - 1] > tolerance + 1e-9:
            keep[middle] = True
            chains += [(a, middle), (middle, b)]
    simple = closed[:-1][keep[:-1]]
    return simple if len(simple) >= 3 else ring


def _distances(
    points: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(P,) distances of points (P, 2) from the segment a-b."""
    along = b - a
    squared = float(along @ along)
    share = np.clip((points - a) @ along / squared, 0.0, 1.0) if squared else np.zeros(len(points))
    nearest = a + share[:, None] * along
    return np.asarray(np.hypot(*(points - nearest).T), dtype=np.float64)


def _keyhole(outer: NDArray[np.float64], holes: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One ring (P, 2) out of an outer ring and its holes, by slits between nearest points."""
    if not holes:
        return outer
    points, sense = cKDTree(outer), _area(outer) > 0
    detours: defaultdict[int, list[NDArray[np.float64]]] = defaultdict(
        list
    )  # at each point of the outer ring
    for hole in holes:
        opposite = hole[::-1] if (_area(hole) > 0) == sense else hole
        distance, nearest = points.query(opposite)
        start = int(np.argmin(distance))
        at = int(nearest[start])
        turned = np.roll(opposite, -start, axis=0)
        detours[at] += [turned, turned[:1], outer[at : at + 1]]
    parts, done = [], 0
    for at in sorted(detours):
        parts += [outer[done : at + 1], *detours[at]]
        done = at + 1
    return np.concatenate([*parts, outer[done:]])


def _area(ring: NDArray[np.float64]) -> float:
    """Signed area of a ring (P, 2): its sign is the sense in which it runs."""
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
