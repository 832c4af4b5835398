"""The record of actions: who did what at the desk, through its API, and to its users."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from flask import Blueprint, request
from sqlalchemy.orm import Session

from backend.actions import latest
from backend.desk.project_page import render
from backend.services import services

blueprint = Blueprint("desk_log", __name__, url_prefix="/desk")

SHOWN: Final = 50  # actions on a page


@dataclass(frozen=True, slots=True)
class Action:
    """One action, as `active_learning.ledger.ActionRecord`; `project`: the name of the one it concerned."""

    id: int
    at: datetime
    who: str
    action: str
    thing: str | None
    project: str | None
    address: str | None
    detail: dict[str, Any]


def actions(session: Session, who: str | None = None, before: int | None = None) -> list[Action]:
    """The newest `SHOWN`, the newest first.

    Args:
        session: any.
        who: only this user's.
        before: only those older than the action of this id, to page on.
    """
    return [
        Action(
            one.id,
            one.at,
            one.who,
            one.action,
            one.thing,
            one.project.name if one.project else None,
            one.address,
            one.detail,
        )
        for one in latest(session, SHOWN, who=who, before=before)
    ]


@blueprint.get("/log")
def show() -> str:
    """The page."""
    who, before = request.args.get("who") or None, request.args.get("before", type=int)
    with services().ledger.session(write=False) as session:
        found = actions(session, who, before)
    return render("log.html", None, actions=found, who=who, more=len(found) == SHOWN)
