from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from active_learning import risk
from active_learning.guarantee import upper_bound
from active_learning.ledger import Project
from active_learning.risk import ThresholdError, augrc, aurc, risk_coverage, what_if

UNIT = st.floats(0, 1)
SIDE = 32


def test_the_table_by_hand():
    table = risk_coverage([0.9, 0.7, 0.9, 0.5], [1.0, 0.5, 0.8, 0.1], acceptable_iou=0.75)
    assert [(p.threshold, p.coverage, p.accepted, p.failures) for p in table] == [
        (0.9, 0.5, 2, 0),
        (0.7, 0.75, 3, 1),
        (0.5, 1.0, 4, 2),
    ]
    assert [p.risk for p in table] == pytest.approx([0.1, 0.7 / 3, 1.6 / 4])


@given(st.lists(st.tuples(UNIT, UNIT), max_size=40))
def test_each_point_of_the_table_is_what_accepting_from_there_on_gives(pairs):
    qualities, ious = [q for q, _ in pairs], [i for _, i in pairs]
    table = risk_coverage(qualities, ious)
    assert [p.threshold for p in table] == sorted(set(qualities), reverse=True)
    for point in table:
        taken = [1 - i for q, i in pairs if q >= point.threshold]
        assert point.accepted == len(taken)
        assert point.risk == pytest.approx(np.mean(taken))


def test_the_areas_by_hand():
    points = risk_coverage([0.9, 0.8, 0.8, 0.1], [1.0, 0.5, 0.7, 0.0])  # risks 0, 0.8 / 3, 1.8 / 4
    assert aurc(points) == pytest.approx(0.25 * 0 + 0.5 * 0.8 / 3 + 0.25 * 1.8 / 4)
    assert augrc(points) == pytest.approx(0.5 * 0.8 / 4 + 0.25 * 1.8 / 4)


@pytest.mark.parametrize(
    ("qualities", "ious"), [([0.5], []), ([1.5], [0.5]), ([0.5], [-0.1]), ([float("nan")], [0.5])]
)
def test_what_is_no_sample_is_refused(qualities, ious):
    with pytest.raises(ThresholdError):
        risk_coverage(qualities, ious)


def predict(loop: Any, version: int, qualities: list[float], usable: bool = True) -> list[int]:
    masks = np.zeros((1, SIDE, SIDE), np.bool_)
    masks[:, :16, :16] = True
    said = {"usable": usable, "classes": []}
    ids: list[int] = loop.routed(version, qualities, masks=masks, signals=said)
    return ids


def ask(loop: Any, threshold: float | None) -> Any:
    with loop.ledger.session(write=False) as session:
        return what_if(session, session.get_one(Project, loop.project_id), threshold)


def test_what_if_counts_the_current_predictions_and_sets_nothing(loop):
    version = loop.promote()
    predict(loop, version, [0.95, 0.85, 0.75])
    predict(loop, version, [0.0], usable=False)
    loop.add("not predicted yet")
    asked = ask(loop, 0.8)
    assert (asked.accepted, asked.audit, asked.review, asked.waiting) == (2, 0, 2, 1)
    assert (asked.audited, asked.realised_risk, asked.risk_bound) == (0, None, 1)
    assert "unknown" in asked.warning
    assert loop.project().accept_threshold == 0.9
    assert ask(loop, None).accepted == 0
    assert ask(loop, 0.0).accepted == 3  # never the unusable one


def test_what_if_draws_the_audit_as_routing_would(loop):
    version = loop.promote()
    loop.configure(audit_share=0.3)
    ids = predict(loop, version, [0.95] * 40)
    asked = ask(loop, 0.9)
    assert asked.audit == sum(loop.task(i).status == "audit" for i in ids) > 0
    assert asked.accepted + asked.audit == 40


def test_what_if_reads_the_risk_off_the_audits(loop):
    version = loop.promote()
    loop.configure(audit_share=1.0, accept_threshold=0.6)
    good, bad = predict(loop, version, [0.95] * 3), predict(loop, version, [0.65])
    right = loop.predictions(good[0])[0].masks
    for task in good:
        loop.label(task, right)
    loop.label(bad[0], ~right)
    strict, loose = ask(loop, 0.9), ask(loop, 0.6)
    assert (strict.audited, strict.failures, strict.realised_risk) == (3, 0, 0)
    assert strict.warning is None
    assert (loose.audited, loose.failures, loose.realised_risk) == (4, 1, 0.25)
    assert loose.risk_bound == pytest.approx(upper_bound(1, 4, 0.95))
    assert "0.650" in ask(loop, 0.3).warning


def test_hours_are_those_that_labels_took_so_far(loop):
    version = loop.promote()
    predict(loop, version, [0.95, 0.95, 0.95, 0.5])
    assert (ask(loop, 0.9).hours, ask(loop, 0.9).saved_hours) == (None, None)
    # a label that was accepted or imported took no time, and one was left open over night
    for task, seconds in zip(loop.add(*"abcde"), (None, 0.0, 90.0, 120.0, 40_000.0), strict=True):
        loop.label(task, took_s=seconds)
    loop.label(loop.add("f")[0], machine=True, took_s=1.0)
    asked = ask(loop, 0.9)
    assert (asked.review, asked.accepted) == (1, 3)
    assert asked.hours == pytest.approx(1 * 120 / 3600)
    assert asked.saved_hours == pytest.approx(3 * 120 / 3600)


def test_hours_are_by_the_last_labels_and_by_each_annotation_once(loop, monkeypatch):
    monkeypatch.setattr(risk, "RECENT", 3)
    predict(loop, loop.promote(), [0.5])
    tasks = loop.add(*"abc")
    loop.label(tasks[0], took_s=5000.0)
    first = loop.label(tasks[1], took_s=10.0)
    loop.label(tasks[1], annotation=first, took_s=30.0)
    loop.label(tasks[2], took_s=50.0)
    assert ask(loop, 0.9).hours == pytest.approx(40 / 3600)


def test_what_if_refuses_what_is_no_threshold(loop):
    with pytest.raises(ThresholdError):
        ask(loop, 1.2)
