from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from active_learning.calibrator import MIN_REGRESSION, MIN_SAMPLES, Calibrator, QualityError, cross_fitted

UNIT = st.floats(0, 1)


def optimistic(n: int = 200) -> Calibrator:
    """Scores in [0.8, 1] of masks that are really worth half of that."""
    scores = np.linspace(0.8, 1, n)
    return Calibrator.fit(scores.tolist(), (scores / 2).tolist())


def test_with_too_few_audits_the_score_counts_as_it_is_and_that_is_visible():
    few = Calibrator.fit([0.9] * (MIN_SAMPLES - 1), [0.2] * (MIN_SAMPLES - 1))
    assert (few.kind, few.samples) == ("identity", MIN_SAMPLES - 1)
    assert few.predict([0.0, 0.4, 1.0]).tolist() == [0.0, 0.4, 1.0]


def test_with_enough_audits_the_map_follows_what_people_said():
    fitted = optimistic()
    assert (fitted.kind, fitted.samples) == ("isotonic", 200)
    assert fitted.predict([0.8, 0.9, 1.0]) == pytest.approx([0.4, 0.45, 0.5], abs=0.01)


def test_below_the_audited_scores_the_map_falls_to_zero_and_above_it_stays():
    fitted = Calibrator.fit(np.linspace(0.8, 0.9, 50).tolist(), [0.7] * 50)
    assert fitted.predict([0.0, 0.4, 0.8, 0.9, 1.0]) == pytest.approx([0.0, 0.35, 0.7, 0.7, 0.7])


def test_the_samples_of_one_scene_weigh_as_one():
    scores, ious = [0.9] * 40, [0.0] * 38 + [1.0] * 2
    alone = Calibrator.fit(scores, ious)
    grouped = Calibrator.fit(scores, ious, groups=["same"] * 38 + ["a", "b"])
    assert alone.predict(0.9) == pytest.approx(2 / 40)
    assert grouped.predict(0.9) == pytest.approx(2 / 3)


@given(st.lists(st.tuples(UNIT, UNIT), min_size=MIN_SAMPLES, max_size=60), st.lists(UNIT, min_size=2))
def test_the_map_is_monotone_within_the_unit_interval_and_survives_json(pairs, scores):
    scores_in, ious = zip(*pairs, strict=True)
    fitted = Calibrator.fit(scores_in, ious)
    values = fitted.predict(sorted(scores))
    assert (np.diff(values) >= -1e-12).all()
    assert ((values >= 0) & (values <= 1)).all()
    text = json.dumps(fitted.to_dict(), allow_nan=False)
    assert Calibrator.from_dict(fitted.kind, fitted.samples, json.loads(text)) == fitted


@pytest.mark.parametrize("fitted", [Calibrator(), optimistic()])
def test_a_score_that_is_not_finite_predicts_nothing_good(fitted):
    assert fitted.predict([np.nan, -np.inf]).tolist() == [0, 0]
    assert 0 <= float(fitted.predict(np.inf)) <= 1


@pytest.mark.parametrize(
    ("scores", "ious", "groups"),
    [([0.5], [], None), ([0.5], [0.5], []), ([1.5], [0.5], None), ([0.5], [float("nan")], None)],
)
def test_samples_that_do_not_fit_are_refused(scores, ious, groups):
    with pytest.raises(QualityError):
        Calibrator.fit(scores, ious, groups)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("isotonic", {}),
        ("isotonic", {"knots": [], "values": []}),
        ("isotonic", {"knots": [0.1, 0.9], "values": [0.9, 0.1]}),
        ("isotonic", {"knots": [0.9, 0.1], "values": [0.1, 0.9]}),
        ("isotonic", {"knots": [0.1], "values": [1.2]}),
        ("isotonic", {"knots": [0.1], "values": [None]}),
        ("isotonic", {"knots": ["x"], "values": [0.2]}),
        ("spline", {"knots": [0.1], "values": [0.2]}),
    ],
)
def test_stored_parameters_that_are_no_map_are_refused(kind, parameters):
    with pytest.raises(QualityError, match="recalibrate"):
        Calibrator.from_dict(kind, 30, parameters)


def told(n: int = 120, seed: int = 0) -> tuple[list[float], list[float], list[list[float]]]:
    """A score that says little, and two signals whose sum is the IoU."""
    random = np.random.default_rng(seed)
    signals = random.uniform(0, 0.5, (n, 2))
    return random.uniform(0, 1, n).tolist(), signals.sum(axis=1).tolist(), signals.tolist()


