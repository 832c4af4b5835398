"""Whether images have come in that are unlike those that were audited: no audit speaks for them.

Each image is as strange as it is far, in the trunk's embedding, from the nearest audited image of another
scene. Audited images among themselves show what is usual: a tenth of them is stranger than the rest. Where
far more than a tenth of the accepted images is as strange as that tenth, the imagery has drifted. No label is
needed to see it, and it is seen long before enough audits of the new images could tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from active_learning import thresholds
from active_learning.ledger import (
    Label,
    LabelSource,
    Prediction,
    Project,
    Task,
    TaskStatus,
    ThresholdChange,
)
from active_learning.living import current_ids

USUAL = 0.1  # share of the audited images that counts as strange
FACTOR = 2.0  # so many times as many strange ones are drift, where chance does not explain them,
ALARM = 4.0  # that is, from so many standard errors on: rare enough to be looked at after every import
LEAST_AUDITED = 20  # scenes; below, nothing is usual yet
LEAST_ACCEPTED = 10  # scenes
LOOK = 2000  # images of either kind, the newest ones

Embeddings = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Drift:
    """What accepted images look like beside audited ones.

    Attributes:
        audited: scenes that were audited.
        accepted: scenes that were accepted.
        strange: share of the accepted images that are as strange as the strangest tenth of the audited ones;
            the mean over scenes.
        errors: by how many standard errors that is more than a tenth.
    """

    audited: int
    accepted: int
    strange: float
    errors: float

    @property
    def alarming(self) -> bool:
        """Whether it is too much to go on accepting."""
        return self.errors >= ALARM and self.strange >= FACTOR * USUAL

    def __str__(self) -> str:
        """For a lead."""
        return (
            f"of the images accepted since the threshold last moved, {self.strange:.0%} are as unlike the "
            f"{self.audited} audited scenes as only {USUAL:.0%} of those are unlike each other"
        )


def compare(
    audited: Embeddings, audited_scenes: Sequence[str], accepted: Embeddings, accepted_scenes: Sequence[str]
) -> Drift | None:
    """Compare two sets of images.

    Where both are of one kind, the ranks of the distances are exchangeable, and the share that is strange is
    a tenth up to chance; its standard error counts scenes, since siblings say the same thing several times.

    Args:
        audited: (n, C).
        audited_scenes: n scenes.
        accepted: (m, C).
        accepted_scenes: m scenes.

    Returns:
        None where there are too few scenes of either to tell.
    """
    known, new = np.asarray(audited_scenes), np.asarray(accepted_scenes)
    usual, scenes = np.unique(known), np.unique(new)
    if len(usual) < LEAST_AUDITED or len(scenes) < LEAST_ACCEPTED:
        return None
    within = _nearest(audited, known, audited, known)
    beyond = _nearest(accepted, new, audited, known)
    ranks = (1 + (within[None] >= beyond[:, None]).sum(axis=1)) / (len(within) + 1)
    share = float(np.mean([(ranks[new == scene] <= USUAL).mean() for scene in scenes]))
    error = math.sqrt(USUAL * (1 - USUAL) * (1 / len(scenes) + 1 / len(usual)))
    return Drift(len(usual), len(scenes), share, (share - USUAL) / error)


def drift(session: Session, project: Project) -> Drift | None:
    """Look at what was accepted since the threshold's last move, beside audited images that reach it as well.

    Only those: what is accepted is never a random draw of all images, but beside its like it is one. Both
    sides are embeddings by the champion, since adapters change them: after a promotion nothing can be
    said until some of its own masks were audited. What had been accepted when a lead last decided was known
    to the lead.

    Returns:
        None where nothing is accepted, or there are too few images to tell.
    """
    if project.accept_threshold is None or project.champion_id is None:
        return None
    last = thresholds.last_change(session, project)
    mine = Prediction.model_version_id == project.champion_id
    of_champion: Select[Any, Any] = (
        select(Prediction.embedding, Task.scene)
        .join(Task, Task.id == Prediction.task_id)
        .where(mine, Prediction.embedding.is_not(None))
        .order_by(Prediction.id.desc())
        .limit(LOOK)
    )
    audits = select(Label.prediction_id).where(Label.id.in_(current_ids(project.id, (LabelSource.AUDIT,))))
    reaches = Prediction.quality >= project.accept_threshold
    known = _finite(session, of_champion.where(Prediction.id.in_(audits), reaches))
    accepted = of_champion.where(Task.status == TaskStatus.ACCEPTED)
    if last is not None:
        accepted = accepted.where(Prediction.created_at > last.at)
    new = _finite(session, accepted)
    if not known or not new:
        return None
    (audited, audited_scenes), (others, scenes) = (zip(*rows, strict=True) for rows in (known, new))
    return compare(np.stack(audited), audited_scenes, np.stack(others), scenes)


def watch(session: Session, project: Project) -> ThresholdChange | None:
    """Switch auto-accept off when the imagery has drifted.

    Args:
        session: a writing session; the caller commits.
        project: the project.

    Returns:
        The change; None while there is no alarm.
    """
    found = drift(session, project)
    if found is None or not found.alarming:
        return None
    why = (
        f"the imagery has drifted: {found}. Audits of the new images will tell how good their masks are; "
        "nothing is accepted until a lead decides anew"
    )
    return thresholds.set_threshold(session, project, None, thresholds.LOOP, why)


def _finite(session: Session, query: Select[Any, Any]) -> list[tuple[Embeddings, str]]:
    return [(vector, scene) for vector, scene in session.execute(query) if np.isfinite(vector).all()]


def _nearest(
    rows: Embeddings, scenes: NDArray[np.str_], columns: Embeddings, others: NDArray[np.str_]
) -> NDArray[np.float64]:
    """The Euclidean distance of each row to the nearest column of another scene, (n,)."""
    a, b = rows.astype(np.float64), columns.astype(np.float64)
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    square[scenes[:, None] == others[None]] = np.inf
    found: NDArray[np.float64] = np.sqrt(np.maximum(square.min(axis=1), 0))
    return found
