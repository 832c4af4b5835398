from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from active_learning import registry
from active_learning.gate import bootstrap
from active_learning.ledger import Ledger, Project, Task, TaskStatus
from backend.desk import comparison
from backend.desk.comparison import Comparison

OLD = {7: 0.5, 8: 0.5, 9: 0.5, 10: 0.5}
NEW = {7: 0.7, 8: 0.2, 9: 0.6, 10: 0.5}


def ask(history: Any, version: str, other: str) -> Comparison | None:
    with history.ledger.session(write=False) as session:
        project = session.get_one(Project, history.project_id)
        pair = (registry.find(session, project, version), registry.find(session, project, other))
        return comparison.compare(session, project, *pair)


def gated(history: Any) -> None:
    """elnet-0002 was held against elnet-0001 on four images; what elnet-0001 had of its own was other."""
    first = history.snapshot([1, 2], [7, 8])
    history.version("elnet-0001", first, metrics=history.scores({7: 0.1, 8: 0.1}), promote=True)
    metrics = history.scores(NEW, dice=0.7)
    metrics["champion"] = {"name": "elnet-0001", **history.scores(OLD, dice=0.6)}
    history.version("elnet-0002", history.snapshot([1, 2, 3], [7, 8, 9, 10]), "elnet-0001", metrics)


def check(history: Any) -> None:
    found = ask(history, "elnet-0002", "elnet-0001")
    assert found is not None
    assert (found.images, found.left_out) == (4, 0)
    assert (found.better, found.worse, found.equal) == (2, 1, 1)
    assert found.delta == pytest.approx(0.0)
    assert found.interval is None
    assert [(pair.task, round(pair.delta, 3)) for pair in found.best] == [(107, 0.2), (109, 0.1)]
    assert [(pair.task, round(pair.delta, 3)) for pair in found.worst] == [(108, -0.3)]
    assert (found.best[0].iou, found.best[0].other_iou) == (0.7, 0.5)
    assert found.figures["dice"] == (0.7, 0.6)
    assert json.dumps(asdict(found))


def test_what_the_gate_compared_counts(history: Any) -> None:
    gated(history)
    check(history)


def test_so_it_does_on_postgresql(postgresql_url: str, make_history: Any) -> None:
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        history = make_history(ledger)
        gated(history)
        check(history)


def test_the_other_way_round_the_signs_turn(history: Any) -> None:
    gated(history)
    found = ask(history, "elnet-0001", "elnet-0002")
    assert found is not None
    assert (found.better, found.worse) == (1, 2)
    assert [(pair.task, round(pair.delta, 3)) for pair in found.best] == [(108, 0.3)]
    assert found.figures["dice"] == (0.6, 0.7)


def test_two_that_never_met_are_compared_where_the_same_labels_judged_both(history: Any) -> None:
    history.version("elnet-0001", history.snapshot([1], [7, 8, 9]), metrics=history.scores(NEW))
    metrics = history.scores({7: 0.6, 8: 0.6, 10: 0.6})
    history.version("elnet-0002", history.snapshot([1, 2], [7, 8, 10], t8="drawn anew"), metrics=metrics)
    found = ask(history, "elnet-0002", "elnet-0001")
    assert found is not None
    assert (found.images, found.left_out, found.figures) == (1, 3, {})
    assert found.delta == pytest.approx(-0.1)


def test_what_is_not_a_number_is_left_out(history: Any, site: Any) -> None:
    metrics = history.scores(NEW, dice=float("nan"))
    metrics["per_image"][0]["smoothed_iou"] = float("nan")
    metrics["champion"] = {"name": "elnet-0001", **history.scores(OLD)}
    history.version("elnet-0001")
    history.version("elnet-0002", history.snapshot([1], [7, 8, 9, 10]), metrics=metrics)
    found = ask(history, "elnet-0002", "elnet-0001")
    assert found is not None
    assert (found.images, found.left_out) == (3, 1)
    assert "dice" not in found.figures
    assert site.client.get("/desk/1/models/elnet-0002?with=elnet-0001").status_code == 200


def test_one_that_was_not_judged_cannot_be_compared(history: Any) -> None:
    gated(history)
    history.version("elnet-own")
    assert ask(history, "elnet-0002", "elnet-own") is None
    assert ask(history, "elnet-own", "elnet-0002") is None


