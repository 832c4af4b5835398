from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from sklearn.metrics import f1_score, jaccard_score

from model.metrics import SegmentationMetrics, boundary_f, iou

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


class TestAgainstScikitLearn:
    def test_pooled_and_per_image(self) -> None:
        metrics = SegmentationMetrics()
        pairs = [(blobs(i), blobs(i + 50, share=0.1 * i)) for i in range(1, 6)]
        for prediction, truth in pairs:
            metrics.update(prediction[None], truth[None])
        scores = metrics.compute()
        p = np.concatenate([a.ravel() for a, _ in pairs])
        t = np.concatenate([b.ravel() for _, b in pairs])
        each = [jaccard_score(b.ravel(), a.ravel()) for a, b in pairs]
        assert scores.n == 5
        assert scores.fg_iou == pytest.approx(jaccard_score(t, p))
        assert scores.miou_2class == pytest.approx(jaccard_score(t, p, average="macro"))
        assert scores.dice == pytest.approx(f1_score(t, p))
        assert scores.fg_iou_per_image == pytest.approx(np.mean(each))
        assert [image["iou"] for image in scores.per_image] == pytest.approx(each)
        assert [image["dice"] for image in scores.per_image] == pytest.approx(
            [f1_score(b.ravel(), a.ravel()) for a, b in pairs]
        )
        assert scores.per_image[2]["predicted_share"] == pytest.approx(pairs[2][0].mean())
        assert scores.per_image[2]["truth_share"] == pytest.approx(pairs[2][1].mean())
        assert scores.per_class == {}

    def test_classes_are_scored_apart_and_averaged(self) -> None:
        metrics = SegmentationMetrics(["road", "building"])
        prediction = np.stack([blobs(1), blobs(2)])
        truth = np.stack([blobs(3), blobs(2)])
        metrics.update(prediction, truth, name="tile")
        scores = metrics.compute()
        road = jaccard_score(truth[0].ravel(), prediction[0].ravel())
        assert scores.per_class["road"]["fg_iou"] == pytest.approx(road)
        assert set(scores.per_class["building"].values()) == {1.0}
        assert scores.fg_iou == pytest.approx((road + 1) / 2)
        assert scores.per_image[0]["image"] == "tile"
        assert scores.per_image[0]["iou"] == pytest.approx(iou(prediction, truth))
        assert scores.boundary_f1 == pytest.approx((boundary_f(prediction[0], truth[0]) + 1) / 2)

    @settings(max_examples=50, deadline=None)
    @given(seed=st.integers(0, 10**6), shape=st.tuples(st.integers(1, 20), st.integers(1, 20)))
    def test_iou_with_valid(self, seed: int, shape: tuple[int, int]) -> None:
        rng = np.random.default_rng(seed)
        a, b, valid = rng.random((3, *shape)) < 0.5
        expected = jaccard_score(b[valid], a[valid], zero_division=1.0) if valid.any() else 1.0
        assert iou(a, b, valid) == pytest.approx(expected)
        assert iou(a, b, valid) == iou(b, a, valid)


class TestWorkedExamples:
    def test_by_hand(self) -> None:
        truth = np.zeros((4, 4), bool)
        truth[:2] = True  # 8
        prediction = np.zeros((4, 4), bool)
        prediction[1:, :2] = True  # 6, of which 2 are right
        metrics = SegmentationMetrics()
        metrics.update(prediction, truth)
        scores = metrics.compute()
        assert scores.fg_iou == pytest.approx(2 / 12)
        assert scores.dice == pytest.approx(4 / 14)
        assert scores.miou_2class == pytest.approx((2 / 12 + 4 / 14) / 2)

    def test_pooled_is_not_per_image(self) -> None:
        metrics = SegmentationMetrics()
        full, none = np.ones((10, 10), bool), np.zeros((10, 10), bool)
        dot = none.copy()
        dot[0, 0] = True
        metrics.update(full, full)
        metrics.update(none, dot)
        scores = metrics.compute()
        assert scores.fg_iou == pytest.approx(100 / 101)
        assert scores.fg_iou_per_image == pytest.approx(0.5)

    def test_empty_masks(self) -> None:
        none = np.zeros((6, 6), bool)
        some = none.copy()
        some[2:4, 2:4] = True
        for a, b, expected in ((none, none, 1.0), (some, none, 0.0), (none, some, 0.0), (some, some, 1.0)):
            metrics = SegmentationMetrics()
            metrics.update(a, b)
            image = metrics.compute().per_image[0]
            assert (image["iou"], image["dice"], image["boundary_f1"]) == (expected,) * 3
            assert metrics.compute().fg_iou == expected

    def test_nothing_valid_counts_nowhere(self) -> None:
        metrics = SegmentationMetrics()
        metrics.update(blobs(1), blobs(2), np.zeros((48, 40), bool))
        metrics.update(blobs(1), blobs(3))
        scores = metrics.compute()
        assert scores.fg_iou == pytest.approx(iou(blobs(1), blobs(3)))
        assert scores.per_image[0]["iou"] == 1.0
        assert scores.per_image[0]["predicted_share"] == 0.0

    def test_what_is_not_valid_changes_nothing(self) -> None:
        valid = blobs(9, share=0.7)
        truth, prediction = blobs(1), blobs(2)
        other = np.where(valid, prediction, ~prediction)
        for a in (prediction, other):
            metrics = SegmentationMetrics()
            metrics.update(a, truth, valid)
            if a is prediction:
                expected = metrics.compute()
        assert metrics.compute() == expected

    def test_the_summary_is_json(self) -> None:
        metrics = SegmentationMetrics(["a", "b"])
        metrics.update(np.stack([blobs(1), blobs(2)]), np.stack([blobs(2), blobs(3)]))
        summary: dict[str, Any] = json.loads(json.dumps(metrics.compute().summary(), allow_nan=False))
        assert list(summary) == [
            "n", "fg_iou", "fg_iou_per_image", "miou_2class", "dice", "boundary_f1", "per_class",
        ]  # fmt: skip
        json.dumps(metrics.compute().per_image, allow_nan=False)


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


class TestRefused:
    def test_shapes_dtypes_and_nothing(self) -> None:
        metrics = SegmentationMetrics(["a"])
        with pytest.raises(ValueError, match="no image"):
            metrics.compute()
        with pytest.raises(ValueError, match="different shapes"):
            metrics.update(blobs(1), blobs(1).T)
        with pytest.raises(ValueError, match="different shapes"):
            metrics.update(blobs(1), blobs(1), blobs(1).T)
        with pytest.raises(ValueError, match="2 mask planes, 1 were expected"):
            metrics.update(np.stack([blobs(1)] * 2), np.stack([blobs(1)] * 2))
        with pytest.raises(ValueError, match="threshold it first"):
            iou(np.ones((2, 2), np.float32), np.ones((2, 2), bool))
        with pytest.raises(ValueError, match="different shapes"):
            boundary_f(blobs(1), blobs(1).T)
        with pytest.raises(ValueError, match="no image"):
            metrics.compute()  # what was refused left nothing behind
