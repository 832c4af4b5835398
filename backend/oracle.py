"""An oracle annotator at work in Label Studio: opens what the views offer, corrects the prefill, submits.

It uses nothing but Label Studio's API, as the editor does, so that everything behind it (webhook, inbox,
ledger, cycles) sees what it would see of a person. `active_learning.oracle` decides what it corrects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from active_learning.oracle import annotate
from backend.label_config import parse_label_config
from backend.label_studio import LabelStudio
from backend.regions import masks_to_regions, regions_to_masks
from model.errors import ELNetError


class OracleError(ELNetError):
    """Label Studio does not offer what the oracle needs."""


@dataclass(frozen=True, slots=True)
class Touched:
    """A task that the oracle opened and submitted.

    Attributes:
        stem: whose truth it was.
        view: where it found the task.
        corrected_pixels: what it changed of the prefill.
        seconds: what a person would have taken, by the assumed formula of `active_learning.oracle.Effort`.
    """

    stem: str
    view: str
    corrected_pixels: int
    seconds: float


class OracleAnnotator:
    """A user of Label Studio who knows the truth.

    Args:
        tool: the server, with the token of the user who labels.
        project: id of the project in Label Studio.
        classes: in the order of the masks' planes.
        truths: stem of the image's file -> (N, H, W) bool.
        tolerance_px: boundary errors up to this many pixels are let pass.
    """

    def __init__(
        self,
        tool: LabelStudio,
        project: int,
        classes: Sequence[str],
        truths: Mapping[str, NDArray[np.bool_]],
        tolerance_px: int = 2,
    ) -> None:
        self._api = tool.lead
        self._project = project
        self._classes = list(classes)
        self._truths = truths
        self._tolerance_px = tolerance_px
        self._control = parse_label_config(tool.project(project)["label_config"]).control

    def work(self, views: Sequence[str], limit: int) -> list[Touched]:
        """Work off views, the first one first, each from its top.

        Args:
            views: titles of Data Manager views.
            limit: how many tasks to submit at most.

        Returns:
            The submitted tasks; fewer than `limit` when the views ran empty.
        """
        done: list[Touched] = []
        for view in views:
            done += [self._submit(task, view) for task in self._tasks(view, limit - len(done))]
            if len(done) >= limit:
                break
        return done

    def _tasks(self, title: str, limit: int) -> list[dict[str, Any]]:
        if limit <= 0:
            return []
        views = self._api.get("/api/dm/views/", project=self._project)
        view = next((view["id"] for view in views if view["data"].get("title") == title), None)
        if view is None:
            raise OracleError(
                f"Project {self._project} has no view {title!r}: `elnet project create` mends it."
            )
        page = {"project": self._project, "view": view, "fields": "all", "page": 1, "page_size": limit}
        tasks: list[dict[str, Any]] = self._api.get("/api/tasks", **page)["tasks"]
        return tasks

    def _submit(self, listed: Mapping[str, Any], view: str) -> Touched:
        task = self._api.get(f"/api/tasks/{listed['id']}/")
        stem = Path(str(task["data"]["source"])).stem
        if stem not in self._truths:
            raise OracleError(f"Task {task['id']} shows {stem}, of which the truth is not known.")
        truth = self._truths[stem]
        _, height, width = truth.shape
        prediction = max(task.get("predictions") or [], key=lambda item: int(item["id"]), default=None)
        prefill = (
            regions_to_masks(prediction["result"], self._classes, height, width)[0] if prediction else None
        )
        correction = annotate(prefill, truth, self._tolerance_px)
        body: dict[str, Any] = {
            "result": masks_to_regions(correction.mask, self._classes, self._control, 1.0),
            "lead_time": correction.seconds,
        }
        if prediction:
            body["parent_prediction"] = prediction["id"]
        self._api.post(f"/api/tasks/{task['id']}/annotations/", body)
        return Touched(stem, view, correction.corrected_pixels, correction.seconds)
