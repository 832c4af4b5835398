from __future__ import annotations

from typing import Any

import pytest

from active_learning import push as pushing
from active_learning.ledger import Project, Task, TaskStatus
from active_learning.ports import ToolUnavailableError
from active_learning.prefill import predict_waiting
from active_learning.push import PushReport, push
from active_learning.thresholds import set_threshold


def go(loop: Any) -> PushReport:
    return push(loop.ledger, loop.project_id, loop.tool)


def predicted(
    loop: Any, make_predictor: Any, *probabilities: float, version: str = "elnet-0001"
) -> list[int]:
    ids = loop.add(*(loop.image(p, seed=i) for i, p in enumerate(probabilities)))
    predict(loop, make_predictor, version)
    return ids


def predict(loop: Any, make_predictor: Any, version: str) -> None:
    loop.promote(version)
    predict_waiting(loop.ledger, loop.project_id, make_predictor(version), loop.images)


def move(loop: Any, threshold: float | None) -> None:
    with loop.ledger.session() as session:
        set_threshold(session, session.get_one(Project, loop.project_id), threshold, "lea", "a test")


def tool_id(loop: Any, task: int) -> int:
    return int(loop.task(task).tool_task_id)


def agreed(loop: Any, ids: list[int]) -> None:
    """The tool shows what the ledger says."""
    machine = loop.tool.of_machine()
    for i in ids:
        task = loop.task(i)
        (prediction,) = [p for p in loop.predictions(i) if p.model_version_id == loop.project().champion_id]
        held, prefill = loop.tool.predictions[task.tool_task_id]
        assert held == prediction.tool_prediction_id
        assert (prefill.masks == prediction.masks).all()
        assert (task.status is TaskStatus.ACCEPTED) == (task.tool_task_id in machine)
        assert loop.tool.data[task.tool_task_id]["route"] == task.status.value
        assert loop.tool.data[task.tool_task_id]["quality"] == task.quality
        assert loop.tool.data[task.tool_task_id]["image"] == task.image_uri


def test_the_tool_hears_everything_once(loop, make_predictor):
    ids = predicted(loop, make_predictor, 1.0, 0.6)
    assert go(loop) == PushReport(prefills=2, accepted=1, placements=2)
    agreed(loop, ids)
    assert loop.tool.version == "elnet-0001"
    assert set(loop.tool.of_machine()) == {tool_id(loop, ids[0])}
    loop.tool.calls.clear()
    assert go(loop) == PushReport()
    assert loop.tool.calls == []


def test_without_a_model_only_placements_are_told(loop):
    (task,) = loop.add(loop.image(1.0))
    predict_waiting(loop.ledger, loop.project_id, None, loop.images)
    assert go(loop) == PushReport(placements=1)
    place = loop.tool.data[tool_id(loop, task)]
    assert (place["route"], place["quality"]) == ("review", None)
    assert place["priority"] == loop.task(task).priority


def test_a_failed_task_is_placed_and_a_gone_one_is_not(loop, make_predictor):
    failed, gone = loop.add("no image", "no image")
    with loop.ledger.session() as session:
        session.get_one(Task, gone).status = TaskStatus.GONE
    predict(loop, make_predictor, "elnet-0001")
    assert go(loop) == PushReport(placements=1)
    assert loop.tool.data[tool_id(loop, failed)]["route"] == "failed"


def test_an_accepted_task_that_is_no_longer_is_withdrawn(loop, make_predictor):
    ids = predicted(loop, make_predictor, 1.0)
    go(loop)
    move(loop, None)
    assert go(loop) == PushReport(withdrawn=1, placements=1)
    assert loop.tool.annotated == {}
    move(loop, 0.9)
    assert go(loop).accepted == 1
    agreed(loop, ids)


def test_a_new_versions_masks_take_the_place_of_the_old_ones(loop, make_predictor):
    ids = predicted(loop, make_predictor, 1.0, 0.6)
    go(loop)
    before = loop.tool.of_machine()
    predict(loop, make_predictor, "elnet-0002")
    assert go(loop).prefills == 2
    agreed(loop, ids)
    assert loop.tool.version == "elnet-0002"
    assert len(loop.tool.annotated) == 1
    assert loop.tool.of_machine() != before


def test_after_a_rollback_the_old_prefills_are_told_again(loop, make_predictor):
    ids = predicted(loop, make_predictor, 1.0, 0.6)
    go(loop)
    predict(loop, make_predictor, "elnet-0002")
    go(loop)
    loop.promote("elnet-0001")
    assert go(loop).prefills == 2
    agreed(loop, ids)
    assert loop.tool.version == "elnet-0001"


def test_a_labelled_task_gets_no_machine_annotation_and_loses_the_one_it_had(loop, make_predictor):
    labelled, before = predicted(loop, make_predictor, 1.0, 1.0)
    loop.label(labelled)
    go(loop)
    assert set(loop.tool.of_machine()) == {tool_id(loop, before)}
    theirs = loop.label(before)
    assert go(loop).withdrawn == 1
    assert loop.tool.of_machine() == {}
    assert theirs in loop.tool.annotated
    assert loop.tool.data[tool_id(loop, before)]["route"] == "done"


def test_an_annotation_that_a_person_went_on_from_is_not_withdrawn(loop, make_predictor):
    (task,) = predicted(loop, make_predictor, 1.0)
    go(loop)
    annotation = loop.tool.of_machine()[tool_id(loop, task)]
    loop.label(task, annotation=annotation)
    loop.tool.calls.clear()
    assert go(loop) == PushReport(placements=1)
    assert "withdraw" not in loop.tool.calls
    assert annotation in loop.tool.annotated


