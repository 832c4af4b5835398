from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from active_learning import thresholds, triggers
from active_learning.guarantee import Promise
from active_learning.ledger import Cycle, CycleState, ModelState, ModelVersion, TaskStatus
from active_learning.ledger.types import utc_now
from backend.desk.overview import Level, Overview, overview


def look(spills: Any) -> Overview:
    with spills.ledger.session(write=False) as session:
        return overview(session, spills.project(session))


def levels(spills: Any) -> list[tuple[Level, str]]:
    return [(matter.level, matter.text) for matter in look(spills).matters]


def test_where_images_stand_and_what_serves(spills):
    spills.audit(good=2, bad=0)
    found = look(spills)
    assert found.images == 5
    assert {status: n for status, n in found.counts.items() if n} == {
        TaskStatus.ACCEPTED: 1,
        TaskStatus.REVIEW: 2,
        TaskStatus.DONE: 2,
    }
    assert found.champion is not None
    assert found.champion.name == "elnet-0001"
    assert found.saved_hours == pytest.approx(60 / 3600)  # one accepted mask, a minute a label
    page = spills.page()
    for text in ("elnet-0001", "accepted unseen", "1 min", "5 images of oil"):
        assert text in page


def test_an_empty_project_says_what_to_do(empty_spills):
    page = empty_spills.page()
    assert "No image yet" in page
    assert "none yet" in page
    assert (Level.NOTE, "No model version serves yet: label images of the Audit view and the review queue "
            "first.") in levels(empty_spills)  # fmt: skip


def test_what_has_stopped_comes_first(spills):
    spills.audit(good=10, bad=0)
    with spills.ledger.session() as session:
        project = spills.project(session)
        thresholds.promise(session, project, Promise(0.5, 0.3), "ada", "try")
        thresholds.set_threshold(session, project, None, thresholds.LOOP, "the promise is broken")
        triggers.request(session, project, "command")
        cycle = session.scalars(select(Cycle)).one()
        cycle.state, cycle.step, cycle.reason = CycleState.FAILED, "train", "no memory"
        cycle.finished_at = utc_now()
        session.add(
            ModelVersion(
                project_id=project.id,
                name="elnet-0002",
                path="x",
                sha256="1" * 64,
                state=ModelState.CHALLENGER,
            )
        )
    found = levels(spills)
    assert [level for level, _ in found] == sorted((level for level, _ in found), key=list(Level).index)
    texts = " ".join(text for _, text in found)
    for said in ("No worker runs", "switched itself off: the promise is broken", "no memory", "elnet-0002"):
        assert said in texts
    page = spills.page()
    assert "the loop" in page  # who moved the threshold
    assert "&gt;" not in page.partition("What happened last")[0]


def test_a_promise_that_waits_is_a_leads_business(spills):
    with spills.ledger.session() as session:
        thresholds.promise(session, spills.project(session), Promise(0.6, 0.1), "ada", "try")
    assert any("cannot be kept on the audits of elnet-0001 yet" in text for _, text in levels(spills))
    assert ">waits<" in spills.page()


def test_what_is_not_there_is_not_found(spills):
    answer = spills.client.get("/desk/99")
    assert answer.status_code == 404
    assert spills.client.get("/desk/").headers["Location"] == "/desk/1"
