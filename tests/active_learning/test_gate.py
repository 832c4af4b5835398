from __future__ import annotations

import math

import numpy as np
import pytest

from active_learning.gate import GateError, ImageScore, bootstrap, decide, image_scores, too_slow
from model.metrics import SegmentationMetrics


def scores(*ious: float, predicted: float = 0.2, truth: float = 0.2) -> list[ImageScore]:
    return [ImageScore(f"{i:03d}", iou, iou, predicted, truth) for i, iou in enumerate(ious)]


def around(mean: float, n: int = 60, spread: float = 0.05, seed: int = 0) -> list[ImageScore]:
    return scores(*np.clip(np.random.default_rng(seed).normal(mean, spread, n), 0, 1))


def test_a_clearly_better_challenger_is_promoted():
    decision = decide(around(0.7), around(0.6))
    assert decision.promote
    assert decision.delta == pytest.approx(0.1, abs=1e-6)
    assert decision.interval is not None
    assert decision.interval[0] > 0
    assert decision.reason.startswith("promoted: mean smoothed IoU ")


def test_a_worse_or_equal_one_is_not():
    for challenger in (around(0.5), around(0.6)):
        decision = decide(challenger, around(0.6))
        assert not decision.promote
        assert "no better" in decision.reason


def test_better_on_average_by_some_lucky_images_is_not_enough():
    champion = scores(*[0.6] * 50)
    challenger = scores(*[0.45] * 40, *[1.0] * 10, predicted=0.3)
    lucky = scores(*[0.4] * 33, *[1.0] * 17)
    assert not decide(challenger, champion).promote
    decision = decide(lucky, champion)
    assert decision.delta is not None
    assert decision.delta > 0
    assert not decision.promote
    assert "chance" in decision.reason
    assert decide(lucky, champion, margin=0.5).promote


def test_the_pairs_are_found_whatever_their_order():
    challenger, champion = around(0.7), around(0.6, seed=3)
    assert decide(challenger, champion) == decide(challenger, champion[::-1])


def test_the_interval_is_that_of_the_mean():
    differences = np.random.default_rng(1).normal(0.1, 0.2, 400)
    low, high = bootstrap(differences)
    error = differences.std() / math.sqrt(400)
    assert low == pytest.approx(differences.mean() - 1.645 * error, abs=0.002)
    assert high == pytest.approx(differences.mean() + 1.645 * error, abs=0.002)


def test_a_tiny_holdout_decides_by_the_mean_and_says_so():
    better, worse = decide(scores(0.7, 0.6), scores(0.6, 0.6)), decide(scores(0.6), scores(0.7))
    assert (better.promote, worse.promote) == (True, False)
    for decision in (better, worse):
        assert decision.interval is None
        assert "too few images" in decision.reason
    assert "on 1 image;" in worse.reason


def test_on_a_tiny_holdout_as_good_is_not_better():
    assert not decide(scores(0.6, 0.6), scores(0.6, 0.6)).promote


def test_fewer_false_positives_on_empty_images_are_better():
    """Plain IoU is 0 for both; so says the smoothed one that the metrics give."""

    def version(false_pixels: int) -> list[ImageScore]:
        metrics = SegmentationMetrics()
        for number in range(4):
            truth = np.zeros((64, 64), np.bool_)
            truth[:, :32] = number < 2
            prediction = truth.copy()
            prediction.flat[-false_pixels:] = True
            metrics.update(prediction, truth, name=str(number))
        return image_scores(metrics.compute().per_image)

    few, many = version(4), version(400)
    assert [s.iou for s in few[2:]] == [s.iou for s in many[2:]] == [0.0, 0.0]
    decision = decide(few, many)
    assert decision.promote
    assert decision.delta is not None
    assert decision.delta > 0.2


def test_an_empty_holdout_promotes_nobody():
    assert not decide([], None).promote


@pytest.mark.parametrize("empty", [0, 9])
def test_a_first_model_that_hardly_finds_anything_is_not(empty: int):
    """Empty images, where an empty mask counts 1, do not make up for it."""
    nothing_there = [ImageScore(f"empty-{i}", 1.0, 1.0, 0.0, 0.0) for i in range(empty)]
    decision = decide([*scores(0.0, 0.09, 0.05), *nothing_there], None)
    assert not decision.promote
    assert "hardly finds anything, mean IoU 0.047" in decision.reason
    assert decide([*scores(0.0, 0.09, 0.07), *nothing_there], None).promote
    assert decide([*nothing_there, *scores(0.0, predicted=0.0, truth=0.0)], None).promote


def test_the_first_model_is_promoted_if_its_output_is_sane():
    decision = decide(scores(0.3, 0.1), None)
    assert decision.promote
    assert decision.delta is None


@pytest.mark.parametrize("champion", [None, scores(0.1, 0.1)])
@pytest.mark.parametrize(
    ("challenger", "word"),
    [
        (scores(0.5, float("nan")), "not a finite number"),
        (scores(0.5, 0.5, predicted=float("inf")), "not a finite number"),
        (scores(0.5, 0.5, predicted=0.0), "finds nothing"),
        (scores(0.5, 0.5, predicted=1.0), "paints every image"),
    ],
)
def test_output_that_is_not_sane_is_never_promoted(challenger, champion, word):
    decision = decide(challenger, champion)
    assert not decision.promote
    assert word in decision.reason


def test_all_empty_and_all_full_are_sane_where_the_truth_is():
    assert decide(scores(1.0, 1.0, predicted=0.0, truth=0.0), None).promote
    assert decide(scores(1.0, 1.0, predicted=1.0, truth=1.0), None).promote


def test_different_holdouts_are_refused():
    with pytest.raises(GateError, match="same holdout"):
        decide(scores(0.5, 0.5), scores(0.5))
    with pytest.raises(GateError, match="champion's result"):
        decide(scores(0.5), scores(float("nan")))


def judged(ious: list[float], boundary: float = 0.5, of_classes: tuple[float, ...] = ()) -> list[ImageScore]:
    return [ImageScore(f"{i:03d}", v, v, 0.2, 0.2, boundary, of_classes) for i, v in enumerate(ious)]


def test_better_areas_by_worse_outlines_are_held_back():
    better, base = [0.7] * 60, [0.6] * 60
    assert decide(judged(better, 0.46), judged(base, 0.5)).promote
    decision = decide(judged(better, 0.4), judged(base, 0.5))
    assert not decision.promote
    assert (
        "its outlines may be worse: the 90 % interval of boundary F goes down to -0.1000" in decision.reason
    )


def test_no_class_may_pay_for_the_others():
    better, base = [0.7] * 60, [0.6] * 60
    champion = judged(base, of_classes=(0.6, 0.6))
    assert decide(judged(better, of_classes=(0.84, 0.56)), champion).promote
    decision = decide(judged(better, of_classes=(0.9, 0.5)), champion, classes=["oil", "ship"])
    assert not decision.promote
    assert "but ship loses 0.1000 of its mean IoU" in decision.reason
    before = judged(base)  # judged when classes were not told apart
    assert decide(judged(better, of_classes=(0.9, 0.5)), before).promote


def test_with_few_images_outlines_and_classes_hold_nothing_back():
    better, base = [0.7] * 10, [0.6] * 10
    champion = judged(base, 0.5, (0.6, 0.6))
    assert decide(judged(better, 0.2, (0.9, 0.5)), champion).promote


def test_scores_of_several_classes_come_with_each_class():
    metrics = SegmentationMetrics(["oil", "ship"])
    truth = np.zeros((2, 8, 8), np.bool_)
    truth[:, :4] = True
    said = truth.copy()
    said[1] = False
    metrics.update(said, truth)
    [score] = image_scores(metrics.compute().per_image)
    assert score.class_ious == (1.0, 0.0)
    assert 0 < score.boundary_f1 < 1


def test_what_else_speaks_against_a_challenger_holds_it_back() -> None:
    decision = decide(around(0.7), around(0.6), fault="it draws on an image without data")
    assert not decision.promote
    assert decision.reason == "not promoted: it draws on an image without data"


@pytest.mark.parametrize(("seconds", "limit", "slow"), [(2, None, False), (1, 1, False), (1.2345, 1, True)])
def test_the_time_of_an_image(seconds: float, limit: float | None, slow: bool) -> None:
    found = too_slow(seconds, limit)
    assert (found == "it takes 1.23 s for an image, and the policy allows 1 (latency_s)") is slow
    assert (found is None) is not slow
