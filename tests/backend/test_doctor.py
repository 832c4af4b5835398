"""The doctor on a real Label Studio: every trap really set, found, and found mended by what it advises."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr
from sqlalchemy import select

from active_learning import thresholds
from active_learning.ledger import InboxEvent, InboxState, Project, Task, TaskStatus
from active_learning.ledger.types import utc_now
from backend import label_studio_environment, label_studio_http, wiring
from backend.checks import connection
from backend.doctor import Finding, examine
from backend.embedded import EmbeddedLabelStudio
from backend.label_studio import LabelStudio
from backend.projects import create
from backend.settings import LabelStudioSettings, Settings

pytestmark = pytest.mark.label_studio

_numbers = itertools.count(1)


class Ward:
    """A healthy project, to be broken."""

    def __init__(self, installation: Any, folder: Path) -> None:
        self.settings, self.ledger = installation.settings, installation.ledger
        self.tool, self.app = installation.tool, installation.app
        folder.mkdir(exist_ok=True)
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
        self.name = f"patient {next(_numbers)}"
        self.images = folder
        self.project = self.create()
        self.id = self.project.tool_project_id

    def create(self) -> Project:
        return create(self.ledger, self.settings, self.tool, self.name, ["oil"], images=self.images)

    def examine(self) -> dict[str, Finding]:
        found = examine(self.ledger, self.settings, self.tool, self.project)
        return {finding.name: finding for finding in found}

    def wrong(self) -> dict[str, Finding]:
        return {name: finding for name, finding in self.examine().items() if not finding.ok}

    def with_settings(self, section: str, **changes: Any) -> None:
        changed = getattr(self.settings, section).model_copy(update=changes)
        self.settings = self.settings.model_copy(update={section: changed})

    def hook(self) -> dict[str, Any]:
        (found,) = self.tool.lead.get("/api/webhooks/", project=self.id)
        return found

    def backend(self) -> dict[str, Any]:
        (found,) = self.tool.lead.get("/api/ml", project=self.id)
        return found

    def patch(self, **fields: Any) -> None:
        self.tool.lead.patch(f"/api/projects/{self.id}/", fields)

    def mend(self) -> None:
        """What most cures say."""
        self.create()


@pytest.fixture
def ward(installation, tmp_path, monkeypatch) -> Ward:
    monkeypatch.setattr(label_studio_http, "_DELAYS_S", (0.0,))
    monkeypatch.setattr(connection, "_DELIVERY_S", 1.0)
    return Ward(installation, tmp_path / "pictures")


def test_a_healthy_project(ward):
    found = ward.examine()
    assert all(finding.ok for finding in found.values()), found
    assert all(not finding.cure for finding in found.values())
    assert len(found) == 20
    assert "1.23" in found["Label Studio"].detail
    assert "legacy token of lead@elnet.local" in found["lead's token"].detail
    assert found["images served"].detail == "2 images were served"
    again = ward.examine()  # it changed nothing
    assert all(finding.ok for finding in again.values()), again
    assert ward.hook()["is_active"]


def test_label_studio_is_down(ward):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    ward.tool = LabelStudio(url, "0" * 40)
    (finding,) = ward.wrong().values()
    assert finding.name == "Label Studio"
    assert "does not answer" in finding.detail
    ward.tool.close()


def test_another_program_at_the_address(ward):
    ward.tool = LabelStudio(ward.settings.web_url, "0" * 40)
    (finding,) = ward.wrong().values()
    assert "not like Label Studio" in finding.detail
    ward.tool.close()


def test_a_wrong_token(ward, label_studio_server):
    ward.tool = LabelStudio(label_studio_server.url, "0" * 40)
    (finding,) = ward.wrong().values()
    assert finding.name == "lead's token"
    assert "ELNET_LABEL_STUDIO__TOKEN" in finding.detail
    ward.tool.close()


def test_legacy_tokens_switched_off(ward, label_studio_server, personal_token):
    def allow(value: bool) -> None:
        body = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": value}
        personal.lead.post("/api/jwt/settings", body)

    legacy = ward.tool
    personal = LabelStudio(label_studio_server.url, personal_token, label_studio_server.machine_token)
    ward.with_settings("label_studio", token=SecretStr(personal_token))
    ward.tool = personal
    try:
        assert "personal access token" in ward.examine()["lead's token"].detail
        allow(False)
        wrong = ward.wrong()
        assert set(wrong) == {"machine's token", "legacy tokens"}  # the machine's is one
        assert "Legacy Tokens" in wrong["legacy tokens"].cure
        ward.tool = legacy
        (finding,) = ward.wrong().values()
        assert finding.name == "lead's token"
        assert "legacy token authentication has been disabled" in finding.detail
    finally:
        allow(True)
        personal.close()
    assert not ward.wrong()


def test_no_machine_user_or_the_lead_in_its_place(ward, label_studio_server):
    ward.tool = LabelStudio(label_studio_server.url, label_studio_server.token)
    finding = ward.wrong()["machine's token"]
    assert "none is accepted" in finding.detail
    assert "ELNET_LABEL_STUDIO__MACHINE_TOKEN" in finding.cure
    ward.tool.close()
    ward.tool = LabelStudio(label_studio_server.url, label_studio_server.token, label_studio_server.token)
    assert "the lead's own" in ward.wrong()["machine's token"].detail
    ward.tool.close()


def test_the_project_is_gone(ward):
    ward.tool.lead.delete(f"/api/projects/{ward.id}/")
    (finding,) = ward.wrong().values()
    assert finding.name == "project"


def test_no_masks_can_be_drawn(ward):
    ward.patch(label_config='<View><Image name="image" value="$image"/></View>')
    wrong = ward.wrong()
    assert "no mask tag" in wrong["labeling interface"].detail
    assert not wrong["Basic auth"].ok  # POST /setup refuses such a config
    ward.mend()
    assert not ward.wrong()


def test_other_classes_than_the_ledgers(ward):
    there = ward.tool.project(ward.id)["label_config"]
    ward.patch(label_config=there.replace('value="oil"', 'value="slick"'))
    assert "lacks the classes oil" in ward.wrong()["labeling interface"].detail
    ward.mend()
    assert not ward.wrong()
    label = '<Label value="ship" background="#FFFFFF"/>'
    ward.patch(label_config=there.replace("</BrushLabels>", f"{label}</BrushLabels>"))
    wrong = ward.wrong()
    assert set(wrong) == {"labeling interface"}
    assert "ship" in wrong["labeling interface"].detail


def test_predictions_hidden_from_annotators(ward):
    ward.patch(show_collab_predictions=False)
    assert set(ward.wrong()) == {"predictions shown", "model version"}
    ward.mend()
    assert not ward.wrong()


def test_images_that_are_not_served(ward):
    (storage,) = wiring.storages(ward.tool, ward.id)
    ward.tool.lead.delete(f"/api/storages/localfiles/{storage['id']}")
    finding = ward.wrong()["images served"]
    assert "404" in finding.detail
    assert "LOCAL_FILES_SERVING_ENABLED" in finding.cure
    ward.mend()
    assert not ward.wrong()
    for path in ward.settings.media_root.glob(f"patient-*-{ward.id}/*/0.png"):
        path.unlink()
    assert "1 of 2 images" in ward.wrong()["images served"].detail


def test_the_backend_is_down(ward):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ward.with_settings("web", port=free.getsockname()[1])
    backend = ward.backend()
    hook = ward.hook()
    ward.tool.lead.patch(
        f"/api/webhooks/{hook['id']}/", {**wiring.webhook_fields(ward.settings), "project": ward.id}
    )
    ward.tool.lead.delete(f"/api/ml/{backend['id']}")
    wrong = ward.wrong()
    assert {"ML backend reached", "webhook answers", "webhook delivers"} <= set(wrong)
    assert "elnet web" in wrong["webhook answers"].cure


def test_a_backend_that_stopped(ward, installation, monkeypatch):
    """The row is there; /health does not come in time, as when the process hangs."""
    view = ward.app.view_functions["ml_api.health"]
    monkeypatch.setitem(ward.app.view_functions, "ml_api.health", lambda: time.sleep(1.5) or view())
    finding = ward.wrong()["ML backend reached"]
    assert "within a second" in finding.detail
    monkeypatch.undo()
    assert ward.examine()["ML backend reached"].ok


def test_the_backend_is_gone_or_elsewhere(ward):
    backend = ward.backend()
    url = ward.settings.web_url.replace("127.0.0.1", "localhost")
    ward.tool.patch_backend(backend, url=url)
    assert url in ward.wrong()["ML backend reached"].detail
    ward.tool.lead.delete(f"/api/ml/{backend['id']}")
    wrong = ward.wrong()
    assert {"ML backend reached", "Basic auth", "model version"} <= set(wrong)
    ward.mend()
    assert not ward.wrong()


def test_a_wrong_password(ward):
    ward.settings.web.password = SecretStr("changed")  # the backend's, after Label Studio was told
    wrong = ward.wrong()
    assert set(wrong) == {"Basic auth"}
    assert "401" in wrong["Basic auth"].detail
    assert "ELNET_WEB__PASSWORD" in wrong["Basic auth"].cure
    ward.mend()
    assert not ward.wrong()


def test_a_title_that_is_not_the_model_version(ward):
    ward.tool.patch_backend(ward.backend(), title="renamed by hand")
    ward.patch(model_version="")
    finding = ward.wrong()["model version"]
    assert "'renamed by hand'" in finding.detail
    ward.mend()
    assert not ward.wrong()


def test_a_webhook_that_is_off_old_doubled_or_gone(ward):
    hook = ward.hook()
    path = f"/api/webhooks/{hook['id']}/"
    keep = {key: hook[key] for key in ("url", "headers", "send_for_all_actions", "actions")}
    ward.tool.lead.patch(path, {**keep, "is_active": False})
    wrong = ward.wrong()
    assert set(wrong) == {"webhook", "webhook delivers"}
    assert wrong["webhook"].detail == "it is switched off"
    ward.tool.lead.patch(path, {**keep, "is_active": True, "actions": ["TASKS_CREATED"]})
    assert "its actions differs" in ward.wrong()["webhook"].detail
    ward.tool.lead.patch(path, {**keep, "is_active": True, "headers": {"X-ELNet-Secret": "old"}})
    wrong = ward.wrong()
    assert set(wrong) == {"webhook", "webhook delivers"}
    assert "secret" in wrong["webhook"].detail
    ward.mend()
    assert not ward.wrong()
    ward.tool.lead.post("/api/webhooks/", {"project": ward.id, "url": hook["url"]})
    assert "several times" in ward.wrong()["webhook"].detail
    ward.mend()
    ward.tool.lead.delete(path)
    assert set(ward.wrong()) == {"webhook", "webhook delivers"}
    ward.mend()
    assert not ward.wrong()


def test_a_backend_with_another_secret(ward):
    mine = ward.settings
    ward.with_settings("web", webhook_secret=SecretStr("another"))
    wrong = ward.wrong()
    assert "ELNET_WEB__WEBHOOK_SECRET" in wrong["webhook answers"].cure
    ward.settings = mine
    assert not ward.wrong()


def test_a_slow_webhook(ward, monkeypatch):
    view = ward.app.view_functions["webhooks.webhook"]
    monkeypatch.setitem(ward.app.view_functions, "webhooks.webhook", lambda: time.sleep(0.25) or view())
    wrong = ward.wrong()
    assert set(wrong) == {"webhook answers"}
    assert " ms; " in wrong["webhook answers"].detail


def test_a_backend_over_another_ledger(ward, monkeypatch):
    """Label Studio's events are taken, and land where nobody looks."""
    monkeypatch.setitem(ward.app.view_functions, "webhooks.webhook", lambda: {"status": "queued"})
    wrong = ward.wrong()
    assert set(wrong) == {"webhook delivers"}
    assert "another ledger" in wrong["webhook delivers"].cure


