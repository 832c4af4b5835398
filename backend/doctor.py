"""Looks for what fails silently between Label Studio, backend and ledger, and says how to mend it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any
from uuid import uuid4

import httpx
from sqlalchemy import func, select

from active_learning.ledger import InboxEvent, InboxState, Ledger, Project, Task, TaskStatus
from active_learning.ledger.types import utc_now
from active_learning.ports import ToolUnavailableError
from backend import told, wiring
from backend.auth import SECRET_HEADER
from backend.label_config import LabelConfigError, parse_label_config
from backend.label_studio import LabelStudio
from backend.label_studio_api import BACKEND_MARK, Json
from backend.label_studio_http import LabelStudioError
from backend.settings import Settings
from backend.views import VIEWS, is_intact
from model.errors import ELNetError

_AGAIN = "run `elnet project create` again with the project's name and classes: it mends this"
_ANSWER_S = 0.2  # Label Studio waits 1 s, inside the annotator's request
_DELIVERY_S = 5.0
_STALE_INBOX = timedelta(minutes=2)
_IMAGES = 3  # images that are asked for


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `cure` is empty where nothing needs one."""

    name: str
    ok: bool
    detail: str
    cure: str = ""


def examine(ledger: Ledger, settings: Settings, tool: LabelStudio, project: Project) -> list[Finding]:
    """Check a project from end to end, on the running servers. Nothing is changed for good.

    Args:
        ledger: the ledger.
        settings: in force: addresses, tokens, secrets.
        tool: the server.
        project: the project.

    Returns:
        A finding for each check; only the first ones where Label Studio does not let us in.
    """
    patient = _Patient(ledger, settings, tool, project)
    findings = []
    for name, check, is_needed in _CHECKS:
        finding = _run(name, check, patient)
        findings.append(finding)
        if is_needed and not finding.ok:
            break
    return findings


class _Patient:
    """What the checks look at; what they share is asked for once."""

    def __init__(self, ledger: Ledger, settings: Settings, tool: LabelStudio, project: Project) -> None:
        self.ledger, self.settings, self.tool = ledger, settings, tool
        self.project_id, self.tool_project_id = project.id, project.tool_project_id

    @cached_property
    def row(self) -> Project:
        with self.ledger.session(write=False) as session:
            return session.get_one(Project, self.project_id)

    @cached_property
    def champion(self) -> str | None:
        with self.ledger.session(write=False) as session:
            champion = session.get_one(Project, self.project_id).champion
            return champion.name if champion else None

    @cached_property
    def there(self) -> Json:
        return self.tool.project(self.tool_project_id)

    @cached_property
    def backends(self) -> list[Json]:
        """Ours. Listing them makes Label Studio ask each for its health and set it up."""
        found = self.tool.lead.get("/api/ml", project=self.tool_project_id)
        url = self.settings.web_url
        return [b for b in found if b["description"] == BACKEND_MARK or b["url"] == url]


Check = Callable[[str, _Patient], Finding]


def _run(name: str, check: Check, patient: _Patient) -> Finding:
    try:
        return check(name, patient)
    except ToolUnavailableError as error:
        return Finding(name, False, str(error), "start Label Studio, or check ELNET_LABEL_STUDIO__URL")
    except ELNetError as error:
        return Finding(name, False, str(error), "mend what the message names")


def _server(name: str, p: _Patient) -> Finding:
    answer = p.tool.lead.fetch("/api/version")
    try:
        release = str(answer.json()["release"])
    except (ValueError, KeyError, TypeError):
        cure = "check ELNET_LABEL_STUDIO__URL: another program may listen there"
        return Finding(name, False, f"{p.tool.url} answers, but not like Label Studio", cure)
    numbers = tuple(int(part) for part in release.split(".")[:2] if part.isdigit())
    cure = "" if numbers >= (1, 23) else "use Label Studio 1.23; older ones were not tried"
    return Finding(name, numbers >= (1, 23), f"Label Studio {release} at {p.tool.url}", cure)


def _lead(name: str, p: _Patient) -> Finding:
    user = p.tool.lead.get("/api/current-user/whoami")
    token = p.settings.label_studio.token
    kind = "personal access token" if token and token.get_secret_value().count(".") == 2 else "legacy token"
    return Finding(name, True, f"{kind} of {user['email']}")


