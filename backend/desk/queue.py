"""The queue: the next images in their order, why each stands there, and the strategy that orders them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flask import Blueprint, flash, redirect, request, url_for
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session
from werkzeug import Response
from werkzeug.exceptions import NotFound

from active_learning import standing
from active_learning.acquisition import AcquisitionError, check
from active_learning.ledger import Project, Task, TaskStatus
from active_learning.policy import PolicyError
from active_learning.strategy import MEANINGS
from backend.desk.policy import change
from backend.desk.project_page import open_project, render, render_part
from backend.desk.queued_images import ORDER, QueuedImage, queued_images
from backend.desk.strategy import comparison
from backend.desk.words import MEANINGS as STATUSES
from model.errors import ELNetError

blueprint = Blueprint("desk_queue", __name__, url_prefix="/desk")

PAGE: Final = 24  # pictures on a page,
ROWS: Final = 100  # and rows of the table


class FilterError(ELNetError):
    """What was asked for cannot be looked for."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which images are asked for.

    Attributes:
        view: where they stand.
        scene: part of their scene's name; "": any.
        least: lowest predicted IoU; None: any, and images without one.
        most: it is below this; None: the same.
        page: from 1 on.
    """

    view: TaskStatus = TaskStatus.REVIEW
    scene: str = ""
    least: float | None = None
    most: float | None = None
    page: int = 1

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Filters:
        """From the query of an address.

        Raises:
            FilterError: a value that cannot be meant.
        """
        view = given.get("view") or TaskStatus.REVIEW.value
        if view not in {status.value for status in STATUSES}:
            raise FilterError(f"There is no view {view!r}; there are {', '.join(STATUSES)}.")
        page = given.get("page") or "1"
        if not page.isdecimal() or not 1 <= int(page) < 10**9:
            raise FilterError(f"A page is a number from 1 on, not {page!r}.")
        least, most = (_quality(name, given.get(name, "")) for name in ("least", "most"))
        return cls(TaskStatus(view), given.get("scene", "").strip(), least, most, int(page))


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """A page of a view.

    Attributes:
        filters: what was asked for.
        counts: status -> images, of the whole project.
        found: images that the filters let through.
        pages: that they fill.
        images: of this page, in their order: that of the queue, elsewhere the least sure first.
        strategy: that orders the review queue.
        ordered_by: the strategy by which it stands now; None: not ordered yet.
        champion: version that serves; None before the first.
    """

    filters: Filters
    counts: dict[TaskStatus, int]
    found: int
    pages: int
    images: list[QueuedImage]
    strategy: str
    ordered_by: str | None
    champion: str | None


def facts(session: Session, project: Project, filters: Filters, size: int = PAGE) -> QueueFacts:
    """Look at a page of a view; only reads.

    Args:
        session: any.
        project: the project.
        filters: what is asked for; beyond the last page there is nothing.
        size: images of a page.
    """
    counts = standing.counts(session, project)
    which = _where(project, filters)
    narrowed = bool(filters.scene) or filters.least is not None or filters.most is not None
    found = counts[filters.view]
    if narrowed:
        found = session.scalar(select(func.count()).select_from(Task).where(*which)) or 0
    begin = (filters.page - 1) * size
    tasks = session.scalars(select(Task).where(*which).order_by(*ORDER).limit(size).offset(begin)).all()
    return QueueFacts(
        filters,
        counts,
        found,
        max(1, math.ceil(found / size)),
        queued_images(session, project, tasks, begin),
        project.strategy,
        project.ordered_by,
        project.champion.name if project.champion else None,
    )


def _quality(name: str, given: str) -> float | None:
    if not given.strip():
        return None
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise FilterError(f"The predicted IoU ({name}) is a number from 0 to 1, not {given!r}.")
    return value


def _where(project: Project, filters: Filters) -> list[ColumnElement[bool]]:
    which = [Task.project_id == project.id, Task.status == filters.view]
    if filters.scene:
        which.append(Task.scene.contains(filters.scene, autoescape=True))
    if filters.least is not None:
        which.append(Task.quality >= filters.least)
    if filters.most is not None:
        which.append(Task.quality < filters.most)
    return which


@blueprint.get("/<int:project_id>/queue")
def show(project_id: int) -> tuple[str, int]:
    """A page of a view, as pictures or as a table (`as=table`)."""
    table = request.args.get("as") == "table"
    wrong = None
    try:
        filters = Filters.of(request.args)
    except FilterError as error:
        wrong, filters = str(error), Filters()
    with open_project(project_id) as (session, project):
        found = facts(session, project, filters, ROWS if table else PAGE)
        shown = {"facts": found, "table": table, "wrong": wrong, "strategies": MEANINGS}
        page = render("queue.html", project, **shown)
    return page, 400 if wrong else 200


@blueprint.get("/<int:project_id>/queue/strategy")
def compare(project_id: int) -> str:
    """The strategies to choose from; what the one that is tried would change is a part by itself."""
    with open_project(project_id) as (session, project):
        wanted = request.args.get("strategy") or next(s for s in MEANINGS if s != project.strategy)
        _check(wanted)
        waiting = standing.counts(session, project)[TaskStatus.REVIEW]
        return render("strategy.html", project, tried=wanted, waiting=waiting, strategies=MEANINGS)


@blueprint.get("/<int:project_id>/queue/strategy/order")
def foresee(project_id: int) -> str:
    """The queue as it stands beside the order that another strategy would give it."""
    with open_project(project_id) as (session, project):
        wanted = request.args.get("strategy", "")
        _check(wanted)
        found = comparison(session, project, wanted)
        back = url_for(".compare", project_id=project_id, strategy=wanted)
        return render_part("strategy_order.html", project, f"By {wanted}", back, facts=found)


@blueprint.post("/<int:project_id>/queue/strategy")
def choose(project_id: int) -> Response:
    """Let another strategy order the queue from now on."""
    wanted, why = request.form.get("strategy", ""), request.form.get("why", "")
    try:
        with open_project(project_id, write=True) as (session, project):
            before = project.strategy
            change(session, project, {"strategy": wanted}, why.strip())
    except PolicyError as error:
        flash(f"Nothing was changed: {error}.", "error")
        return redirect(
            url_for(".compare", project_id=project_id, strategy=wanted if wanted in MEANINGS else None)
        )
    if before != wanted:
        flash(
            f"{wanted} orders the queue from now on; the worker writes the new order with its next look.",
            "ok",
        )
    else:
        flash(f"{wanted} orders the queue already.", "ok")
    return redirect(url_for(".show", project_id=project_id))


def _check(strategy: str) -> None:
    try:
        check(strategy)
    except AcquisitionError as error:
        raise NotFound(str(error)) from error
