"""Checks of what runs between Label Studio and the backend: addresses, passwords, events."""

from __future__ import annotations

import statistics
import time
from uuid import uuid4

import httpx
from sqlalchemy import func, select

from active_learning.ledger import InboxEvent
from backend import wiring
from backend.auth import SECRET_HEADER
from backend.checks.common import AGAIN, Finding, Patient
from backend.label_studio_http import LabelStudioError

_ANSWER_S = 0.2  # Label Studio waits 1 s, inside the annotator's request
_DELIVERY_S = 5.0


def local_address(name: str, p: Patient) -> Finding:
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


def backend_reached(name: str, p: Patient) -> Finding:
    """Whether Label Studio gets an answer of /health within its one second."""
    if not p.backends:
        return Finding(name, False, "the project has no ML backend of ours", AGAIN)
    backend = p.backends[0]
    if len(p.backends) > 1 or backend["url"] != p.settings.web_url:
        urls = ", ".join(b["url"] for b in p.backends)
        return Finding(name, False, f"it is at {urls}; the backend is at {p.settings.web_url}", AGAIN)
    if backend["state"] == "DI":
        detail = f"Label Studio gets no answer from {backend['url']}/health within a second"
        cure = "start the backend (`elnet web`); check that Label Studio reaches it (ELNET_WEB__PUBLIC_URL)"
        return Finding(name, False, detail, cure)
    return Finding(name, True, f"{backend['url']} answers")


def basic_auth(name: str, p: Patient) -> Finding:
    """Whether POST /setup goes through, which /health alone does not prove."""
    if not p.backends:
        return Finding(name, False, "the project has no ML backend of ours", AGAIN)
    backend = p.backends[0]
    if backend["state"] == "CO":
        return Finding(name, True, "Label Studio's password is the backend's")
    said = backend["error_message"] or backend["readable_state"]
    cure = f"{AGAIN}; the backend must run with the same ELNET_WEB__USERNAME and ELNET_WEB__PASSWORD"
    return Finding(name, False, f"POST {backend['url']}/setup fails: {said}", cure)


def model_version(name: str, p: Patient) -> Finding:
    """Champion, title of the ML backend and `project.model_version` must be one: else no scores."""
    title = p.backends[0]["title"] if p.backends else None
    version = p.there["model_version"]
    wanted = p.champion or wiring.NO_MODEL
    if version == title == wanted or (p.champion is None and version == title):
        return Finding(name, True, f"{version!r} everywhere")
    detail = (
        f"the champion is {p.champion!r}, the ML backend's title {title!r}, the project's model version "
        f"{version!r}: Label Studio shows no scores and samples at random"
    )
    return Finding(name, False, detail, AGAIN)


def webhook(name: str, p: Patient) -> Finding:
    """Exactly one, active, with the secret, for every action that matters."""
    found = wiring.webhooks(p.tool, p.settings, p.tool_project_id)
    if not found:
        return Finding(name, False, "the project has no webhook to this backend", AGAIN)
    if len(found) > 1:
        return Finding(name, False, f"{len(found)} webhooks send every event several times", AGAIN)
    fields = wiring.webhook_fields(p.settings)
    wrong = [key for key in fields if not wiring.webhook_is_intact(found[0], {key: fields[key]})]
    if wrong:
        told_of = {
            "is_active": "it is switched off",
            "headers": f"{SECRET_HEADER} is not the backend's secret",
        }
        detail = "; ".join(told_of.get(key, f"its {key} differs") for key in wrong)
        return Finding(name, False, detail, AGAIN)
    return Finding(name, True, f"{found[0]['url']}, {len(found[0]['actions'])} actions")


def delivery(name: str, p: Patient) -> Finding:
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
        f"reaches another backend at {wiring.webhook_url(p.settings)}, or it writes into another ledger"
    )
    return Finding(name, False, "an event that Label Studio sent did not arrive in the inbox", cure)


def answer(name: str, p: Patient) -> Finding:
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
