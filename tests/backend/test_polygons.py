"""Polygons in percent <-> masks: exact without simplification, bounded with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from backend.polygons import PolygonError, mask_to_polygons, polygons_to_mask

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=24))


def blobs(seed: int, size: int = 96) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((size, size + 7))
    return ndimage.gaussian_filter(noise, 3) > 0.03


@given(masks)
def test_round_trip_is_exact(mask):
    assert np.array_equal(polygons_to_mask(mask_to_polygons(mask), *mask.shape), mask)


@given(masks)
def test_round_trip_is_exact_below_half_a_pixel(mask):
    assert np.array_equal(polygons_to_mask(mask_to_polygons(mask, 0.49), *mask.shape), mask)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.5, 3.0))
def test_simplification_changes_only_pixels_near_the_outline(seed, tolerance):
    mask = blobs(seed)
    simple = mask_to_polygons(mask, tolerance)
    changed = polygons_to_mask(simple, *mask.shape) != mask
    # Distance of a pixel's centre to the nearest centre of the other kind, less the half pixel (or half
    # diagonal) that the outline lies before it, is at most the distance to the outline.
    padded = np.pad(mask, 1)
    inside = ndimage.distance_transform_edt(padded)
    outside = ndimage.distance_transform_edt(~padded)
    to_outline = (inside + outside)[1:-1, 1:-1] - np.sqrt(0.5)
    assert (to_outline[changed] <= tolerance + 1e-6).all()


def test_simplification_drops_points():
    mask = blobs(3)
    exact = sum(map(len, mask_to_polygons(mask)))
    assert sum(map(len, mask_to_polygons(mask, 1.0))) < exact / 2


def test_holes_are_kept_also_several_and_nested():
    mask = np.zeros((40, 40), dtype=np.bool_)
    mask[2:38, 2:38] = True
    mask[5:15, 5:15] = False
    mask[20:35, 8:33] = False
    mask[24:30, 15:25] = True
    mask[26:28, 18:20] = False
    polygons = mask_to_polygons(mask)
    assert len(polygons) == 2  # one ring each, for Label Studio has no holes
    assert np.array_equal(polygons_to_mask(polygons, 40, 40), mask)


def test_points_are_percent_and_a_pixel_counts_by_its_centre():
    square = [[10.0, 20.0], [30.0, 20.0], [30.0, 60.0], [10.0, 60.0]]
    mask = polygons_to_mask([square], 10, 20)
    expected = np.zeros((10, 20), dtype=np.bool_)
    expected[2:6, 2:6] = True
    assert np.array_equal(mask, expected)
    nudged = [[x + 2.4, y + 4.9] for x, y in square]  # less than half a pixel
    assert np.array_equal(polygons_to_mask([nudged], 10, 20), expected)


def test_polygons_are_united_not_cancelled_and_cut_at_the_image():
    left = [[-50.0, 0.0], [60.0, 0.0], [60.0, 100.0], [-50.0, 100.0]]
    right = [[40.0, 0.0], [150.0, 0.0], [150.0, 100.0], [40.0, 100.0]]
    assert polygons_to_mask([left, right], 8, 8).all()


def test_no_polygons_is_an_empty_mask():
    assert not polygons_to_mask([], 3, 4).any()
    assert mask_to_polygons(np.zeros((3, 4), dtype=np.bool_)) == []


@pytest.mark.parametrize(
    "points",
    [
        [],
        [[0, 0], [1, 1]],
        [[0, 0], [1, 1], [2]],
        [[0, 0], [1, float("nan")], [2, 2]],
        [["a", 0]] * 3,
        5,
        None,
    ],
)
def test_bad_points_are_refused(points):
    with pytest.raises(PolygonError, match="at least three points"):
        polygons_to_mask([points], 4, 4)
