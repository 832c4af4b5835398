"""What a webhook of Label Studio says -> what is to be done about it. No database here.

Seen of Label Studio 1.23: ANNOTATION_CREATED (also a skip), ANNOTATION_UPDATED, ANNOTATIONS_CREATED (lists),
ANNOTATIONS_DELETED (ids, or only the project), TASKS_CREATED, TASKS_DELETED, PROJECT_UPDATED, START_TRAINING.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from active_learning.ports import ToolAnnotation, ToolTask
from backend.annotations import decode_annotation
from backend.label_config import LabelConfigError, parse_label_config
from backend.regions import unknown_labels
from model.errors import ELNetError

Payload = Mapping[str, Any]


class EventError(ELNetError):
    """Not an event as Label Studio sends it."""


@dataclass
class Effects:
    """What an event asks for.

    Attributes:
        tasks: that exist.
        annotations: as they are now.
        buried: ids of annotations that were deleted.
        gone: ids of tasks that were deleted.
        reconcile: something was deleted, and only the tool's listing says what.
        train: somebody pressed "Start training".
        notes: what a lead should know of it.
        errors: parts of the event that cannot be read; the other parts count.
    """

    tasks: list[ToolTask] = field(default_factory=list)
    annotations: list[ToolAnnotation] = field(default_factory=list)
    buried: list[int] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    reconcile: bool = False
    train: bool = False
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def project_id_of(payload: Payload) -> int | None:
    """The tool's id of the project, if the event names one."""
    project = payload.get("project")
    value = project.get("id") if isinstance(project, Mapping) else project
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def decode_event(action: str, payload: Payload, classes: Sequence[str], machine_annotator: str) -> Effects:
    """Read an event.

    Args:
        action: as in the payload.
        payload: the event.
        classes: the project's N class names.
        machine_annotator: user id under which the loop accepts masks.

    Raises:
        EventError: a part that every such event has is absent or of the wrong kind.
    """
    effects = Effects()
    if action in {"ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED"}:
        effects.tasks = _tasks(payload, "task")
        for annotation in _objects(payload, "annotation"):
            _annotation(annotation, classes, machine_annotator, effects)
    elif action in {"ANNOTATIONS_DELETED", "ANNOTATION_DELETED"}:
        effects.buried = _ids(payload, "annotations" if "annotations" in payload else "annotation")
        effects.reconcile = not effects.buried
    elif action == "TASKS_CREATED":
        effects.tasks = _tasks(payload, "tasks")
    elif action == "TASKS_DELETED":
        effects.gone = _ids(payload, "tasks")
        effects.reconcile = not effects.gone
    elif action == "PROJECT_UPDATED":
        effects.notes = _label_config_notes(payload, classes)
    elif action == "START_TRAINING":
        effects.train = True
    else:
        effects.notes.append(f"{action} changes nothing here")
    return effects


def decode_task(task: Payload, image_field: str) -> ToolTask:
    """A task as Label Studio sends it, in webhooks and in /predict.

    Raises:
        EventError: no id or no data.
    """
    data = task.get("data")
    if not isinstance(data, Mapping):
        raise EventError(f"task {task.get('id')!r} has no data")
    return ToolTask(_id(task), str(data.get(image_field) or ""), data)


def _annotation(payload: Payload, classes: Sequence[str], machine: str, effects: Effects) -> None:
    """Decode one of possibly many: one that cannot be read must not hide the others."""
    try:
        effects.annotations.append(decode_annotation(payload, classes, machine))
    except ELNetError as error:
        effects.errors.append(f"annotation {payload.get('id')}: {error}")
        return
    if others := unknown_labels(payload.get("result") or [], classes):
        effects.notes.append(
            f"annotation {payload.get('id')}: masks labelled {', '.join(map(repr, others))} are no class of "
            "the project and were passed over"
        )


def _label_config_notes(payload: Payload, classes: Sequence[str]) -> list[str]:
    """What a change of the labeling interface means for the classes that are learnt."""
    project = payload.get("project")
    xml = project.get("label_config") if isinstance(project, Mapping) else None
    if not isinstance(xml, str):
        raise EventError("PROJECT_UPDATED without the project's label_config")
    try:
        labels = parse_label_config(xml).labels
    except LabelConfigError as error:
        return [f"nobody can draw masks any more: {error}"]
    missing = [name for name in classes if name not in labels]
    added = [name for name in labels if name not in classes]
    notes = []
    if missing:
        notes.append(f"the labeling interface no longer has {', '.join(missing)}: put the label back")
    if added:
        notes.append(
            f"the labeling interface also has {', '.join(added)}: what is drawn with it is not learnt; "
            "a project's classes are fixed when it is created"
        )
    return notes


def _tasks(payload: Payload, field_name: str) -> list[ToolTask]:
    image_field = _image_field(payload)
    return [decode_task(task, image_field) for task in _objects(payload, field_name)]


def _image_field(payload: Payload) -> str:
    """The key of the image in the task data; "image" if the event does not carry the labeling interface."""
    project = payload.get("project")
    xml = project.get("label_config") if isinstance(project, Mapping) else None
    try:
        return parse_label_config(xml).image_field if isinstance(xml, str) else "image"
    except LabelConfigError:
        return "image"


def _objects(payload: Payload, field_name: str) -> list[Payload]:
    """One object, or a list of them."""
    value = payload.get(field_name)
    entries = value if isinstance(value, list) else [value]
    found = [entry for entry in entries if isinstance(entry, Mapping)]
    if len(found) < len(entries):
        raise EventError(f"{payload.get('action')}: {field_name!r} must be an object or a list of objects")
    return found


def _ids(payload: Payload, field_name: str) -> list[int]:
    """The ids of a list of objects; none if the event names only the project."""
    return [_id(entry) for entry in _objects(payload, field_name)] if payload.get(field_name) else []


def _id(entry: Payload) -> int:
    value = entry.get("id")
    if isinstance(value, bool) or not isinstance(value, int):
        raise EventError(f"an id must be a number, not {value!r}")
    return value
