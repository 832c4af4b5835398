"""The policy of a project: its settings, what they mean, who changed them and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml
from flask import Blueprint, flash, redirect, request, url_for
from sqlalchemy.orm import Session
from werkzeug import Response

from active_learning import policy
from active_learning.ledger import Project
from active_learning.policy import PolicyError
from backend.desk.access import note
from backend.desk.project_page import open_project, render, signed_in
from model.errors import ELNetError

blueprint = Blueprint("desk_policy", __name__, url_prefix="/desk")


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting: its value, as JSON, and what it means."""

    name: str
    value: Any
    meaning: str

    @property
    def shown(self) -> str:
        """As YAML on one line, the form in which it is typed."""
        text: str = yaml.safe_dump(self.value, default_flow_style=True, width=10_000)
        return text.removesuffix("...\n").strip()


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a setting."""

    at: datetime
    who: str
    setting: str
    before: Any
    after: Any
    why: str


@dataclass(frozen=True, slots=True)
class Policy:
    """All settings of a project, and their changes, newest first."""

    settings: list[Setting]
    history: list[Change]


def facts(session: Session, project: Project) -> Policy:
    """Of a project; only reads."""
    return Policy(
        [Setting(name, getattr(project, name), setting.meaning) for name, setting in policy.SETTINGS.items()],
        [
            Change(made.at, made.who, made.setting, made.from_value, made.to_value, made.why)
            for made in policy.history(session, project)
        ],
    )


def change(session: Session, project: Project, wanted: Mapping[str, Any], why: str) -> Policy:
    """Change settings, all or none.

    Raises:
        PolicyError: no such setting, a value out of its range, or no reason.
        TrainingError: the training settings are not valid.
    """
    made = policy.change(session, project, wanted, signed_in(), why)
    note(session, "policy.set", project=project, changes={c.setting: c.to_value for c in made}, why=why)
    return facts(session, project)


@blueprint.get("/<int:project_id>/policy")
def show(project_id: int) -> str:
    """The page."""
    with open_project(project_id) as (session, project):
        return render("policy.html", project, facts=facts(session, project))


@blueprint.post("/<int:project_id>/policy")
def set_(project_id: int) -> Response:
    """Change what differs."""
    try:
        with open_project(project_id, write=True) as (session, project):
            before = {one.name: one for one in facts(session, project).settings}
            wanted = {
                name: _read(name, text)
                for name, text in request.form.items()
                if name in before and text.strip() != before[name].shown
            }
            if not wanted:
                raise PolicyError("every setting has this value already")
            change(session, project, wanted, request.form.get("why", "").strip())
        flash(f"Recorded: {', '.join(wanted)}.", "ok")
    except ELNetError as error:
        flash(f"Nothing was changed: {error}.", "error")
    return redirect(url_for("desk_policy.show", project_id=project_id))


def _read(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PolicyError(f"{name} cannot be read: {str(error).splitlines()[0]}") from error
