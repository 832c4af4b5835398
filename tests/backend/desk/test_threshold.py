from __future__ import annotations

import json
import re
from typing import Any

import pytest

from active_learning import thresholds
from active_learning.guarantee import Promise
from active_learning.ledger import TaskStatus
from active_learning.risk import what_ifs
from backend.desk.ladder import STEPS, ladder, near
from backend.desk.threshold import facts


def in_force(spills: Any) -> tuple[float | None, dict[str, Any] | None]:
    with spills.ledger.session(write=False) as session:
        project = spills.project(session)
        return project.accept_threshold, project.promise


def test_the_slider_knows_what_the_command_line_says(spills):
    spills.add(0.905, 0.9, 0.1, 0.33)
    spills.audit(good=8, bad=2)
    with spills.ledger.session(write=False) as session:
        project = spills.project(session)
        promised = Promise(0.6, 0.1)
        found = ladder(session, project, promised, thresholds.judged(session, project, promised))
        steps = [0.0, 0.5, 0.9, 0.905, 1.0]
        for tried in what_ifs(session, project, steps, 0.6):
            assert found.accepted[round(tried.threshold * STEPS)] == tried.accepted, tried.threshold
        assert (found.audit, found.unusable, found.waiting, found.seconds) == (0, 0, 0, 60.0)
    [only] = found.reached
    assert (only.scenes, only.bad, only.coverage) == (10, 2, 1.0)
    assert only.low < 0.2 < only.high


def test_masks_on_either_side_are_the_nearest(spills):
    spills.add(0.62, 0.59, 0.1)
    with spills.ledger.session(write=False) as session:
        above, below = near(session, spills.project(session), 0.6)
    assert [one.quality for one in above] == [0.62, 0.7, 0.95]
    assert [one.quality for one in below] == [0.59, 0.5, 0.1]
    fragment = spills.page("/threshold/near", at=0.6)
    assert fragment.index("0.620") < fragment.index("0.590")
    assert "elnet-0001.png" in fragment


def test_the_page_tells_what_can_be_promised(spills):
    spills.audit(good=40, bad=0)
    page = spills.page("/threshold", risk=10, iou=0.6, confidence=90)
    assert "It can be kept from predicted IoU" in page
    data = json.loads(re.search(r"data-ladder>(.*?)</script>", page, re.DOTALL)[1])
    assert data["bad"] == "an IoU below 0.6"
    assert data["ladder"]["reached"][0]["scenes"] == 40
    with spills.ledger.session(write=False) as session:
        found = facts(session, spills.project(session), Promise(0.6, 0.1))
    assert found.answer.threshold is not None
    assert found.answer.threshold == found.tried.threshold


def test_a_promise_sets_the_threshold_and_undo_takes_it_back(spills):
    spills.audit(good=40, bad=0)
    page = spills.post("/threshold/promise", risk=10, iou=0.6, confidence=90, why="the first")
    assert "Recorded" in page
    assert "A promise sets the threshold" in page
    value, promise = in_force(spills)
    assert value == pytest.approx(1.0)  # so calibrated: every audit was perfect
    assert promise == {"iou": 0.6, "risk": 0.1, "confidence": 0.9, "classes": {}}
    page = spills.post("/threshold/undo")
    assert in_force(spills) == (0.9, None)
    assert "undoes the change" in page


def test_a_number_of_the_leads_own(spills):
    page = spills.post("/threshold", value="0.65", why="see what comes")
    assert "Accepted from 0.650 on" in page
    assert "see what comes" in page
    with spills.ledger.session(write=False) as session:
        project = spills.project(session)
        assert thresholds.history(session, project)[0].who == "lea"
        assert [t.status for t in spills_tasks(session)][:3] == [
            TaskStatus.ACCEPTED,
            TaskStatus.ACCEPTED,
            TaskStatus.REVIEW,
        ]
    assert "Nothing is accepted without a human" in spills.post(
        "/threshold", none="1", value="0.6", why="stop"
    )
    assert in_force(spills) == (None, None)


def spills_tasks(session: Any) -> Any:
    from sqlalchemy import select

    from active_learning.ledger import Task

    return session.scalars(select(Task).order_by(Task.id)).all()


@pytest.mark.parametrize(
    ("path", "form", "said"),
    [
        ("/threshold", {"value": "1.5", "why": "x"}, "between 0 and 1"),
        ("/threshold", {"value": "0.5", "why": " "}, "needs who made it and why"),
        ("/threshold", {"value": "0.9", "why": "x"}, "is 0.9 already"),
        ("/threshold/undo", {}, "never changed"),
        ("/threshold/promise", {"risk": "0", "iou": "0.5", "why": "x"}, "risk and confidence"),
        ("/threshold/promise", {"risk": "10", "iou": "0.5", "why": ""}, "needs who made it and why"),
        ("/threshold/promise", {"why": "x"}, "names no promise"),
        (
            "/threshold/promise",
            {"risk": "10", "iou": "0.5", "class-ship": "0.5", "why": "x"},
            "no class ship",
        ),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(spills, path, form, said):
    page = spills.post(path, **form)
    assert "Nothing was changed" in page
    assert said in page
    assert in_force(spills) == (0.9, None)


@pytest.mark.parametrize("query", [{"risk": "x", "iou": "0.5"}, {"risk": "10", "iou": "2"}])
def test_a_query_that_is_no_promise_is_refused_in_words(spills, query):
    answer = spills.client.get(f"{spills.path}/threshold", query_string=query)
    assert answer.status_code == 400


def test_without_a_version_there_is_nothing_to_accept(empty_spills):
    page = empty_spills.page("/threshold")
    assert "No model version serves yet" in page
    assert "data-slider" not in page
