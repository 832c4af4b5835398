"""What the pages of a project share: the project of the address, and the frame around the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import g, render_template, request
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.exceptions import NotFound

from active_learning.ledger import Project
from backend.desk.access import who
from backend.services import services


@contextmanager
def open_project(project_id: int, *, write: bool = False) -> Iterator[tuple[Session, Project]]:
    """A transaction, and the project in it; committed at the end where `write`.

    Raises:
        NotFound: there is no such project.
        LedgerError: the ledger cannot be had.
    """
    with services().ledger.session(write=write) as session:
        project = session.get(Project, project_id)
        if project is None:
            raise NotFound(f"There is no project {project_id}.")
        g.projects = session.execute(select(Project.id, Project.name).order_by(Project.name)).all()
        yield session, project


def render(template: str, project: Project | None, **facts: Any) -> str:
    """A page in its frame.

    Args:
        template: its name in `templates/desk`.
        project: whose page it is; None: of no project.
        facts: what it shows.
    """
    return render_template(f"desk/{template}", project=project, projects=g.get("projects", []), **facts)


def render_part(inner: str, project: Project, title: str, back: str, **facts: Any) -> str:
    """A part of a page that takes longer: bare where desk.js asks for it, else in the frame.

    Args:
        inner: name of its template in `templates/desk`.
        project: whose it is.
        title: of the framed page.
        back: address of the page that it is a part of.
        facts: what it shows.
    """
    inner = f"desk/{inner}"
    if "bare" in request.args:
        return render_template(inner, project=project, **facts)
    return render("part.html", project, inner=inner, title=title, back=back, **facts)


def signed_in() -> str:
    """The name of who asks, for records of who changed what."""
    return who().name
