from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from sqlalchemy import select

from active_learning.ledger import CycleState, Ledger, ModelState, Project, Promotion
from backend.desk import models

PATH = "/desk/1/models"


def look(history: Any, before: int | None = None) -> models.Models:
    with history.ledger.session(write=False) as session:
        return models.facts(session, session.get_one(Project, history.project_id), before)


def flashed(site: Any) -> str:
    """The page that an action leads to."""
    answer = site.client.get(PATH)
    assert answer.status_code == 200
    return answer.text


@pytest.fixture
def three(history: Any) -> Any:
    """Two that served, the second by ada's word, and a challenger."""
    fill(history)
    return history


def fill(history: Any) -> None:
    first = history.snapshot([1, 2, 3], [9, 10])
    second = history.snapshot([1, 2, 3, 4, 5], [9, 10])
    metrics = history.scores({9: 0.4, 10: 0.6}, seconds=0.25)
    history.version("elnet-0001", first, metrics=metrics, promote=True)
    better = history.scores({9: 0.5, 10: 0.7}, fg_iou=0.61)
    better |= {"champion": {"name": "elnet-0001", **metrics}, "gate": {"reason": "promoted", "delta": 0.1}}
    history.version("elnet-0002", second, "elnet-0001", better, promote=True, who="ada")
    third = history.version("elnet-0003", second, "elnet-0002", state=ModelState.CHALLENGER)
    history.cycle(CycleState.PASSED, challenger_id=third)


def check(history: Any) -> None:
    found = look(history)
    third, second, first = found.versions
    assert [one.name for one in found.versions] == ["elnet-0003", "elnet-0002", "elnet-0001"]
    assert (found.champion, found.former, found.waiting) == ("elnet-0002", "elnet-0001", ["elnet-0003"])
    assert (second.iou, second.iou_per_image, second.boundary_f1) == (0.61, 0.6, 0.6)
    assert (second.holdout, second.labels, second.parent, second.delta) == (2, 5, "elnet-0001", 0.1)
    assert (second.verdict, second.promoted_by, second.cycle) == ("promoted", "ada", None)
    assert (first.labels, first.parent, first.promoted_by, first.seconds) == (3, None, None, 0.25)
    assert first.promoted_at is not None
    assert (third.iou, third.holdout, third.cycle, third.promoted_at) == (None, None, 1, None)
    assert found.older is None
    assert json.loads(json.dumps(asdict(found), default=str))["former"] == "elnet-0001"


def test_versions_come_with_their_figures_the_newest_first(three: Any) -> None:
    check(three)


def test_so_they_do_on_postgresql(postgresql_url: str, make_history: Any) -> None:
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        history = make_history(ledger)
        fill(history)
        check(history)


def test_the_page_shows_them(site: Any, three: Any) -> None:
    page = flashed(site)
    assert "elnet-0003 is better than what serves" in page
    assert "0.610" in page
    assert "+0.100" in page
    assert "Go back to elnet-0001" in page
    assert "by ada" in page


def test_many_versions_come_page_by_page(three: Any, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "PAGE", 2)
    first = look(three)
    assert [one.name for one in first.versions] == ["elnet-0003", "elnet-0002"]
    assert f"?before={first.older}" in flashed(site)
    assert [one.name for one in look(three, first.older).versions] == ["elnet-0001"]
    assert look(three, first.older).older is None


def test_before_the_first_version_the_page_says_what_to_wait_for(history: Any, site: Any) -> None:
    page = flashed(site)
    assert "The first cycle trains a version" in page
    assert "Go back" not in page


def test_a_leads_word_lets_a_challenger_serve(three: Any, site: Any) -> None:
    answer = site.client.post(f"{PATH}/elnet-0003/promote")
    assert answer.status_code == 303
    assert "elnet-0003 serves from now on" in flashed(site)
    assert three.states() == {"elnet-0001": "retired", "elnet-0002": "retired", "elnet-0003": "champion"}
    with three.ledger.session(write=False) as session:
        last = session.scalars(select(Promotion).order_by(Promotion.id.desc())).first()
        assert last is not None
        assert (last.who, last.rollback) == ("lea", False)


def test_promoting_what_serves_changes_nothing(three: Any, site: Any) -> None:
    before = three.states()
    site.client.post(f"{PATH}/elnet-0002/promote")
    assert "elnet-0002 serves already" in flashed(site)
    assert three.states() == before


def test_a_challenger_is_put_aside(three: Any, site: Any) -> None:
    site.client.post(f"{PATH}/elnet-0003/reject")
    assert "elnet-0003 is put aside" in flashed(site)
    assert three.states()["elnet-0003"] == "rejected"
    assert three.champion() == "elnet-0002"


def test_what_serves_cannot_be_rejected(three: Any, site: Any) -> None:
    site.client.post(f"{PATH}/elnet-0002/reject")
    page = flashed(site)
    assert "elnet-0002 is champion and cannot be rejected" in page
    assert 'class="flash error"' in page
    assert three.champion() == "elnet-0002"


def test_rolling_back_takes_the_last_promotion_back(three: Any, site: Any) -> None:
    site.client.post(f"{PATH}/rollback")
    assert "elnet-0001 serves again" in flashed(site)
    assert three.champion() == "elnet-0001"
    assert look(three).former is None
    site.client.post(f"{PATH}/rollback")
    assert "there is nothing to go back to" in flashed(site)
    assert three.champion() == "elnet-0001"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("post", f"{PATH}/elnet-0009/promote"),
        ("post", f"{PATH}/elnet-0009/reject"),
        ("get", "/desk/9/models"),
        ("post", "/desk/9/models/rollback"),
    ],
)
def test_what_is_not_there_is_not_found(three: Any, site: Any, method: str, path: str) -> None:
    before = three.states()
    assert getattr(site.client, method)(path).status_code == 404
    assert three.states() == before
