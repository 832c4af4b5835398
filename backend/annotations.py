"""An annotation as Label Studio sends it (webhook or API) -> `ToolAnnotation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from active_learning.ports import ToolAnnotation
from backend.regions import image_size, regions_to_masks
from model.errors import ELNetError


class AnnotationError(ELNetError):
    """Not an annotation as Label Studio sends it."""


def decode_annotation(
    payload: Mapping[str, Any], classes: Sequence[str], machine_annotator: str
) -> ToolAnnotation:
    """Decode an annotation.

    Args:
        payload: with id, task, result, was_cancelled, updated_at, completed_by; more is taken where present.
        classes: the project's N class names.
        machine_annotator: user id under which the loop accepts masks.

    Returns:
        Masks None for a skip, (N, 0, 0) where nothing was drawn.

    Raises:
        AnnotationError: a field is absent or of the wrong kind.
        RegionError, RleError, PolygonError: its regions cannot be read.
    """
    annotation_id = _number(payload, "id")
    result = payload.get("result") or []
    if not isinstance(result, list):
        raise AnnotationError(f"annotation {annotation_id}: result must be a list of regions")
    cancelled = bool(payload.get("was_cancelled"))
    masks: NDArray[np.bool_] | None = None
    soft_edges = False
    if not cancelled:
        size = image_size(result)
        if size is None:
            masks = np.zeros((len(classes), 0, 0), dtype=np.bool_)
        else:
            masks, soft_edges = regions_to_masks(result, classes, *size)
    annotator = _author(payload, machine_annotator)
    lead_time = payload.get("lead_time")
    parent = payload.get("parent_prediction")
    return ToolAnnotation(
        id=annotation_id,
        task_id=_number(payload, "task"),
        masks=masks,
        annotator=annotator,
        machine=annotator == machine_annotator or _copied_in_bulk(payload),
        cancelled=cancelled,
        updated_at=_time(payload),
        lead_time_s=float(lead_time) if isinstance(lead_time, int | float) else None,
        parent_prediction=parent if isinstance(parent, int) else None,
        soft_edges=soft_edges,
    )


def _copied_in_bulk(payload: Mapping[str, Any]) -> bool:
    """Whether the Data Manager's action "create annotations from predictions" made it.

    Then nobody looked at the mask, whoever pressed the button: it must not be taken for a human's label. Such
    a copy names its prediction, took no time and was never updated by anybody; what people submit, and what
    the API is given, always names the user in `updated_by`.
    """
    return (
        "updated_by" in payload
        and payload["updated_by"] is None
        and payload.get("lead_time") is None
        and payload.get("parent_prediction") is not None
    )


def _author(payload: Mapping[str, Any], machine_annotator: str) -> str:
    """Whose word it is: a person who corrects an accepted mask and presses Update leaves `completed_by`."""
    made, updated = _user(payload.get("completed_by")), _user(payload.get("updated_by"))
    return updated if made == machine_annotator and updated else made


def _user(completed_by: object) -> str:
    """The user's id: the API gives a number or an object, by endpoint."""
    if isinstance(completed_by, Mapping):
        completed_by = completed_by.get("id")
    return "" if completed_by is None else str(completed_by)


def _number(payload: Mapping[str, Any], field: str) -> int:
    value = payload.get(field)
    if isinstance(value, bool) or not isinstance(value, int):
        raise AnnotationError(f"an annotation must have a number as {field!r}, not {value!r}")
    return value


def _time(payload: Mapping[str, Any]) -> datetime:
    value = payload.get("updated_at")
    try:
        time = datetime.fromisoformat(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        time = None
    if time is None or time.tzinfo is None:
        raise AnnotationError(
            f"annotation {payload.get('id')} must have an updated_at with its zone, not {value!r}"
        )
    return time
