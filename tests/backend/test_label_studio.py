"""The labeling tool over a real Label Studio."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from active_learning.ports import Acceptance, LabelingTool, Placement, Prefill, ToolUnavailableError
from backend import label_studio as subject
from backend import label_studio_api, label_studio_http
from backend.label_studio import LabelStudio, LabelStudioError, is_machines
from backend.labeling_interface import labeling_interface
from backend.regions import masks_to_regions, parse_label_config, regions_to_masks
from backend.settings import LabelStudioSettings, Settings
from backend.tokens import TokenError
from model.errors import ELNetError

pytestmark = pytest.mark.label_studio

CLASSES = ["oil", "ship"]
CONTROL = parse_label_config(labeling_interface(CLASSES)).control


def masks(seed: int, height: int = 48, width: int = 40) -> np.ndarray:
    """(2, H, W) bool, blobs."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.random((2, height // 8, width // 8)) > 0.6, np.ones((8, 8))).astype(bool)


class Place:
    """A project of the real server with some tasks."""

    def __init__(self, tool: LabelStudio, tasks: int) -> None:
        self.tool = tool
        body = {"title": "of a test", "label_config": labeling_interface(CLASSES)}
        self.id = tool.lead.post("/api/projects/", body)["id"]
        self.import_tasks(tasks)

    def import_tasks(self, count: int) -> None:
        tasks = [{"data": {"image": f"/data/x/{i}.png", "source": f"{i}.png"}} for i in range(count)]
        self.tool.lead.post(f"/api/projects/{self.id}/import", tasks)

    @property
    def ids(self) -> list[int]:
        return [task["id"] for task in self.tool.listed(self.id)]

    def task(self, task_id: int) -> dict[str, Any]:
        return self.tool.detailed(self.id, [task_id])[task_id]

    def versions(self, task_id: int) -> list[str]:
        return [prediction["model_version"] for prediction in self.task(task_id)["predictions"]]

    def prefill(
        self, seeds: dict[int, int], version: str = "elnet-0001", quality: float = 0.7
    ) -> dict[int, int]:
        prefills = [Prefill(task, masks(seed), quality, version) for task, seed in seeds.items()]
        return self.tool.push_prefills(self.id, CLASSES, prefills)

    def annotate(self, task_id: int, seed: int, **more: Any) -> int:
        """As the lead's user, who counts as a person."""
        result = masks_to_regions(masks(seed), CLASSES, CONTROL, 1.0)
        body = {"result": result, "lead_time": 4.5, **more}
        return int(self.tool.lead.post(f"/api/tasks/{task_id}/annotations/", body)["id"])

    def accept(self, seeds: dict[int, int], parents: dict[int, int] | None = None) -> dict[int, int]:
        wanted = [Acceptance(t, masks(seed), 0.9, (parents or {}).get(t)) for t, seed in seeds.items()]
        return self.tool.accept(self.id, CLASSES, wanted)


@pytest.fixture
def place(label_studio) -> Callable[[int], Place]:
    return lambda tasks: Place(label_studio, tasks)


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch):
    """So that every listing has several."""
    monkeypatch.setattr(label_studio_api, "LISTED", 3)
    monkeypatch.setattr(label_studio_api, "DETAILED", 2)
    monkeypatch.setattr(subject, "LISTED", 3)
    monkeypatch.setattr(subject, "DETAILED", 2)


def test_is_a_labeling_tool(label_studio):
    tool: LabelingTool = label_studio
    assert tool.machine_annotator() == "2"


def test_tasks_of_every_page(place, label_studio):
    here = place(7)
    listed = list(label_studio.tasks(here.id))
    assert [task.image_uri for task in listed] == [f"/data/x/{i}.png" for i in range(7)]
    assert [task.id for task in listed] == sorted(task.id for task in listed)
    assert listed[3].data["source"] == "3.png"


def test_tasks_that_go_while_they_are_listed_displace_no_other(place, label_studio):
    here = place(8)
    ids = here.ids
    listing = label_studio.tasks(here.id)
    seen = [next(listing).id for _ in range(2)]
    label_studio.lead.delete(f"/api/tasks/{ids[0]}/")
    label_studio.lead.delete(f"/api/tasks/{ids[5]}/")
    assert seen + [task.id for task in listing] == [i for i in ids if i != ids[5]]


def test_a_prefill_is_stored_bit_by_bit(place, label_studio):
    here = place(1)
    (task,) = here.ids
    held = here.prefill({task: 5}, quality=0.8125)
    (prediction,) = here.task(task)["predictions"]
    assert held == {task: prediction["id"]}
    assert prediction["score"] == 0.8125
    assert prediction["model_version"] == "elnet-0001"
    decoded, soft = regions_to_masks(prediction["result"], CLASSES, 48, 40)
    assert np.array_equal(decoded, masks(5))
    assert not soft
    assert label_studio.project(here.id)["model_version"] == "elnet-0001"