def _machine(name: str, p: _Patient) -> Finding:
    cure = (
        "invite a second user to Label Studio (Organization, Add members), sign in as that user, and put its "
        "token into ELNET_LABEL_STUDIO__MACHINE_TOKEN"
    )
    if p.tool.machine is None:
        return Finding(name, False, "not set: masks are routed, but none is accepted", cure)
    machine = p.tool.machine.get("/api/current-user/whoami")
    if machine["id"] == p.tool.lead.get("/api/current-user/whoami")["id"]:
        detail = f"it is the lead's own ({machine['email']}): what people draw would pass for the machine's"
        return Finding(name, False, detail, cure)
    try:
        p.tool.machine.get(f"/api/projects/{p.tool_project_id}/")
    except LabelStudioError:
        detail = f"{machine['email']} does not see project {p.tool_project_id}"
        return Finding(name, False, detail, "make that user a member of the lead's organization")
    return Finding(name, True, f"of {machine['email']}")


def _legacy(name: str, p: _Patient) -> Finding:
    allowed = bool(p.tool.lead.get("/api/jwt/settings")["legacy_api_tokens_enabled"])
    detail = "allowed" if allowed else "off: the one that Label Studio hands to ML backends is refused (401)"
    cure = "" if allowed else "switch them on under Organization, Access Token Settings, Legacy Tokens"
    return Finding(name, allowed, detail, cure)


def _project(name: str, p: _Patient) -> Finding:
    title = p.there["title"]
    return Finding(name, True, f"{title!r}, {p.tool.url}/projects/{p.tool_project_id}")


def _interface(name: str, p: _Patient) -> Finding:
    try:
        config = parse_label_config(p.there["label_config"])
    except LabelConfigError as error:
        return Finding(name, False, str(error), _AGAIN)
    missing = [label for label in p.row.classes if label not in config.control.labels]
    if missing:
        detail = f"the tag {config.control.from_name!r} lacks the classes {', '.join(missing)}"
        return Finding(name, False, detail, f"put the labels back, or {_AGAIN}")
    more = [label for label in config.labels if label not in p.row.classes]
    if more:
        detail = f"it has labels that are no classes of the ledger: {', '.join(more)}"
        return Finding(name, False, detail, "remove them: what is drawn with them is not learnt")
    return Finding(name, True, f"{config.control.kind} with {', '.join(p.row.classes)}")


def _predictions_shown(name: str, p: _Patient) -> Finding:
    if p.there["show_collab_predictions"]:
        return Finding(name, True, "prefills are shown to annotators")
    detail = "off: annotators begin without a prefill, and the project has lost its model version"
    return Finding(
        name, False, detail, f"switch on Settings, Annotation, Use predictions to prelabel; or {_AGAIN}"
    )


def _storage(name: str, p: _Patient) -> Finding:
    asked, refused = 0, []
    for task in p.tool.tasks(p.tool_project_id):
        if asked == _IMAGES:
            break
        if task.image_uri.startswith("/"):
            asked += 1
            answer = p.tool.lead.fetch(task.image_uri)
            if not answer.is_success or not answer.headers.get("content-type", "").startswith("image/"):
                refused.append(f"{task.image_uri}: {answer.status_code}")
    if not refused:
        return Finding(name, True, f"{asked} images were served" if asked else "no image is kept there")
    cure = (
        "the project needs a local storage that covers the folder, and the files must be there: "
        f"{_AGAIN}; Label Studio must run with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true"
    )
    return Finding(name, False, f"{len(refused)} of {asked} images are not served: {refused[0]}", cure)


def _local_address(name: str, p: _Patient) -> Finding:
    """Whether Label Studio may call the backend's address: it says so when a webhook is saved."""
    url = wiring.webhook_url(p.settings)
    there = wiring.webhooks(p.tool, p.settings, p.tool_project_id)
    probe = {"project": p.tool_project_id, "url": url, "is_active": False}
    try:
        if there:
            keep = {key: there[0][key] for key in ("headers", "is_active", "send_for_all_actions", "actions")}
            p.tool.lead.patch(f"/api/webhooks/{there[0]['id']}/", {"url": there[0]["url"], **keep})
        else:
            made = p.tool.lead.post("/api/webhooks/", probe)
            p.tool.lead.delete(f"/api/webhooks/{made['id']}/")
        for backend in p.backends:
            p.tool.patch_backend(backend)
    except LabelStudioError as error:
        if error.status != 403 and "reserved network" not in error.detail:
            return Finding(name, True, f"{url} is not refused")  # what else is wrong, other checks tell
        return Finding(name, False, f"{url} is refused: {error.detail}", wiring.LOCAL_ADDRESS_CURE)
    return Finding(name, True, f"{url} is allowed")


