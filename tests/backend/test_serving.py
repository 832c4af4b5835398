"""N results for N tasks: from the ledger, computed, or empty with the reason."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import select

from active_learning.ledger import Prediction, Project, Task, TaskStatus
from active_learning.ports import ImageUnavailableError, ToolUnavailableError
from active_learning.tasks import mark_gone
from backend.serving import Serving
from model.errors import ELNetError


@pytest.fixture
def serving(site, payloads):
    """(Serving, ask): a project with a champion; `ask(tasks, **changes)` predicts."""
    site.promote(site.add_project())
    served: Serving = site.app.extensions["elnet"].serving

    def ask(tasks, **changes):
        options = {"tool_project_id": 7, "label_config": payloads.project["label_config"], **changes}
        return served.predict(tasks=tasks, **options)

    return ask


def rows(site) -> dict[int, Task]:
    with site.ledger.session(write=False) as session:
        return {row.tool_task_id: row for row in session.scalars(select(Task))}


def is_empty(result, reason: str) -> bool:
    return (
        result["result"] == []
        and result["score"] == 0
        and result["model_version"] == ""
        and reason in result["error"]
    )


def test_what_was_computed_once_is_served_from_the_ledger(site, serving, payloads):
    tasks = [payloads.task(n) for n in range(1, 21)]
    first = serving(tasks)
    assert [len(r["result"]) for r in first] == [1] * 20
    opened = len(site.images.opened)
    assert opened == 20
    assert serving(tasks[::-1]) == first[::-1]
    assert len(site.images.opened) == opened
    assert len(site.loaded) == 1
    assert {row.status for row in rows(site).values()} != {TaskStatus.WAITING}  # they are routed too


def test_a_blind_audit_is_served_without_its_mask(site, serving, payloads):
    with site.ledger.session() as session:
        project = session.scalars(select(Project)).one()
        project.audit_share = project.blind_share = 1.0
    (result,) = serving([payloads.task(1)])
    assert result["result"] == []
    assert result["model_version"]
    assert "error" not in result
    with site.ledger.session(write=False) as session:
        assert session.scalars(select(Prediction)).one().masks.any()


def test_a_broken_image_or_task_spoils_only_itself(site, serving, payloads):
    site.images.broken[payloads.task(2)["data"]["image"]] = ImageUnavailableError("s2.png is gone; import it")
    tasks = [payloads.task(1), payloads.task(2), 5, {"id": 4}, {"data": {"image": "x"}}, payloads.task(3)]
    results = serving(tasks)
    assert [bool(r["result"]) for r in results] == [True, False, False, False, False, True]
    assert is_empty(results[1], "s2.png is gone")
    assert is_empty(results[2], "must be an object")
    assert is_empty(results[3], "no data")
    assert is_empty(results[4], "id must be a number")
    assert rows(site)[2].status is TaskStatus.FAILED


def test_the_same_task_twice(serving, payloads):
    one, two = serving([payloads.task(1), payloads.task(1)])
    assert one == two


def test_no_tasks(serving):
    assert serving([]) == []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_unknown_project(serving, payloads, count):
    results = serving([payloads.task(n) for n in range(count)], tool_project_id=99)
    assert len(results) == count
    assert all(is_empty(result, "no project 99") for result in results)


def test_no_champion(site, payloads):
    site.add_project()
    results = site.app.extensions["elnet"].serving.predict(
        7, [payloads.task(1), payloads.task(2)], payloads.project["label_config"]
    )
    assert len(results) == 2
    assert all(is_empty(result, "no model version serves yet") for result in results)


def test_prompts_are_answered_honestly(site, serving, payloads):
    context = {"result": [{"type": "keypointlabels", "value": {"x": 1, "y": 2}}]}
    [result] = serving([payloads.task(1)], context=context)
    assert is_empty(result, "prompts are not answered yet")
    assert site.images.opened == []


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "no labeling interface"),
        ("<View/>", "no mask tag"),
        (
            '<View><Image name="i" value="$image"/>'
            '<BrushLabels name="b" toName="i"><Label value="river"/></BrushLabels></View>',
            "no label 'building'",
        ),
    ],
)
def test_a_labeling_interface_without_the_masks(serving, payloads, config, reason):
    [result] = serving([payloads.task(1)], label_config=config)
    assert is_empty(result, reason)


def test_after_the_budget_nothing_more_is_computed(site, serving, payloads):
    served: Serving = site.app.extensions["elnet"].serving
    serving([payloads.task(1)])
    served._budget_s = -1.0
    held, late = serving([payloads.task(1), payloads.task(2)])
    assert held["result"]
    assert is_empty(late, "computed in the background")


def test_while_another_request_computes_one_waits_within_the_budget(site, serving, payloads):
    served: Serving = site.app.extensions["elnet"].serving
    served._budget_s = 0.05
    with served._computing:
        [late] = serving([payloads.task(1)])
    assert is_empty(late, "computed in the background")
    served._budget_s = 30.0
    with served._computing:
        found = []
        thread = threading.Thread(target=lambda: found.extend(serving([payloads.task(1)])))
        thread.start()
        assert not found
    thread.join()
    assert found[0]["result"]


def test_label_studio_away_and_a_checkpoint_gone(site, serving, payloads, monkeypatch):
    uri = payloads.task(1)["data"]["image"]
    site.images.broken[uri] = ToolUnavailableError("Label Studio does not answer")
    [result] = serving([payloads.task(1)])
    assert is_empty(result, "does not answer")
    assert rows(site)[1].status is not TaskStatus.FAILED  # it may go through later
    site.images.broken.clear()

    def gone(_):
        raise ELNetError("the checkpoint models/elnet-0001 is gone")

    served: Serving = site.app.extensions["elnet"].serving
    monkeypatch.setattr(served, "_predictors", gone)
    [result] = serving([payloads.task(1)])
    assert is_empty(result, "is gone")


def test_a_task_that_is_gone(site, serving, payloads):
    with site.ledger.session() as session:
        mark_gone(session, session.scalars(select(Project)).one(), [1])
    [result] = serving([payloads.task(1)])
    assert is_empty(result, "gone")


def test_a_new_champion_is_served_at_once(site, serving, payloads):
    serving([payloads.task(1)])
    with site.ledger.session(write=False) as session:
        project = session.scalars(select(Project)).one()
    site.promote(project, "elnet-0002")
    [result] = serving([payloads.task(1)])
    assert result["model_version"] == "elnet-0002"
    with site.ledger.session(write=False) as session:
        assert len(session.scalars(select(Prediction)).all()) == 2


def test_the_project_of_this_server_is_meant(site, payloads):
    site.add_project(name="old", tool_url="http://old")
    site.add_project(name="new", tool_url="http://new")
    served = Serving(site.ledger, site.images, lambda _: None, "http://old")
    assert served.project(7).name == "old"
    assert Serving(site.ledger, site.images, lambda _: None).project(7).name == "new"
