"""The webhook: takes an event, writes it into the inbox, answers.

Label Studio sends webhooks inside the annotator's request, waits one second and never repeats. So nothing is
decoded here, and the answer is one insert away. The worker works the inbox off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, abort, request
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from active_learning.ledger import InboxEvent, Ledger
from backend.auth import require_secret
from backend.events import project_id_of
from backend.services import services

blueprint = Blueprint("webhooks", __name__)

MAX_BYTES = 64 * 2**20  # a ragged 4096 x 4096 mask has 3 MB
_ANNOTATION_ACTIONS = {"ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED"}

blueprint.before_request(require_secret)


@blueprint.post("/webhook")
def webhook() -> dict[str, str]:
    """Take an event."""
    if (request.content_length or 0) > MAX_BYTES:
        abort(413, f"an event may have {MAX_BYTES} bytes; cut the image into tiles")
    payload = request.get_json()
    if not isinstance(payload, dict) or not isinstance(payload.get("action"), str):
        abort(400, "the body must be a JSON object with an `action`")
    return {"status": "queued" if receive(services().ledger, payload) else "known already"}


def receive(ledger: Ledger, payload: dict[str, Any]) -> bool:
    """Write an event into the inbox, once.

    Args:
        ledger: the ledger.
        payload: with its `action`; brush codes in it are packed in place.

    Returns:
        Whether it is new.

    Raises:
        LedgerError: the ledger cannot be written; the reconciler will find what the event said.
    """
    _pack(payload)
    event = InboxEvent(
        key=key_of(payload),
        tool_project_id=project_id_of(payload),
        action=payload["action"][:100],
        payload=payload,
    )
    try:
        with ledger.session() as session:
            session.add(event)
    except IntegrityError:
        with ledger.session(write=False) as session:
            if session.scalar(select(InboxEvent.id).where(InboxEvent.key == event.key)) is None:
                raise
        return False
    return True


def key_of(payload: dict[str, Any]) -> str:
    """What makes two deliveries the same event: a sha256.

    An annotation event is the annotation as it was (its updated_at included), whatever else is in the
    payload: counters of the project and ages in words differ between two deliveries of one event. A
    deletion or import is the ids. An event that names neither ids nor a time ("Start training", a deletion of
    everything) is new each time it comes; working it off twice does no more than once.
    """
    action = payload["action"]
    named: object
    if action in _ANNOTATION_ACTIONS:
        named = [{k: v for k, v in a.items() if k != "prediction"} for a in _annotations(payload)]
    elif action == "PROJECT_UPDATED":
        named = payload.get("project")
    else:
        objects = payload.get("annotations") or payload.get("tasks") or []
        named = [o.get("id") for o in objects if isinstance(o, dict)] if isinstance(objects, list) else []
    identity = [action, project_id_of(payload), named or uuid.uuid4().hex]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _pack(payload: dict[str, Any]) -> None:
    """Brush codes as base64 text: a hundred thousand numbers are slow to write and read as JSON."""
    for annotation in _annotations(payload):
        prediction = annotation.get("prediction")
        for holder in (annotation, prediction if isinstance(prediction, dict) else {}):
            result = holder.get("result")
            for region in result if isinstance(result, list) else []:
                value = region.get("value") if isinstance(region, dict) else None
                if isinstance(value, dict) and isinstance(value.get("rle"), list):
                    try:
                        value["rle"] = base64.b64encode(bytes(value["rle"])).decode()
                    except (ValueError, TypeError):
                        continue  # no bytes: kept as it is, and refused when it is decoded


def _annotations(payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One, or several."""
    found = payload.get("annotation")
    yield from (a for a in (found if isinstance(found, list) else [found]) if isinstance(a, dict))
