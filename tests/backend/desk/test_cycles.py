from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from sqlalchemy import select

from active_learning.ledger import Cycle, CycleState, Ledger, Project
from backend.desk import cycles
from backend.desk.cycles import Cycles, Training

PATH = "/desk/1/cycles"


def look(history: Any, before: int | None = None) -> Cycles:
    with history.ledger.session(write=False) as session:
        return cycles.facts(session, session.get_one(Project, history.project_id), before)


def fill(history: Any) -> None:
    """A cycle that promoted, and one that trains."""
    version = history.version("elnet-0001", metrics=history.scores({9: 0.5}), promote=True)
    seconds = {"snapshot": 1.5, "train": 130.0}
    history.cycle(
        CycleState.PROMOTED, challenger_id=version, seconds=seconds, step="prefill", reason="it is better"
    )
    cycle = history.cycle(CycleState.RUNNING, step="train")
    history.epoch(cycle, 1, 9, 2.5)
    history.epoch(cycle, 2, 9, 2.25)
    history.event(cycle, "train", "Going on.", resumed="Going on.")


def check(history: Any) -> None:
    found = look(history)
    running, ended = found.cycles
    assert (running.state, running.training, running.version) == (
        CycleState.RUNNING,
        Training(2, 9, 2.25),
        None,
    )
    assert (ended.version, ended.iou, ended.training) == ("elnet-0001", 0.5, None)
    assert ended.seconds == {"snapshot": 1.5, "train": 130.0}
    assert found.active == running.id
    assert found.outlook.held_back == f"cycle {running.id} is running"
    assert json.dumps(asdict(found), default=str)


def test_cycles_the_newest_first(history: Any, site: Any) -> None:
    fill(history)
    check(history)
    page = site.client.get(PATH).text
    assert "epoch 2 of 9, loss 2.250" in page
    assert "it is better" in page
    assert "2 min 12 s" in page
    assert "Start a cycle now" not in page
    assert 'data-live="yes"' in page


def test_so_they_come_on_postgresql(postgresql_url: str, make_history: Any) -> None:
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        history = make_history(ledger)
        fill(history)
        check(history)


def test_before_the_first_the_page_says_what_it_waits_for(history: Any, site: Any) -> None:
    page = site.client.get(PATH).text
    assert "No cycle has run yet" in page
    assert "12 of 50 new labels in all" in page
    assert "Start a cycle now" in page
    assert 'data-live="yes"' not in page


def test_many_cycles_come_page_by_page(history: Any, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycles, "PAGE", 2)
    ids = [history.cycle(CycleState.REJECTED) for _ in range(3)]
    first = look(history)
    assert [cycle.id for cycle in first.cycles] == [ids[2], ids[1]]
    assert [cycle.id for cycle in look(history, first.older).cycles] == [ids[0]]
    assert f"?before={first.older}" in site.client.get(PATH).text


def test_a_lead_starts_one(history: Any, site: Any) -> None:
    answer = site.client.post(PATH)
    assert (answer.status_code, answer.location) == (303, f"{PATH}/1")
    page = site.client.get(answer.location).text
    assert "Cycle 1 is asked for" in page
    assert "It waits for the worker" in page
    with history.ledger.session(write=False) as session:
        cycle = session.scalars(select(Cycle)).one()
        assert (cycle.state, cycle.trigger) == (CycleState.REQUESTED, "desk, by lea")


def test_a_second_one_is_refused(history: Any, site: Any) -> None:
    running = history.cycle(CycleState.RUNNING)
    answer = site.client.post(PATH, follow_redirects=True)
    assert f"Cycle {running} of project &#39;spills&#39; is running already" in answer.text
    assert [cycle.id for cycle in look(history).cycles] == [running]


def test_a_lead_cancels_one(history: Any, site: Any) -> None:
    running = history.cycle(CycleState.RUNNING, step="train")
    page = site.client.post(f"{PATH}/{running}/cancel", follow_redirects=True).text
    assert f"Cycle {running} is cancelled" in page
    [cycle] = look(history).cycles
    assert (cycle.state, cycle.reason) == (CycleState.CANCELLED, "cancelled by lea")


def test_what_has_ended_cannot_be_cancelled(history: Any, site: Any) -> None:
    ended = history.cycle(CycleState.PROMOTED, reason="it is better")
    page = site.client.post(f"{PATH}/{ended}/cancel", follow_redirects=True).text
    assert f"Cycle {ended} has already ended: promoted" in page
    assert look(history).cycles[0].reason == "it is better"


def test_a_lead_resumes_one_that_failed(history: Any, site: Any) -> None:
    failed = history.cycle(CycleState.FAILED, step="train", reason="no memory")
    assert "Resume" in site.client.get(f"{PATH}/{failed}").text
    page = site.client.post(f"{PATH}/{failed}/resume", follow_redirects=True).text
    assert f"Cycle {failed} goes on with train" in page
    assert "Resumed by lea; it had ended failed: no memory" in page
    assert history.cycle_state(failed) is CycleState.REQUESTED


@pytest.mark.parametrize(
    ("state", "said"),
    [(CycleState.PROMOTED, "came to its end: promoted"), (CycleState.RUNNING, "it is running")],
)
def test_others_cannot_be_resumed(history: Any, site: Any, state: CycleState, said: str) -> None:
    cycle = history.cycle(state)
    page = site.client.post(f"{PATH}/{cycle}/resume", follow_redirects=True).text
    assert said in page
    assert 'class="flash error"' in page
    assert history.cycle_state(cycle) is state


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", "/desk/9/cycles"),
        ("post", "/desk/9/cycles"),
        ("get", f"{PATH}/99"),
        ("post", f"{PATH}/99/cancel"),
        ("post", f"{PATH}/99/resume"),
        ("post", "/desk/2/cycles/1/cancel"),  # of another project
    ],
)
def test_what_is_not_there_is_not_found(history: Any, site: Any, method: str, path: str) -> None:
    site.add_project(tool_project_id=8)
    cycle = history.cycle(CycleState.RUNNING)
    assert getattr(site.client, method)(path).status_code == 404
    assert history.cycle_state(cycle) is CycleState.RUNNING


def test_the_overview_tells_of_the_last_one(history: Any, site: Any) -> None:
    fill(history)
    assert "epoch 2 of 9" in site.client.get("/desk/1").text
