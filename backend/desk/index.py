"""The desk's front door: every project, where it stands and whether it needs a lead."""

from __future__ import annotations

from dataclasses import dataclass

from flask import Blueprint, redirect, render_template, url_for
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug import Response

from active_learning import standing, thresholds
from active_learning.ledger import Project, Role, TaskStatus
from backend.desk.access import requires
from backend.services import services

blueprint = Blueprint(
    "desk", __name__, url_prefix="/desk", template_folder="templates", static_folder="static"
)


@dataclass(frozen=True, slots=True)
class ProjectLine:
    """A project in the list: its counts, what serves, the threshold, why auto-accept stopped if it did."""

    id: int
    name: str
    classes: list[str]
    counts: dict[TaskStatus, int]
    champion: str | None
    threshold: float | None
    stopped: str | None


def project_lines(session: Session) -> list[ProjectLine]:
    """Every project, by name."""
    return [
        ProjectLine(
            project.id,
            project.name,
            project.classes,
            standing.counts(session, project),
            project.champion.name if project.champion else None,
            project.accept_threshold,
            thresholds.switched_off(session, project),
        )
        for project in session.scalars(select(Project).order_by(Project.name))
    ]


@blueprint.get("/")
@requires(Role.VIEWER)
def index() -> str | Response:
    """The list; with a single project its overview."""
    with services().ledger.session(write=False) as session:
        lines = project_lines(session)
    if len(lines) == 1:
        return redirect(url_for("desk_overview.show", project_id=lines[0].id))
    return render_template("desk/index.html", lines=lines)
