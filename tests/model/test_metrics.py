from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.metrics import f1_score, jaccard_score

from model.metrics import SegmentationMetrics, iou
from model.shape_metrics import boundary_f, boundary_iou, cl_dice

Mask = NDArray[np.bool_]
FIGURES = ("iou", "dice", "boundary_f1", "boundary_iou", "cl_dice")


def blobs(seed: int, shape: tuple[int, int] = (48, 40), share: float = 0.4) -> Mask:
    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return np.asarray(field > np.quantile(field, 1 - share))


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
        assert scores.boundary_iou == pytest.approx((boundary_iou(prediction[0], truth[0]) + 1) / 2)
        assert scores.cl_dice == pytest.approx((cl_dice(prediction[0], truth[0]) + 1) / 2)

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

    @pytest.mark.parametrize(("false", "graded"), [(0, 1.0), (10, 0.5), (100, 1 / 11), (10_000, 1 / 1001)])
    def test_the_smoothed_iou_grades_false_foreground_on_an_empty_image(
        self, false: int, graded: float
    ) -> None:
        metrics = SegmentationMetrics()
        truth = np.zeros((100, 100), np.bool_)
        prediction = truth.copy()
        prediction.flat[:false] = True
        metrics.update(prediction, truth)
        [image] = metrics.compute().per_image
        assert image["smoothed_iou"] == pytest.approx(graded)
        assert image["iou"] == (1.0 if not false else 0.0)

    def test_the_smoothed_iou_is_nearly_the_iou_where_there_is_something(self) -> None:
        metrics = SegmentationMetrics()
        truth = np.zeros((100, 100), np.bool_)
        truth[:50] = True
        prediction = np.zeros_like(truth)
        prediction[25:75] = True
        metrics.update(prediction, truth)
        [image] = metrics.compute().per_image
        assert image["iou"] == pytest.approx(1 / 3)
        assert image["smoothed_iou"] == pytest.approx(2510 / 7510)  # 10 pixels: a thousandth

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
            assert [image[name] for name in FIGURES] == [expected] * len(FIGURES)
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
            "n", "fg_iou", "fg_iou_per_image", "miou_2class", "dice", "boundary_f1", "boundary_iou",
            "cl_dice", "per_class",
        ]  # fmt: skip
        json.dumps(metrics.compute().per_image, allow_nan=False)


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
        with pytest.raises(ValueError, match="no image"):
            metrics.compute()  # what was refused left nothing behind
