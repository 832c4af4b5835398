from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import update

from active_learning import acquisition, queue, routing
from active_learning.acquisition import STRATEGIES, AcquisitionError, Head
from active_learning.candidates import Candidate
from active_learning.ledger import Project, Task, TaskStatus


def signals(
    share: float = 0.2, empty: bool = False, peak: float = 1.0, usable: bool = True
) -> dict[str, Any]:
    return {"usable": usable, "classes": [{"foreground_share": share, "empty": empty, "peak": peak}]}


def predicted(
    loop: Any,
    qualities: list[float],
    embeddings: Any = None,
    said: dict[str, Any] | None = None,
    version: str = "elnet-0001",
) -> list[int]:
    said = said or signals()
    ids: list[int] = loop.routed(loop.promote(version), qualities, signals=said, embeddings=embeddings)
    return ids


def order(loop: Any) -> int:
    return queue.reorder(loop.ledger, loop.project_id)


def priorities(loop: Any, ids: list[int]) -> list[float | None]:
    return [loop.task(i).priority for i in ids]


def test_before_the_first_model_the_order_is_random_but_fixed(loop):
    ids = loop.add(*["x"] * 50)
    routing.settle(loop.ledger, loop.project_id)
    assert order(loop) == 50
    found = priorities(loop, ids)
    assert all(p is not None and 0 <= p <= 1 for p in found)
    assert len(set(found)) > 45
    assert abs(np.corrcoef(found, range(50))[0, 1]) < 0.4
    assert order(loop) == 0


def test_what_the_model_is_less_sure_of_comes_first(loop):
    ids = predicted(loop, [0.1, 0.5, 0.8])
    order(loop)
    low, middle, high = priorities(loop, ids)
    assert 1 >= low > middle > high >= 0


def test_among_equals_foreground_comes_first(loop):
    (with_oil,) = predicted(loop, [0.5], said=signals(empty=False))
    (without,) = predicted(loop, [0.5], said=signals(share=0.0, empty=True, peak=0.1))
    order(loop)
    assert loop.task(with_oil).priority > loop.task(without).priority


def test_of_two_images_that_look_alike_only_one_comes_early(loop):
    rng = np.random.default_rng(0)
    others = rng.normal(size=(6, 16))
    twin = rng.normal(size=16)
    ids = predicted(loop, [0.30, 0.31, *[0.45] * 6], [twin, twin, *others])
    order(loop)
    first, second, *rest = priorities(loop, ids)
    assert first == max(first, second, *rest)
    assert second < min(rest)


