"""Projects made and mended, on a real Label Studio with a real backend."""

from __future__ import annotations

import hashlib
import io
import itertools
import socket
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import ExifTags, Image
from pydantic import SecretStr
from sqlalchemy import select

from active_learning import registry
from active_learning.ledger import InboxEvent, Ledger, Project, Task, TaskStatus
from active_learning.ports import Placement
from backend import told, wiring
from backend.importing import ImportFolderError
from backend.label_studio_http import LabelStudioError
from backend.labeling_interface import ClassesError
from backend.projects import ProjectError, create, import_images, repair
from backend.views import VIEWS, is_intact
from backend.wiring import WiringError
from model.raster import open_raster

pytestmark = pytest.mark.label_studio

_numbers = itertools.count(1)


@pytest.fixture
def name() -> str:
    """A name that no other test's project has."""
    return f"project {next(_numbers)}"


def picture(seed: int = 0, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def images(tmp_path) -> Path:
    """Three images that go, one of each way."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(picture(1)).save(folder / "plain.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(picture(2)).save(folder / "rotated.jpg", exif=exif)
    Image.fromarray(picture(3)[..., 0].astype(np.uint16) * 100).save(folder / "sixteen.tif")
    return folder


class Bench:
    """The installation with one project's calls."""

    def __init__(self, installation: Any, name: str) -> None:
        self.settings, self.ledger, self.tool = installation.settings, installation.ledger, installation.tool
        self.name = name

    def create(self, **more: Any) -> Project:
        return create(self.ledger, self.settings, self.tool, self.name, ["oil", "ship"], **more)

    def webhooks(self, project: Project) -> list[dict[str, Any]]:
        return self.tool.lead.get("/api/webhooks/", project=project.tool_project_id)

    def backends(self, project: Project) -> list[dict[str, Any]]:
        return self.tool.lead.get("/api/ml", project=project.tool_project_id)

    def views(self, project: Project) -> list[dict[str, Any]]:
        return self.tool.lead.get("/api/dm/views/", project=project.tool_project_id)

    def storages(self, project: Project) -> list[dict[str, Any]]:
        return wiring.storages(self.tool, project.tool_project_id)

    def tasks(self, project: Project) -> list[dict[str, Any]]:
        return list(self.tool.listed(project.tool_project_id))

    def assert_whole(self, project: Project) -> None:
        """Everything is there, and once."""
        (hook,) = self.webhooks(project)
        assert hook["url"] == f"{self.settings.web_url}/webhook"
        assert hook["headers"] == {"X-ELNet-Secret": "secret"}
        assert hook["is_active"]
        assert set(hook["actions"]) == set(wiring.ACTIONS)
        (backend,) = self.backends(project)
        assert backend["url"] == self.settings.web_url
        assert backend["readable_state"] == "Connected"
        assert backend["auth_method"] == "BASIC_AUTH"
        there = self.tool.project(project.tool_project_id)
        assert there["model_version"] == backend["title"]
        assert there["show_collab_predictions"]
        assert "BrushLabels" in there["label_config"]
        views = {view["data"]["title"]: view for view in self.views(project)}
        assert len(views) == len(self.views(project))
        assert all(is_intact(view, views[view.title]) for view in VIEWS)
        assert len(self.storages(project)) == 1


@pytest.fixture
def bench(installation, name) -> Bench:
    return Bench(installation, name)


def rows(ledger: Ledger, project: Project) -> list[Task]:
    with ledger.session(write=False) as session:
        query = select(Task).where(Task.project_id == project.id).order_by(Task.tool_task_id)
        return list(session.scalars(query))


def test_a_project_with_images(bench, images):
    project = bench.create(images=images)
    bench.assert_whole(project)
    there = bench.tool.project(project.tool_project_id)
    assert there["title"] == bench.name
    assert there["enable_empty_annotation"]
    assert [view["data"]["title"] for view in bench.views(project)][:4] == [
        "Review queue",
        "Accepted",
        "Audit",
        "Done",
    ]
    tasks = bench.tasks(project)
    assert len(tasks) == 3
    found = {Path(task["data"]["source"]).name: task["data"] for task in tasks}
    assert set(found) == {"plain.png", "rotated.jpg", "sixteen.tif"}
    for source, data in found.items():
        answer = bench.tool.lead.fetch(data["image"])
        assert answer.status_code == 200
        with Image.open(io.BytesIO(answer.content)) as served:
            assert served.format == "PNG"
            pixels = np.asarray(served.convert("RGB"))
        assert np.array_equal(pixels, open_raster(images / source).pixels)
    assert found["rotated.jpg"]["scene"] == "rotated"


def test_the_ledger_holds_what_was_imported(bench, images):
    bench.settings.loop.labels_per_cycle = 7
    bench.settings.loop.label_growth = 0.5
    project = bench.create(images=images)
    assert (project.tool_url, project.classes) == (bench.tool.url, ["oil", "ship"])
    assert (project.labels_per_cycle, project.label_growth) == (7, 0.5)
    found = rows(bench.ledger, project)
    assert [(row.tool_task_id, row.data) for row in found] == [
        (t["id"], t["data"]) for t in bench.tasks(project)
    ]
    sizes = {Path(row.data["source"]).stem: (row.width, row.height) for row in found}
    assert sizes == {"plain": (32, 24), "rotated": (24, 32), "sixteen": (32, 24)}
    assert {row.status for row in found} == {TaskStatus.WAITING}


def test_a_second_time_changes_nothing(bench, images):
    project = bench.create(images=images)
    hooks, backends, views = bench.webhooks(project), bench.backends(project), bench.views(project)
    again = bench.create(images=images)
    assert again.id == project.id
    bench.assert_whole(project)
    assert len(bench.tasks(project)) == len(rows(bench.ledger, project)) == 3
    assert [h["id"] for h in bench.webhooks(project)] == [h["id"] for h in hooks]
    assert [b["id"] for b in bench.backends(project)] == [b["id"] for b in backends]
    assert bench.views(project) == views


def test_more_images_later(bench, images):
    project = bench.create(images=images)
    Image.fromarray(picture(9)).save(images / "new.png")
    (images / "plain.png").rename(images / "renamed.png")  # the same content
    Image.fromarray(picture(8)).save(images / "sixteen.tif")  # the same path, other content
    (images / "broken.png").write_text("no image")
    report = import_images(bench.ledger, bench.settings, bench.tool, project, images)
    assert report.added == 1
    assert report.known == 2
    assert {path.name for path in report.skipped} == {"sixteen.tif", "broken.png"}
    assert "changed" in report.skipped[images / "sixteen.tif"]
    assert len(bench.tasks(project)) == 4


def test_broken_images_are_named_and_passed_over(bench, images, caplog):
    (images / "broken.png").write_text("no image")
    project = bench.create(images=images)
    assert len(bench.tasks(project)) == 3
    assert "not imported" in caplog.text
    assert "broken.png" in caplog.text


def test_large_images_become_tiles(bench, tmp_path):
    folder = tmp_path / "large"
    folder.mkdir()
    Image.fromarray(picture(4, 100, 130)).save(folder / "scene.png")
    project = bench.create(images=folder, tile=64)
    assert len(bench.tasks(project)) == 4
    for task in bench.tasks(project)[:2]:
        tool_task = bench.tool.tasks(project.tool_project_id)
        served = bench.tool.lead.fetch(task["data"]["image"])
        assert served.status_code == 200
        assert next(tool_task).data["source"] == str(folder / "scene.png")
    bench.create(images=folder, tile=64)
    assert len(bench.tasks(project)) == 4


def test_an_import_that_broke_off_is_finished(bench, images, monkeypatch):
    project = bench.create()
    post = bench.tool.lead.post

    def killed(path: str, *args: Any, **kwargs: Any) -> Any:
        answer = post(path, *args, **kwargs)
        if path.endswith("/import"):
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(bench.tool.lead, "post", killed)
    with pytest.raises(KeyboardInterrupt):
        import_images(bench.ledger, bench.settings, bench.tool, project, images)
    monkeypatch.undo()
    assert len(bench.tasks(project)) == 3
    bench.create(images=images)
    assert len(bench.tasks(project)) == len(rows(bench.ledger, project)) == 3


def test_what_a_locked_sqlite_made_twice(bench, images, monkeypatch):
    """Label Studio runs a request again when its SQLite was locked halfway: what it made before stays."""
    post = bench.tool.lead.post
    monkeypatch.setattr(bench.tool.lead, "post", lambda *a, **k: (post(*a, **k), post(*a, **k))[1])
    project = bench.create(images=images)
    monkeypatch.undo()
    titled = bench.tool.lead.get("/api/projects/", page_size=100)["results"]
    assert [found["id"] for found in titled if found["title"] == bench.name] == [project.tool_project_id]
    assert len(bench.tasks(project)) == len(rows(bench.ledger, project)) == 3
    assert len(bench.views(project)) == len(VIEWS)


def test_a_creation_that_broke_off_is_taken_up(bench, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Project, "__init__", full)
    with pytest.raises(OSError, match="No space"):
        bench.create()
    monkeypatch.undo()
    project = bench.create()
    titled = bench.tool.lead.get("/api/projects/", page_size=100, title=bench.name)["results"]
    assert [found["id"] for found in titled if found["title"] == bench.name] == [project.tool_project_id]


def test_images_uploaded_to_a_server_that_does_not_see_our_disk(bench, images):
    project = bench.create(images=images, upload=True)
    assert bench.storages(project) == []
    tasks = bench.tasks(project)
    assert all(task["data"]["image"].startswith("/data/upload/") for task in tasks)
    for task in tasks:
        answer = bench.tool.lead.fetch(task["data"]["image"])
        with Image.open(io.BytesIO(answer.content)) as served:
            pixels = np.asarray(served.convert("RGB"))
        assert np.array_equal(pixels, open_raster(Path(task["data"]["source"])).pixels)
    bench.create(images=images, upload=True)
    assert len(bench.tasks(project)) == 3


def break_webhook_off(bench: Bench, project: Project) -> None:
    (hook,) = bench.webhooks(project)
    bench.tool.lead.patch(f"/api/webhooks/{hook['id']}/", {"url": hook["url"], "is_active": False})


def break_webhook_secret(bench: Bench, project: Project) -> None:
    (hook,) = bench.webhooks(project)
    body = {"url": hook["url"], "headers": {"X-ELNet-Secret": "old"}}
    bench.tool.lead.patch(f"/api/webhooks/{hook['id']}/", body)


def break_webhook_gone(bench: Bench, project: Project) -> None:
    (hook,) = bench.webhooks(project)
    bench.tool.lead.delete(f"/api/webhooks/{hook['id']}/")


def break_webhook_doubled(bench: Bench, project: Project) -> None:
    """As Label Studio does for an ML backend that was added first."""
    body = {"project": project.tool_project_id, "url": f"{bench.settings.web_url}/webhook"}
    bench.tool.lead.post("/api/webhooks/", body)


def break_webhook_address(bench: Bench, project: Project) -> None:
    (hook,) = bench.webhooks(project)
    body = {"url": "http://127.0.0.1:9/webhook", "headers": hook["headers"]}
    bench.tool.lead.patch(f"/api/webhooks/{hook['id']}/", body)


def break_backend_gone(bench: Bench, project: Project) -> None:
    (backend,) = bench.backends(project)
    bench.tool.lead.delete(f"/api/ml/{backend['id']}")


def break_backend_title(bench: Bench, project: Project) -> None:
    (backend,) = bench.backends(project)
    bench.tool.patch_backend(backend, title="renamed by hand")
    bench.tool.lead.patch(f"/api/projects/{project.tool_project_id}/", {"model_version": ""})


def break_predictions_hidden(bench: Bench, project: Project) -> None:
    path = f"/api/projects/{project.tool_project_id}/"
    bench.tool.lead.patch(path, {"show_collab_predictions": False})


def break_views(bench: Bench, project: Project) -> None:
    views = {view["data"]["title"]: view for view in bench.views(project)}
    bench.tool.lead.delete(f"/api/dm/views/{views['Audit']['id']}/")
    queue = views["Review queue"]
    body = {"project": project.tool_project_id, "data": {**queue["data"], "ordering": ["tasks:id"]}}
    bench.tool.lead.patch(f"/api/dm/views/{queue['id']}/", body)
    accepted = views["Accepted"]
    data = {**accepted["data"], "filters": {"conjunction": "or", "items": []}}
    body = {"project": project.tool_project_id, "data": data}
    bench.tool.lead.patch(f"/api/dm/views/{accepted['id']}/", body)


def break_storage(bench: Bench, project: Project) -> None:
    (storage,) = bench.storages(project)
    bench.tool.lead.delete(f"/api/storages/localfiles/{storage['id']}")


def break_interface(bench: Bench, project: Project) -> None:
    choices = '<Choices name="c" toName="i"><Choice value="x"/></Choices>'
    config = f'<View><Image name="i" value="$image"/>{choices}</View>'
    bench.tool.lead.patch(f"/api/projects/{project.tool_project_id}/", {"label_config": config})


@pytest.mark.parametrize(
    "damage",
    [
        break_webhook_off,
        break_webhook_secret,
        break_webhook_gone,
        break_webhook_doubled,
        break_webhook_address,
        break_backend_gone,
        break_backend_title,
        break_predictions_hidden,
        break_views,
        break_storage,
        break_interface,
    ],
)
def test_what_is_half_there_is_mended(bench, damage):
    project = bench.create()
    damage(bench, project)
    with pytest.raises((AssertionError, ValueError)):
        bench.assert_whole(project)
    bench.create()
    bench.assert_whole(project)


def test_a_new_address_and_new_secrets_are_taken_over(bench, installation):
    project = bench.create()
    old = bench.settings
    bench.settings = old.model_copy(
        update={"web": old.web.model_copy(update={"host": "localhost", "webhook_secret": SecretStr("new")})}
    )
    repair(bench.ledger, bench.settings, bench.tool, project)
    (hook,) = bench.webhooks(project)
    (backend,) = bench.backends(project)
    assert hook["url"] == f"http://localhost:{old.web.port}/webhook"
    assert hook["headers"] == {"X-ELNet-Secret": "new"}
    assert backend["url"] == f"http://localhost:{old.web.port}"


def test_what_people_changed_besides_stays(bench):
    project = bench.create()
    views = {view["data"]["title"]: view for view in bench.views(project)}
    queue = views["Review queue"]
    changed = {**queue["data"], "type": "grid", "columnsWidth": {"tasks:id": 99}}
    changed.pop("ordering")
    body = {"project": project.tool_project_id, "data": changed}
    bench.tool.lead.patch(f"/api/dm/views/{queue['id']}/", body)
    path = f"/api/projects/{project.tool_project_id}/"
    config = bench.tool.project(project.tool_project_id)["label_config"]
    mine = config.replace("</View>", '<Header value="mine"/></View>')
    bench.tool.lead.patch(path, {"label_config": mine, "expert_instruction": "ours"})
    other = {"project": project.tool_project_id, "url": "http://127.0.0.1:9/other"}
    bench.tool.lead.post("/api/webhooks/", other)
    bench.create()
    again = {view["data"]["title"]: view for view in bench.views(project)}["Review queue"]["data"]
    assert again["type"] == "grid"
    assert again["columnsWidth"] == {"tasks:id": 99}
    assert again["ordering"] == ["-tasks:data.priority"]
    there = bench.tool.project(project.tool_project_id)
    assert "mine" in there["label_config"]
    assert there["expert_instruction"] == "ours"
    assert any(hook["url"] == other["url"] for hook in bench.webhooks(project))


def test_views_filter_and_order(bench, images):
    for i in range(4, 8):
        Image.fromarray(picture(i)).save(images / f"{i}.png")
    project = bench.create(images=images)
    ids = [task["id"] for task in bench.tasks(project)]
    routes = ["review", "review", "review", "accepted", "audit", "done", "failed"]
    priorities = [9.5, 10.25, None, 0.1, 3.0, None, None]  # as text, "10.25" would come before "9.5"
    placements = [
        Placement(task, route, 0.5, priority)
        for task, route, priority in zip(ids, routes, priorities, strict=True)
    ]
    bench.tool.push_placements(project.tool_project_id, placements)

    def shown(title: str) -> list[int]:
        (view,) = [view for view in bench.views(project) if view["data"]["title"] == title]
        found = bench.tool.lead.get("/api/tasks", project=project.tool_project_id, view=view["id"])
        return [task["id"] for task in found["tasks"]]

    assert shown("Review queue") == [ids[1], ids[0], ids[2]]
    assert shown("Accepted") == [ids[3]]
    assert shown("Audit") == [ids[4]]
    assert shown("Done") == [ids[5]]
    assert shown("All images") == ids
    bench.tool.lead.post(f"/api/tasks/{ids[1]}/annotations/", {"result": [], "lead_time": 1})
    assert shown("Review queue") == [ids[0], ids[2]]


def test_label_studio_sends_its_events_to_the_backend(bench, images):
    project = bench.create(images=images)
    task = bench.tasks(project)[0]["id"]
    body = {"result": [], "lead_time": 1}
    annotation = bench.tool.lead.post(f"/api/tasks/{task}/annotations/", body)["id"]
    bench.tool.lead.delete(f"/api/annotations/{annotation}/")
    with bench.ledger.session(write=False) as session:
        actions = [event.action for event in session.scalars(select(InboxEvent).order_by(InboxEvent.id))]
    assert actions == ["ANNOTATION_CREATED", "ANNOTATIONS_DELETED"]


def promote(ledger: Ledger, project: Project, name: str) -> None:
    with ledger.session() as session:
        row = session.get_one(Project, project.id)
        digest = hashlib.sha256(name.encode()).hexdigest()
        version = registry.register(session, row, Path("models") / name, digest, name=name)
        registry.promote(session, version)


def test_the_champion_is_the_title(bench):
    project = bench.create()
    assert bench.backends(project)[0]["title"] == wiring.NO_MODEL
    promote(bench.ledger, project, "elnet-0001")
    bench.create()
    assert bench.backends(project)[0]["title"] == "elnet-0001"
    bench.assert_whole(project)
    bench.tool.serve_version(project.tool_project_id, "elnet-0002")
    assert bench.backends(project)[0]["title"] == "elnet-0002"
    assert bench.tool.project(project.tool_project_id)["model_version"] == "elnet-0002"


def test_what_was_lost_is_told_again(bench, images):
    project = bench.create(images=images)
    told_before = {"status": "review", "quality": 0.5, "priority": 0.5, "model_version": "elnet-0001"}
    with bench.ledger.session() as session:
        for row in session.scalars(select(Task).where(Task.project_id == project.id)):
            row.status, row.pushed = TaskStatus.REVIEW, dict(told_before)
    ids = [task["id"] for task in bench.tasks(project)]
    placements = [Placement(task, "review", 0.5, 0.5) for task in ids[:2]]
    bench.tool.push_placements(project.tool_project_id, placements)
    body = [{"task": task, "result": [], "score": 0.5, "model_version": "elnet-0001"} for task in ids[1:]]
    bench.tool.lead.post(f"/api/projects/{project.tool_project_id}/import/predictions", body)
    lost = told.lost(bench.ledger, bench.tool, project)
    assert sorted(lost.values()) == [("model_version",), ("status", "quality", "priority")]
    bench.create()
    first, second, third = [row.pushed for row in rows(bench.ledger, project)]
    assert first == {"status": "review", "quality": 0.5, "priority": 0.5}
    assert second == told_before
    assert third == {"model_version": "elnet-0001"}
    assert told.lost(bench.ledger, bench.tool, project) == {}


def test_no_backend_runs(bench, images):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        bench.settings.web.port = free.getsockname()[1]
    with pytest.raises(WiringError, match=r"cannot use the ML backend.*elnet web"):
        bench.create(images=images)
    with bench.ledger.session(write=False) as session:
        project = session.scalars(select(Project)).one()
    assert len(bench.tasks(project)) == 3  # what could be made is made
    assert len(bench.webhooks(project)) == 1


def test_a_wrong_password_for_the_backend(bench):
    web = bench.settings.web.model_copy(update={"password": SecretStr("wrong")})
    bench.settings = bench.settings.model_copy(update={"web": web})
    with pytest.raises(WiringError, match="401"):
        bench.create()


def test_a_storage_that_label_studio_does_not_see(bench, tmp_path):
    media = bench.settings.media.model_copy(update={"document_root": tmp_path / "unseen"})
    bench.settings = bench.settings.model_copy(update={"media": media})
    with pytest.raises(WiringError, match=r"does not take .*ELNET_LABEL_STUDIO__DOCUMENT_ROOT.*upload"):
        bench.create()


def test_a_media_root_under_another_name(bench, images, tmp_path):
    """As in a container: the server sees the folder elsewhere than we do."""
    real = bench.settings.media_root
    alias = tmp_path / "alias"
    alias.symlink_to(real)
    bench.settings = bench.settings.model_copy(
        update={
            "media": bench.settings.media.model_copy(update={"document_root": alias}),
            "label_studio": bench.settings.label_studio.model_copy(update={"document_root": str(real)}),
        }
    )
    project = bench.create(images=images)
    assert bench.storages(project)[0]["path"].startswith(str(real))
    assert bench.tool.lead.fetch(bench.tasks(project)[0]["data"]["image"]).status_code == 200


def test_names_that_are_taken(bench):
    bench.tool.lead.post("/api/projects/", {"title": bench.name, "label_config": "<View></View>"})
    with pytest.raises(ProjectError, match="was not made here"):
        bench.create()


def test_names_and_classes_that_do_not_go(bench):
    for name in ("ab", "x" * 51, " abc"):
        with pytest.raises(ProjectError, match="3 to 50 characters"):
            create(bench.ledger, bench.settings, bench.tool, name, ["oil"])
    with pytest.raises(ClassesError):
        create(bench.ledger, bench.settings, bench.tool, bench.name, ["oil", "oil"])
    bench.create()
    with pytest.raises(ProjectError, match="has the classes oil, ship, which are fixed"):
        create(bench.ledger, bench.settings, bench.tool, bench.name, ["oil"])


def test_a_project_that_was_deleted_in_label_studio(bench):
    project = bench.create()
    bench.tool.lead.delete(f"/api/projects/{project.tool_project_id}/")
    with pytest.raises(ProjectError, match="make a project of another name"):
        bench.create()


def test_the_same_server_at_another_address(bench, label_studio_server):
    project = bench.create()
    with bench.ledger.session() as session:
        session.get_one(Project, project.id).tool_url = "http://127.0.0.1:1"
    assert bench.create().tool_url == bench.tool.url
    bench.tool.lead.patch(f"/api/projects/{project.tool_project_id}/", {"description": "another one"})
    with bench.ledger.session() as session:
        session.get_one(Project, project.id).tool_url = "http://127.0.0.1:1"
    with pytest.raises(ProjectError, match=r"belongs to http://127\.0\.0\.1:1"):
        bench.create()


def test_a_folder_without_images(bench, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImportFolderError, match="holds no images"):
        bench.create(images=tmp_path / "empty")


def test_images_are_not_served_to_strangers(bench, images, label_studio_server):
    project = bench.create(images=images)
    uri = bench.tasks(project)[0]["data"]["image"]
    assert httpx.get(f"{label_studio_server.url}{uri}", trust_env=False).status_code in {302, 401, 403}
    escape = "/data/local-files/?d=../label-studio/label_studio.sqlite3"
    assert not bench.tool.lead.fetch(escape).is_success


def test_an_error_of_label_studio_keeps_its_status():
    assert LabelStudioError("x", 404, "gone").status == 404
