from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from active_learning import queue as queues
from active_learning.ledger import Ledger, Prediction, Project, Task, TaskStatus
from active_learning.policy import history
from backend.actions import latest
from backend.desk.queue import FilterError, Filters, facts
from backend.desk.strategy import comparison


def look(spills: Any, size: int = 24, **given: str) -> Any:
    with spills.ledger.session(write=False) as session:
        return facts(session, spills.project(session), Filters.of(given), size)


def ordered(spills: Any) -> None:
    queues.reorder(spills.ledger, spills.project_id)


def change(spills: Any, **values: Any) -> None:
    with spills.ledger.session() as session:
        for name, value in values.items():
            setattr(spills.project(session), name, value)


def test_the_queue_in_its_order_with_reasons_signals_and_links(spills):
    ordered(spills)
    found = look(spills)
    assert [(image.place, image.quality) for image in found.images] == [(1, 0.5), (2, 0.7)]
    first = found.images[0]
    assert first.priority > found.images[1].priority
    assert first.why == "predicted IoU 0.500 is below the threshold 0.9"
    assert (first.version, first.blind, first.name) == ("elnet-0001", False, "2.png")
    assert first.signals.shape == "covers 25 % of the image"
    assert first.url == "http://tool/projects/1/data?task=2"
    assert (found.strategy, found.ordered_by, found.counts[TaskStatus.ACCEPTED]) == ("hybrid", "hybrid", 1)
    assert asdict(found)["images"][0]["signals"]["signals"]  # as JSON, for the API
    page = spills.page("/queue")
    assert page.index("pictures/2.jpg") < page.index("pictures/1.jpg")
    assert "pictures/2/elnet-0001.png" in page
    assert first.url in page
    assert first.why in page
    assert "pictures/0.jpg" not in page  # accepted


def test_the_table_tells_the_same_without_pictures(spills):
    ordered(spills)
    page = spills.page("/queue", **{"as": "table"})
    assert "predicted IoU 0.500 is below the threshold 0.9" in page
    assert ".jpg" not in page


def test_other_views_put_the_least_sure_first(spills):
    spills.add(0.97, 0.93)
    qualities = [image.quality for image in look(spills, view="accepted").images]
    assert qualities == [0.93, 0.95, 0.97]
    assert "accepted unseen" in spills.page("/queue", view="accepted")


def test_filters_by_scene_and_by_predicted_iou(spills):
    assert [image.task for image in look(spills, scene="1").images] == [1]
    assert [image.task for image in look(spills, least="0.6").images] == [1]
    assert [image.task for image in look(spills, least="0.5", most="0.7").images] == [2]
    assert look(spills, scene="%").found == 0  # no pattern
    page = spills.page("/queue", scene="no such scene")
    assert "No image is like that here" in page
    assert 'value="no such scene"' in page


def test_pages_hold_each_image_once(spills):
    spills.add(*[0.3] * 5)
    ordered(spills)
    pages = [look(spills, 3, page=str(number)) for number in (1, 2, 3, 4)]
    assert [[image.place for image in page.images] for page in pages] == [[1, 2, 3], [4, 5, 6], [7], []]
    assert len({image.task for page in pages for image in page.images}) == 7
    assert {page.pages for page in pages} == {3}
    spills.add(*[0.3] * 24)
    page = spills.page("/queue", least="0.2")
    assert "page 1 of 2 · 31 images" in page
    assert "page=2&amp;least=0.2" in page


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"view": "nowhere"}, "There is no view &#39;nowhere&#39;; there are waiting, review"),
        ({"view": "gone"}, "no view"),
        ({"least": "much"}, "The predicted IoU (least) is a number from 0 to 1, not &#39;much&#39;"),
        ({"most": "1.5"}, "(most)"),
        ({"least": "nan"}, "(least)"),
        ({"page": "0"}, "A page is a number from 1 on"),
        ({"page": "-1"}, "A page is a number"),
        ({"page": "x"}, "A page is a number"),
    ],
)
def test_what_cannot_be_asked_for_is_told_in_words(spills, given, said):
    answer = spills.client.get(f"{spills.path}/queue", query_string=given)
    assert answer.status_code == 400
    assert said in answer.text
    assert "Shown is the review queue" in answer.text
    with pytest.raises(FilterError):
        Filters.of(given)


def test_a_blind_audits_mask_is_not_shown_here_either(spills):
    change(spills, blind_share=1.0, audit_share=1.0)
    [task] = spills.add(0.8, audit_share=1.0)
    [image] = look(spills, view="audit").images
    assert image.blind
    page = spills.page("/queue", view="audit")
    assert f"pictures/{task.tool_task_id}.jpg" in page
    assert f"pictures/{task.tool_task_id}/elnet-0001.png" not in page
    assert "blind: the mask is hidden" in page


def test_a_labelled_image_shows_both_and_a_failed_one_why(spills):
    spills.audit(good=1, bad=0)
    [done] = look(spills, view="done").images
    assert done.labelled
    page = spills.page("/queue", view="done")
    assert f"pictures/{done.task}/label.png" in page
    assert f"pictures/{done.task}/elnet-0001.png" in page
    with spills.ledger.session() as session:
        task = session.get_one(Task, 1)
        task.status, task.failure = TaskStatus.FAILED, "the file is cut short"
    assert "the file is cut short" in spills.page("/queue", view="failed")