def test_signals_are_regressed_on_where_they_tell_more_than_the_score():
    scores, ious, signals = told()
    fitted = Calibrator.fit(scores, ious, features=signals)
    assert fitted.kind == "ridge"
    other = told(seed=1)
    assert np.abs(fitted.predict(other[0], other[2]) - other[1]).mean() < 0.02
    assert np.abs(fitted.predict(other[0]) - other[1]).mean() > 0.1, "without signals the score has to do"
    assert (
        Calibrator.from_dict(fitted.kind, fitted.samples, json.loads(json.dumps(fitted.to_dict()))) == fitted
    )


def test_the_score_stays_where_signals_tell_nothing_more_or_are_too_few():
    scores, _, noise = told()
    assert Calibrator.fit(scores, scores, features=noise).kind == "isotonic"
    scores, ious, signals = told(MIN_REGRESSION - 1)
    assert Calibrator.fit(scores, ious, features=signals).kind == "isotonic"


def test_signals_far_from_the_audited_are_held_near_them():
    scores, ious, signals = told()
    fitted = Calibrator.fit(scores, [0.5 * i for i in ious], features=signals)
    near, far, unknown, broken = fitted.predict(
        [0.5] * 4, [[0.62, 0.62], [90.0, 90.0], None, [float("nan"), 0.1]]
    )
    assert far == pytest.approx(near, abs=0.02)
    assert unknown == broken == pytest.approx(fitted.predict([0.5])[0])


def test_cross_fitted_qualities_come_from_other_scenes():
    random = np.random.default_rng(0)
    scores, ious = random.uniform(0, 1, 60).tolist(), random.uniform(0, 1, 60).tolist()
    scenes = [i // 2 for i in range(60)]
    mine = cross_fitted(scores, ious, scenes)
    assert np.abs(Calibrator.fit(scores, ious, scenes).predict(scores) - mine).max() > 0.01
    changed = [1 - iou if scene == 3 else iou for iou, scene in zip(ious, scenes, strict=True)]
    again = cross_fitted(scores, changed, scenes)
    assert again[[6, 7]] == pytest.approx(mine[[6, 7]])
    assert np.abs(again - mine).max() > 1e-6
    few = cross_fitted(scores[:10], ious[:10])
    assert few == pytest.approx(scores[:10])


@pytest.mark.parametrize(
    "change", [{"weights": []}, {"weights": [1.0]}, {"ranges": [[0, 1]]}, {"intercept": "x"}]
)
def test_a_stored_regression_that_is_none_is_refused(change):
    scores, ious, signals = told()
    fitted = Calibrator.fit(scores, ious, features=signals)
    with pytest.raises(QualityError, match="recalibrate"):
        Calibrator.from_dict("ridge", 120, {**fitted.to_dict(), **change})


def with_flips(signals: list[list[float]], measured: int) -> list[list[float | None]]:
    """The same with a third signal, that only the last `measured` of them have."""
    lacking = len(signals) - measured
    return [[*pair, None if i < lacking else 0.9] for i, pair in enumerate(signals)]


def test_a_signal_that_some_audits_lack_counts_there_as_on_average():
    scores, ious, signals = told()
    fitted = Calibrator.fit(scores, ious, features=with_flips(signals, 10))
    plain = Calibrator.fit(scores, ious, features=signals)
    assert fitted.kind == plain.kind == "ridge"
    [lacks, has] = fitted.predict([0.5] * 2, [[*signals[0], None], [*signals[0], 0.9]])
    assert lacks == pytest.approx(has)
    assert lacks == pytest.approx(plain.predict([0.5], [signals[0]])[0], abs=0.02)


def test_a_signal_that_no_audit_has_tells_nothing():
    scores, ious, signals = told()
    fitted = Calibrator.fit(scores, ious, features=with_flips(signals, 0))
    assert fitted.weights[2] == 0
    assert np.isfinite(fitted.predict([0.5], [[*signals[0], 0.3]])).all()


def test_lists_from_before_a_signal_came_to_be_go_with_those_of_today():
    scores, ious, signals = told()
    both = [*signals[:100], *with_flips(signals, len(signals))[100:]]
    fitted = Calibrator.fit(scores, ious, features=both)
    assert len(fitted.weights) == 3
    early = Calibrator.fit(scores, ious, features=signals)
    assert early.predict([0.5], [[*signals[0], 0.9]]) == early.predict([0.5], [signals[0]])


def test_a_regression_that_was_stored_without_means_is_read():
    scores, ious, signals = told()
    fitted = Calibrator.fit(scores, ious, features=signals)
    parameters = fitted.to_dict()
    del parameters["means"]
    read = Calibrator.from_dict("ridge", fitted.samples, parameters)
    assert read.predict([0.5], [signals[0]]) == fitted.predict([0.5], [signals[0]])
