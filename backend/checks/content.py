"""Checks of what both sides hold: images, tasks, predictions, events, views."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import func, select

from active_learning import thresholds
from active_learning.ledger import InboxEvent, InboxState, Project, Task, TaskStatus
from active_learning.ledger.types import utc_now
from backend import told
from backend.checks.common import AGAIN, Finding, Patient
from backend.label_studio_api import Json
from backend.views import VIEWS, is_intact

_STALE_INBOX = timedelta(minutes=2)
_IMAGES = 3  # images that are asked for


def auto_accept(name: str, p: Patient) -> Finding:
    """Whether the loop has switched accepting off by itself."""
    with p.ledger.session(write=False) as session:
        off = thresholds.switched_off(session, session.get_one(Project, p.project_id))
    if off is not None:
        cure = "a lead decides anew: `elnet threshold promise --set`, or `elnet threshold set`"
        return Finding(name, False, f"off: {off}", cure)
    threshold = p.row.accept_threshold
    on = "off, as a lead has set it" if threshold is None else f"on, from predicted IoU {threshold:.3f}"
    return Finding(name, True, on)


def storage(name: str, p: Patient) -> Finding:
    """Whether images that Label Studio keeps or serves can be opened."""
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
        f"{AGAIN}; Label Studio must run with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true"
    )
    return Finding(name, False, f"{len(refused)} of {asked} images are not served: {refused[0]}", cure)


def inbox(name: str, p: Patient) -> Finding:
    """Whether events are worked off."""
    mine = InboxEvent.tool_project_id == p.tool_project_id
    failed = select(func.count()).where(mine, InboxEvent.state == InboxState.FAILED)
    stale = select(func.count()).where(
        mine, InboxEvent.state == InboxState.WAITING, InboxEvent.received_at < utc_now() - _STALE_INBOX
    )
    with p.ledger.session(write=False) as session:
        set_aside, waiting = session.scalar(failed) or 0, session.scalar(stale) or 0
    if waiting:
        detail = f"{waiting} event(s) have been waiting for over two minutes"
        return Finding(name, False, detail, "start the worker: `elnet worker`")
    if set_aside:
        cure = "the worker's log says why (the inbox's column `error` too): mend that, and submit again"
        return Finding(name, False, f"{set_aside} event(s) could not be worked off", cure)
    return Finding(name, True, "nothing was set aside")


def tasks(name: str, p: Patient) -> Finding:
    """Whether the ledger knows every task, and no other."""
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


def was_told(name: str, p: Patient) -> Finding:
    """Whether predictions, acceptances and routes are still there."""
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
    return Finding(name, False, detail, f"{AGAIN}; the worker then tells them again")


def views(name: str, p: Patient) -> Finding:
    """Whether the views filter and order as they should."""
    found: list[Json] = p.tool.lead.get("/api/dm/views/", project=p.tool_project_id)
    by_title: dict[Any, Json] = {view["data"].get("title"): view for view in reversed(found)}
    wrong = [v.title for v in VIEWS if v.title not in by_title or not is_intact(v, by_title[v.title])]
    if not wrong:
        return Finding(name, True, ", ".join(view.title for view in VIEWS))
    return Finding(name, False, f"missing, or with other filters or order: {', '.join(wrong)}", AGAIN)
