from __future__ import annotations

from typing import Any

import pytest

from active_learning.ledger import Ledger
from backend.desk.summaries import labels_of, metrics_of


@pytest.fixture(params=["sqlite", "postgresql"])
def past(request: pytest.FixtureRequest, make_history: Any) -> Any:
    """A version with metrics, one without, and two snapshots."""
    name = "ledger" if request.param == "sqlite" else "postgresql_url"
    found = request.getfixturevalue(name)
    ledger = found if isinstance(found, Ledger) else Ledger(found)
    ledger.upgrade()
    history = make_history(ledger)
    metrics = history.scores(
        {9: 0.5}, seconds=None, fault="it draws on noise", champion={"name": "elnet-0000"}
    )
    gate = {"promote": False, "reason": "not promoted: it draws on noise", "delta": None}
    history.version("elnet-0001", history.snapshot([1, 2, 3], [9]), metrics=metrics | {"gate": gate})
    history.version("elnet-0002", history.snapshot([1], [9]))
    yield history
    ledger.close()


def test_metrics_come_without_their_images(past: Any) -> None:
    with past.ledger.session(write=False) as session:
        found = metrics_of(session, [1, 2])
    assert found[1].keys() == {"n", "fg_iou", "fg_iou_per_image", "boundary_f1", "gate"}
    assert (found[1]["n"], found[1]["fg_iou"]) == (1, 0.5)
    assert found[1]["gate"]["reason"] == "not promoted: it draws on noise"
    assert found[2] == {}


def test_labels_are_counted_and_stay_so(past: Any) -> None:
    with past.ledger.session(write=False) as session:
        assert labels_of(session, {1}) == {1: 3}
        assert labels_of(session, {1, 2}) == {1: 3, 2: 1}
        assert labels_of(session, set()) == {}


def test_two_ledgers_are_not_mixed_up(past: Any, tmp_path: Any, make_history: Any) -> None:
    with past.ledger.session(write=False) as session:
        labels_of(session, {1})
    with Ledger(f"sqlite:///{tmp_path / 'other.sqlite'}") as ledger:
        ledger.upgrade()
        other = make_history(ledger)
        other.snapshot([1, 2, 3, 4, 5], [9])
        with ledger.session(write=False) as session:
            assert labels_of(session, {1}) == {1: 5}
