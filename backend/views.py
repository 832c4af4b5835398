"""The Data Manager's views: what annotators and leads see of a project, and in which order.

They filter by `data.route`, which the loop writes into the task data: Label Studio's own scores vanish
whenever `project.model_version` is not the predictions' version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from active_learning.ledger import TaskStatus
from backend.label_studio_api import ENHANCED_MARK, Json, LabelStudioApi

_PRIORITY, _QUALITY = "tasks:data.priority", "tasks:data.quality"
# Everything that is no help in deciding what to open next.
_HIDDEN = (
    "inner_id completed_at cancelled_annotations total_predictions annotations_results annotations_ids "
    "predictions_results predictions_score file_upload storage_filename created_at updated_at updated_by "
    "avg_lead_time draft_exists data.source data.affine data.crs data.content"
)


@dataclass(frozen=True, slots=True)
class View:
    """One tab.

    Attributes:
        routes: what `data.route` may be; empty: anything.
        unlabelled: only tasks without an annotation.
        ordering: column, "-" before it for descending.
        version: only tasks with a prediction whose model version contains this; empty: any.
    """

    title: str
    routes: tuple[TaskStatus, ...]
    unlabelled: bool
    ordering: str
    version: str = ""

    def filters(self) -> Json:
        """As the Data Manager keeps them."""
        items = [_is("data.route", "String", route.value) for route in self.routes]
        if self.unlabelled:
            items.append(_is("total_annotations", "Number", 0))
        if self.version:
            items.append(_is("predictions_model_versions", "List", [self.version], "contains"))
        return {"conjunction": "and", "items": items}

    def data(self) -> Json:
        """The whole tab, when it is made."""
        hidden = [f"tasks:{column}" for column in _HIDDEN.split()]
        return {
            "title": self.title,
            "type": "list",
            "target": "tasks",
            "gridWidth": 4,
            "columnsWidth": {},
            "columnsDisplayType": {_PRIORITY: "Number", _QUALITY: "Number"},
            "hiddenColumns": {"explore": hidden, "labeling": hidden},
            "ordering": [self.ordering],
            "filters": self.filters(),
        }


VIEWS = (
    View("Review queue", (TaskStatus.REVIEW,), True, f"-{_PRIORITY}"),
    View("Accepted", (TaskStatus.ACCEPTED,), False, _QUALITY),
    View("Audit", (TaskStatus.AUDIT,), True, f"-{_PRIORITY}"),
    View("Done", (TaskStatus.DONE,), False, "-tasks:updated_at"),
    # What stands in none of these: images that wait for a model, that cannot be read, that were skipped.
    View("All images", (), False, "tasks:id"),
)


# Made when labels are enhanced for the first time, see `backend.label_enhancement`.
ENHANCED = View("Enhanced labels", (), False, "-tasks:updated_at", version=ENHANCED_MARK)


def ensure_views(api: LabelStudioApi, tool_project_id: int, views: Sequence[View] = VIEWS) -> None:
    """Make the views that are not there, and give the others their filters and order back.

    Whatever else people changed in them (columns, widths, grid) stays.
    """
    found: list[Json] = api.lead.get("/api/dm/views/", project=tool_project_id)
    by_title = {view["data"].get("title"): view for view in reversed(found)}  # the first of a title counts
    for view in views:
        there = by_title.get(view.title)
        if there is None:
            body = {"project": tool_project_id, "data": view.data()}
            _remove_doubles(api, view, api.lead.post("/api/dm/views/", body))
        elif not is_intact(view, there):
            display = {**there["data"].get("columnsDisplayType", {}), _PRIORITY: "Number", _QUALITY: "Number"}
            wanted = {"ordering": [view.ordering], "filters": view.filters(), "columnsDisplayType": display}
            body = {"project": tool_project_id, "data": {**there["data"], **wanted}}
            api.lead.patch(f"/api/dm/views/{there['id']}/", body)


def _remove_doubles(api: LabelStudioApi, view: View, made: Json) -> None:
    """Label Studio runs a request again when its SQLite was locked halfway: then the tab is there twice."""
    for other in api.lead.get("/api/dm/views/", project=made["project"]):
        if other["data"].get("title") == view.title and other["id"] != made["id"]:
            api.lead.delete(f"/api/dm/views/{other['id']}/")


def is_intact(view: View, there: Json) -> bool:
    """Whether a view of the server filters and orders as ours does."""
    data = there["data"]
    display = data.get("columnsDisplayType", {})
    return (
        (data.get("ordering") or []) == [view.ordering]
        and _plain(data.get("filters")) == _plain(view.filters())
        and display.get(_PRIORITY) == "Number"
        and display.get(_QUALITY) == "Number"
    )


def _plain(filters: Any) -> Any:
    """Filters without what the server adds."""
    if not filters or not filters.get("items"):
        return None
    keys = ("filter", "operator", "type", "value")
    return filters.get("conjunction"), [{k: item.get(k) for k in keys} for item in filters["items"]]


def _is(column: str, kind: str, value: object, operator: str = "equal") -> Json:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}
