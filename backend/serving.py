"""Answers requests for predictions: from the ledger, and what it lacks within a time budget."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import select

from active_learning.inference import MaskPredictor
from active_learning.ledger import Ledger, ModelState, ModelVersion, Prediction, Project, Task
from active_learning.ledger.failures import LedgerError
from active_learning.ports import ImageSource, ToolTask
from active_learning.prefill import predict_tasks
from active_learning.routing import is_blind
from active_learning.tasks import add_tasks
from backend.events import EventError, decode_task
from backend.label_config import LabelConfig, LabelConfigError, parse_label_config
from backend.regions import RegionError, masks_to_regions
from backend.resident import Predictors
from model.errors import ELNetError

log = logging.getLogger(__name__)

BUDGET_S = 60.0  # Label Studio gives up after 100 s and then shows the user success
_AT_ONCE = 8  # tasks whose masks are held in memory together
_COMPUTED = 2  # tasks between two looks at the clock: large images take long

Result = dict[str, Any]


class Serving:
    """Predictions and versions as Label Studio asks for them. Safe under threads.

    Args:
        ledger: the ledger.
        images: where the pixels come from.
        predictors: champion -> its predictor, loaded.
        label_studio_url: tells projects of two servers with one number apart.
        budget_s: after which nothing more is computed for a request.
    """

    def __init__(
        self,
        ledger: Ledger,
        images: ImageSource,
        predictors: Predictors,
        label_studio_url: str | None = None,
        budget_s: float = BUDGET_S,
    ) -> None:
        self._ledger, self._images, self._predictors = ledger, images, predictors
        self._url, self._budget_s = label_studio_url, budget_s
        self._computing = threading.Lock()  # one request computes, the others wait within their budget

    def project(self, tool_project_id: int | None) -> Project | None:
        """The project with the tool's number, its champion loaded."""
        query = select(Project).where(Project.tool_project_id == tool_project_id).order_by(Project.id)
        with self._ledger.session(write=False) as session:
            found = list(session.scalars(query))
            project = next((p for p in found if p.tool_url == self._url), found[-1] if found else None)
            if project is not None:
                _ = project.champion  # loads it while the session lives
            return project

    def versions(self, tool_project_id: int | None = None) -> list[str]:
        """Names of the model versions that serve or have served: champions first, then by promotion."""
        query = select(ModelVersion).where(ModelVersion.promoted_at.is_not(None))
        if tool_project_id is not None:
            query = query.join(Project, Project.id == ModelVersion.project_id)
            query = query.where(Project.tool_project_id == tool_project_id)
        with self._ledger.session(write=False) as session:
            found = list(session.scalars(query.order_by(ModelVersion.promoted_at.desc())))
        found.sort(key=lambda version: version.state is not ModelState.CHAMPION)
        return list(dict.fromkeys(version.name for version in found))

    def predict(
        self,
        tool_project_id: int | None,
        tasks: Sequence[Any],
        label_config: str | None,
        context: Mapping[str, Any] | None = None,
    ) -> list[Result]:
        """One result for each task, in their order, whatever goes wrong.

        Args:
            tool_project_id: the tool's number of the project.
            tasks: as Label Studio sends them.
            label_config: the project's labeling interface.
            context: an interactive prompt (a click, a box), or None.

        Returns:
            `{"result": [regions], "score": quality, "model_version": name}`. A task without a prediction
            gets an empty result, score 0, the reason as `error` and no model version: Label Studio would
            not ask again for a task that holds a prediction of the current one.

        Raises:
            LedgerError: the ledger cannot be had.
        """
        project = self.project(tool_project_id)
        try:
            config = _usable(project, tool_project_id, label_config, context)
        except ELNetError as error:
            return [empty(str(error)) for _ in tasks]
        assert project is not None  # noqa: S101 - else it was not usable
        end = time.monotonic() + self._budget_s
        return [
            result
            for start in range(0, len(tasks), _AT_ONCE)
            for result in self._some(project, tasks[start : start + _AT_ONCE], config, end)
        ]

    def _some(
        self, project: Project, tasks: Sequence[Any], config: LabelConfig, end: float
    ) -> Iterator[Result]:
        """The results of a few tasks."""
        told = [_decoded(task, config.image_field) for task in tasks]
        rows = self._rows(project, [task for task in told if isinstance(task, ToolTask)])
        found, reason = self._predictions(project, [row.id for row in rows.values()], end)
        failures = self._failures([row.id for row in rows.values() if row.id not in found])
        for task in told:
            if isinstance(task, str):
                yield empty(task)
                continue
            row_id = rows[task.id].id
            prediction = found.get(row_id)
            if prediction is None:
                yield empty(reason or failures.get(row_id) or "the task is gone, or has no image")
                continue
            version, holdout = prediction.model_version.name, rows[task.id].holdout
            blind = is_blind(project, version, row_id, holdout=holdout)
            yield _result(prediction, project.classes, config, blind=blind)

    def _rows(self, project: Project, tasks: Sequence[ToolTask]) -> dict[int, Task]:
        """The tool's id -> row; a task whose webhook has not come yet is added."""
        ids = {task.id for task in tasks}
        query = select(Task).where(Task.project_id == project.id, Task.tool_task_id.in_(ids))
        with self._ledger.session(write=False) as session:
            rows = {row.tool_task_id: row for row in session.scalars(query)}
        if new := [task for task in tasks if task.id not in rows]:
            with self._ledger.session() as session:
                add_tasks(session, session.get_one(Project, project.id), new)
                rows = {row.tool_task_id: row for row in session.scalars(query)}
        return rows

    def _predictions(
        self, project: Project, task_ids: list[int], end: float
    ) -> tuple[dict[int, Prediction], str]:
        """Task id -> prediction of those that can be had, and why there are no more."""
        held = predict_tasks(self._ledger, project.id, None, self._images, task_ids)
        lacking = [task_id for task_id in task_ids if task_id not in held]
        if not lacking:
            return held, ""
        late = "not computed yet: it is computed in the background and will be pushed"
        if not self._computing.acquire(timeout=max(0.0, end - time.monotonic())):
            return held, late
        try:
            for start in range(0, len(lacking), _COMPUTED):
                if time.monotonic() >= end:
                    return held, late
                some = lacking[start : start + _COMPUTED]
                held |= predict_tasks(self._ledger, project.id, self._predictor(project), self._images, some)
            return held, ""
        except LedgerError:
            raise
        except ELNetError as error:  # the checkpoint, the labeling tool's images
            log.warning("project %s: %s", project.name, error)
            return held, str(error)
        finally:
            self._computing.release()

    def _predictor(self, project: Project) -> MaskPredictor:
        assert project.champion is not None  # noqa: S101 - else it was not usable
        return self._predictors(project.champion)

    def _failures(self, task_ids: list[int]) -> dict[int, str]:
        """Why tasks have no prediction, as far as the ledger knows."""
        if not task_ids:
            return {}
        with self._ledger.session(write=False) as session:
            rows = session.execute(select(Task.id, Task.failure).where(Task.id.in_(task_ids)))
            return {task_id: failure for task_id, failure in rows if failure}