def test_an_outlier_comes_after_what_stands_for_many(loop):
    """It is the least sure and the farthest from everything, which is what noise is."""
    rng = np.random.default_rng(0)
    crowds = [c + 0.2 * rng.normal(size=(8, 16)) for c in 4 * rng.normal(size=(3, 16))]
    outlier = -sum(crowd.mean(axis=0) for crowd in crowds)
    ids = predicted(loop, [0.5] * 24 + [0.1], [*np.concatenate(crowds), outlier])
    order(loop)
    found = priorities(loop, ids)
    first = np.argsort(found)[::-1][:3]
    assert sorted(i // 8 for i in first) == [0, 1, 2]  # one of each crowd


def test_what_looks_like_a_labelled_image_comes_later(loop):
    rng = np.random.default_rng(0)
    known = rng.normal(size=16)
    ids = predicted(loop, [0.5] * 5, [known, known, *rng.normal(size=(3, 16))])
    loop.label(ids[0])
    order(loop)
    like, *unlike = priorities(loop, ids[1:])
    assert like < min(unlike)


def test_what_an_earlier_version_saw_of_a_labelled_image_counts_too(loop):
    rng = np.random.default_rng(0)
    known = rng.normal(size=16)
    (first,) = predicted(loop, [0.5], [known])
    loop.label(first)
    ids = predicted(loop, [0.5] * 4, [known, *rng.normal(size=(3, 16))], version="elnet-0002")
    order(loop)
    like, *unlike = priorities(loop, ids)
    assert like < min(unlike)


def test_the_audit_is_worked_off_in_random_order_and_nobody_else_has_a_place(loop):
    loop.configure(audit_share=0.8)
    ids = predicted(loop, np.linspace(0.9, 1, 80).tolist())
    audited = [i for i in ids if loop.task(i).status is TaskStatus.AUDIT]
    assert 40 < len(audited) < 80
    order(loop)
    assert abs(np.corrcoef(priorities(loop, audited), range(len(audited)))[0, 1]) < 0.4
    assert set(priorities(loop, [i for i in ids if i not in audited])) == {None}
    loop.label(audited[0])
    order(loop)
    assert loop.task(audited[0]).priority is None


def test_a_task_that_waits_for_the_new_champion_keeps_its_place(loop):
    ids = predicted(loop, [0.2])
    order(loop)
    before = priorities(loop, ids)
    loop.promote("elnet-0002")
    order(loop)
    assert priorities(loop, ids) == before


def test_new_tasks_get_a_place_at_once_and_the_others_keep_theirs(loop):
    (old,) = predicted(loop, [0.5])
    order(loop)
    before = loop.task(old).priority
    low, high, accepted = predicted(loop, [0.1, 0.8, 0.95])
    (unpredicted,) = loop.add("x")
    with loop.ledger.session() as session:
        session.get_one(Task, unpredicted).status = TaskStatus.REVIEW
    assert queue.place_new(loop.ledger, loop.project_id) == 3
    assert loop.task(old).priority == before
    assert 1 >= loop.task(low).priority > loop.task(high).priority >= 0
    assert loop.task(unpredicted).priority is not None
    assert loop.task(accepted).priority is None
    assert queue.place_new(loop.ledger, loop.project_id) == 0


def test_a_label_leaves_the_order_of_the_others_as_it_is(loop):
    """Each change of a priority is a request to Label Studio."""
    rng = np.random.default_rng(0)
    ids = predicted(loop, rng.uniform(0, 0.8, 60).tolist(), rng.normal(size=(60, 16)))
    order(loop)
    before = dict(zip(ids, priorities(loop, ids), strict=True))
    for first in sorted(ids, key=lambda i: before[i], reverse=True)[:3]:
        loop.label(first)
        assert order(loop) == 1  # its own
    waiting = [i for i in ids if loop.task(i).status is TaskStatus.REVIEW]
    assert priorities(loop, waiting) == pytest.approx([before[i] for i in waiting], abs=1e-4)


def test_a_task_in_review_without_a_usable_prediction_is_uncertain(loop):
    (unusable,) = predicted(loop, [0.0], said=signals(usable=False))
    (sure,) = predicted(loop, [0.85])
    order(loop)
    assert loop.task(unusable).status is TaskStatus.REVIEW
    assert loop.task(unusable).priority > loop.task(sure).priority


@pytest.mark.parametrize("limit", [30, 200])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_queue_longer_than_memory_is_ordered_in_pieces_as_if_it_were_whole(
    loop, monkeypatch, limit, strategy
):
    loop.configure(strategy=strategy)
    rng = np.random.default_rng(0)
    ids = predicted(loop, rng.uniform(0, 0.8, 90).tolist(), list(rng.normal(size=(90, 8))))
    monkeypatch.setattr(acquisition, "POOL", limit)
    monkeypatch.setattr(queue, "READ", 7)
    monkeypatch.setattr(queue, "WRITTEN", 11)
    assert order(loop) == 90
    found = priorities(loop, ids)
    monkeypatch.undo()
    monkeypatch.setattr(acquisition, "POOL", limit)
    with loop.ledger.session() as session:
        session.execute(update(Task).values(priority=None))
    order(loop)
    assert found == priorities(loop, ids)
    assert order(loop) == 0


def test_the_head_of_a_long_queue_comes_before_all_others():
    rng = np.random.default_rng(0)
    values, points = rng.uniform(0, 1, 300), rng.normal(size=(300, 8)).astype(np.float32)
    candidates = [Candidate(i, float(v), e) for i, (v, e) in enumerate(zip(values, points, strict=True))]
    head = Head.choose(candidates[:100], [], 20)
    inside, outside = head.priorities(candidates[:100]), head.priorities(candidates[100:])
    assert len(head.chosen) == 20
    assert min(inside[i] for i in head.chosen) >= max(outside)
    assert len(set(np.round(outside, 6))) > 150  # what was never in the pool has an order too


def test_the_order_is_that_of_the_projects_strategy(loop):
    (empty,) = predicted(loop, [0.1], said=signals(share=0.0, empty=True, peak=0.9))
    (oil,) = predicted(loop, [0.8], said=signals(share=0.001))
    order(loop)
    assert loop.task(empty).priority > loop.task(oil).priority
    assert loop.project().ordered_by == "hybrid"
    loop.configure(strategy="foreground-random")
    order(loop)
    assert loop.task(empty).priority < 0.5 <= loop.task(oil).priority < 1
    assert loop.project().ordered_by == "foreground-random"


def test_new_tasks_get_the_place_that_the_strategy_gives_them_where_it_looks_at_each_alone(loop):
    loop.configure(strategy="entropy")
    said = signals()
    said["classes"][0]["entropy"] = 1.0
    (task,) = predicted(loop, [0.5], said=said)
    queue.place_new(loop.ledger, loop.project_id)
    assert loop.task(task).priority == 0.9999  # 1 and more are the holdout's
    loop.configure(strategy="typiclust")
    (other,) = predicted(loop, [0.5], [np.ones(4)])
    assert queue.place_new(loop.ledger, loop.project_id) == 1
    assert 0 < loop.task(other).priority < 1


def test_what_people_see_first_of_a_holdout_stays_first_under_every_strategy(loop):
    ids = predicted(loop, [0.2, 0.3], np.eye(2))
    with loop.ledger.session() as session:
        held = session.get_one(Task, ids[1])
        held.holdout, held.status = True, TaskStatus.AUDIT
    for strategy in STRATEGIES:
        loop.configure(strategy=strategy)
        order(loop)
        assert loop.task(ids[0]).priority < 1 <= loop.task(ids[1]).priority


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_foreseen_is_what_comes_and_looking_changes_nothing(loop, monkeypatch, strategy):
    rng = np.random.default_rng(0)
    ids = predicted(loop, rng.uniform(0, 0.8, 60).tolist(), rng.normal(size=(60, 8)))
    predicted(loop, [0.95], [np.ones(8)])  # accepted
    loop.label(ids.pop(3))
    monkeypatch.setattr(acquisition, "POOL", 30)
    monkeypatch.setattr(queue, "READ", 7)
    with loop.ledger.session(write=False) as session:
        project = session.get_one(Project, loop.project_id)
        found = queue.foreseen(session, project, strategy, 10)
    assert set(priorities(loop, ids)) == {None}
    loop.configure(strategy=strategy)
    order(loop)
    assert found == sorted(ids, key=lambda i: (-loop.task(i).priority, i))[:10]


def test_what_no_strategy_orders_cannot_be_foreseen(loop):
    with loop.ledger.session(write=False) as session:
        project = session.get_one(Project, loop.project_id)
        assert queue.foreseen(session, project, "hybrid", 10) == []
        with pytest.raises(AcquisitionError, match="no strategy 'best'"):
            queue.foreseen(session, project, "best", 10)


def test_what_has_no_place_comes_last_in_the_order_of_import(loop):
    ids = loop.routed(loop.promote(), [0.5] * 6)
    with loop.ledger.session() as session:
        for task_id, priority in zip(ids, (None, 0.2, 0.7, None, 0.2, 0.9), strict=True):
            session.get_one(Task, task_id).priority = priority
    wanted = [ids[i] for i in (5, 2, 1, 4, 0, 3)]
    for limit in range(1, 8):
        with loop.ledger.session(write=False) as session:
            project = session.get_one(Project, loop.project_id)
            places = queue.upcoming(session, project, TaskStatus.REVIEW, limit)
        assert [place.task for place in places] == [loop.task(i).tool_task_id for i in wanted[:limit]]
