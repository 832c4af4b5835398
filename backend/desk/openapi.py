"""The OpenAPI document of /api/v1, made of the lines that make its routes."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any, Final, Literal

from flask import Blueprint, Response, jsonify
from pydantic import TypeAdapter

from backend.desk.api import PREFIX
from backend.desk.api_routes import ROUTES, Nothing, Route

blueprint = Blueprint("openapi", __name__, url_prefix=PREFIX)

_PARAMETER: Final = re.compile(r"<(?:(\w+):)?(\w+)>")
_ERRORS: Final = {
    "400": "What was given is not valid; the text says what and why.",
    "401": "No valid token or session.",
    "403": "The role does not allow it.",
    "404": "There is no such thing.",
    "409": "It cannot be done as things stand; nothing was changed.",
}


@blueprint.get("/openapi.json")
def show() -> Response:
    """The document."""
    return jsonify(document())


def document() -> dict[str, Any]:
    """As OpenAPI 3.1 has it."""
    kinds: list[tuple[str, Literal["validation", "serialization"], TypeAdapter[Any]]] = [
        *((f"answer {i}", "serialization", TypeAdapter(route.answer)) for i, route in enumerate(ROUTES)),
        *((f"given {i}", "validation", TypeAdapter(route.given)) for i, route in enumerate(ROUTES)),
    ]
    schemas, shared = TypeAdapter.json_schemas(kinds, ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for number, route in enumerate(ROUTES):
        answer = schemas[f"answer {number}", "serialization"]
        given = schemas[f"given {number}", "validation"]
        operation = _operation(route, answer, given, shared.get("$defs", {}))
        paths.setdefault(_PARAMETER.sub(r"{\2}", route.path), {})[route.method.lower()] = operation
    error = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ELNet Loop",
            "version": version("elnet-loop"),
            "description": "What the leads' desk shows and does. One's page /desk/account makes tokens.",
        },
        "servers": [{"url": PREFIX}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": {**shared.get("$defs", {}), "Error": error},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    route: Route, answer: dict[str, Any], given: dict[str, Any], shared: dict[str, Any]
) -> dict[str, Any]:
    words = _PARAMETER.sub("", route.path).replace("/", " ").split()
    fault = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, Any] = {
        "operationId": "_".join([route.method.lower(), *words])
        + ("_one" if route.path.endswith(">") else ""),
        "summary": route.summary,
        "description": f"Needs the role {route.role}.",
        "parameters": [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "integer" if kind == "int" else "string"},
            }
            for kind, name in _PARAMETER.findall(route.path)
        ],
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": answer}}},
            **{code: {"description": text, "content": fault} for code, text in _ERRORS.items()},
        },
    }
    if route.given is not Nothing and route.method == "GET":
        fields = shared[given["$ref"].rpartition("/")[2]]
        operation["parameters"] += [
            {"name": name, "in": "query", "required": name in fields.get("required", ()), "schema": schema}
            for name, schema in fields["properties"].items()
        ]
    elif route.given is not Nothing:
        content = {"application/json": {"schema": given}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation
