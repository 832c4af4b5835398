"""Label Studio as the loop's labeling tool."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

from active_learning.ports import Acceptance, Placement, Prefill, ToolAnnotation, ToolTask
from backend.annotations import decode_annotation
from backend.label_config import parse_label_config
from backend.label_studio_api import DETAILED, ENHANCED_MARK, LISTED, Json, LabelStudioApi
from backend.label_studio_http import Connection, LabelStudioError
from backend.regions import masks_to_regions
from model.errors import ELNetError

__all__ = ["LabelStudio", "LabelStudioError"]

log = logging.getLogger(__name__)

_WRITERS = 4  # requests at a time; deletions go one by one: several only wait for SQLite's lock, and longer
_DIGITS = 4  # of qualities and priorities: what people see, and what is worth a request

Item = TypeVar("Item")
Result = TypeVar("Result")


class LabelStudio(LabelStudioApi):
    """A `LabelingTool`. Safe under threads."""

    def tasks(self, tool_project_id: int) -> Iterator[ToolTask]:
        """Every task of the project, by its id."""
        field = parse_label_config(self.project(tool_project_id)["label_config"]).image_field
        for task in self.listed(tool_project_id):
            data = task["data"]
            yield ToolTask(task["id"], str(data.get(field) or ""), data)

    def annotations(self, tool_project_id: int, classes: Sequence[str]) -> Iterator[ToolAnnotation]:
        """Every annotation of the project, skips as well.

        One that cannot be decoded comes without masks: it is there, and may not be taken for deleted.
        """
        machine = self.machine_annotator()
        annotated = [
            task["id"]
            for task in self.listed(tool_project_id)
            if task["total_annotations"] or task["cancelled_annotations"]
        ]
        for ids in _chunks(annotated, DETAILED):
            for task in self.detailed(tool_project_id, ids).values():
                for annotation in task["annotations"]:
                    yield _decode(annotation, classes, machine)

    def push_prefills(
        self, tool_project_id: int, classes: Sequence[str], prefills: Sequence[Prefill]
    ) -> dict[int, int]:
        """Store predictions in bulk, read them back, remove those of other model versions.

        The new one is there before an old one goes. A prediction that is there already is kept, so this may
        be repeated.

        Returns:
            The task's id -> the prediction's id, of those that Label Studio really holds.
        """
        project = self.project(tool_project_id)
        held = self._push_predictions(project, classes, prefills, lambda version: True)
        for version in {prefill.model_version for prefill in prefills if held}:
            if project["model_version"] != version:
                self.set_model_version(tool_project_id, version)
        return held

    def suggest(
        self, tool_project_id: int, classes: Sequence[str], suggestions: Sequence[Prefill]
    ) -> dict[int, int]:
        """Store predictions beside what the serving version said, in place of earlier suggestions.

        Args:
            tool_project_id: the project.
            classes: names of the masks' planes.
            suggestions: their model versions contain `ENHANCED_MARK`.

        Returns:
            As `push_prefills`.
        """
        project = self.project(tool_project_id)
        return self._push_predictions(project, classes, suggestions, lambda version: ENHANCED_MARK in version)

    def take_back_suggestions(self, tool_project_id: int, tool_task_ids: Sequence[int]) -> int:
        """Remove what `suggest` stored; what people made of it stays. Returns how many there were."""
        found = [
            prediction["id"]
            for ids in _chunks(tool_task_ids, DETAILED)
            for task in self.detailed(tool_project_id, ids).values()
            for prediction in task["predictions"]
            if ENHANCED_MARK in str(prediction["model_version"])
        ]
        for prediction_id in found:
            self.lead.delete(f"/api/predictions/{prediction_id}/")
        return len(found)

    def push_placements(self, tool_project_id: int, placements: Iterable[Placement]) -> list[int]:
        """Write route, quality and priority to the task data, whose other keys stay as they are now."""
        written: list[int] = []
        for part in _chunks(list(placements), LISTED):
            now = {t["id"]: t["data"] for t in self.listed(tool_project_id, [p.tool_task_id for p in part])}
            changes = {}
            for placement in part:
                data = now.get(placement.tool_task_id)
                if data is None:
                    continue  # deleted in the meantime
                written.append(placement.tool_task_id)
                new = data | {
                    "route": placement.route,
                    "quality": _rounded(placement.quality),
                    "priority": _rounded(placement.priority),
                }
                if new != data:
                    changes[placement.tool_task_id] = new
            _each(self._patch_data, changes.items())
        return written

    def accept(
        self, tool_project_id: int, classes: Sequence[str], acceptances: Sequence[Acceptance]
    ) -> dict[int, int]:
        """Make each an annotation of the machine user, in place of an earlier one of that user.

        A task that a person annotated or skipped in the meantime is left alone.

        Returns:
            The task's id -> the annotation's id.
        """
        machine, machine_id = self.machine, self.machine_annotator()
        if machine is None:
            if acceptances:
                log.warning("nothing is accepted: ELNET_LABEL_STUDIO__MACHINE_TOKEN is not set")
            return {}
        control = parse_label_config(self.project(tool_project_id)["label_config"]).control
        made: dict[int, int] = {}
        for part in _chunks(acceptances, DETAILED):
            tasks = self.detailed(tool_project_id, [a.tool_task_id for a in part])
            todo = [
                (
                    machine,
                    machine_id,
                    tasks[acceptance.tool_task_id],
                    masks_to_regions(acceptance.masks, classes, control, float(acceptance.quality)),
                    acceptance.tool_prediction_id,
                )
                for acceptance in part
                if acceptance.tool_task_id in tasks
                and all(is_machines(a, machine_id) for a in tasks[acceptance.tool_task_id]["annotations"])
            ]
            accepted = dict(_each(lambda job: _accept_one(*job), todo))
            self._remove_doubles(tool_project_id, machine, machine_id, accepted)
            made |= accepted
        return made

    def withdraw(self, tool_project_id: int, tool_task_ids: Sequence[int]) -> None:
        """Remove the machine user's annotations; what a person updated is the person's, and stays."""
        machine, machine_id = self.machine, self.machine_annotator()
        if machine is None:
            return
        for ids in _chunks(tool_task_ids, DETAILED):
            for task in self.detailed(tool_project_id, ids).values():
                for annotation in task["annotations"]:
                    if is_machines(annotation, machine_id):
                        _remove(machine, machine_id, annotation["id"])

    def serve_version(self, tool_project_id: int, version: str) -> None:
        """Make `version` the title of the ML backend and the project's model_version.

        They must be the same, and the same as the predictions' version, or Label Studio shows no scores and
        samples at random.
        """
        backend = self.backend(tool_project_id)
        if backend is not None and backend["title"] != version:
            try:
                self.patch_backend(backend, title=version)
            except LabelStudioError as error:
                log.warning("the ML backend keeps its title %r for now: %s", backend["title"], error.detail)
        if self.project(tool_project_id)["model_version"] != version:
            self.set_model_version(tool_project_id, version)

    def _push_predictions(
        self,
        project: Json,
        classes: Sequence[str],
        prefills: Sequence[Prefill],
        gives_way: Callable[[str], bool],
    ) -> dict[int, int]:
        """Store predictions in bulk and read them back; others go whose model version `gives_way`."""
        control = parse_label_config(project["label_config"]).control
        held: dict[int, int] = {}
        for part in _chunks(prefills, DETAILED):
            wanted = {
                prefill.tool_task_id: {
                    "task": prefill.tool_task_id,
                    "result": masks_to_regions(prefill.masks, classes, control, float(prefill.quality)),
                    "score": float(prefill.quality),
                    "model_version": prefill.model_version,
                }
                for prefill in part
            }
            held |= self._push_part(project["id"], wanted, gives_way)
        return held

    def _push_part(
        self, tool_project_id: int, wanted: dict[int, Json], gives_way: Callable[[str], bool]
    ) -> dict[int, int]:
        before = self.detailed(tool_project_id, list(wanted))
        lacking = [p for i, p in wanted.items() if i in before and _same(before[i]["predictions"], p) is None]
        after = before
        if lacking:
            self.lead.post(f"/api/projects/{tool_project_id}/import/predictions", lacking, repeatable=True)
            after |= self.detailed(tool_project_id, [p["task"] for p in lacking])
        held: dict[int, int] = {}
        stale: list[int] = []
        for task_id, task in after.items():
            kept = _same(task["predictions"], wanted[task_id])
            if kept is not None:
                held[task_id] = kept
                others = (p for p in task["predictions"] if p["id"] != kept)
                stale += [p["id"] for p in others if gives_way(str(p["model_version"]))]
        for prediction_id in stale:
            self.lead.delete(f"/api/predictions/{prediction_id}/")
        return held

    def _remove_doubles(
        self, tool_project_id: int, machine: Connection, machine_id: str, kept: Mapping[int, int]
    ) -> None:
        """Label Studio runs a request again when its SQLite was locked halfway: one annotation is enough."""
        several = [t["id"] for t in self.listed(tool_project_id, list(kept)) if t["total_annotations"] > 1]
        for task in self.detailed(tool_project_id, several).values():
            for annotation in task["annotations"]:
                if annotation["id"] != kept[task["id"]]:
                    _remove(machine, machine_id, annotation["id"])

    def _patch_data(self, change: tuple[int, Json]) -> None:
        task_id, data = change
        try:
            self.lead.patch(f"/api/tasks/{task_id}/", {"data": data})
        except LabelStudioError as error:
            if error.status != 404:  # deleted in this moment
                raise


def _accept_one(
    machine: Connection, machine_id: str, task: Json, result: list[Json], parent: int | None
) -> tuple[int, int]:
    """Annotate a task all of whose annotations are the machine's; returns its id and the annotation's."""
    earlier = sorted(task["annotations"], key=lambda a: a["id"])
    same = [a["id"] for a in earlier if not a["was_cancelled"] and _drawn(a["result"]) == _drawn(result)]
    if same:
        kept = int(same[-1])
    else:
        body: Json = {"result": result, "lead_time": 0}
        if parent in {prediction["id"] for prediction in task["predictions"]}:
            body["parent_prediction"] = parent
        path = f"/api/tasks/{task['id']}/annotations/"
        kept = int(machine.post(path, body, repeatable=True)["id"])
    for annotation in earlier:
        if annotation["id"] != kept:
            _remove(machine, machine_id, annotation["id"])
    return task["id"], kept


def _remove(machine: Connection, machine_id: str, annotation_id: int) -> None:
    """Delete an annotation of the machine user; looks once more whether a person has just made it theirs."""
    path = f"/api/annotations/{annotation_id}/"
    try:
        if not is_machines(machine.get(path), machine_id):
            return
    except LabelStudioError as error:
        if error.status == 404:
            return
        raise
    machine.delete(path)


def _decode(annotation: Json, classes: Sequence[str], machine: str) -> ToolAnnotation:
    try:
        return decode_annotation(annotation, classes, machine)
    except ELNetError as error:
        log.warning(
            "annotation %s of task %s cannot be read: %s", annotation["id"], annotation["task"], error
        )
    return ToolAnnotation(
        id=annotation["id"],
        task_id=annotation["task"],
        masks=None,
        annotator=str(annotation["completed_by"]),
        machine=is_machines(annotation, machine),
        cancelled=False,
        updated_at=datetime.fromisoformat(annotation["updated_at"]),
    )


def is_machines(annotation: Json, machine_id: str) -> bool:
    """Whether the machine user made it and nobody else changed it since."""
    made, updated = annotation.get("completed_by"), annotation.get("updated_by")
    made = made.get("id") if isinstance(made, dict) else made
    return str(made) == machine_id and (updated is None or str(updated) == machine_id)


def _same(predictions: Sequence[Json], wanted: Json) -> int | None:
    """The newest prediction that says what is wanted."""
    return max(
        (
            int(prediction["id"])
            for prediction in predictions
            if prediction["model_version"] == wanted["model_version"]
            and prediction["score"] == wanted["score"]
            and _drawn(prediction["result"]) == _drawn(wanted["result"])
        ),
        default=None,
    )


def _drawn(result: Sequence[Json]) -> list[tuple[Any, ...]]:
    """What regions show, without their ids and scores."""
    return [
        (r.get("from_name"), r.get("original_width"), r.get("original_height"), r.get("value"))
        for r in result
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _each(do: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Do it for each, a few at a time; the first error is raised once the others have ended."""
    with ThreadPoolExecutor(_WRITERS) as pool:
        return list(pool.map(do, items))
