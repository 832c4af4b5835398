"""Label Studio's ML contract: /health, /setup, /predict, /versions."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from flask import Blueprint, abort, request
from sqlalchemy import select

from active_learning.ledger import Project
from active_learning.ledger.failures import LedgerError
from backend.auth import require_basic
from backend.label_config import LabelConfigError, parse_label_config
from backend.metrics import metrics
from backend.services import services

blueprint = Blueprint("ml_api", __name__)

try:
    VERSION = metadata.version("elnet-loop")
except metadata.PackageNotFoundError:  # run from a checkout that was not installed
    VERSION = "unknown"


@blueprint.before_request
def _guard() -> None:
    if request.endpoint != "ml_api.health":  # container and load balancer checks carry no password
        require_basic()


@blueprint.get("/health")
def health() -> tuple[dict[str, str], int]:
    """Whether this backend can serve; never touches a model (Label Studio waits 1 s)."""
    try:
        with services().ledger.session(write=False) as session:
            session.execute(select(Project.id).limit(1))
    except LedgerError as error:
        return {"status": "DOWN", "version": VERSION, "ledger": str(error)}, 503
    return {"status": "UP", "version": VERSION, "ledger": "UP"}, 200


@blueprint.post("/setup")
def setup() -> dict[str, Any]:
    """Name the champion, and check that masks can be drawn in the project's labeling interface."""
    body = _body()
    schema = body.get("schema")
    if not isinstance(schema, str):
        abort(400, "`schema` must be the project's labeling interface")
    try:
        config = parse_label_config(schema)
    except LabelConfigError as error:
        abort(400, str(error))
    project = services().serving.project(_project_id(body))
    if project is None:
        return {"model_version": "", "warnings": ["the ledger does not hold this project (yet)"]}
    missing = [name for name in project.classes if name not in config.control.labels]
    answer: dict[str, Any] = {"model_version": project.champion.name if project.champion else ""}
    if missing:
        answer["warnings"] = [f"the tag {config.control.from_name!r} lacks the labels {', '.join(missing)}"]
    return answer


@blueprint.post("/predict")
def predict() -> dict[str, Any]:
    """One result for each task; see `backend.serving`."""
    body = _body()
    tasks = body.get("tasks")
    if not isinstance(tasks, list):
        abort(400, "`tasks` must be a list")
    params = body.get("params")
    context = params.get("context") if isinstance(params, dict) else None
    config = body.get("label_config")
    results = services().serving.predict(
        _project_id(body),
        tasks,
        config if isinstance(config, str) else None,
        context if isinstance(context, dict) else None,
    )
    for result in results:
        metrics().results.labels("empty" if "error" in result else "prediction").inc()
    return {"results": results}


@blueprint.get("/versions")
def versions() -> dict[str, list[str]]:
    """The model versions that serve or have served, champions first."""
    project = request.args.get("project")
    return {"versions": services().serving.versions(_number(project) if project else None)}


def _body() -> dict[str, Any]:
    """The request's JSON object; 400 or 415 otherwise."""
    body = request.get_json()
    if not isinstance(body, dict):
        abort(400, "the body must be a JSON object")
    return body


def _project_id(body: dict[str, Any]) -> int | None:
    """The project's number: Label Studio sends "<id>.<time of creation>"."""
    return _number(str(body.get("project", "")))


def _number(project: str) -> int | None:
    head = project.partition(".")[0]
    return int(head) if head.isascii() and head.isdigit() and len(head) < 19 else None
