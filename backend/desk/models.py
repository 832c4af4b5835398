"""The model versions: how good each is, what it came from, and a lead's word on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from flask import Blueprint, flash, redirect, request, url_for
from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session, aliased
from werkzeug import Response
from werkzeug.exceptions import NotFound

from active_learning import registry
from active_learning.ledger import Cycle, ModelState, ModelVersion, Project, Promotion
from active_learning.registry import RegistryError
from backend.desk.access import note
from backend.desk.learning_curve import NextGain, next_gain
from backend.desk.project_page import open_project, render, signed_in
from backend.desk.summaries import labels_of, metrics_of
from backend.desk.words import sentence

blueprint = Blueprint("desk_models", __name__, url_prefix="/desk")

PAGE: Final = 20  # versions


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """One version; its figures are of the holdout, None where it was not judged.

    Attributes:
        iou: of the foreground, pooled over all pixels.
        iou_per_image: the mean over images.
        boundary_f1: at 2 px, the mean over images.
        holdout: images that it was judged on.
        seconds: median time for an image, on the worker that judged it.
        labels: that it was trained on; None: it was trained outside of the loop.
        parent: the version that its training went on from; None: none.
        cycle: that trained it.
        promoted_at: when it last began to serve.
        promoted_by: the lead who let it serve then; None: the gate, or nobody yet.
        delta: mean smoothed IoU per image less that of the champion it was compared with; None: with none.
        verdict: the gate's words.
    """

    id: int
    name: str
    state: ModelState
    iou: float | None
    iou_per_image: float | None
    boundary_f1: float | None
    holdout: int | None
    seconds: float | None
    labels: int | None
    parent: str | None
    cycle: int | None
    created_at: datetime
    promoted_at: datetime | None
    promoted_by: str | None
    delta: float | None
    verdict: str | None


@dataclass(frozen=True, slots=True)
class Models:
    """The versions of a project.

    Attributes:
        versions: newest first, a page of them.
        older: id of the last one here, where more follow: the next page's `before`.
        champion: what serves.
        former: what a rollback goes back to; None: nothing.
        waiting: those that wait for a lead's word.
        next_gain: what the next step in IoU takes.
    """

    versions: list[VersionFacts]
    older: int | None
    champion: str | None
    former: str | None
    waiting: list[str]
    next_gain: NextGain


def facts(session: Session, project: Project, before: int | None = None) -> Models:
    """The versions with an id below `before`, or the newest ones."""
    mine = _versions(project)
    if before is not None:
        mine = mine.where(ModelVersion.id < before)
    rows = session.execute(mine.order_by(ModelVersion.id.desc()).limit(PAGE + 1)).all()
    former = registry.former(session, project)
    return Models(
        _facts(session, project, rows[:PAGE]),
        rows[PAGE - 1].id if len(rows) > PAGE else None,
        project.champion.name if project.champion else None,
        former.name if former else None,
        registry.challengers(session, project),
        next_gain(session, project),
    )


def version_facts(session: Session, project: Project, version: ModelVersion) -> VersionFacts:
    """Of one version."""
    rows = session.execute(_versions(project).where(ModelVersion.id == version.id)).all()
    return _facts(session, project, rows)[0]


def find_version(session: Session, project: Project, name: str) -> ModelVersion:
    """The version of a name in an address.

    Raises:
        NotFound: the project has none of this name.
    """
    try:
        return registry.find(session, project, name)
    except RegistryError as error:
        raise NotFound(str(error)) from error


def _versions(project: Project) -> Select[Any]:
    """A row for each version, without its metrics."""
    parent = aliased(ModelVersion)
    cycle = select(func.max(Cycle.id)).where(Cycle.challenger_id == ModelVersion.id)
    columns = (ModelVersion.id, ModelVersion.name, ModelVersion.state, ModelVersion.snapshot_id)
    times = (ModelVersion.created_at, ModelVersion.promoted_at)
    return (
        select(*columns, *times, parent.name.label("parent"), cycle.scalar_subquery().label("cycle"))
        .outerjoin(parent, parent.id == ModelVersion.parent_id)
        .where(ModelVersion.project_id == project.id)
    )


def _facts(session: Session, project: Project, rows: Sequence[Row[Any]]) -> list[VersionFacts]:
    metrics = metrics_of(session, [row.id for row in rows])
    labels = labels_of(session, {row.snapshot_id for row in rows if row.snapshot_id is not None})
    moves = select(Promotion.model_version_id, Promotion.who).where(Promotion.project_id == project.id)
    who = {version: name for version, name in session.execute(moves.order_by(Promotion.id))}  # noqa: C416
    found = []
    for row in rows:
        said = metrics[row.id]
        gate = said.get("gate", {})
        found.append(
            VersionFacts(
                row.id,
                row.name,
                row.state,
                said.get("fg_iou"),
                said.get("fg_iou_per_image"),
                said.get("boundary_f1"),
                said.get("n"),
                said.get("seconds"),
                labels.get(row.snapshot_id),
                row.parent,
                row.cycle,
                row.created_at,
                row.promoted_at,
                who.get(row.id),
                gate.get("delta"),
                gate.get("reason"),
            )
        )
    return found


def let_serve(session: Session, project: Project, name: str) -> VersionFacts:
    """Make a version the champion; the champion itself stays as it is.

    Raises:
        NotFound: the project has none of this name.
    """
    version = find_version(session, project, name)
    if version.id != project.champion_id:
        registry.promote(session, version, signed_in())
        note(session, "models.promote", name, project=project)
    return version_facts(session, project, version)


def put_aside(session: Session, project: Project, name: str) -> VersionFacts:
    """Reject a version.

    Raises:
        NotFound: the project has none of this name.
        RegistryError: it serves, or has served.
    """
    version = find_version(session, project, name)
    registry.reject(session, version)
    note(session, "models.reject", name, project=project)
    return version_facts(session, project, version)


def roll_back(session: Session, project: Project) -> VersionFacts:
    """Make the champion before this one the champion again.

    Raises:
        RegistryError: there was none.
    """
    version = registry.rollback(session, project, signed_in())
    note(session, "models.rollback", version.name, project=project)
    return version_facts(session, project, version)


@blueprint.get("/<int:project_id>/models")
def show(project_id: int) -> str:
    """The page."""
    before = request.args.get("before", type=int)
    with open_project(project_id) as (session, project):
        return render("models.html", project, facts=facts(session, project, before))


@blueprint.post("/<int:project_id>/models/<name>/promote")
def promote(project_id: int, name: str) -> Response:
    """Let a version serve: by its own merit, or as the lead's word on a challenger."""
    with open_project(project_id, write=True) as (session, project):
        serves = project.champion is not None and project.champion.name == name
        let_serve(session, project, name)
    said = "serves already" if serves else "serves from now on; the worker predicts again what is unlabelled"
    return _back(project_id, f"{name} {said}.")


@blueprint.post("/<int:project_id>/models/<name>/reject")
def reject(project_id: int, name: str) -> Response:
    """Put a version aside."""
    try:
        with open_project(project_id, write=True) as (session, project):
            put_aside(session, project, name)
    except RegistryError as error:
        return _back(project_id, sentence(error), "error")
    return _back(project_id, f"{name} is put aside; what serves goes on serving.")


@blueprint.post("/<int:project_id>/models/rollback")
def rollback(project_id: int) -> Response:
    """Go back to the champion before this one."""
    try:
        with open_project(project_id, write=True) as (session, project):
            name = roll_back(session, project).name
    except RegistryError as error:
        return _back(project_id, sentence(error), "error")
    return _back(project_id, f"{name} serves again.")


def _back(project_id: int, message: str, level: str = "ok") -> Response:
    flash(message, level)
    return redirect(url_for("desk_models.show", project_id=project_id), 303)
