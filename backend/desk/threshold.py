"""The threshold: what it costs and promises under a slider, the promise that sets it, its history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from flask import Blueprint, flash, redirect, render_template, request, url_for
from sqlalchemy.orm import Session
from werkzeug import Response
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import BadRequest

from active_learning import thresholds
from active_learning.guarantee import Guarantee, GuaranteeError, Promise
from active_learning.ledger import ModelVersion, Project, ThresholdChange
from active_learning.risk import ThresholdError, WhatIf, what_if
from backend.desk.access import note
from backend.desk.charts import Chart, chart
from backend.desk.ladder import STEPS, Ladder, draw, ladder, near, reached
from backend.desk.project_page import open_project, render, signed_in
from backend.promise_words import in_words

blueprint = Blueprint("desk_threshold", __name__, url_prefix="/desk")

USUAL: Final = Promise(iou=0.6, risk=0.1)  # that a lead is asked about first


@dataclass(frozen=True, slots=True)
class Move:
    """One change of the threshold, as `active_learning.ledger.ThresholdChange`."""

    at: datetime
    who: str
    before: float | None
    after: float | None
    why: str


@dataclass(frozen=True, slots=True)
class ThresholdFacts:
    """All that the page shows.

    Attributes:
        threshold: in force; None: nothing is accepted.
        version: that serves; None: none does.
        asked: the promise that is looked at: the one asked for, else the one that stands, else a usual one.
        stands: the one that sets the threshold; None: a lead's number does.
        stopped: why auto-accept has switched itself off; None: it has not.
        answer: what audits can promise of `asked` today.
        tried: what the answer's threshold would do.
        sentences: both, in words.
        ladder: for the slider.
        history: every move, newest first.
    """

    threshold: float | None
    version: str | None
    asked: Promise
    stands: Promise | None
    stopped: str | None
    answer: Guarantee
    tried: WhatIf
    sentences: list[str]
    ladder: Ladder
    history: list[Move]


def facts(session: Session, project: Project, asked: Promise | None = None) -> ThresholdFacts:
    """Of a project; only reads.

    Raises:
        ThresholdError: the promise speaks of a class that the project does not have.
    """
    stands = thresholds.standing(project)
    promised = asked or stands or USUAL
    judged = thresholds.judged(session, project, promised)
    answer = judged.guarantee(promised)
    tried = what_if(session, project, answer.threshold, promised.iou, promised.confidence)
    version = project.champion.name if project.champion else None
    return ThresholdFacts(
        project.accept_threshold,
        version,
        promised,
        stands,
        thresholds.switched_off(session, project),
        answer,
        tried,
        in_words(answer, promised, version, tried),
        ladder(session, project, promised, judged),
        [move(change) for change in thresholds.history(session, project)],
    )


def move(change: ThresholdChange) -> Move:
    """One change of the threshold."""
    return Move(change.at, change.who, change.from_value, change.to_value, change.why)


def set_number(session: Session, project: Project, value: float | None, why: str) -> Move:
    """Let a number of the lead's own be the threshold; None: nothing is accepted.

    Raises:
        ThresholdError: not in [0, 1], nothing would change, or no reason is named.
    """
    made = thresholds.set_threshold(session, project, value, signed_in(), why)
    note(session, "threshold.set", project=project, to=value, why=why)
    return move(made)


def make_promise(session: Session, project: Project, asked: Promise, why: str) -> Move:
    """Let a promise set the threshold, now and after each cycle.

    Raises:
        ThresholdError: nothing would change, no reason is named, or there is no such class.
    """
    if not why:
        raise ThresholdError("a change of the threshold needs who made it and why")
    made, found = thresholds.promise(session, project, asked, signed_in(), why)
    note(session, "threshold.promise", project=project, promise=str(asked), to=found.threshold, why=why)
    return move(made)


def take_back(session: Session, project: Project) -> Move:
    """Undo the last move.

    Raises:
        ThresholdError: there was none.
    """
    made = thresholds.undo(session, project, signed_in())
    note(session, "threshold.undo", project=project, to=made.to_value)
    return move(made)


@chart("risk-coverage")
def _risk_coverage(session: Session, project: Project, query: Any) -> Chart:
    promised = _asked(query) or thresholds.standing(project) or USUAL
    rows = [
        {
            "coverage": one.coverage,
            "threshold": one.threshold,
            "audited scenes": one.scenes,
            "bad": one.bad,
            "share bad": one.bad / one.scenes,
            "low": one.low,
            "high": one.high,
            "promised": promised.risk,
        }
        for one in reached(thresholds.judged(session, project, promised), promised)
    ]
    return Chart(rows, draw)


@blueprint.get("/<int:project_id>/threshold")
def show(project_id: int) -> str:
    """The page; the query may ask for a promise, and for a place of the slider."""
    with open_project(project_id) as (session, project):
        try:
            asked = _asked(request.args)
            found = facts(session, project, asked)
        except (GuaranteeError, ThresholdError) as error:
            raise BadRequest(f"{error}.") from error
        at = _number(request.args, "at", _first(found))
        above, below = near(session, project, at)
        return render("threshold.html", project, facts=found, at=at, above=above, below=below, steps=STEPS)


@blueprint.get("/<int:project_id>/threshold/near")
def gallery(project_id: int) -> str:
    """The masks on either side of a line, for the slider."""
    with open_project(project_id) as (session, project):
        at = _number(request.args, "at", 0.5)
        above, below = near(session, project, at)
        champion: ModelVersion | None = project.champion
        version = champion.name if champion else None
        return render_template(
            "desk/near.html", project=project, version=version, at=at, above=above, below=below
        )


@blueprint.post("/<int:project_id>/threshold")
def set_(project_id: int) -> Response:
    """Set a number of the lead's own; the button `none` sets that nothing is accepted."""
    value = None if "none" in request.form else _number(request.form, "value", -1.0)
    return _changed(project_id, lambda session, project: set_number(session, project, value, _why()))


