"""Annotations as webhooks and the API give them."""

from __future__ import annotations

import numpy as np
import pytest

from backend.annotations import AnnotationError, decode_annotation

CLASSES = ["building", "road"]


def decode(payload):
    return decode_annotation(payload, CLASSES, "2")


def test_a_human_annotation(payloads):
    found = decode(payloads.annotation(5, 12, 3, parent_prediction=21))
    assert (found.id, found.task_id, found.annotator, found.parent_prediction) == (5, 12, "1", 21)
    assert not found.machine
    assert not found.cancelled
    assert found.lead_time_s == 3.5
    assert found.updated_at.tzinfo is not None
    assert found.masks is not None
    assert np.array_equal(found.masks[0], payloads.mask(3))
    assert not found.masks[1].any()


def test_the_machine_user_whatever_the_endpoint(payloads):
    assert decode(payloads.annotation(5, 12, completed_by=2)).machine
    assert decode(payloads.annotation(5, 12, completed_by={"id": 2, "email": "m@x"})).machine
    assert decode(payloads.annotation(5, 12, completed_by=None)).annotator == ""


def test_a_person_who_updates_an_accepted_mask_makes_it_theirs(payloads):
    found = decode(payloads.annotation(5, 12, completed_by=2, updated_by=1))
    assert not found.machine
    assert found.annotator == "1"
    assert decode(payloads.annotation(5, 12, completed_by=2, updated_by=2)).machine
    assert decode(payloads.annotation(5, 12, completed_by=3, updated_by=1)).annotator == "3"


def test_copies_made_in_bulk_are_no_human_labels(payloads):
    bulk = payloads.annotation(5, 12, parent_prediction=21, lead_time=None, updated_by=None)
    assert decode(bulk).machine
    assert not decode({**bulk, "updated_by": 1}).machine  # somebody saved it since
    assert not decode({**bulk, "parent_prediction": None}).machine  # imported labels
    assert not decode({k: v for k, v in bulk.items() if k != "updated_by"}).machine


def test_a_skip_has_no_masks_and_nothing_drawn_has_empty_ones(payloads):
    assert decode(payloads.annotation(5, 12, was_cancelled=True)).masks is None
    nothing = decode(payloads.annotation(5, 12, result=[]))
    assert nothing.masks is not None
    assert nothing.masks.shape == (2, 0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": None},
        {"id": True},
        {"task": "12"},
        {"updated_at": None},
        {"updated_at": "yesterday"},
        {"updated_at": "2026-11-20T03:00:00"},
        {"result": {"a": 1}},
    ],
)
def test_what_is_no_annotation_is_refused(payloads, changes):
    with pytest.raises(AnnotationError):
        decode(payloads.annotation(5, 12, **changes))


def test_recorded_annotations(recorded):
    body = recorded("webhook_annotation_created_edited_prefill")["body"]
    edited = decode(body["annotation"])
    assert edited.soft_edges
    assert edited.parent_prediction == 751
    assert edited.masks is not None
    assert edited.masks.shape == (2, 256, 320)
    prefill = decode({**body["annotation"], "result": body["annotation"]["prediction"]["result"]})
    assert not prefill.soft_edges
    assert prefill.masks is not None
    assert 0 < (edited.masks != prefill.masks).sum() < prefill.masks.sum()
    assert decode(recorded("webhook_annotation_created_skipped")["body"]["annotation"]).cancelled
    bulk = recorded("webhook_annotations_created")["body"]["annotation"]
    assert all(decode(annotation).machine for annotation in bulk)
