from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from model.shape_metrics import boundary_f, boundary_iou, cl_dice

Mask = NDArray[np.bool_]


def blobs(seed: int, shape: tuple[int, int] = (48, 40), share: float = 0.4) -> Mask:
    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return np.asarray(field > np.quantile(field, 1 - share))


def slow_boundary_f(a: Mask, b: Mask, tolerance: float) -> float:
    """Pixel by pixel, distances from a distance map: nothing shared with the implementation."""

    def outline(mask: Mask) -> Mask:
        height, width = mask.shape
        result = np.zeros(mask.shape, bool)
        for y in range(height):
            for x in range(width):
                for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    if mask[y, x] and 0 <= v < height and 0 <= u < width and not mask[v, u]:
                        result[y, x] = True
        return result

    line_a, line_b = outline(a), outline(b)
    if not line_a.any() or not line_b.any():
        return float((a == b).all())
    precision = (distance_transform_edt(~line_b)[line_a] <= tolerance).mean()
    recall = (distance_transform_edt(~line_a)[line_b] <= tolerance).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


class TestBoundaryF:
    @settings(max_examples=40, deadline=None)
    @given(
        seeds=st.tuples(st.integers(0, 500), st.integers(0, 500)),
        shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
        tolerance=st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0]),
    )
    def test_against_the_slow_one(
        self, seeds: tuple[int, int], shares: tuple[float, float], tolerance: float
    ) -> None:
        a, b = (blobs(seed, (20, 24), share) for seed, share in zip(seeds, shares, strict=True))
        assert boundary_f(a, b, tolerance) == pytest.approx(slow_boundary_f(a, b, tolerance))
        assert boundary_f(a, b, tolerance) == pytest.approx(boundary_f(b, a, tolerance))

    @pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0), (9, 0.0)])
    def test_a_shifted_edge(self, shift: int, expected: float) -> None:
        a = np.zeros((30, 40), bool)
        a[:, :10] = True
        b = np.zeros((30, 40), bool)
        b[:, : 10 + shift] = True
        assert boundary_f(a, b) == expected  # the outline is the straight edge: the image's border has none

    def test_full_against_empty_is_no_agreement(self) -> None:
        full, none = np.ones((9, 9), bool), np.zeros((9, 9), bool)
        assert boundary_f(full, none) == 0.0
        assert boundary_f(full, full) == 1.0

    def test_the_edge_of_what_is_valid_is_no_outline(self) -> None:
        valid = np.ones((20, 20), bool)
        valid[:, 10:] = False
        full = np.ones((20, 20), bool)
        assert boundary_f(full, full & valid, valid=valid) == 1.0
        half = full.copy()
        half[:10] = False
        assert boundary_f(half, half & valid, valid=valid) == 1.0
        assert boundary_f(half, full, valid=valid) == 0.0


def published_band(mask: Mask, ratio: float = 0.02) -> Mask:
    """`mask_to_boundary` of the authors' repository (bowenc0221/boundary-iou-api), with OpenCV as there."""
    height, width = mask.shape
    dilation = max(1, round(ratio * np.sqrt(height**2 + width**2)))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=dilation)[1:-1, 1:-1]
    return (mask.astype(np.uint8) - eroded).astype(bool)


class TestBoundaryIoU:
    @settings(max_examples=40, deadline=None)
    @given(
        seeds=st.tuples(st.integers(0, 500), st.integers(0, 500)),
        shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
        side=st.sampled_from([12, 90, 256]),
    )
    def test_against_the_published_code(
        self, seeds: tuple[int, int], shares: tuple[float, float], side: int
    ) -> None:
        a, b = (blobs(seed, (side, side - 4), share) for seed, share in zip(seeds, shares, strict=True))
        bands = published_band(a), published_band(b)
        union = (bands[0] | bands[1]).sum()
        expected = (bands[0] & bands[1]).sum() / union if union else 1.0
        assert boundary_iou(a, b) == pytest.approx(expected)
        assert boundary_iou(a, b) == boundary_iou(b, a)

    def test_a_hole_inside_costs_only_where_its_edge_is(self) -> None:
        a = np.zeros((100, 100), bool)
        a[10:90, 10:90] = True
        b = a.copy()
        b[49:51, 49:51] = False
        ring = 80**2 - 74**2  # 3 px, 2 % of the diagonal of 141
        assert boundary_iou(a, b) == pytest.approx(ring / (ring + 8 * 8 - 4))

    def test_what_is_not_valid_changes_nothing(self) -> None:
        valid = blobs(9, share=0.7)
        a, b = blobs(1), blobs(2)
        assert boundary_iou(a, b, valid) == boundary_iou(np.where(valid, a, ~a), b, valid)


class TestCentrelineDice:
    def test_a_road_that_is_cut(self) -> None:
        """The skeleton of a bar of 5 x 60 px is its middle row; a gap of 20 px loses a third of it."""
        road = np.zeros((25, 60), bool)
        road[10:15] = True
        cut = road.copy()
        cut[:, 20:40] = False
        missing = cl_dice(cut, road)
        assert missing == pytest.approx(2 * (40 / 60) / (1 + 40 / 60), abs=0.03)
        assert missing == cl_dice(road, cut)
        wide = np.zeros_like(road)
        wide[8:17] = True
        assert cl_dice(wide, road) == 1.0  # width does not matter, connection does

    def test_roads_beside_each_other_have_nothing_in_common(self) -> None:
        a, b = np.zeros((2, 30, 30), bool)
        a[3:6], b[20:23] = True, True
        assert cl_dice(a, b) == 0.0

    def test_what_is_not_valid_changes_nothing(self) -> None:
        valid = blobs(9, share=0.7)
        a, b = blobs(1), blobs(2)
        assert cl_dice(a, b, valid) == cl_dice(np.where(valid, a, ~a), b, valid)


@pytest.mark.parametrize("measure", [boundary_f, boundary_iou, cl_dice])
def test_empty_masks_and_shapes(measure) -> None:
    none, some = np.zeros((9, 9), bool), blobs(1, (9, 9))
    assert (measure(none, none), measure(some, none), measure(none, some)) == (1.0, 0.0, 0.0)
    assert measure(some, some) == 1.0
    with pytest.raises(ValueError, match="different shapes"):
        measure(blobs(1), blobs(1).T)
    with pytest.raises(ValueError, match="different shapes"):
        measure(some, some, valid=blobs(1))
