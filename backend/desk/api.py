"""/api/v1: all that the desk's pages show and do, as JSON, for programs.

A route is a line of `ROUTES`: what it does is one function of a session and a project, what it takes and
gives are dataclasses, and the OpenAPI document (`backend.desk.openapi`) is made of the same lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, Final

from flask import Blueprint, Response, jsonify, request
from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy.orm import Session
from werkzeug.exceptions import BadRequest

from active_learning.guarantee import Promise
from active_learning.ledger import Project
from active_learning.ledger.failures import LedgerError
from backend.desk import overview, policy, threshold
from backend.desk.index import ProjectLine, project_lines
from backend.desk.project_page import open_project
from backend.services import services
from model.errors import ELNetError

PREFIX: Final = "/api/v1"

blueprint = Blueprint("api", __name__, url_prefix=PREFIX)

Why = Annotated[str, Field(min_length=1, max_length=2000, description="the reason, for those who come later")]
Share = Annotated[float, Field(gt=0, lt=1)]
Bar = Annotated[float, Field(gt=0, le=1, description="an IoU")]


@dataclass(frozen=True, slots=True)
class PromiseQuery:
    """A promise to look at; without `risk` and `iou` the one that stands, or a usual one."""

    risk: Share | None = None
    iou: Bar | None = None
    confidence: Share = 0.9


@dataclass(frozen=True, slots=True)
class ThresholdBody:
    """A threshold of the lead's own; null: nothing is accepted without a human."""

    value: Annotated[float, Field(ge=0, le=1)] | None
    why: Why


@dataclass(frozen=True, slots=True)
class PromiseBody:
    """A promise that is to set the threshold."""

    risk: Share
    iou: Bar
    why: Why
    confidence: Share = 0.9
    classes: dict[str, Bar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PolicyBody:
    """Settings to change, all or none; see `elnet policy` for what there is."""

    changes: dict[str, Any]
    why: Why


@dataclass(frozen=True, slots=True)
class Nothing:
    """No body, no query."""


@dataclass(frozen=True, slots=True)
class Route:
    """One operation.

    Attributes:
        method: GET reads; POST changes something, and needs a lead.
        path: below a project; "" is the project itself.
        summary: a sentence for the document.
        does: session, project, what was given, what stands in the path -> the answer.
        answer: its type.
        given: dataclass of the query (GET) or the JSON body (POST).
    """

    method: str
    path: str
    summary: str
    does: Callable[..., Any]
    answer: Any
    given: Any = Nothing


def _threshold(session: Session, project: Project, given: PromiseQuery) -> threshold.ThresholdFacts:
    asked = None
    if given.risk is not None and given.iou is not None:
        asked = Promise(given.iou, given.risk, given.confidence)
    return threshold.facts(session, project, asked)


def _set_threshold(session: Session, project: Project, given: ThresholdBody) -> threshold.Move:
    return threshold.set_number(session, project, given.value, given.why)


def _promise(session: Session, project: Project, given: PromiseBody) -> threshold.Move:
    promised = Promise(given.iou, given.risk, given.confidence, given.classes)
    return threshold.make_promise(session, project, promised, given.why)


def _undo(session: Session, project: Project, given: Nothing) -> threshold.Move:
    return threshold.take_back(session, project)


def _set_policy(session: Session, project: Project, given: PolicyBody) -> policy.Policy:
    return policy.change(session, project, given.changes, given.why)


ROUTES: Final = (
    Route("GET", "", "Where the project stands, and what needs a lead.",
          lambda session, project, given: overview.overview(session, project), overview.Overview),
    Route("GET", "/threshold", "What each threshold would do, what can be promised, and its history.",
          _threshold, threshold.ThresholdFacts, PromiseQuery),
    Route("POST", "/threshold", "Set the threshold to a number, or to none.",
          _set_threshold, threshold.Move, ThresholdBody),
    Route("POST", "/threshold/promise", "Let a promise set the threshold, now and after each cycle.",
          _promise, threshold.Move, PromiseBody),
    Route("POST", "/threshold/undo", "Take back the last move of the threshold.", _undo, threshold.Move),
    Route("GET", "/policy", "The settings of the project.",
          lambda session, project, given: policy.facts(session, project), policy.Policy),
    Route("POST", "/policy", "Change settings of the project.", _set_policy, policy.Policy, PolicyBody),
)  # fmt: skip


@blueprint.get("/projects")
def projects() -> Response:
    """Every project."""
    with services().ledger.session(write=False) as session:
        return _answer(project_lines(session), list[ProjectLine])


def _view(route: Route) -> Callable[..., Response | tuple[Response, int]]:
    takes, writes = TypeAdapter(route.given), route.method != "GET"

    def view(project_id: int, **path: Any) -> Response | tuple[Response, int]:
        given = _given(takes, writes)
        try:
            with open_project(project_id, write=writes) as (session, project):
                return _answer(route.does(session, project, given, **path), route.answer)
        except LedgerError:
            raise
        except ELNetError as error:
            return jsonify(error=str(error)), HTTPStatus.CONFLICT

    return view


def _given(takes: TypeAdapter[Any], writes: bool) -> Any:
    """The body or the query, checked."""
    try:
        if writes:
            return takes.validate_json(request.get_data() or b"{}")
        return takes.validate_python(request.args.to_dict())
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, item['loc'])) or 'the body'}: {item['msg']}" for item in error.errors())
        raise BadRequest("; ".join(lines)) from error


def _answer(found: Any, kind: Any) -> Response:
    return Response(TypeAdapter(kind).dump_json(found), content_type="application/json")


def path_of(route: Route) -> str:
    """As Flask writes it, below `PREFIX`."""
    return f"/projects/<int:project_id>{route.path}"


for _route in ROUTES:
    _name = (
        f"{_route.method} {_route.path}".replace("/", " ").replace("<", "").replace(">", "").replace(":", "_")
    )
    blueprint.add_url_rule(
        path_of(_route),
        endpoint="_".join(_name.lower().split()),
        view_func=_view(_route),
        methods=[_route.method],
    )