def test_events_that_nobody_works_off(ward):
    def add(key: str, **fields: Any) -> None:
        with ward.ledger.session() as session:
            session.add(
                InboxEvent(key=key, tool_project_id=ward.id, action="TASKS_CREATED", payload={}, **fields)
            )

    add("a", state=InboxState.FAILED)
    assert "1 event(s) could not" in ward.wrong()["inbox"].detail
    add("b", received_at=utc_now() - timedelta(minutes=5))
    finding = ward.wrong()["inbox"]
    assert "waiting" in finding.detail
    assert "elnet worker" in finding.cure


def test_tasks_that_one_side_does_not_know(ward):
    ward.tool.lead.post(f"/api/projects/{ward.id}/import", [{"data": {"image": "/data/x.png"}}])
    wrong = ward.wrong()
    assert "1 only in Label Studio, 0 only in the ledger" in wrong["tasks"].detail
    assert "elnet worker" in wrong["tasks"].cure


def test_predictions_and_routes_that_were_lost(ward):
    with ward.ledger.session() as session:
        for row in session.scalars(select(Task).where(Task.project_id == ward.project.id)):
            row.status = TaskStatus.REVIEW
            row.pushed = {"model_version": "elnet-0001", "status": "review"}
    finding = ward.wrong()["what was told"]
    assert finding.detail == "lost in Label Studio: 2 predictions, 2 routes"
    ward.mend()
    assert ward.examine()["what was told"].ok


