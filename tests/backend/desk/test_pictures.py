from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from active_learning.ledger import HoldoutMask, Task, TaskStatus
from active_learning.ports import ImageUnavailableError
from backend.desk.pictures import overlay
from backend.desk.queued_images import queued_images
from backend.services import services


def picture(answer) -> np.ndarray:
    assert answer.status_code == 200
    return np.asarray(Image.open(io.BytesIO(answer.data)))


def test_an_image_is_fetched_once(spills):
    for _ in range(2):
        with spills.client.get(f"{spills.path}/pictures/0.jpg") as answer:
            assert picture(answer).shape == (6, 8, 3)
    assert spills.images.opened == ["0.png"]


def test_another_label_studio_has_other_images_at_the_same_address(spills, monkeypatch):
    with spills.client.get(f"{spills.path}/pictures/0.jpg"):
        pass
    with spills.client.application.app_context():
        monkeypatch.setattr(services().settings.label_studio, "url", "http://elsewhere")
    with spills.client.get(f"{spills.path}/pictures/0.jpg"):
        pass
    assert spills.images.opened == ["0.png", "0.png"]


def test_masks_of_a_version_and_of_a_human(spills):
    [task] = spills.add(0.6)
    spills.label(task, good=False)
    base = f"{spills.path}/pictures/{task.tool_task_id}"
    made = picture(spills.client.get(f"{base}/elnet-0001.png"))
    drawn = picture(spills.client.get(f"{base}/label.png"))
    assert made[3, 3, 3] > 0
    assert made[0, 0, 3] == 0
    assert drawn[1, 3, 3] > 0
    assert drawn[3, 3, 3] == 0
    assert tuple(made[3, 3, :3]) != tuple(drawn[1, 3, :3])


def test_masks_of_an_open_blind_audit_are_shown_to_nobody(spills):
    [task] = spills.add(0.6)
    with spills.ledger.session() as session:
        project = spills.project(session)
        project.audit_share = project.blind_share = 1.0
        session.get_one(Task, task.id).status = TaskStatus.AUDIT
    path = f"{spills.path}/pictures/{task.tool_task_id}/elnet-0001.png"
    answer = spills.client.get(path)
    assert answer.status_code == 404
    assert "blind audit" in answer.get_data(as_text=True)
    spills.label(task)
    assert spills.client.get(path).status_code == 200


def test_pages_and_pictures_agree_on_what_is_hidden_also_between_promotion_and_prediction(spills):
    tasks = spills.add(*[0.6] * 12)
    with spills.ledger.session() as session:
        project = spills.project(session)
        project.audit_share, project.blind_share = 1.0, 0.5
        for task in tasks:
            session.get_one(Task, task.id).status = TaskStatus.AUDIT
    spills.promote("elnet-0002")
    with spills.ledger.session() as session:
        rows = [session.get_one(Task, task.id) for task in tasks]
        images = queued_images(session, spills.project(session), rows, 0)
    found = {
        image.task: spills.client.get(f"{spills.path}/pictures/{image.task}/{image.version}.png").status_code
        for image in images
    }
    assert found == {image.task: 404 if image.blind else 200 for image in images}
    assert set(found.values()) == {200, 404}


def test_the_mask_that_a_version_was_judged_by_comes_where_it_is_asked_for(spills):
    predicted, both = spills.add(0.6, 0.6)
    judge(spills, both)
    base = f"{spills.path}/pictures/{both.tool_task_id}/elnet-0001.png"
    shown, judged = (picture(spills.client.get(base + query)) for query in ("", "?judged=1"))
    assert (shown[3, 3, 3] > 0, shown[7, 7, 3] > 0) == (True, False)
    assert (judged[3, 3, 3] > 0, judged[7, 7, 3] > 0) == (False, True)
    base = f"{spills.path}/pictures/{predicted.tool_task_id}/elnet-0001.png"
    shown, instead = (picture(spills.client.get(base + query)) for query in ("", "?judged=1"))
    assert np.array_equal(instead, shown)


def test_it_is_hidden_too_while_a_blind_audit_is_open(spills):
    [task] = spills.add(0.6)
    judge(spills, task)
    with spills.ledger.session() as session:
        spills.project(session).blind_share = 1.0
        row = session.get_one(Task, task.id)
        row.status, row.holdout = TaskStatus.AUDIT, True
    path = f"{spills.path}/pictures/{task.tool_task_id}/elnet-0001.png?judged=1"
    assert spills.client.get(path).status_code == 404
    spills.label(task)
    assert spills.client.get(path).status_code == 200


def judge(spills, task):
    """Keep the mask by which the champion was judged on an image: its lower right quarter."""
    corner = np.zeros((1, 8, 8), np.bool_)
    corner[:, 4:, 4:] = True
    with spills.ledger.session() as session:
        champion = spills.project(session).champion_id
        session.add(HoldoutMask(task_id=task.id, model_version_id=champion, masks=corner))


@pytest.mark.parametrize("path", ["99.jpg", "0/label.png", "0/elnet-0009.png", "99/elnet-0001.png"])
def test_what_is_not_there_is_not_found(spills, path):
    assert spills.client.get(f"{spills.path}/pictures/{path}").status_code == 404


def test_an_image_that_cannot_be_read_says_so(spills):
    spills.images.broken["0.png"] = ImageUnavailableError("0.png is truncated")
    answer = spills.client.get(f"{spills.path}/pictures/0.jpg")
    assert answer.status_code == 404
    assert "truncated" in answer.get_data(as_text=True)


def test_an_outline_is_opaque_and_a_veil_is_not():
    masks = np.zeros((2, 64, 128), np.bool_)
    masks[0, 8:40, 8:40] = True
    masks[1, 50:60, 100:120] = True
    drawn = overlay(masks, 64, ((255, 0, 0), (0, 255, 0)), veil=50)
    assert drawn.shape == (32, 64, 4)
    assert tuple(drawn[4, 4]) == (255, 0, 0, 255)
    assert tuple(drawn[12, 12]) == (255, 0, 0, 50)
    assert drawn[26, 52, 1] == 255
    assert drawn[0, 0, 3] == 0