def empty(error: str) -> Result:
    """The result of a task that has no prediction."""
    return {"result": [], "score": 0.0, "model_version": "", "error": error}


class _NotServedError(ELNetError):
    """Why no task of a request can be answered."""


def _usable(
    project: Project | None,
    tool_project_id: int | None,
    label_config: str | None,
    context: Mapping[str, Any] | None,
) -> LabelConfig:
    """The labeling interface, if the request can be served at all."""
    if project is None:
        raise _NotServedError(
            f"the ledger holds no project {tool_project_id}: create it by `elnet project create`"
        )
    if context:
        raise _NotServedError("prompts are not answered yet: draw the mask, or start from the prefill")
    if project.champion is None:
        raise _NotServedError("no model version serves yet: it needs labels and a first cycle")
    if not label_config:
        raise LabelConfigError("the request carries no labeling interface")
    return parse_label_config(label_config)


def _decoded(task: Any, image_field: str) -> ToolTask | str:
    """A task, or why it is none."""
    try:
        if not isinstance(task, Mapping):
            raise EventError(f"a task must be an object, not {type(task).__name__}")
        return decode_task(task, image_field)
    except EventError as error:
        return str(error)


def _result(prediction: Prediction, classes: Sequence[str], config: LabelConfig, *, blind: bool) -> Result:
    masks = np.zeros_like(prediction.masks) if blind else prediction.masks
    try:
        regions = masks_to_regions(masks, classes, config.control, prediction.quality)
    except RegionError as error:
        return empty(str(error))
    return {
        "result": regions,
        "score": prediction.quality,
        "model_version": prediction.model_version.name,
    }
