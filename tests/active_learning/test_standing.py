from __future__ import annotations

from typing import Any

import pytest

from active_learning import standing
from active_learning.ledger import InboxEvent, InboxState, Project, Task, TaskStatus
from active_learning.prefill import predict_waiting
from active_learning.push import push


def counts(loop: Any) -> dict[str, int]:
    with loop.ledger.session(write=False) as session:
        found = standing.counts(session, session.get_one(Project, loop.project_id))
    assert list(found) == list(TaskStatus)
    return {status.value: count for status, count in found.items() if count}


def is_settled(loop: Any) -> bool:
    with loop.ledger.session(write=False) as session:
        return standing.is_settled(session, session.get_one(Project, loop.project_id))


def work_off(loop: Any, predictor: Any) -> None:
    predict_waiting(loop.ledger, loop.project_id, predictor, loop.images)
    push(loop.ledger, loop.project_id, loop.tool)


def test_images_are_counted_where_they_stand(loop, make_loop, make_predictor):
    assert counts(loop) == {}
    tasks = loop.add(loop.image(0.99, 1), loop.image(0.6, 2), "gone", loop.image(0.6, 4))
    assert counts(loop) == {"waiting": 4}
    loop.promote()
    predict_waiting(loop.ledger, loop.project_id, make_predictor(), loop.images)
    assert counts(loop) == {"accepted": 1, "review": 2, "failed": 1}
    loop.label(tasks[3])
    assert counts(loop) == {"accepted": 1, "review": 1, "failed": 1, "done": 1}


def test_other_projects_images_do_not_count(loop):
    loop.add("a")
    with loop.ledger.session() as session:
        other = Project(name="roads", tool_url="http://tool", tool_project_id=8, classes=["road"])
        session.add(other)
        session.flush()
        assert sum(standing.counts(session, other).values()) == 0
        assert standing.is_settled(session, other)


def test_an_event_that_waits_is_on_its_way(loop):
    assert is_settled(loop)
    with loop.ledger.session() as session:
        session.add(InboxEvent(key="k", action="ANNOTATION_CREATED", payload={}))
    assert not is_settled(loop)
    with loop.ledger.session() as session:
        session.query(InboxEvent).one().state = InboxState.DONE
    assert is_settled(loop)


def test_an_image_is_settled_when_the_tool_knows_its_route(loop, make_predictor):
    loop.add(loop.image(0.6, 1))
    assert not is_settled(loop)  # waits for its route
    predict_waiting(loop.ledger, loop.project_id, None, loop.images)
    assert counts(loop) == {"review": 1}
    assert not is_settled(loop)  # routed without a model; the tool does not know
    push(loop.ledger, loop.project_id, loop.tool)
    assert is_settled(loop)

    loop.promote()
    assert not is_settled(loop)  # the champion has not predicted it
    predict_waiting(loop.ledger, loop.project_id, make_predictor(), loop.images)
    assert not is_settled(loop)  # the tool has no prefill
    push(loop.ledger, loop.project_id, loop.tool)
    assert is_settled(loop)


@pytest.mark.parametrize("lost", ["push_prefills", "push_placements", "accept"])
def test_what_the_tool_did_not_take_is_on_its_way(lost, loop, make_predictor):
    loop.add(loop.image(0.99, 1))
    loop.promote()
    loop.tool.down.add(lost)
    predict_waiting(loop.ledger, loop.project_id, make_predictor(), loop.images)
    with pytest.raises(Exception, match="does not answer"):
        push(loop.ledger, loop.project_id, loop.tool)
    assert counts(loop) == {"accepted": 1}
    assert not is_settled(loop)
    loop.tool.down.clear()
    push(loop.ledger, loop.project_id, loop.tool)
    assert is_settled(loop)


def test_an_acceptance_that_was_taken_back_is_on_its_way_until_it_is_withdrawn(loop, make_predictor):
    (task,) = loop.add(loop.image(0.99, 1))
    loop.promote()
    work_off(loop, make_predictor())
    assert is_settled(loop)
    loop.label(task)
    assert not is_settled(loop)
    push(loop.ledger, loop.project_id, loop.tool)
    assert is_settled(loop)


def test_an_image_that_cannot_be_read_is_settled_once_the_tool_knows(loop, make_predictor):
    loop.add("the file is gone")
    loop.promote()
    predict_waiting(loop.ledger, loop.project_id, make_predictor(), loop.images)
    assert counts(loop) == {"failed": 1}
    assert not is_settled(loop)
    push(loop.ledger, loop.project_id, loop.tool)
    assert is_settled(loop)


@pytest.mark.parametrize("forgotten", ["accepted", "model_version", "status", "quality"])
def test_each_thing_that_the_tool_does_not_know_is_on_its_way(forgotten, loop, make_predictor):
    (task,) = loop.add(loop.image(0.99, 1))
    loop.promote()
    work_off(loop, make_predictor())
    assert is_settled(loop)
    with loop.ledger.session() as session:
        row = session.get_one(Task, task)
        row.pushed = {key: value for key, value in row.pushed.items() if key != forgotten}
    assert not is_settled(loop)
