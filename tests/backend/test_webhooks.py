"""Events into the inbox: once, at once, whatever they say."""

from __future__ import annotations

import copy
import statistics
import time

import numpy as np
import pytest
from sqlalchemy import select

from active_learning.ledger import InboxEvent, InboxState
from active_learning.ledger.failures import LedgerError
from backend import inbox, webhooks
from backend.regions import encode_rle
from backend.webhooks import key_of, receive


def stored(ledger) -> list[InboxEvent]:
    with ledger.session(write=False) as session:
        return list(session.scalars(select(InboxEvent).order_by(InboxEvent.id)))


def post(site, event):
    return site.client.post("/webhook", json=event)


def test_an_event_is_queued_as_it_came(site, payloads):
    answer = post(site, payloads.created(5, 12))
    assert (answer.status_code, answer.json) == (200, {"status": "queued"})
    [event] = stored(site.ledger)
    assert (event.action, event.tool_project_id, event.state) == ("ANNOTATION_CREATED", 7, InboxState.WAITING)
    assert event.payload["annotation"]["id"] == 5
    assert isinstance(event.payload["annotation"]["result"][0]["value"]["rle"], str)


def test_the_same_event_twice_is_one(site, payloads):
    event = payloads.created(5, 12)
    again = copy.deepcopy(event)
    again["project"]["total_annotations_number"] = 99  # counters may differ between two deliveries
    again["annotation"]["prediction"] = {"created_ago": "2 minutes"}
    again["task"]["is_labeled"] = True
    assert post(site, event).json == {"status": "queued"}
    assert post(site, again).json == {"status": "known already"}
    assert len(stored(site.ledger)) == 1


def keys(*events):
    return [key_of(copy.deepcopy(event)) for event in events]


def test_what_makes_two_events_different(payloads):
    created = payloads.created(5, 12, 1)
    variants = keys(
        created,
        payloads.created(5, 12, 2),  # another updated_at and mask
        payloads.created(6, 12, 1),
        payloads.created(5, 12, 1, was_cancelled=True),
        {**created, "action": "ANNOTATION_UPDATED"},
        {**created, "project": {"id": 8}},
        payloads.event("ANNOTATIONS_DELETED", annotations=[{"id": 5}]),
        payloads.event("ANNOTATIONS_DELETED", annotations=[{"id": 6}]),
        payloads.event("TASKS_CREATED", tasks=[{"id": 5}]),
        payloads.event("TASKS_DELETED", tasks=[{"id": 5}]),
        payloads.event("PROJECT_UPDATED"),
        {"action": "PROJECT_UPDATED", "project": {**payloads.project, "updated_at": "later"}},
    )
    assert len(set(variants)) == len(variants)


def test_events_that_name_nothing_are_new_each_time(payloads):
    for event in (payloads.event("START_TRAINING"), payloads.event("ANNOTATIONS_DELETED")):
        assert len(set(keys(event, event))) == 2
    named = payloads.event("ANNOTATIONS_DELETED", annotations=[{"id": 5}])
    assert len(set(keys(named, named))) == 1


@pytest.mark.parametrize(
    "body",
    [[], "text", 5, {}, {"action": 5}, {"action": None}, {"annotation": {}, "project": {"id": 1}}],
)
def test_what_is_no_event_is_400(site, body):
    answer = site.client.post("/webhook", json=body)
    assert answer.status_code == 400
    assert stored(site.ledger) == []


@pytest.mark.parametrize(
    "parts",
    [
        {"annotation": 5},
        {"annotation": [5, {"result": 7}]},
        {"annotation": {"result": [5, {"value": 6}, {"value": {"rle": [999]}}], "prediction": []}},
        {"project": {"id": "x"}},
        {"tasks": 5},
    ],
)
def test_odd_events_are_kept_for_the_inbox_to_judge(site, parts):
    assert post(site, {"action": "ANNOTATION_CREATED", **parts}).status_code == 200
    assert len(stored(site.ledger)) == 1


def test_too_large(site, payloads, monkeypatch):
    monkeypatch.setattr(webhooks, "MAX_BYTES", 100)
    answer = post(site, payloads.created(5, 12))
    assert answer.status_code == 413
    assert "tiles" in answer.json["error"]


def test_a_ledger_that_fails_is_503(site, payloads, monkeypatch):
    def full(*_, **__):
        raise LedgerError("the disk is full; free some space")

    monkeypatch.setattr(type(site.ledger), "session", full)
    answer = post(site, payloads.created(5, 12))
    assert answer.status_code == 503
    assert "free some space" in answer.json["error"]


def test_the_answer_comes_within_a_fifth_of_a_second_also_for_large_masks(site, payloads):
    ragged = np.random.default_rng(0).random((1024, 1024)) > 0.9  # 190,000 runs: far beyond any human's mask
    rle = encode_rle(ragged)
    seconds = []
    for number in range(5):
        region = payloads.region(payloads.mask(0), original_width=1024, original_height=1024)
        region["value"]["rle"] = rle
        event = payloads.created(number, 12, result=[region])
        begun = time.perf_counter()
        assert post(site, event).status_code == 200
        seconds.append(time.perf_counter() - begun)
    assert statistics.median(seconds) < 0.2, f"{len(rle)} bytes of mask: {seconds}"


def test_packed_masks_arrive_whole(site, payloads, memory_tool):
    site.add_project()
    post(site, payloads.created(5, 12, 3))
    assert inbox.work_off(site.ledger, memory_tool) == 1
    assert stored(site.ledger)[0].error is None


def test_recorded_deliveries(site, recorded):
    names = [
        "webhook_annotation_created",
        "webhook_annotation_created_edited_prefill",
        "webhook_annotation_created_skipped",
        "webhook_annotation_updated",
        "webhook_annotations_created",
        "webhook_annotations_deleted",
        "webhook_project_updated",
        "webhook_start_training",
        "webhook_tasks_created",
    ]
    for name in names:
        call = recorded(name)
        answer = site.client.open(
            call["path"], method=call["method"], headers=call["headers"], json=call["body"]
        )
        assert answer.status_code == 200, name
        assert receive(site.ledger, recorded(name)["body"]) is (name == "webhook_start_training")
    assert len(stored(site.ledger)) == len(names) + 1