def test_accepting_that_switched_itself_off(ward):
    assert "auto-accept" not in ward.wrong()
    with ward.ledger.session() as session:
        project = session.get_one(Project, ward.project.id)
        if project.accept_threshold is None:
            thresholds.set_threshold(session, project, 0.9, "lea", "a start")
        thresholds.set_threshold(session, project, None, thresholds.LOOP, "the promise is broken: 6 of 13")
    found = ward.wrong()["auto-accept"]
    assert found.detail == "off: the promise is broken: 6 of 13"
    with ward.ledger.session() as session:
        project = session.get_one(Project, ward.project.id)
        thresholds.set_threshold(session, project, 0.95, "lea", "looked at them: a bad batch")
    assert ward.examine()["auto-accept"].detail == "on, from predicted IoU 0.950"


def test_views_that_are_gone_or_changed(ward):
    views = {v["data"]["title"]: v for v in ward.tool.lead.get("/api/dm/views/", project=ward.id)}
    ward.tool.lead.delete(f"/api/dm/views/{views['Audit']['id']}/")
    queue = views["Review queue"]
    body = {"project": ward.id, "data": {**queue["data"], "ordering": ["tasks:id"]}}
    ward.tool.lead.patch(f"/api/dm/views/{queue['id']}/", body)
    wrong = ward.wrong()
    assert wrong["views"].detail.endswith("Review queue, Audit")
    ward.mend()
    assert not ward.wrong()