def test_a_human_label_that_the_status_does_not_show_still_guards_the_task(loop, make_predictor):
    (task,) = predicted(loop, make_predictor, 1.0)
    loop.label(task)
    with loop.ledger.session() as session:
        session.get_one(Task, task).status = TaskStatus.ACCEPTED
    go(loop)
    assert loop.tool.of_machine() == {}


@pytest.mark.parametrize("fault", ["down", "lossy"])
@pytest.mark.parametrize("call", ["serve_version", "push_prefills", "accept", "push_placements"])
def test_a_tool_that_goes_away_loses_nothing(loop, make_predictor, fault, call):
    ids = predicted(loop, make_predictor, 1.0, 0.6, 1.0)
    getattr(loop.tool, fault).add(call)
    for _ in range(2):
        with pytest.raises(ToolUnavailableError, match=call):
            go(loop)
    getattr(loop.tool, fault).clear()
    go(loop)
    agreed(loop, ids)
    assert len(loop.tool.annotated) == len(loop.tool.of_machine()) == 2
    assert go(loop) == PushReport()


@pytest.mark.parametrize("fault", ["down", "lossy"])
def test_a_withdrawal_that_was_cut_off_is_repeated(loop, make_predictor, fault):
    ids = predicted(loop, make_predictor, 1.0)
    go(loop)
    move(loop, None)
    getattr(loop.tool, fault).add("withdraw")
    with pytest.raises(ToolUnavailableError):
        go(loop)
    getattr(loop.tool, fault).clear()
    go(loop)
    agreed(loop, ids)
    assert loop.tool.annotated == {}


def test_an_acceptance_whose_answer_was_lost_can_still_be_withdrawn(loop, make_predictor):
    ids = predicted(loop, make_predictor, 1.0)
    loop.tool.lossy.add("accept")
    with pytest.raises(ToolUnavailableError):
        go(loop)
    assert len(loop.tool.annotated) == 1
    move(loop, None)
    go(loop)
    assert loop.tool.annotated == {}
    agreed(loop, ids)


def test_what_the_tool_does_not_confirm_is_counted_and_told_again(loop, make_predictor, monkeypatch):
    ids = predicted(loop, make_predictor, 1.0, 0.6)
    deaf = tool_id(loop, ids[1])
    real = loop.tool.push_prefills

    def half(project: int, classes: Any, prefills: Any) -> dict[int, int]:
        return {k: v for k, v in real(project, classes, prefills).items() if k != deaf}

    monkeypatch.setattr(loop.tool, "push_prefills", half)
    assert go(loop) == PushReport(prefills=1, accepted=1, placements=2, unconfirmed=1)
    monkeypatch.undo()
    assert go(loop) == PushReport(prefills=1)
    agreed(loop, ids)


def test_small_moves_are_not_worth_a_call_and_large_ones_are(loop, make_predictor):
    (task,) = predicted(loop, make_predictor, 0.6)
    go(loop)

    def nudge(quality: float, priority: float) -> PushReport:
        with loop.ledger.session() as session:
            row = session.get_one(Task, task)
            row.quality, row.priority = row.quality + quality, row.priority + priority
        return go(loop)

    assert nudge(0.001, -0.01) == PushReport()
    assert nudge(0.0, -0.02) == PushReport(placements=1)
    assert nudge(0.02, 0.0) == PushReport(placements=1)


def test_many_tasks_are_told_in_small_chunks(loop, make_predictor, monkeypatch):
    monkeypatch.setattr(pushing, "CHUNK", 2)
    monkeypatch.setattr(pushing, "PLACEMENTS", 3)
    ids = predicted(loop, make_predictor, *[1.0] * 5)
    assert go(loop) == PushReport(prefills=5, accepted=5, placements=5)
    agreed(loop, ids)
    assert [loop.tool.calls.count(c) for c in ("serve_version", "push_prefills", "accept")] == [1, 3, 3]
    assert loop.tool.calls.count("push_placements") == 2


def test_a_label_that_arrives_during_the_push_is_respected(loop, make_predictor, monkeypatch):
    (task,) = predicted(loop, make_predictor, 1.0)
    real = loop.tool.push_prefills

    def meanwhile(*arguments: Any) -> Any:
        loop.label(task)
        return real(*arguments)

    monkeypatch.setattr(loop.tool, "push_prefills", meanwhile)
    go(loop)
    assert loop.tool.of_machine() == {}
    assert loop.tool.data[tool_id(loop, task)]["route"] == "done"


def test_a_threshold_that_moves_during_the_push_is_respected(loop, make_predictor, monkeypatch):
    ids = predicted(loop, make_predictor, 1.0)
    real = loop.tool.push_prefills

    def meanwhile(*arguments: Any) -> Any:
        move(loop, None)
        return real(*arguments)

    monkeypatch.setattr(loop.tool, "push_prefills", meanwhile)
    assert go(loop).accepted == 0
    agreed(loop, ids)


def test_nothing_is_accepted_by_a_decision_that_no_longer_holds(loop, make_predictor):
    ids = predicted(loop, make_predictor, 1.0)
    loop.configure(accept_threshold=None)  # by some other way than thresholds.set_threshold
    go(loop)
    assert loop.tool.annotated == {}
    agreed(loop, ids)