def _backend_reached(name: str, p: _Patient) -> Finding:
    if not p.backends:
        return Finding(name, False, "the project has no ML backend of ours", _AGAIN)
    backend = p.backends[0]
    if len(p.backends) > 1 or backend["url"] != p.settings.web_url:
        urls = ", ".join(b["url"] for b in p.backends)
        return Finding(name, False, f"it is at {urls}; the backend is at {p.settings.web_url}", _AGAIN)
    if backend["state"] == "DI":
        detail = f"Label Studio gets no answer from {backend['url']}/health within a second"
        cure = "start the backend (`elnet web`); check that Label Studio reaches it (ELNET_WEB__PUBLIC_URL)"
        return Finding(name, False, detail, cure)
    return Finding(name, True, f"{backend['url']} answers")


def _basic_auth(name: str, p: _Patient) -> Finding:
    if not p.backends:
        return Finding(name, False, "the project has no ML backend of ours", _AGAIN)
    backend = p.backends[0]
    if backend["state"] == "CO":
        return Finding(name, True, "Label Studio's password is the backend's")
    said = backend["error_message"] or backend["readable_state"]
    cure = f"{_AGAIN}; the backend must run with the same ELNET_WEB__USERNAME and ELNET_WEB__PASSWORD"
    return Finding(name, False, f"POST {backend['url']}/setup fails: {said}", cure)


def _model_version(name: str, p: _Patient) -> Finding:
    title = p.backends[0]["title"] if p.backends else None
    version = p.there["model_version"]
    wanted = p.champion or wiring.NO_MODEL
    if version == title == wanted or (p.champion is None and version == title):
        return Finding(name, True, f"{version!r} everywhere")
    detail = (
        f"the champion is {p.champion!r}, the ML backend's title {title!r}, the project's model version "
        f"{version!r}: Label Studio shows no scores and samples at random"
    )
    return Finding(name, False, detail, _AGAIN)


def _webhook(name: str, p: _Patient) -> Finding:
    found = wiring.webhooks(p.tool, p.settings, p.tool_project_id)
    if not found:
        return Finding(name, False, "the project has no webhook to this backend", _AGAIN)
    if len(found) > 1:
        return Finding(name, False, f"{len(found)} webhooks send every event several times", _AGAIN)
    fields = wiring.webhook_fields(p.settings)
    wrong = [key for key in fields if not wiring.webhook_is_intact(found[0], {key: fields[key]})]
    if wrong:
        told_of = {
            "is_active": "it is switched off",
            "headers": f"{SECRET_HEADER} is not the backend's secret",
        }
        detail = "; ".join(told_of.get(key, f"its {key} differs") for key in wrong)
        return Finding(name, False, detail, _AGAIN)
    return Finding(name, True, f"{found[0]['url']}, {len(found[0]['actions'])} actions")


def _delivery(name: str, p: _Patient) -> Finding:
    """Saves the project unchanged: Label Studio then sends PROJECT_UPDATED."""
    newest = select(func.max(InboxEvent.id))
    with p.ledger.session(write=False) as session:
        before = session.scalar(newest) or 0
    description = p.tool.project(p.tool_project_id)["description"]
    p.tool.lead.patch(f"/api/projects/{p.tool_project_id}/", {"description": description})
    arrived = select(InboxEvent.id).where(
        InboxEvent.id > before,
        InboxEvent.tool_project_id == p.tool_project_id,
        InboxEvent.action == "PROJECT_UPDATED",
    )
    end = time.monotonic() + _DELIVERY_S
    while time.monotonic() < end:
        with p.ledger.session(write=False) as session:
            if session.scalars(arrived).first() is not None:
                return Finding(name, True, "an event of Label Studio arrived in the inbox")
        time.sleep(0.1)
    cure = (
        "mend what the checks of address, webhook and answer find; if they find nothing, Label Studio "
        f"reaches another backend at {wiring.webhook_url(p.settings)}, or that one has another ledger"
    )
    return Finding(name, False, "an event that Label Studio sent did not arrive in the inbox", cure)


