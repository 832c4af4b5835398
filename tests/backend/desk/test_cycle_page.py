from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from active_learning.journal import RESUMED
from active_learning.ledger import CycleState, Ledger, Project
from backend.desk import cycle_page
from backend.desk.cycle_page import CyclePage, Frozen

PATH = "/desk/1/cycles"


def ask(history: Any, cycle: int, before: int | None = None) -> CyclePage:
    with history.ledger.session(write=False) as session:
        return cycle_page.facts(session, session.get_one(Project, history.project_id), cycle, before)


def steps(found: CyclePage) -> dict[str, str]:
    return {step.name: step.state for step in found.steps}


def fill(history: Any) -> int:
    """A cycle that came to its end; its challenger was put aside."""
    decided = {"promote": False, "reason": "not promoted: no better", "delta": -0.1, "interval": None}
    metrics = history.scores({9: 0.5}) | {"gate": decided}
    snapshot = history.snapshot([1, 2, 3], [9, 10])
    version = history.version("elnet-0001", snapshot, metrics=metrics)
    done = dict.fromkeys(("snapshot", "train", "evaluate", "gate", "reject", "recalibrate", "prefill"), 2.0)
    cycle = history.cycle(
        CycleState.REJECTED,
        step="prefill",
        seconds=done,
        snapshot_id=snapshot,
        challenger_id=version,
        reason="no better, by the gate",
    )
    history.event(cycle, "train", "Fine-tuning.", began=True)
    history.epoch(cycle, 1, 2, 2.5)
    history.epoch(cycle, 2, 2, 2.0)
    history.event(cycle, "train", "Trained elnet-0001.", finished=True)
    history.event(cycle, "prefill", "Predicted 9 images.", finished=True)
    history.event(cycle, "prefill", "The cycle ended rejected.", state="rejected")
    return int(cycle)


def check(history: Any) -> None:
    found = ask(history, fill(history))
    assert list(steps(found)) == ["snapshot", "train", "evaluate", "gate", "reject", "recalibrate", "prefill"]
    assert set(steps(found).values()) == {"done"}
    said = {step.name: step.said for step in found.steps}
    assert (said["train"], said["prefill"], said["gate"]) == (
        "Trained elnet-0001.",
        "Predicted 9 images.",
        None,
    )
    assert found.frozen is not None
    assert found.frozen == Frozen(found.frozen.sha256, 3, 2, 0)
    assert found.gate is not None
    assert found.gate["reason"] == "not promoted: no better"
    assert [line.message for line in found.log][:2] == ["The cycle ended rejected.", "Predicted 9 images."]
    assert (found.earlier, found.left_s) == (None, None)
    assert json.dumps(asdict(found), default=str)


def test_a_cycle_that_came_to_its_end(history: Any, site: Any) -> None:
    check(history)
    page = site.client.get(f"{PATH}/1").text
    assert "no better, by the gate" in page
    assert "3 to train on, 2 to judge by" in page
    assert "Resume" not in page
    assert "Cancel" not in page
    assert 'data-live="yes"' not in page


def test_so_it_is_on_postgresql(postgresql_url: str, make_history: Any) -> None:
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        check(make_history(ledger))


def test_one_that_trains(history: Any, site: Any) -> None:
    cycle = history.cycle(CycleState.RUNNING, step="train", seconds={"snapshot": 1.0})
    for epoch in range(1, 5):
        history.epoch(cycle, epoch, 10, 2.5, after_s=epoch * 20)
    found = ask(history, cycle)
    assert steps(found)["snapshot"] == "done"
    assert steps(found)["train"] == "now"
    assert steps(found)["promote"] == "to come"
    assert "reject" not in steps(found)
    assert found.left_s == pytest.approx(6 * 20)
    assert found.frozen is None
    page = site.client.get(f"{PATH}/{cycle}").text
    assert "Epoch 4 of 10, loss 2.500, about 2 min left" in page
    assert 'data-stamp="4"' in page
    assert "Cancel" in page


def test_the_time_left_is_not_told_from_one_epoch_nor_across_a_new_start(history: Any) -> None:
    cycle = history.cycle(CycleState.RUNNING, step="train")
    history.epoch(cycle, 5, 9, 2.5)
    assert ask(history, cycle).left_s is None
    history.epoch(cycle, 1, 9, 2.5, after_s=10)
    assert ask(history, cycle).left_s is None


def test_one_that_failed(history: Any, site: Any) -> None:
    cycle = history.cycle(
        CycleState.FAILED, step="train", seconds={"snapshot": 1.0}, reason="train: no memory"
    )
    history.event(cycle, "train", "The cycle ended failed: no memory", state="failed")
    found = ask(history, cycle)
    assert steps(found)["train"] == "stopped"
    assert found.steps[1].said == "The cycle ended failed: no memory"
    page = site.client.get(f"{PATH}/{cycle}").text
    assert "train: no memory" in page
    assert f'action="{PATH}/{cycle}/resume"' in page


def test_one_that_waits(history: Any, site: Any) -> None:
    cycle = history.cycle()
    assert set(steps(ask(history, cycle)).values()) == {"to come"}
    page = site.client.get(f"{PATH}/{cycle}").text
    assert "It waits for the worker" in page
    assert "is a worker running?" in page


def test_one_that_was_resumed_waits_before_its_step(history: Any) -> None:
    cycle = history.cycle(step="train", seconds={"snapshot": 1.0})
    assert (steps(ask(history, cycle))["snapshot"], steps(ask(history, cycle))["train"]) == (
        "done",
        "to come",
    )


def test_a_long_log_comes_page_by_page(history: Any, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycle_page, "LOG", 2)
    cycle = history.cycle(CycleState.RUNNING)
    ids = [history.event(cycle, "prefill", f"{number} predicted") for number in range(3)]
    first = ask(history, cycle)
    assert [line.id for line in first.log] == [ids[2], ids[1]]
    assert [line.id for line in ask(history, cycle, first.earlier).log] == [ids[0]]
    assert f"?before={first.earlier}" in site.client.get(f"{PATH}/{cycle}").text


def test_the_losses_of_every_attempt(history: Any, site: Any) -> None:
    cycle = history.cycle(CycleState.RUNNING, step="train")
    path = "/desk/1/charts/cycle-losses"
    assert site.client.get(f"{path}.json?cycle={cycle}").json == {"empty": True}
    history.epoch(cycle, 1, 3, 2.5)
    history.event(cycle, "train", "Going on.", resumed="Going on.")
    assert "legend" in str(site.client.get(f"{path}.json?cycle={cycle}").json)
    history.event(cycle, RESUMED, "Resumed by ada")
    history.epoch(cycle, 2, 3, 2.25)
    lines = site.client.get(f"{path}.csv?cycle={cycle}").text.splitlines()
    assert lines == ["attempt,epoch,loss,images per s", "1,1,2.5,2.0", "2,2,2.25,2.0"]
    assert site.client.get(f"{path}.png?cycle={cycle}").data.startswith(b"\x89PNG")


@pytest.mark.parametrize("query", ["", "?cycle=x", "?cycle=99", "?cycle=-1"])
def test_losses_of_no_cycle_are_not_found(history: Any, site: Any, query: str) -> None:
    assert site.client.get(f"/desk/1/charts/cycle-losses.csv{query}").status_code == 404
