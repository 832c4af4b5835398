"""Charts of the desk: one registry, three forms of each: Vega-Lite for the page, CSV, PNG.

A page's module names its charts by `chart`; the browser draws them, with the libraries that vl-convert
carries, from this server.
"""

from __future__ import annotations

import csv
import io
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import narwhals.stable.v1
import narwhals.stable.v2  # noqa: F401 - altair and sklearn import these; begun by two threads they lock each other out
from flask import Blueprint, Response, jsonify, request, send_file
from sqlalchemy.orm import Session
from werkzeug.exceptions import NotFound

from active_learning.ledger import Project
from backend.desk.project_page import open_project
from model.cache_root import cache_root

if TYPE_CHECKING:
    import altair as alt

blueprint = Blueprint("desk_charts", __name__, url_prefix="/desk")

Row = dict[str, Any]
CATEGORIES: Final = (
    "#0b6e74",
    "#e08a1e",
    "#7a5cc0",
    "#2b6cb0",
    "#8a5a00",
    "#b3261e",
)  # readable on both grounds
_PNG: Final = {
    "background": "white",
    "font": "sans-serif",
    "axis": {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"},
    "view": {"stroke": None},
    "mark": {"color": CATEGORIES[0]},
    "range": {"category": list(CATEGORIES)},
}
_BUILDING: Final = threading.Lock()
_IMPORTING: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart that can be drawn.

    Attributes:
        rows: its data, flat; every row has the same keys, which are the columns of the CSV.
        draw: rows -> the chart; called only where there are rows.
    """

    rows: Sequence[Row]
    draw: Callable[[Sequence[Row]], alt.TopLevelMixin]


Maker = Callable[[Session, Project, Mapping[str, str]], Chart]
_MAKERS: Final[dict[str, Maker]] = {}


def chart(name: str) -> Callable[[Maker], Maker]:
    """Register what makes the chart of a name; it gets the query of the address too."""

    def register(maker: Maker) -> Maker:
        _MAKERS[name] = maker
        return maker

    return register


def diagonal() -> alt.Chart:
    """From (0, 0) to (1, 1), a layer for charts that hold two IoUs against each other."""
    import altair as alt

    line = alt.Chart(alt.Data(values=[{}])).mark_rule(strokeDash=[4, 4], aria=False)
    return line.encode(x=alt.datum(0), y=alt.datum(0), x2=alt.datum(1), y2=alt.datum(1))


def _made(project_id: int, name: str) -> Chart:
    if name not in _MAKERS:
        raise NotFound(f"There is no chart {name!r}.")
    with open_project(project_id) as (session, project):
        return _MAKERS[name](session, project, request.args)


def _drawn(made: Chart) -> dict[str, Any]:
    with _IMPORTING:  # not by two threads at the same time: its modules import each other in a circle
        import altair  # noqa: F401
    # Not validated: that takes as long as all the rest, and each chart is drawn in a test.
    found: dict[str, Any] = made.draw(made.rows).to_dict(validate=False)
    return found


@blueprint.get("/<int:project_id>/charts/<name>.json")
def specification(project_id: int, name: str) -> Response:
    """Vega-Lite for the browser; `{"empty": true}` where there is nothing to draw."""
    made = _made(project_id, name)
    return jsonify(_drawn(made) if made.rows else {"empty": True})


@blueprint.get("/<int:project_id>/charts/<name>.csv", endpoint="csv")
def csv_(project_id: int, name: str) -> Response:
    """The data."""
    return download_csv(_made(project_id, name).rows, name)


@blueprint.get("/<int:project_id>/charts/<name>.png")
def png(project_id: int, name: str) -> Response:
    """The drawing, for reports; on white."""
    made = _made(project_id, name)
    if not made.rows:
        raise NotFound("There is nothing to draw yet.")
    import vl_convert  # takes a third of a second, which only a download pays

    drawn = {"width": 640, "height": 360, **_drawn(made)}
    drawn["width"] = 640 if drawn["width"] == "container" else drawn["width"]
    return _download(vl_convert.vegalite_to_png(drawn, scale=2, config=_PNG), f"{name}.png", "image/png")


def download_csv(rows: Sequence[Row], name: str) -> Response:
    """A table to keep: rows with the same keys, its columns; `name`: of the file, without `.csv`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    return _download(text.getvalue().encode(), f"{name}.csv", "text/csv")


def _download(content: bytes, name: str, kind: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return Response(content, content_type=kind, headers=headers)


@blueprint.get("/vega/<version>.js")
def vega(version: str) -> Response:
    """Vega, Vega-Lite and Vega-Embed in one file, as vl-convert carries them."""
    path = vega_bundle()
    if version != path.stem:
        raise NotFound("This version of the charts' library is not here: load the page again.")
    response = send_file(path, mimetype="text/javascript")
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return response


def vega_version() -> str:
    """What tells one bundle from another in its address."""
    from importlib.metadata import version

    return f"vega-{version('vl-convert-python')}"


def vega_bundle() -> Path:
    """The file, made once for each version of vl-convert: that takes two seconds."""
    path = cache_root() / "vega" / f"{vega_version()}.js"
    with _BUILDING:
        if not path.is_file():
            import vl_convert

            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=".part-")
            with os.fdopen(descriptor, "w") as file:
                file.write(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub forgets the default
            Path(part).replace(path)
    return path


blueprint.add_app_template_global(vega_version)
