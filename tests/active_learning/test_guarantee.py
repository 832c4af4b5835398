from __future__ import annotations

import math

import numpy as np
import pytest

from active_learning.guarantee import (
    Guarantee,
    GuaranteeError,
    Promise,
    fewest,
    guarantee,
    upper_bound,
)

PROMISE = Promise(iou=0.6, risk=0.1, confidence=0.9)


def sample(n: int, seed: int = 0, sharpness: float = 10.0) -> tuple[np.ndarray, np.ndarray]:
    """Qualities, and IoUs that fail the more often the lower the quality is."""
    random = np.random.default_rng(seed)
    quality = random.uniform(0, 1, n)
    fails = random.uniform(size=n) < 1 / (1 + np.exp(sharpness * (quality - 0.5)))
    return quality, np.where(fails, 0.3, 0.8)


def test_the_bound_is_clopper_and_pearsons() -> None:
    # "with 0 failures a 95 % bound of 5 % needs about 59 samples": 0.95^59 = 0.0485
    assert upper_bound(0, 59, 0.95) <= 0.05 < upper_bound(0, 58, 0.95)
    assert upper_bound(0, 1, 0.95) == pytest.approx(0.95)
    assert upper_bound(0, 0, 0.95) == upper_bound(3, 3, 0.95) == 1
    # one failure in ten: the share for which one failure or none has a chance of 5 %
    p = upper_bound(1, 10, 0.95)
    assert (1 - p) ** 10 + 10 * p * (1 - p) ** 9 == pytest.approx(0.05)


def test_the_loosest_threshold_that_passes() -> None:
    quality, iou = sample(400)
    found = guarantee(quality, iou, PROMISE)
    assert found.threshold is not None
    assert 0.4 < found.threshold < 0.75
    reached = quality >= found.threshold
    assert found.reached == reached.sum()
    assert found.failures == (iou[reached] < 0.6).sum()
    assert found.risk_bound == upper_bound(found.failures, found.reached, 0.9) <= 0.1
    assert found.coverage == pytest.approx(reached.mean())
    assert found.more is None
    assert found.best_risk is not None
    assert found.best_risk <= 0.1


def test_the_promise_is_kept_as_often_as_it_says() -> None:
    """Against the truth of the distribution that the samples come from."""
    grid, truth = np.linspace(0, 1, 4001), []
    fails = 1 / (1 + np.exp(10 * (grid - 0.5)))
    broken = accepted = 0
    for seed in range(400):
        quality, iou = sample(150, seed)
        found = guarantee(quality, iou, PROMISE)
        if found.threshold is not None:
            accepted += 1
            truth.append(fails[grid >= found.threshold].mean())
            broken += truth[-1] > PROMISE.risk
    assert accepted > 250
    assert broken / 400 <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / 400)
    assert np.mean(truth) > 0.03, "it does not buy its safety by accepting next to nothing"


def test_with_too_few_audits_it_says_how_many_more() -> None:
    assert fewest(PROMISE) == 22
    assert fewest(Promise(0.8, 0.05, 0.95)) == 59
    few = guarantee([0.9] * 21, [0.9] * 21, PROMISE)
    assert few == Guarantee(None, 21, 0, 0, 1.0, 0.0, pytest.approx(0.11), 23)
    assert guarantee([0.9] * 22, [0.9] * 22, PROMISE).threshold == 0.9
    nothing = guarantee([], [], PROMISE)
    assert (nothing.threshold, nothing.more, nothing.best_risk) == (None, 44, None)


def test_with_failures_at_hand_it_counts_on_more_of_them() -> None:
    found = guarantee([0.9] * 40, [0.9] * 38 + [0.1] * 2, PROMISE)
    assert found.threshold is None
    assert found.more is not None
    enough = 40 + found.more
    more = guarantee(
        [0.9] * (enough // 2),
        [0.9] * round(0.95 * enough / 2) + [0.1] * (enough // 2 - round(0.95 * enough / 2)),
        PROMISE,
    )
    assert more.threshold == 0.9


@pytest.mark.parametrize("iou", [0.0, 0.5])
def test_all_bad_can_never_be_promised(iou: float) -> None:
    found = guarantee(np.linspace(0, 1, 500), [iou] * 500, PROMISE)
    assert (found.threshold, found.more, found.best_risk) == (None, None, None)


def test_all_good_accepts_everything() -> None:
    found = guarantee(np.linspace(0, 1, 500), [0.9] * 500, PROMISE)
    assert (found.threshold, found.coverage, found.failures) == (0.0, 1.0, 0)


def test_equal_qualities_are_accepted_together() -> None:
    found = guarantee([0.7] * 100, [0.9] * 50 + [0.1] * 50, PROMISE)
    assert found.threshold is None
    assert found.best_risk == pytest.approx(0.57)


def test_siblings_count_once() -> None:
    quality, iou = [0.9] * 60, [0.9] * 60
    scenes = [i // 4 for i in range(60)]
    assert guarantee(quality, iou, PROMISE).threshold == 0.9
    found = guarantee(quality, iou, PROMISE, scenes)
    assert (found.samples, found.threshold) == (15, None)
    with pytest.raises(GuaranteeError, match="do not pair up"):
        guarantee(quality, iou, PROMISE, scenes[:-1])


def test_a_stricter_promise_never_loosens_the_threshold() -> None:
    quality, iou = sample(600)
    found = [guarantee(quality, iou, Promise(0.6, risk, 0.9)).threshold for risk in (0.3, 0.2, 0.1, 0.06)]
    assert None not in found
    assert found == sorted(found)


@pytest.mark.parametrize(
    "numbers",
    [
        (0.0, 0.1, 0.9),
        (1.1, 0.1, 0.9),
        (0.6, 0.0, 0.9),
        (0.6, 1.0, 0.9),
        (0.6, 0.1, 1.0),
        (math.nan, 0.1, 0.9),
    ],
)
def test_a_promise_that_says_nothing_is_refused(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(GuaranteeError):
        Promise(*numbers)


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1])
def test_samples_out_of_range_are_refused(bad: float) -> None:
    with pytest.raises(GuaranteeError, match=r"not in \[0, 1\]"):
        guarantee([0.5, bad], [0.5, 0.5], PROMISE)
    with pytest.raises(GuaranteeError, match=r"not in \[0, 1\]"):
        guarantee([0.5, 0.5], [0.5, bad], PROMISE)


def test_it_reads_as_a_sentence() -> None:
    assert str(PROMISE) == "of the accepted masks at most 0.1 have an IoU below 0.6, with confidence 0.9"


def test_a_class_of_its_own_bar_fails_by_itself() -> None:
    promise = Promise(0.6, 0.1, 0.9, {"road": 0.5})
    names = ["house", "road"]
    assert promise.fails(0.7, [0.9, 0.5], names) is False
    assert promise.fails(0.7, [1.0, 0.4], names) is True
    assert promise.fails(0.5, [0.5, 0.5], names) is True
    assert promise.fails(0.5) is True  # whatever the road
    assert promise.fails(0.7, None, names) is None
    assert promise.fails(0.7, None, ["road"]) is False
    assert Promise(0.6, 0.1).fails(0.7) is False
    assert str(promise) == (
        "of the accepted masks at most 0.1 have an IoU below 0.6, or of road below 0.5, with confidence 0.9"
    )
    with pytest.raises(GuaranteeError, match=r"in \(0, 1\], not 0"):
        Promise(0.6, 0.1, 0.9, {"road": 0})