def test_an_empty_prefill_is_held_too(place, label_studio):
    here = place(1)
    (task,) = here.ids
    empty = Prefill(task, np.zeros((2, 48, 40), bool), 0.9, "elnet-0001")
    held = label_studio.push_prefills(here.id, CLASSES, [empty])
    assert here.task(task)["predictions"][0]["result"] == []
    assert label_studio.push_prefills(here.id, CLASSES, [empty]) == held


def test_prefills_may_be_pushed_again(place):
    here = place(5)
    seeds = {task: i for i, task in enumerate(here.ids)}
    held = here.prefill(seeds)
    assert here.prefill(seeds) == held
    assert all(here.versions(task) == ["elnet-0001"] for task in seeds)


def test_a_new_version_replaces_the_old_one_and_only_there(place):
    here = place(5)
    ids = here.ids
    first = here.prefill(dict.fromkeys(ids, 0))
    second = here.prefill(dict.fromkeys(ids[:3], 0), "elnet-0002")
    assert [here.versions(task) for task in ids] == [["elnet-0002"]] * 3 + [["elnet-0001"]] * 2
    assert not set(first.values()) & set(second.values())


def test_duplicates_leave_the_newest(place, label_studio):
    here = place(1)
    (task,) = here.ids
    body = {
        "task": task,
        "result": masks_to_regions(masks(1), CLASSES, CONTROL, 0.7),
        "score": 0.7,
        "model_version": "elnet-0001",
    }
    label_studio.lead.post(
        f"/api/projects/{here.id}/import/predictions", [body, body, {**body, "score": 0.1}]
    )
    before = sorted(prediction["id"] for prediction in here.task(task)["predictions"])
    assert len(before) == 3
    assert here.prefill({task: 1}) == {task: before[1]}
    assert [p["id"] for p in here.task(task)["predictions"]] == [before[1]]


def test_a_changed_mask_of_the_same_version_is_replaced(place):
    here = place(1)
    (task,) = here.ids
    first = here.prefill({task: 1})
    second = here.prefill({task: 2})
    assert first != second
    (prediction,) = here.task(task)["predictions"]
    assert np.array_equal(regions_to_masks(prediction["result"], CLASSES, 48, 40)[0], masks(2))


