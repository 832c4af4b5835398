from __future__ import annotations

from typing import Any

from active_learning.ledger import Ledger, ModelState, Project
from active_learning.triggers import labels_for_gain
from backend.desk.learning_curve import NextGain, curve, next_gain


def ask(history: Any) -> NextGain:
    with history.ledger.session(write=False) as session:
        return next_gain(session, session.get_one(Project, history.project_id))


def two(history: Any, reached: float) -> None:
    """A champion of 5 labels after one of 3 that reached 0.5."""
    first = history.scores({9: 0.5})
    history.version("elnet-0001", history.snapshot([1, 2, 3], [9]), metrics=first, promote=True)
    second = history.scores({9: reached}) | {"champion": {"name": "elnet-0001", **first}}
    snapshot = history.snapshot([1, 2, 3, 4, 5], [9])
    history.version("elnet-0002", snapshot, "elnet-0001", second, promote=True)


def test_before_the_first_version_nobody_knows(history: Any) -> None:
    assert ask(history) == NextGain(0.01, None, "no version serves yet", None)


def test_it_is_told_by_the_rule_and_by_what_was_measured(history: Any) -> None:
    two(history, 0.54)
    found = ask(history)
    assert found.labels == labels_for_gain(0.54, 0.01, 5) == 1
    assert "through IoU 0.540 with 5 labels" in found.why
    moved = "from elnet-0001 to elnet-0002 IoU moved by +0.040 with 2 more labels, so +0.01 took about 1"
    assert found.measured == moved


def test_a_step_down_promises_nothing(history: Any) -> None:
    two(history, 0.4)
    assert ask(history).measured == "from elnet-0001 to elnet-0002 IoU moved by -0.100 with 2 more labels"


def test_a_version_from_outside_tells_nothing(history: Any) -> None:
    history.version("elnet-own", promote=True)
    found = ask(history)
    assert found.labels is None
    assert found.why == "elnet-own was trained or judged outside of the loop"


def test_an_iou_that_cannot_rise_so_far_has_no_number(history: Any, site: Any) -> None:
    metrics = history.scores({9: 0.995})
    history.version("elnet-0001", history.snapshot([1], [9]), metrics=metrics, promote=True)
    assert ask(history).labels is None
    assert "not known" in site.client.get("/desk/1/models").text


def drawn(history: Any) -> Any:
    with history.ledger.session(write=False) as session:
        return curve(session, session.get_one(Project, history.project_id), {})


def test_the_curve_holds_every_version_that_was_judged(history: Any) -> None:
    assert drawn(history).rows == []
    two(history, 0.6)
    history.version("elnet-0003", history.snapshot([1], [9]), state=ModelState.REJECTED)  # not judged
    rows = drawn(history).rows
    assert [(row["version"], row["labels"], row["over all pixels"]) for row in rows] == [
        ("elnet-0001", 3, 0.5),
        ("elnet-0002", 5, 0.6),
    ]
    assert [row["state"] for row in rows] == ["retired", "champion"]


def test_on_postgresql_too(postgresql_url: str, make_history: Any) -> None:
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        history = make_history(ledger)
        two(history, 0.54)
        assert ask(history).labels == 1
        assert len(drawn(history).rows) == 2


def test_it_can_be_drawn(history: Any, site: Any) -> None:
    two(history, 0.6)
    path = "/desk/1/charts/learning-curve"
    spec = site.client.get(f"{path}.json").json
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["line", "point"]
    assert site.client.get(f"{path}.csv").text.splitlines()[1].startswith("elnet-0001,retired,3,1,0.5")
    assert site.client.get(f"{path}.png").data.startswith(b"\x89PNG")
