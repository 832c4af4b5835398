"""/api/v1: what the desk's pages show and do, as JSON, for programs.

Each line of `backend.desk.api_routes` becomes a view here, and the OpenAPI document (`backend.desk.openapi`)
is made of the same lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final

from flask import Blueprint, Response, jsonify, request
from pydantic import TypeAdapter, ValidationError
from werkzeug.exceptions import BadRequest

from active_learning.ledger.failures import LedgerError
from backend.desk.access import requires
from backend.desk.api_routes import ROUTES, Nothing, Route
from backend.desk.project_page import open_project
from backend.services import services
from model.errors import ELNetError

PREFIX: Final = "/api/v1"

blueprint = Blueprint("api", __name__, url_prefix=PREFIX)


def _view(route: Route) -> Callable[..., Response | tuple[Response, int]]:
    takes = TypeAdapter(route.given)

    @requires(route.role)
    def view(**path: Any) -> Response | tuple[Response, int]:
        given = () if route.given is Nothing else (_given(takes, route.writes),)
        try:
            with _opened(path.pop("project_id", None), write=route.writes) as opened:
                return _answer(route.does(*opened, *given, **path), route.answer)
        except LedgerError:
            raise
        except ELNetError as error:
            return jsonify(error=str(error)), HTTPStatus.CONFLICT

    return view


@contextmanager
def _opened(project_id: int | None, *, write: bool) -> Iterator[tuple[Any, ...]]:
    """A transaction, and the project in it, if one is named."""
    if project_id is not None:
        with open_project(project_id, write=write) as (session, project):
            yield session, project
        return
    with services().ledger.session(write=write) as session:
        yield (session,)


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


for _route in ROUTES:
    _words = re.sub(r"[^a-z]+", " ", f"{_route.method} {_route.path}".lower()).split()
    blueprint.add_url_rule(
        _route.path, endpoint="_".join(_words), view_func=_view(_route), methods=[_route.method]
    )
