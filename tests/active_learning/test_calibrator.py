from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from active_learning.calibrator import MIN_SAMPLES, Calibrator, QualityError

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
