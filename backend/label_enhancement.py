"""Labels that people drew, made better by the network and suggested beside them in Label Studio.

The labels stay as they are. A suggestion is a prediction of a model version of its own; who opens the task
copies it or not, and what they submit comes back like any other label.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from active_learning.inference import opened
from active_learning.ledger import Ledger, Project, Task, TaskStatus
from active_learning.living import current_label
from active_learning.ports import ImageSource, Prefill
from active_learning.signals import measure, score
from backend.label_studio import LabelStudio
from backend.label_studio_api import ENHANCED_MARK
from backend.views import ENHANCED, ensure_views
from model.enhance import Enhancement, enhance
from model.errors import ELNetError
from model.predictor import CUT, Predictor
from model.raster import Raster

_AT_ONCE = 32  # tasks whose masks are in memory


class LabelEnhancementError(ELNetError):
    """Tasks whose labels cannot be enhanced."""


@dataclass(frozen=True, slots=True)
class Suggested:
    """What became of one task.

    Attributes:
        task: its id in Label Studio.
        added, removed: pixels, over all classes.
        quality: score of the enhanced masks in [0, 1]; None where nothing is suggested.
        outcome: "suggested"; "unchanged": the network knows nothing better; or why it failed.
    """

    task: int
    added: int = 0
    removed: int = 0
    quality: float | None = None
    outcome: str = "suggested"

    @property
    def failed(self) -> bool:
        """Whether the task could not be worked off."""
        return self.outcome not in ("suggested", "unchanged")


def suggest(
    ledger: Ledger,
    tool: LabelStudio,
    images: ImageSource,
    project: Project,
    predictor: Predictor,
    chosen: Collection[int] | None,
    *,
    reach: float,
    smallest: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Suggested]:
    """Enhance the labels of tasks and show the results in Label Studio. Safe to repeat.

    Args:
        ledger: the ledger.
        tool: the server.
        images: where the pixels come from.
        project: the project.
        predictor: of a network that takes coarse masks and knows the project's classes.
        chosen: ids of Label Studio; None: every task that a person has labelled.
        reach: see `model.enhance.enhance`.
        smallest: see there.
        report: told how many tasks of how many are done.

    Returns:
        A row per task, by id. A broken image spoils only its own.

    Raises:
        LabelEnhancementError: a chosen task is not there or not labelled by a person, the network takes no
            coarse masks, or it knows other classes.
        ToolUnavailableError: Label Studio does not answer; what it took before stays.
    """
    _check(predictor, project)
    labelled = _labelled(ledger, project, chosen)
    ensure_views(tool, project.tool_project_id, [ENHANCED])
    rows: list[Suggested] = []
    report(0, len(labelled))
    for start in range(0, len(labelled), _AT_ONCE):
        part = labelled[start : start + _AT_ONCE]
        rows += _tell(
            tool, project, predictor.version, _made(ledger, images, predictor, part, reach, smallest)
        )
        report(len(rows), len(labelled))
    return rows


def _check(predictor: Predictor, project: Project) -> None:
    if not predictor.card.architecture.get("prompt"):
        raise LabelEnhancementError(
            f"{predictor.version} was trained without coarse masks and cannot enhance labels. Let the "
            "project train with `training: {prompted: 0.5}`, or name a checkpoint of `elnet train --prompted "
            "0.5`"
        )
    if list(predictor.card.classes) != project.classes:
        raise LabelEnhancementError(
            f"{predictor.version} knows the classes {', '.join(predictor.card.classes)}, project "
            f"{project.name!r} has {', '.join(project.classes)}"
        )


def _labelled(ledger: Ledger, project: Project, chosen: Collection[int] | None) -> list[Task]:
    """The tasks that are meant, each labelled by a person."""
    with ledger.session(write=False) as session:
        query = select(Task).where(Task.project_id == project.id, Task.status == TaskStatus.DONE)
        found = {task.tool_task_id: task for task in session.scalars(query.order_by(Task.tool_task_id))}
    if chosen is None:
        if not found:
            raise LabelEnhancementError(f"nobody has labelled an image of {project.name!r} yet")
        return list(found.values())
    if lacking := sorted(set(chosen) - found.keys()):
        raise LabelEnhancementError(
            f"project {project.name!r} has no label by a person for task {', '.join(map(str, lacking))}; "
            "the ids are those that Label Studio shows"
        )
    return [found[task_id] for task_id in sorted(set(chosen))]


def _made(
    ledger: Ledger,
    images: ImageSource,
    predictor: Predictor,
    tasks: Sequence[Task],
    reach: float,
    smallest: int,
) -> dict[int, Enhancement | str]:
    """Id in Label Studio -> the enhanced label, or why there is none."""
    drawn = _drawn(ledger, tasks)
    uris = {task.tool_task_id: task.image_uri for task in tasks}
    made: dict[int, Enhancement | str] = {}
    for group in opened(images, uris):
        fitting = {}
        for task_id, image in group:
            fault = image if isinstance(image, str) else _fault(image, drawn.get(task_id))
            if fault is not None:
                made[task_id] = fault
            elif isinstance(image, Raster):
                fitting[task_id] = image
        coarse = [drawn[task_id] for task_id in fitting]
        answers = enhance(predictor, list(fitting.values()), coarse, reach=reach, smallest=smallest)
        made |= dict(zip(fitting, answers, strict=True))
    return made


def _fault(image: Raster, drawn: NDArray[np.bool_] | None) -> str | None:
    """Why a label cannot be enhanced; None if it can."""
    if drawn is None:
        return "its label was deleted in the meantime"
    if drawn.shape[1:] == image.valid.shape:
        return None
    sizes = (f"{width} x {height} px" for height, width in (drawn.shape[1:], image.valid.shape))
    return "its label is of {}, its image of {}".format(*sizes)


def _tell(
    tool: LabelStudio, project: Project, version: str, made: Mapping[int, Enhancement | str]
) -> list[Suggested]:
    """Show what is better in Label Studio, and take back what an earlier network found better."""
    rows: dict[int, Suggested] = {}
    prefills = []
    for task_id, one in made.items():
        if isinstance(one, str):
            rows[task_id] = Suggested(task_id, outcome=one)
            continue
        added, removed = int(one.added.sum()), int(one.removed.sum())
        if not added and not removed:
            rows[task_id] = Suggested(task_id, outcome="unchanged")
            continue
        quality = score(measure(one.prediction, CUT))
        rows[task_id] = Suggested(task_id, added, removed, quality)
        prefills.append(Prefill(task_id, one.masks, quality, version + ENHANCED_MARK))
    held = tool.suggest(project.tool_project_id, project.classes, prefills)
    for task_id in {prefill.tool_task_id for prefill in prefills} - held.keys():
        rows[task_id] = Suggested(task_id, outcome="Label Studio does not hold the task any more")
    unchanged = [row.task for row in rows.values() if row.outcome == "unchanged"]
    tool.take_back_suggestions(project.tool_project_id, unchanged)
    return [rows[task_id] for task_id in sorted(rows)]


def _drawn(ledger: Ledger, tasks: Sequence[Task]) -> dict[int, NDArray[np.bool_]]:
    """Id in Label Studio -> what a person drew, (N, H, W) bool."""
    found: dict[int, NDArray[np.bool_]] = {}
    with ledger.session(write=False) as session:
        for task in tasks:
            label = current_label(session, task)
            if label is not None and label.masks is not None:
                found[task.tool_task_id] = label.masks
    return found