@blueprint.post("/<int:project_id>/threshold/promise")
def promise(project_id: int) -> Response:
    """Let a promise set the threshold, now and after each cycle."""

    def change(session: Session, project: Project) -> Move:
        asked = _asked(request.form)
        if asked is None:
            raise ThresholdError("the form names no promise")
        return make_promise(session, project, asked, _why())

    return _changed(project_id, change)


@blueprint.post("/<int:project_id>/threshold/undo")
def undo(project_id: int) -> Response:
    """Take back the last move."""
    return _changed(project_id, take_back)


def _changed(project_id: int, change: Callable[[Session, Project], Move]) -> Response:
    """Make a change, or say why not, and go back to the page."""
    try:
        with open_project(project_id, write=True) as (session, project):
            after = change(session, project).after
        moved = "nothing is accepted now" if after is None else f"it is {after:.3f} now"
        flash(f"Recorded: {moved}. Every image is routed by it within seconds.", "ok")
    except (ThresholdError, GuaranteeError) as error:
        flash(f"Nothing was changed: {error}.", "error")
    return redirect(url_for("desk_threshold.show", project_id=project_id))


def _why() -> str:
    return request.form.get("why", "").strip()


def _asked(given: MultiDict[str, str]) -> Promise | None:
    """The promise that a query or a form names; None if it names none.

    Raises:
        GuaranteeError: a number out of its range.
    """
    if "iou" not in given or "risk" not in given:
        return None
    bars = {
        name.removeprefix("class-"): _number(given, name, -1.0)
        for name, value in given.items()
        if name.startswith("class-") and value.strip()
    }
    return Promise(
        _number(given, "iou", -1.0),
        _number(given, "risk", -1.0) / 100,
        _number(given, "confidence", 100 * USUAL.confidence) / 100,
        bars,
    )


def _number(given: MultiDict[str, str], name: str, default: float) -> float:
    """A number of a form or query; what is none is refused further on."""
    try:
        return float(given.get(name, default))
    except ValueError:
        raise BadRequest(f"{name} should be a number, not {given.get(name)!r}.") from None


def _first(found: ThresholdFacts) -> float:
    """Where the slider stands at first: in force, else what could be promised, else the middle."""
    for value in (found.threshold, found.answer.threshold):
        if value is not None:
            return value
    return 0.5
