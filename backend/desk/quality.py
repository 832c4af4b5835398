"""."""

from __future__ import annotations

from flask import Blueprint

from backend.desk.project_page import open_project, render

blueprint = Blueprint("desk_quality", __name__, url_prefix="/desk")


@blueprint.get("/<int:project_id>/quality")
def show(project_id: int) -> str:
    """The page."""
    with open_project(project_id) as (_, project):
        return render("quality.html", project)