def test_never_without_a_prefill_in_between(place, label_studio, monkeypatch):
    here = place(2)
    ids = here.ids
    here.prefill(dict.fromkeys(ids, 0))
    fewest = []
    request = label_studio.lead.request

    def watched(method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        answer = request(method, path, *args, **kwargs)
        if method in {"POST", "DELETE"}:
            found = request("GET", "/api/predictions/", params={"project": here.id})
            fewest.append(min(sum(p["task"] == task for p in found) for task in ids))
        return answer

    monkeypatch.setattr(label_studio.lead, "request", watched)
    here.prefill(dict.fromkeys(ids, 1), "elnet-0002")
    assert fewest
    assert min(fewest) == 1


def test_prefills_of_tasks_that_are_gone_do_not_hold_up_others(place, label_studio):
    here = place(3)
    ids = here.ids
    label_studio.lead.delete(f"/api/tasks/{ids[1]}/")
    assert set(here.prefill(dict.fromkeys(ids, 0))) == {ids[0], ids[2]}


def test_placements_keep_what_others_wrote(place, label_studio):
    here = place(5)
    ids = here.ids
    label_studio.lead.patch(
        f"/api/tasks/{ids[1]}/", {"data": {"image": "/data/x/1.png", "source": "1.png", "note": "cloudy"}}
    )
    seen = {"image": "/data/x/1.png"}  # what the ledger knew, before the note
    wanted = [Placement(task, "review", 0.123456, 0.5, seen) for task in ids]
    label_studio.lead.delete(f"/api/tasks/{ids[4]}/")
    assert label_studio.push_placements(here.id, wanted) == ids[:4]
    data = {task["id"]: task["data"] for task in label_studio.listed(here.id)}
    assert data[ids[1]] == {
        "image": "/data/x/1.png",
        "source": "1.png",
        "note": "cloudy",
        "route": "review",
        "quality": 0.1235,
        "priority": 0.5,
    }
    assert data[ids[0]]["image"] == "/data/x/0.png"


def test_placements_that_stand_are_not_written_again(place, label_studio, monkeypatch):
    here = place(2)
    wanted = [Placement(task, "accepted", 0.9, None) for task in here.ids]
    label_studio.push_placements(here.id, wanted)
    patched = []
    monkeypatch.setattr(label_studio.lead, "patch", lambda *a: patched.append(a))
    assert label_studio.push_placements(here.id, wanted) == here.ids
    assert not patched


def test_an_acceptance_is_an_annotation_of_the_machine(place, label_studio):
    here = place(3)
    ids = here.ids
    held = here.prefill({task: i for i, task in enumerate(ids)})
    made = here.accept({task: i for i, task in enumerate(ids)}, held)
    assert set(made) == set(ids)
    found = {a.task_id: a for a in label_studio.annotations(here.id, CLASSES)}
    for i, task in enumerate(ids):
        annotation = found[task]
        assert annotation.id == made[task]
        assert annotation.machine
        assert annotation.parent_prediction == held[task]
        assert np.array_equal(annotation.masks, masks(i))
    assert all(here.task(task)["is_labeled"] for task in ids)
    assert here.accept({task: i for i, task in enumerate(ids)}, held) == made


def test_another_acceptance_takes_the_place_of_the_first(place):
    here = place(1)
    (task,) = here.ids
    first = here.accept({task: 1})
    second = here.accept({task: 2})
    assert first != second
    assert [a["id"] for a in here.task(task)["annotations"]] == [second[task]]


def test_a_task_that_a_person_touched_is_not_accepted(place):
    here = place(3)
    labelled, skipped, free = here.ids
    person = here.annotate(labelled, 1)
    here.annotate(skipped, 1, was_cancelled=True)
    assert set(here.accept({labelled: 2, skipped: 2, free: 2})) == {free}
    assert [a["id"] for a in here.task(labelled)["annotations"]] == [person]


def twice(tool: LabelStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label Studio runs a request again when its SQLite was locked halfway: what it made before stays."""
    for connection in (tool.lead, tool.machine):
        assert connection is not None
        post = connection.post
        monkeypatch.setattr(connection, "post", lambda *a, post=post, **k: (post(*a, **k), post(*a, **k))[1])


def test_what_a_locked_sqlite_made_twice(place, label_studio, monkeypatch):
    here = place(3)
    ids = here.ids
    twice(label_studio, monkeypatch)
    held = here.prefill(dict.fromkeys(ids, 1))
    made = here.accept(dict.fromkeys(ids, 1), held)
    for task in ids:
        assert [p["id"] for p in here.task(task)["predictions"]] == [held[task]]
        assert [a["id"] for a in here.task(task)["annotations"]] == [made[task]]


def test_without_a_machine_user_nothing_is_accepted(place, label_studio_server, caplog):
    here = place(1)
    tool = LabelStudio(label_studio_server.url, label_studio_server.token)
    try:
        assert tool.accept(here.id, CLASSES, [Acceptance(here.ids[0], masks(0), 0.9, None)]) == {}
        tool.withdraw(here.id, here.ids)
        assert tool.machine_annotator() == "0"
    finally:
        tool.close()
    assert "MACHINE_TOKEN is not set" in caplog.text


def test_withdrawing_spares_people(place, label_studio):
    here = place(4)
    accepted, labelled, updated, other = here.ids
    made = here.accept({accepted: 1, updated: 1, other: 1})
    person = here.annotate(labelled, 1)
    # A person opens an accepted mask, corrects it and presses Update: it stays "completed by" the machine.
    result = masks_to_regions(masks(2), CLASSES, CONTROL, 1.0)
    label_studio.lead.patch(f"/api/annotations/{made[updated]}/", {"result": result})
    label_studio.withdraw(here.id, [accepted, labelled, updated])
    left = {a.task_id: a for a in label_studio.annotations(here.id, CLASSES)}
    assert set(left) == {labelled, updated, other}
    assert left[labelled].id == person
    assert not left[updated].machine
    assert left[updated].annotator == "1"
    assert np.array_equal(left[updated].masks, masks(2))
    assert here.accept({updated: 3}) == {}
    label_studio.withdraw(here.id, [accepted])  # once more


def test_a_person_who_is_just_quicker_keeps_the_annotation(place, label_studio, monkeypatch):
    """Between our look and our deletion somebody presses Update."""
    here = place(1)
    (task,) = here.ids
    made = here.accept({task: 1})
    seen = here.task(task)
    result = masks_to_regions(masks(2), CLASSES, CONTROL, 1.0)
    label_studio.lead.patch(f"/api/annotations/{made[task]}/", {"result": result})
    monkeypatch.setattr(label_studio, "detailed", lambda *_: {task: seen})
    label_studio.withdraw(here.id, [task])
    here.accept({task: 3})
    monkeypatch.undo()
    assert made[task] in {a["id"] for a in here.task(task)["annotations"]}


def test_annotations_of_people(place, label_studio):
    here = place(5)
    ids = here.ids
    held = here.prefill({ids[0]: 3})
    drawn = here.annotate(ids[0], 3, parent_prediction=held[ids[0]])
    skipped = here.annotate(ids[2], 1, was_cancelled=True)
    empty = int(
        label_studio.lead.post(f"/api/tasks/{ids[4]}/annotations/", {"result": [], "lead_time": 1})["id"]
    )
    found = {a.id: a for a in label_studio.annotations(here.id, CLASSES)}
    assert set(found) == {drawn, skipped, empty}
    assert np.array_equal(found[drawn].masks, masks(3))
    assert found[drawn].parent_prediction == held[ids[0]]
    assert found[drawn].lead_time_s == 4.5
    assert found[drawn].annotator == "1"
    assert not found[drawn].machine
    assert found[skipped].cancelled
    assert found[skipped].masks is None
    assert found[empty].masks.shape == (2, 0, 0)


def test_an_annotation_that_cannot_be_read_is_still_there(place, label_studio, caplog):
    here = place(1)
    (task,) = here.ids
    result = masks_to_regions(masks(1), CLASSES, CONTROL, 1.0)
    body = {"result": [{**region, "image_rotation": 90} for region in result], "lead_time": 1}
    made = int(label_studio.lead.post(f"/api/tasks/{task}/annotations/", body)["id"])
    (annotation,) = label_studio.annotations(here.id, CLASSES)
    assert annotation.id == made
    assert annotation.masks is None
    assert not annotation.cancelled
    assert "rotated by 90" in caplog.text


def test_a_version_is_served_without_a_backend(place, label_studio):
    here = place(1)
    label_studio.serve_version(here.id, "elnet-0001")  # nobody knows it yet
    assert label_studio.project(here.id)["model_version"] == ""
    here.prefill({here.ids[0]: 1})
    assert label_studio.project(here.id)["model_version"] == "elnet-0001"
    here.prefill({here.ids[0]: 1}, "elnet-0002")
    label_studio.serve_version(here.id, "elnet-0002")
    assert label_studio.project(here.id)["model_version"] == "elnet-0002"


def test_scores_are_seen_by_the_data_manager(place, label_studio):
    """The silent trap: no scores while the project's model version is not the predictions'."""
    here = place(2)
    one, two = here.ids
    label_studio.push_prefills(
        here.id,
        CLASSES,
        [Prefill(one, masks(1), 0.9, "elnet-0001"), Prefill(two, masks(2), 0.2, "elnet-0001")],
    )
    assert {i: here.task(i)["predictions_score"] for i in (one, two)} == {one: 0.9, two: 0.2}


def test_both_kinds_of_token(place, label_studio_server, personal_token):
    here = place(2)
    assert personal_token.count(".") == 2
    tool = LabelStudio(label_studio_server.url, personal_token, label_studio_server.machine_token)
    try:
        assert [task.id for task in tool.tasks(here.id)] == here.ids
    finally:
        tool.close()


def test_a_wrong_token(label_studio_server):
    tool = LabelStudio(label_studio_server.url, "0" * 40, "1" * 40)
    try:
        with pytest.raises(TokenError, match="ELNET_LABEL_STUDIO__TOKEN"):
            tool.project(1)
        with pytest.raises(TokenError, match="ELNET_LABEL_STUDIO__MACHINE_TOKEN"):
            tool.machine_annotator()
    finally:
        tool.close()


def test_no_such_project(label_studio):
    with pytest.raises(LabelStudioError, match=r"no project 987654.*elnet project create"):
        list(label_studio.tasks(987654))


def test_label_studio_is_down(monkeypatch):
    monkeypatch.setattr(label_studio_http, "_DELAYS_S", (0.0,))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        tool = LabelStudio(f"http://127.0.0.1:{free.getsockname()[1]}", "0" * 40, "1" * 40)
    try:
        for call in (
            lambda: list(tool.tasks(1)),
            lambda: tool.push_placements(1, [Placement(1, "review", None, None)]),
            tool.machine_annotator,
        ):
            with pytest.raises(ToolUnavailableError, match="does not answer"):
                call()
    finally:
        tool.close()


def test_settings_without_a_server(tmp_path):
    with pytest.raises(ELNetError, match="elnet up"):
        LabelStudio.from_settings(Settings(state=tmp_path, label_studio=LabelStudioSettings()))


@pytest.mark.parametrize(
    ("annotation", "machines"),
    [
        ({"completed_by": 2, "updated_by": 2}, True),
        ({"completed_by": 2, "updated_by": None}, True),
        ({"completed_by": {"id": 2}, "updated_by": 2}, True),
        ({"completed_by": 2, "updated_by": 1}, False),
        ({"completed_by": 1, "updated_by": 2}, False),
        ({"completed_by": None, "updated_by": None}, False),
    ],
)
def test_whose_an_annotation_is(annotation, machines):
    assert is_machines(annotation, "2") is machines
