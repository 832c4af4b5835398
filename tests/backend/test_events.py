"""Events -> what is to be done."""

from __future__ import annotations

import pytest

from backend.events import EventError, decode_event, decode_task, project_id_of

CLASSES = ["building", "road"]


def decode(payload):
    return decode_event(payload["action"], payload, CLASSES, "2")


@pytest.mark.parametrize("action", ["ANNOTATION_CREATED", "ANNOTATION_UPDATED"])
def test_one_annotation_brings_its_task(payloads, action):
    effects = decode(payloads.created(5, 12, action=action))
    assert [a.id for a in effects.annotations] == [5]
    assert [(t.id, t.image_uri) for t in effects.tasks] == [(12, "/data/local-files/?d=imgs/s12.png")]
    assert not effects.errors


def test_lists_of_annotations_and_a_bad_one_among_them(payloads):
    bad = payloads.annotation(6, 13, result=[payloads.region(payloads.mask(0), image_rotation=90)])
    event = payloads.event(
        "ANNOTATIONS_CREATED",
        annotation=[payloads.annotation(5, 12), bad, payloads.annotation(7, 14)],
        task=[payloads.task(12), payloads.task(13), payloads.task(14)],
    )
    effects = decode(event)
    assert [a.id for a in effects.annotations] == [5, 7]
    assert [t.id for t in effects.tasks] == [12, 13, 14]
    assert len(effects.errors) == 1
    assert "annotation 6" in effects.errors[0]
    assert "rotated" in effects.errors[0]


def test_deletions_with_ids_and_without(payloads):
    assert decode(payloads.event("ANNOTATIONS_DELETED", annotations=[{"id": 5}, {"id": 6}])).buried == [5, 6]
    bare = decode(payloads.event("ANNOTATIONS_DELETED"))
    assert bare.reconcile
    assert not bare.buried
    assert decode(payloads.event("TASKS_DELETED", tasks=[{"id": 12}])).gone == [12]
    assert decode(payloads.event("TASKS_DELETED")).reconcile


def test_tasks_and_training(payloads):
    effects = decode(payloads.event("TASKS_CREATED", tasks=[payloads.task(12), payloads.task(13)]))
    assert [t.id for t in effects.tasks] == [12, 13]
    assert decode(payloads.event("START_TRAINING")).train


def test_the_image_is_where_the_labeling_interface_says(payloads):
    payloads.project["label_config"] = payloads.project["label_config"].replace("$image", "$url")
    task = {"id": 1, "data": {"url": "s3://b/a.png", "image": "x"}}
    assert decode(payloads.event("TASKS_CREATED", tasks=[task])).tasks[0].image_uri == "s3://b/a.png"
    assert decode_task({"id": 1, "data": {}}, "image").image_uri == ""


def test_changes_of_the_labeling_interface_are_told(payloads):
    assert decode(payloads.event("PROJECT_UPDATED")).notes == []
    config = payloads.project["label_config"]
    payloads.project["label_config"] = config.replace('<Label value="road"/>', '<Label value="river"/>')
    first, second = decode(payloads.event("PROJECT_UPDATED")).notes
    assert "no longer has road" in first
    assert "also has river" in second
    payloads.project["label_config"] = "<View/>"
    assert "nobody can draw masks" in decode(payloads.event("PROJECT_UPDATED")).notes[0]


def test_unknown_labels_are_noted(payloads):
    regions = [payloads.region(payloads.mask(0)), payloads.region(payloads.mask(1), "river")]
    effects = decode(payloads.created(5, 12, result=regions))
    assert len(effects.annotations) == 1
    assert "'river'" in effects.notes[0]


def test_an_action_that_nobody_knows_is_noted(payloads):
    assert "changes nothing" in decode(payloads.event("LABEL_LINK_CREATED")).notes[0]


@pytest.mark.parametrize(
    "parts",
    [
        {"action": "ANNOTATION_CREATED"},
        {"action": "ANNOTATION_CREATED", "annotation": [1], "task": []},
        {"action": "ANNOTATION_CREATED", "annotation": {}, "task": {"id": 1}},
        {"action": "TASKS_CREATED", "tasks": [{"id": "x", "data": {}}]},
        {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": None}]},
        {"action": "PROJECT_UPDATED"},
    ],
)
def test_malformed_events_are_refused(parts):
    with pytest.raises(EventError):
        decode(parts)


def test_the_project_of_an_event():
    assert project_id_of({"project": {"id": 3}}) == 3
    assert project_id_of({"project": 3}) == 3
    assert project_id_of({"project": {"id": "3"}}) is None
    assert project_id_of({}) is None


@pytest.mark.parametrize(
    ("name", "tasks", "annotations", "buried"),
    [
        ("webhook_annotation_created", [12], [1], []),
        ("webhook_annotation_created_skipped", [13], [2], []),
        ("webhook_annotation_updated", [12], [1], []),
        ("webhook_annotations_created", [14, 15], [3, 4], []),
        ("webhook_annotations_deleted", [], [], [1]),
        ("webhook_tasks_created", [12, 13, 14, 15, 16, 17], [], []),
        ("webhook_project_updated", [], [], []),
        ("webhook_start_training", [], [], []),
    ],
)
def test_recorded_events(recorded, name, tasks, annotations, buried):
    effects = decode(recorded(name)["body"])
    assert [t.id for t in effects.tasks] == tasks
    assert [a.id for a in effects.annotations] == annotations
    assert effects.buried == buried
    assert effects.train == (name == "webhook_start_training")
    assert not effects.errors
    assert not effects.notes