BLOCKED = {
    "default": {"USE_DEFAULT_BANNED_SUBNETS": "true"},
    "half allowed": {"USE_DEFAULT_BANNED_SUBNETS": "true", "ML_BLOCK_LOCAL_IP": "false"},
}


@pytest.fixture(params=BLOCKED)
def blocking_server(request, tmp_path, monkeypatch, label_studio_server) -> Iterator[EmbeddedLabelStudio]:
    """A Label Studio that refuses local addresses, as it does by default, or in part."""
    ours = label_studio_environment.server_environment

    def theirs(*args: Any) -> dict[str, str]:
        told = {f"LABEL_STUDIO_{name}": value for name, value in BLOCKED[request.param].items()}
        return {**ours(*args), **told}

    monkeypatch.setattr("backend.embedded.server_environment", theirs)
    state = tmp_path / "blocking"
    with EmbeddedLabelStudio(Settings(state=state, label_studio=LabelStudioSettings(port=0))) as server:
        yield server


def test_local_addresses_refused(ward, blocking_server):
    tool = LabelStudio(blocking_server.url, blocking_server.token, blocking_server.machine_token)
    title = {"title": ward.name, "label_config": ward.tool.project(ward.id)["label_config"]}
    there = tool.lead.post("/api/projects/", title)
    ward.tool = tool
    ward.project.tool_project_id = there["id"]
    finding = ward.wrong()["local addresses"]
    assert "refused" in finding.detail
    assert "USE_DEFAULT_BANNED_SUBNETS=false" in finding.cure
    with pytest.raises(wiring.WiringError, match="USE_DEFAULT_BANNED_SUBNETS=false"):
        wiring.ensure_webhook(tool, ward.settings, there["id"])
    tool.close()
