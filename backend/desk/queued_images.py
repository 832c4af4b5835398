"""Images of a queue with all that tells why they stand there, and the masks over their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import queue as queues
from active_learning.ledger import ModelVersion, Prediction, Project, Task, TaskStatus
from backend.addresses import task_url
from backend.desk.pictures import is_hidden
from backend.desk.signal_words import SignalWords, in_words

# That of the queue; elsewhere the least sure first.
ORDER: Final = (Task.priority.desc().nulls_last(), Task.quality.asc().nulls_first(), Task.id)


@dataclass(frozen=True, slots=True)
class QueuedImage:
    """An image with all that tells why it stands where it does.

    Attributes:
        place: in the order of the view, from 1 on.
        task: its id in Label Studio.
        name: of its file.
        scene: that it belongs to.
        size: width and height in pixels, once it was read.
        status: where it stands.
        priority: the queue is worked off from high to low; None outside the queues.
        quality: predicted IoU; None without a usable prediction.
        version: whose mask is shown; None without one.
        blind: whoever audits it is not shown the mask, so it is not shown here either.
        labelled: a person's label counts.
        holdout: drawn for the holdout, which judges every version.
        signals: what the prediction says of itself.
        why: it stands there, as its last route decision says.
        failure: why it cannot be read.
        url: where it opens in Label Studio.
    """

    place: int
    task: int
    name: str
    scene: str
    size: tuple[int, int] | None
    status: TaskStatus
    priority: float | None
    quality: float | None
    version: str | None
    blind: bool
    labelled: bool
    holdout: bool
    signals: SignalWords | None
    why: str
    failure: str | None
    url: str

    @property
    def mask_by(self) -> str | None:
        """The version whose mask may be shown."""
        return None if self.blind else self.version


def queued_images(session: Session, project: Project, tasks: Sequence[Task], begin: int) -> list[QueuedImage]:
    """Tasks with what the ledger holds of them.

    Args:
        session: any.
        project: the project.
        tasks: in the order of their view.
        begin: how many of it come before them.
    """
    ids = [task.id for task in tasks]
    why = queues.reasons(session, ids)
    said = _predictions(session, project, ids)
    found = []
    for place, task in enumerate(tasks, begin + 1):
        version, signals = said.get(task.id, (None, None))
        found.append(
            QueuedImage(
                place=place,
                task=task.tool_task_id,
                name=task.image_uri.rpartition("/")[2] or task.image_uri,
                scene=task.scene,
                size=(task.width, task.height) if task.width and task.height else None,
                status=task.status,
                priority=task.priority,
                quality=task.quality,
                version=version,
                blind=version is not None and is_hidden(project, task, version),
                labelled=task.status is TaskStatus.DONE,
                holdout=task.holdout,
                signals=None if signals is None else in_words(signals, project.classes),
                why=why.get(task.id, ""),
                failure=task.failure,
                url=task_url(project, task.tool_task_id),
            )
        )
    return found


def _predictions(
    session: Session, project: Project, ids: Sequence[int]
) -> dict[int, tuple[str, dict[str, Any]]]:
    """Task id -> version and signals, of the champion's prediction, or else of the last one."""
    rows = session.execute(
        select(Prediction.task_id, ModelVersion.name, Prediction.signals)
        .join(ModelVersion, ModelVersion.id == Prediction.model_version_id)
        .where(Prediction.task_id.in_(ids))
        .order_by(Prediction.model_version_id == project.champion_id, Prediction.id)
    )
    return {task_id: (name, signals) for task_id, name, signals in rows}
