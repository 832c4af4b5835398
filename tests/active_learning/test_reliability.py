from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from active_learning.ledger import ModelVersion, Project
from active_learning.quality import recalibrate
from active_learning.reliability import BINS, LEAST, Reliability, bins, reliability
from tests.active_learning.test_quality import audit, square

UNIT = st.floats(0, 1)


def look(loop: Any) -> Reliability | None:
    with loop.ledger.session(write=False) as session:
        return reliability(session, session.get_one(Project, loop.project_id))


def test_bins_hold_equally_many_and_tell_their_means() -> None:
    predicted = np.linspace(0, 1, 100)
    found = bins(predicted.tolist(), (predicted / 2).tolist())
    assert [b.audits for b in found] == [10] * 10
    assert [b.predicted for b in found] == pytest.approx([(i * 10 + 4.5) / 99 for i in range(10)])
    assert [b.iou for b in found] == pytest.approx([b.predicted / 2 for b in found])
    assert found[0].error == pytest.approx((predicted[:10] / 2).std(ddof=1) / np.sqrt(10))


@given(st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=150))
def test_every_sample_stands_in_one_bin_and_bins_do_not_overlap(pairs: list[tuple[float, float]]) -> None:
    predicted, ious = (list(values) for values in zip(*pairs, strict=True))
    found = bins(predicted, ious)
    assert sum(b.audits for b in found) == len(pairs)
    assert len(found) <= max(1, min(BINS, len(pairs) // LEAST))
    assert all(b.low <= b.predicted + 1e-9 and b.predicted <= b.high + 1e-9 for b in found)
    assert all(one.high < two.low for one, two in pairwise(found))
    assert all(0 <= b.iou <= 1 and b.error >= 0 for b in found)


def test_equal_predictions_are_one_bin() -> None:
    assert [b.audits for b in bins([0.7] * 60, [0.5] * 60)] == [60]


def test_without_a_version_or_audits_nothing_is_told(loop: Any) -> None:
    assert look(loop) is None
    loop.promote()
    assert look(loop) is None


def test_few_audits_are_told_by_the_score_as_it_is(loop: Any) -> None:
    audit(loop, loop.promote(), [0.95, 0.75])
    found = look(loop)
    assert found is not None
    assert (found.kind, found.audits, found.rank_correlation) == ("identity", 2, None)
    assert found.absolute_error == found.calibration_error == pytest.approx(0.35)  # half of each was wrong


def test_with_enough_audits_each_is_graded_without_its_scene(loop: Any) -> None:
    version = loop.promote()
    audit(loop, version, [0.9] * 30)
    (odd,) = loop.routed(version, [0.9], masks=square(16))
    loop.label(odd, square(16))  # this one was right: a map that has seen it would grade it above the others
    with loop.ledger.session() as session:
        recalibrate(
            session, session.get_one(Project, loop.project_id), session.get_one(ModelVersion, version)
        )
    found = look(loop)
    assert found is not None
    assert (found.kind, found.audits) == ("isotonic", 31)
    assert found.absolute_error == pytest.approx(0.5 / 31, abs=0.02)
    assert found.augrc < found.aurc
