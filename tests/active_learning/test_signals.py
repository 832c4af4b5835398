import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from active_learning.signals import Signals, class_score, features, outline, score, signals


def blob(inside: float, outside: float = 0.0, size: int = 64) -> np.ndarray:
    plane = np.full((size, size), outside, dtype=np.float32)
    plane[16:48, 16:48] = inside
    return plane[None]


def test_a_sure_blob_scores_high_and_an_unsure_one_low():
    assert score(signals(blob(0.99))) > 0.95
    assert score(signals(blob(0.6))) < 0.3


def test_soft_dice_confidence_is_the_formula():
    p = blob(0.9, 0.1)
    y = p > 0.5
    expected = 2 * p[y].sum() / (p.sum() + y.sum())
    assert signals(p).worst.soft_dice_confidence == pytest.approx(expected, rel=1e-6)


def test_stability_is_the_iou_of_the_masks_at_logit_plus_and_minus_one():
    ramp = np.linspace(0.001, 0.999, 1000, dtype=np.float64).reshape(1, 1, -1)
    logit = np.log(ramp / (1 - ramp))
    expected = (logit > 1).sum() / (logit > -1).sum()
    assert signals(ramp).worst.stability == pytest.approx(expected)


def test_stability_shifts_around_the_cut_that_was_asked_for():
    ramp = np.linspace(0.001, 0.999, 1000).reshape(1, 1, -1)
    logit = np.log(ramp / (1 - ramp))
    middle = math.log(0.3 / 0.7)
    expected = (logit > middle + 1).sum() / (logit > middle - 1).sum()
    assert signals(ramp, cut=0.3).worst.stability == pytest.approx(expected)


def test_a_confidently_empty_image_scores_high_and_an_uncertainly_empty_one_low():
    sure, unsure = signals(np.full((1, 64, 64), 0.01)), signals(blob(0.45))
    assert sure.empty
    assert unsure.empty
    assert score(sure) == pytest.approx(0.98)
    assert score(unsure) < 0.2


def test_one_hot_pixel_below_the_cut_does_not_decide_an_empty_image():
    p = np.full((1, 64, 64), 0.01)
    p[0, 5, 5] = 0.49
    assert score(signals(p)) > 0.9


def test_the_worst_class_decides_and_every_class_is_kept():
    both = np.concatenate([blob(0.99), blob(0.6)])
    measured = signals(both)
    assert score(measured) == measured.classes[1].score
    assert measured.classes[0].score > 0.95
    kept = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert [c["score"] for c in kept["classes"]] == [c.score for c in measured.classes]


def test_a_sharp_boundary_has_less_entropy_than_a_vague_one():
    assert signals(blob(0.99, 0.01)).worst.boundary_entropy < signals(blob(0.6, 0.4)).worst.boundary_entropy


def test_edge_agreement_tells_an_edge_head_that_sees_the_outline_from_one_that_does_not():
    p = blob(0.99)
    seen = outline(p[0] > 0.5, 1)[None].astype(np.float32)
    assert signals(p, seen).worst.edge_agreement == pytest.approx(1.0)
    assert signals(p, np.roll(seen, 8, axis=1)).worst.edge_agreement < 0.7
    assert signals(p, np.zeros_like(seen)).worst.edge_agreement == 0
    assert signals(p).worst.edge_agreement is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.5, -0.1])
def test_values_that_are_no_probabilities_make_it_unusable(bad):
    p = blob(0.99)
    p[0, 0, 0] = bad
    measured = signals(p)
    assert not measured.usable
    assert score(measured) == 0
    json.dumps(measured.to_dict(), allow_nan=False)


def test_nodata_pixels_count_as_certain_background_even_when_they_are_nan():
    p = blob(0.99)
    p[0, :8] = np.nan
    valid = np.ones((64, 64), dtype=bool)
    valid[:8] = False
    assert signals(p, valid=valid) == signals(blob(0.99))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"probability": np.zeros((4, 4))}, "N, H, W"),
        ({"probability": np.zeros((1, 0, 4))}, "N, H, W"),
        ({"probability": np.zeros((1, 4, 4)), "edge": np.zeros((1, 4, 5))}, "edge"),
        ({"probability": np.zeros((1, 4, 4)), "valid": np.ones((5, 4), bool)}, "valid"),
        ({"probability": np.zeros((1, 4, 4)), "cut": 1.0}, "cut"),
    ],
)
def test_a_wrong_shape_is_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        signals(**arguments)


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
    )
)
def test_any_array_gives_a_finite_score_in_the_unit_interval(p):
    measured = signals(p, edge=p)
    assert isinstance(measured, Signals)
    assert 0 <= score(measured) <= 1
    json.dumps(measured.to_dict(), allow_nan=False)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.booleans(), st.floats(0.01, 0.99))
def test_the_score_of_a_class_stays_in_the_unit_interval(dice, stability, peak, empty, cut):
    assert 0 <= class_score(dice, stability, peak, empty, cut) <= 1


def test_views_that_agree_score_one_and_views_apart_a_half_each():
    p = blob(0.9)
    agreed = (p > 0.5).astype(np.float32)
    assert signals(p).worst.flip_agreement is None
    assert signals(p, votes=agreed).worst.flip_agreement == 1
    assert signals(p, votes=0 * agreed).worst.flip_agreement == 1
    apart = (agreed + np.roll(agreed, 32, axis=2)) / 2  # the same mask elsewhere: they share nothing
    assert not (agreed * np.roll(agreed, 32, axis=2)).any()
    assert signals(p, votes=apart).worst.flip_agreement == pytest.approx(0.5)


def test_the_flip_agreement_is_the_mean_dice_of_two_views_that_are_equally_large():
    random = np.random.default_rng(0)
    views = np.stack([random.permutation(100) < 40 for _ in range(4)])
    dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a in views for b in views]
    votes = views.mean(axis=0).reshape(1, 10, 10)
    found = signals(np.full((1, 10, 10), 0.6), votes=votes).worst.flip_agreement
    assert found == pytest.approx(np.mean(dice))


def test_votes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="votes"):
        signals(blob(0.9), votes=np.zeros((1, 2, 2)))


def test_what_can_be_switched_off_stands_at_the_end_of_the_features():
    p = blob(0.9)
    without, seen = features(signals(p).to_dict()), features(signals(p, votes=p).to_dict())
    assert without is not None
    assert seen is not None
    foreseen = features(signals(p, learned_iou=np.array([0.25], np.float32)).to_dict())
    assert without[:-2] == seen[:-2] == foreseen[:-2]
    assert (without[-2:], seen[-1], foreseen[-2:]) == ([None, None], None, [None, 0.25])
    earlier = signals(p).to_dict()
    for name in ("flip_agreement", "learned_iou"):
        del earlier["classes"][0][name]
    assert features(earlier) == without


def test_a_head_that_says_nothing_and_one_of_an_empty_mask_are_not_measured():
    assert signals(blob(0.9), learned_iou=np.array([np.nan])).worst.learned_iou is None
    assert signals(0 * blob(0.9), learned_iou=np.array([0.7])).worst.learned_iou is None