def test_the_mask_of_another_version_is_shown_where_the_champion_has_none_yet(spills):
    spills.promote("elnet-0002")
    with spills.ledger.session() as session:
        said = session.get_one(Prediction, 2)
        session.add(
            Prediction(
                task_id=2, model_version_id=2, score=0.6, quality=0.6, signals=said.signals, masks=said.masks
            )
        )
    assert {image.task: image.version for image in look(spills).images} == {
        1: "elnet-0002",
        2: "elnet-0001",
    }


def test_empty_views_say_what_is_missing(empty_spills):
    assert "No image waits for review. Add some in Label Studio" in empty_spills.page("/queue")
    assert "no model serves yet" in empty_spills.page("/queue")
    empty_spills.promote()
    assert "every mask is accepted, audited or labelled" in empty_spills.page("/queue")
    assert "No image waits in the audit" in empty_spills.page("/queue", view="audit")
    assert "is set" in empty_spills.page("/queue", view="accepted")
    assert "No image is unreadable" in empty_spills.page("/queue", view="failed")


def test_a_strategy_is_tried_without_changing_anything(spills):
    with spills.ledger.session() as session:
        empty = session.get_one(Prediction, 3)  # of the image with 0.5
        signals = {**empty.signals, "classes": [{**empty.signals["classes"][0], "empty": True}]}
        empty.signals = signals
    ordered(spills)
    before = [image.task for image in look(spills).images]
    page = spills.page("/queue/strategy", strategy="foreground-random")
    assert "Let foreground-random order the queue" in page
    assert "/queue/strategy/order?strategy=foreground-random&amp;bare=1" in page
    page = spills.page("/queue/strategy/order", strategy="foreground-random", bare=1)
    assert "<html" not in page
    then = page[page.index('id="then"') :]
    assert then.index("pictures/1.jpg") < then.index("pictures/2.jpg")
    assert "2 of the first 2 are the same" in page
    assert [image.task for image in look(spills).images] == before
    assert look(spills).strategy == "hybrid"
    assert "Let hybrid order" not in spills.page("/queue/strategy", strategy="hybrid")
    assert "Let random order the queue" in spills.page("/queue/strategy")
    framed = spills.page("/queue/strategy/order", strategy="random")
    assert "<html" in framed
    assert "pictures/1.jpg" in framed


def test_a_strategy_is_chosen_with_a_reason_and_the_page_says_until_it_is_in_force(spills):
    ordered(spills)
    page = spills.post("/queue/strategy", strategy="entropy", why="edges first")
    assert "entropy orders the queue from now on" in page
    assert "The worker is to order it by <strong>entropy</strong>" in page
    with spills.ledger.session(write=False) as session:
        [made] = history(session, spills.project(session))
        assert (made.setting, made.to_value, made.who, made.why) == (
            "strategy",
            "entropy",
            "lea",
            "edges first",
        )
        assert latest(session, 1)[0].action == "policy.set"
    ordered(spills)
    page = spills.page("/queue")
    assert "stands by\n  <strong>entropy</strong>" in page
    assert "The worker is to" not in page
    assert "orders the queue already" in spills.post("/queue/strategy", strategy="entropy", why="again")


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"strategy": "best", "why": "x"}, "strategy cannot be &#39;best&#39;"),
        ({"strategy": "", "why": "x"}, "strategy cannot be"),
        ({"strategy": "entropy", "why": " "}, "needs who made it and why"),
    ],
)
def test_a_wrong_choice_changes_nothing(spills, form, said):
    page = spills.post("/queue/strategy", **form)
    assert "Nothing was changed" in page
    assert said in page
    assert look(spills).strategy == "hybrid"


def test_unknown_strategies_and_projects_are_not_found(spills, empty_spills):
    for page in ("strategy", "strategy/order"):
        answer = spills.client.get(f"{spills.path}/queue/{page}?strategy=best")
        assert answer.status_code == 404
        assert "no strategy &#39;best&#39;; choose one of hybrid" in answer.text
    for path in (
        "/desk/99/queue",
        "/desk/99/queue/strategy",
        "/desk/99/queue/strategy/order?strategy=random",
    ):
        assert spills.client.get(path).status_code == 404


def test_with_nothing_to_order_the_strategies_say_so(empty_spills):
    assert "there is nothing to order" in empty_spills.page("/queue/strategy/order", strategy="hybrid")
    with empty_spills.ledger.session() as session:
        session.add(
            Task(project_id=1, tool_task_id=1, image_uri="1.png", scene="1", status=TaskStatus.REVIEW)
        )
    assert "no strategy can tell them apart yet" in empty_spills.page(
        "/queue/strategy/order", strategy="hybrid"
    )


def test_postgresql_tells_the_same(spills, postgresql_url):
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        with ledger.session() as session:
            session.add(
                Project(
                    name="spills",
                    tool_url="http://tool",
                    tool_project_id=1,
                    classes=["oil"],
                    accept_threshold=0.9,
                )
            )
        other = type(spills)(ledger, spills.client, spills.browser, spills.images)
        other.promote()
        other.add(0.95, 0.7, 0.5)
        for one in (spills, other):
            queues.reorder(one.ledger, 1)
        for given in ({}, {"view": "accepted"}, {"scene": "1", "least": "0.1"}):
            assert look(other, **given) == look(spills, **given)
        for strategy in ("random", "typiclust"):
            with spills.ledger.session(write=False) as here, ledger.session(write=False) as there:
                found = [comparison(s, s.get_one(Project, 1), strategy) for s in (here, there)]
            assert found[0] == found[1]
