"""A holdout that is drawn before the loop begins: random images that people label first, and that judge.

Without it the holdout is a share of whatever was labelled, which is small at first: a dozen images cannot
tell a better version from a worse one. Drawn images judge every version, the first one too.

They go to people as audits do, whatever a model says of them, and their labels count as audits: they were
drawn at random, and no version is trained on them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import routing
from active_learning.ledger import HoldoutScene, Project, Scene, Task, TaskStatus
from active_learning.ledger.draws import seeded
from active_learning.ledger.locking import lock_project
from active_learning.split import HOLDOUT, TRAIN
from model.errors import ELNetError

_OF_A_SCENE = 4  # images that one scene may give: the tiles of one large scene are much alike,
_PART = 5  # or this part of the holdout, or as many as it takes to leave half of the scenes alone


class HoldoutError(ELNetError):
    """So many images cannot be drawn."""


def draw(session: Session, project: Project, images: int) -> int:
    """Draw images at random for the holdout, until so many are drawn in all. Safe to repeat.

    Only of scenes that no model was trained on, and only images that nobody has labelled. The other images of
    their scenes will not be trained on either.

    Args:
        session: a writing session; the caller commits.
        project: the project, its images imported.
        images: how many, in all.

    Returns:
        How many are new.

    Raises:
        HoldoutError: there are not so many, or nothing would be left to train on.
    """
    lock_project(session, project.id)
    there = select(Task).where(Task.project_id == project.id, Task.status != TaskStatus.GONE)
    tasks = session.scalars(there.order_by(Task.id)).all()
    sides = {s.scene: s.side for s in session.scalars(select(Scene).where(Scene.project_id == project.id))}
    wanted = images - sum(task.holdout for task in tasks)
    if wanted <= 0:
        return 0
    free: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        if not task.holdout and task.status in routing.OPEN and sides.get(task.scene) != TRAIN:
            free[task.scene].append(task)
    of_a_scene = max(_OF_A_SCENE, images // _PART, math.ceil(wanted / max(1, len(free) // 2)))
    drawn = _choose(project.name, free, wanted, of_a_scene)
    scenes = {task.scene for task in drawn}
    left = sum(task.scene not in scenes and sides.get(task.scene) != HOLDOUT for task in tasks)
    if len(drawn) < wanted or not left:
        raise HoldoutError(
            f"project {project.name!r} has {len(tasks)} images of {len({t.scene for t in tasks})} scenes; "
            f"{images} for the holdout would leave too few to train on. Draw fewer, or import more"
        )
    for task in drawn:
        task.holdout = True
    for scene in sorted(scenes - sides.keys()):
        session.add(HoldoutScene(project_id=project.id, scene=scene))
    session.flush()
    routing.route(session, project, drawn)
    return len(drawn)


def _choose(name: str, free: Mapping[str, Sequence[Task]], wanted: int, of_a_scene: int) -> list[Task]:
    """Scenes in a random order, some images of each."""
    drawn: list[Task] = []
    for scene in _shuffled(name, free):
        ids = {str(task.id): task for task in free[scene]}
        some = [ids[key] for key in _shuffled(name, ids)]
        drawn += some[: min(of_a_scene, wanted - len(drawn))]
    return drawn


def _shuffled(name: str, keys: Iterable[str]) -> list[str]:
    """In an order that looks random and is the same each time for a project of this name."""
    return sorted(keys, key=lambda key: (seeded("holdout", name, key), key))