def test_from_fifty_images_on_the_interval_is_the_gates(ledger: Ledger, make_history: Any) -> None:
    history = make_history(ledger, images=60)
    tasks = range(11, 61)
    history.version(
        "elnet-0001", history.snapshot([1], tasks), metrics=history.scores(dict.fromkeys(tasks, 0.5))
    )
    metrics = history.scores({task: 0.5 + task / 1000 for task in tasks})
    history.version("elnet-0002", history.snapshot([1, 2], tasks), metrics=metrics)
    found = ask(history, "elnet-0002", "elnet-0001")
    assert found is not None
    assert len(found.best) == comparison.SHOWN
    assert found.best[0].task == 160
    moved = np.array([task / 1000 for task in tasks])
    assert found.interval == pytest.approx(bootstrap(moved))


def test_it_is_told_which_masks_can_be_shown(history: Any) -> None:
    gated(history)
    history.predict(1, 7, 8)
    history.predict(2, 7)
    history.label_anew(9)
    found = ask(history, "elnet-0002", "elnet-0001")
    assert found is not None
    both, later = found.best
    [lost] = found.worst
    assert (both.predicted, both.other_predicted, both.labelled) == (True, True, True)
    assert (lost.predicted, lost.other_predicted, lost.labelled) == (False, True, True)
    assert (later.predicted, later.other_predicted, later.labelled) == (False, False, False)


def masks_of_holdout(history: Any) -> None:
    gated(history)
    history.judge(1, 7, 8)
    history.judge(2, 7)
    history.predict(2, 8)
    found = ask(history, "elnet-0002", "elnet-0001")
    assert found is not None
    both, later = found.best
    [drawn_before] = found.worst
    assert (both.predicted, both.other_predicted) == (True, True)
    assert (drawn_before.predicted, drawn_before.other_predicted) == (True, True)
    assert (later.predicted, later.other_predicted) == (False, False)


def test_masks_by_which_versions_were_judged_can_be_shown(history: Any) -> None:
    masks_of_holdout(history)


def test_so_they_can_on_postgresql(postgresql_url: str, make_history: Any) -> None:
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        masks_of_holdout(make_history(ledger))


@pytest.mark.parametrize("blind_share", [0.0, 1.0])
def test_none_can_of_an_open_blind_audit(history: Any, blind_share: float) -> None:
    """As when the label of an image of the holdout is deleted in the tool."""
    gated(history)
    history.judge(1, 7, 8)
    history.judge(2, 7, 8)
    with history.ledger.session() as session:
        session.get_one(Project, history.project_id).blind_share = blind_share
        task = session.get_one(Task, 7)
        task.status, task.holdout = TaskStatus.AUDIT, True
    found = ask(history, "elnet-0002", "elnet-0001")
    assert found is not None
    hidden = blind_share == 1.0
    assert (found.best[0].predicted, found.best[0].other_predicted) == (not hidden, not hidden)
    assert (found.worst[0].predicted, found.worst[0].other_predicted) == (True, True)


@pytest.mark.parametrize("name", ["version-differences", "version-scatter"])
def test_the_charts(history: Any, site: Any, name: str) -> None:
    gated(history)
    path, query = f"/desk/1/charts/{name}", "?version=elnet-0002&other=elnet-0001"
    lines = site.client.get(f"{path}.csv{query}").text.splitlines()
    assert lines[0] == "rank,task,version,other,iou,other_iou,difference,verdict"
    assert [line.split(",")[1] for line in lines[1:]] == ["107", "109", "110", "108"]
    assert [line.split(",")[-1] for line in lines[1:]] == ["better", "better", "as good", "worse"]
    assert site.client.get(f"{path}.png{query}").data.startswith(b"\x89PNG")
    assert site.client.get(f"{path}.json?version=elnet-0002&other=elnet-0009").status_code == 404
    assert site.client.get(f"{path}.json").status_code == 404


def test_a_chart_of_two_that_cannot_be_compared_is_empty(history: Any, site: Any) -> None:
    gated(history)
    history.version("elnet-own")
    query = "?version=elnet-0002&other=elnet-own"
    assert site.client.get(f"/desk/1/charts/version-scatter.json{query}").json == {"empty": True}