def _answer(name: str, p: _Patient) -> Finding:
    """Events of our own, which change nothing: the backend's answer and how long it took."""
    url, secret = wiring.webhook_url(p.settings), p.settings.web.webhook_secret
    headers = {SECRET_HEADER: secret.get_secret_value()} if secret else {}
    times = []
    try:
        for _ in range(3):
            event = {"action": "ELNET_DOCTOR", "project": {"id": p.tool_project_id}, "id": uuid4().hex}
            begun = time.perf_counter()
            answer = httpx.post(url, json=event, headers=headers, timeout=5, trust_env=False)
            times.append(time.perf_counter() - begun)
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                cure = "start the backend with the same ELNET_WEB__WEBHOOK_SECRET as this command"
                return Finding(name, False, f"{url} refuses the secret of these settings", cure)
            if not answer.is_success:
                return Finding(name, False, f"{url} answers {answer.status_code}", "see the backend's log")
    except httpx.TransportError as error:
        return Finding(name, False, f"{url} does not answer: {error}", "start the backend: `elnet web`")
    median = statistics.median(times)
    detail = f"{median * 1000:.0f} ms; annotators wait for it at every submit"
    if median < _ANSWER_S:
        return Finding(name, True, detail)
    cure = "the backend's machine or its ledger's disk is too busy: move the worker, or use PostgreSQL"
    return Finding(name, False, detail, cure)


def _inbox(name: str, p: _Patient) -> Finding:
    mine = InboxEvent.tool_project_id == p.tool_project_id
    failed = select(func.count()).where(mine, InboxEvent.state == InboxState.FAILED)
    stale = select(func.count()).where(
        mine, InboxEvent.state == InboxState.WAITING, InboxEvent.received_at < utc_now() - _STALE_INBOX
    )
    with p.ledger.session(write=False) as session:
        set_aside, waiting = session.scalar(failed) or 0, session.scalar(stale) or 0
    if waiting:
        return Finding(
            name, False, f"{waiting} events wait since two minutes", "start the worker: `elnet worker`"
        )
    if set_aside:
        cure = (
            "read why in the inbox's `error` column (the worker's log has it too), mend it and submit again"
        )
        return Finding(name, False, f"{set_aside} events could not be worked off", cure)
    return Finding(name, True, "nothing was set aside")


def _tasks(name: str, p: _Patient) -> Finding:
    listed = {task["id"] for task in p.tool.listed(p.tool_project_id)}
    living = select(Task.tool_task_id).where(Task.project_id == p.project_id, Task.status != TaskStatus.GONE)
    with p.ledger.session(write=False) as session:
        known = set(session.scalars(living))
    if listed == known:
        return Finding(name, True, f"{len(known)} in Label Studio and in the ledger")
    detail = f"{len(listed - known)} only in Label Studio, {len(known - listed)} only in the ledger"
    return Finding(
        name, False, detail, "the worker reads them: start it (`elnet worker`), look again in a minute"
    )


def _told(name: str, p: _Patient) -> Finding:
    lost = told.lost(p.ledger, p.tool, p.row)
    if not lost:
        return Finding(
            name, True, "Label Studio holds every prediction, acceptance and route that it was told"
        )
    keys = [key for missing in lost.values() for key in missing]
    parts = {
        "predictions": keys.count("model_version"),
        "acceptances": keys.count("accepted"),
        "routes": keys.count("status"),
    }
    detail = "lost in Label Studio: " + ", ".join(f"{count} {what}" for what, count in parts.items() if count)
    return Finding(name, False, detail, f"{_AGAIN}; the worker then tells them again")


def _views(name: str, p: _Patient) -> Finding:
    found: list[Json] = p.tool.lead.get("/api/dm/views/", project=p.tool_project_id)
    by_title: dict[Any, Json] = {view["data"].get("title"): view for view in reversed(found)}
    wrong = [v.title for v in VIEWS if v.title not in by_title or not is_intact(v, by_title[v.title])]
    if not wrong:
        return Finding(name, True, ", ".join(view.title for view in VIEWS))
    return Finding(name, False, f"missing, or with other filters or order: {', '.join(wrong)}", _AGAIN)


# Name, check, and whether the ones behind it make sense without it.
_CHECKS: tuple[tuple[str, Check, bool], ...] = (
    ("Label Studio", _server, True),
    ("lead's token", _lead, True),
    ("project", _project, True),
    ("machine's token", _machine, False),
    ("legacy tokens", _legacy, False),
    ("labeling interface", _interface, False),
    ("predictions shown", _predictions_shown, False),
    ("images served", _storage, False),
    ("local addresses", _local_address, False),
    ("ML backend reached", _backend_reached, False),
    ("Basic auth", _basic_auth, False),
    ("model version", _model_version, False),
    ("webhook", _webhook, False),
    ("webhook answers", _answer, False),
    ("webhook delivers", _delivery, False),
    ("inbox", _inbox, False),
    ("tasks", _tasks, False),
    ("what was told", _told, False),
    ("views", _views, False),
)
