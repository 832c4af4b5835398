"""Model versions: registered once, never changed; promotion and rollback move one pointer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from active_learning import thresholds
from active_learning.ledger import ModelState, ModelVersion, Project, Promotion, Snapshot
from active_learning.ledger.locking import lock_project
from active_learning.ledger.types import utc_now
from model.errors import ELNetError

_NAME = re.compile(r"elnet-(\d{4,})")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class RegistryError(ELNetError):
    """A model version cannot be registered or moved; the text says which, why, and what to do."""


def next_name(session: Session, project: Project) -> str:
    """The name that the next version will get, e.g. for the model card that training writes."""
    names = session.scalars(select(ModelVersion.name).where(ModelVersion.project_id == project.id))
    numbers = [int(found[1]) for name in names if (found := _NAME.fullmatch(name))]
    return f"elnet-{max(numbers, default=0) + 1:04d}"


def find(session: Session, project: Project, name: str) -> ModelVersion:
    """The version of a name.

    Raises:
        RegistryError: the project has none of this name.
    """
    mine = select(ModelVersion).where(ModelVersion.project_id == project.id, ModelVersion.name == name)
    version = session.scalar(mine)
    if version is None:
        raise RegistryError(f"{project.name!r} has no model version {name!r}: see `elnet models`.")
    return version


def register(
    session: Session,
    project: Project,
    path: Path | str,
    sha256: str,
    snapshot: Snapshot | None = None,
    parent: ModelVersion | None = None,
    metrics: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
) -> ModelVersion:
    """Enter a checkpoint as a new version, state TRAINED. Entering the same one again gives the first entry.

    Args:
        session: a writing session; the caller commits.
        project: the project.
        path: the checkpoint's folder or address, see `active_learning.checkpoints`.
        sha256: of its weights, 64 hexadecimal digits.
        snapshot: what it was trained on.
        parent: the version that it started from.
        metrics: on the holdout.
        name: default `next_name`.

    Raises:
        RegistryError: no sha256, the folder was registered with other weights, or the name is taken.
    """
    if not _SHA256.fullmatch(sha256):
        raise RegistryError(f"{path}: {sha256!r} is no sha256; give the one that save_checkpoint returned")
    lock_project(session, project.id)
    mine = select(ModelVersion).where(ModelVersion.project_id == project.id)
    if (known := session.scalar(mine.where(ModelVersion.path == str(path)))) is not None:
        if known.sha256 == sha256:
            return known
        raise RegistryError(
            f"{path} is {known.name} already, with other weights; versions never change: "
            "write the checkpoint to a folder of its own"
        )
    name = name or next_name(session, project)
    if session.scalar(mine.where(ModelVersion.name == name)) is not None:
        raise RegistryError(f"{name} exists already in project {project.name!r}; versions never change")
    version = ModelVersion(
        project_id=project.id,
        name=name,
        path=str(path),
        sha256=sha256,
        snapshot_id=snapshot.id if snapshot else None,
        parent_id=parent.id if parent else None,
        metrics=dict(metrics or {}),
    )
    session.add(version)
    session.flush()
    return version


def promote(session: Session, version: ModelVersion, who: str | None = None) -> None:
    """Make it the champion of its project; the former one retires. The champion itself stays as it is.

    Others that wait for a lead's word were compared with the former champion, and are put aside.

    Args:
        session: a writing session; the caller commits.
        version: the version.
        who: the lead; None: a cycle's gate.
    """
    project = lock_project(session, version.project_id)
    if project.champion_id == version.id:
        return
    _serve(session, project, version, rollback=False, who=who)
    session.execute(
        update(ModelVersion)
        .where(
            ModelVersion.project_id == version.project_id,
            ModelVersion.state == ModelState.CHALLENGER,
        )
        .values(state=ModelState.REJECTED)
    )


def challengers(session: Session, project: Project) -> list[str]:
    """Names of the versions that wait for a lead's word, the oldest first."""
    mine = (ModelVersion.project_id == project.id, ModelVersion.state == ModelState.CHALLENGER)
    return list(session.scalars(select(ModelVersion.name).where(*mine).order_by(ModelVersion.id)))


def challenge(session: Session, version: ModelVersion) -> None:
    """Write down that it is better than the champion and waits for a lead's word. Safe to repeat."""
    lock_project(session, version.project_id)
    session.refresh(version)
    if version.state is ModelState.TRAINED:  # else a lead has spoken already
        version.state = ModelState.CHALLENGER
        session.flush()


def reject(session: Session, version: ModelVersion) -> None:
    """Write down that it is put aside, by the gate or by a lead. Safe to repeat.

    Raises:
        RegistryError: it serves, or has served.
    """
    lock_project(session, version.project_id)
    session.refresh(version)
    if version.state not in {ModelState.TRAINED, ModelState.CHALLENGER, ModelState.REJECTED}:
        raise RegistryError(
            f"{version.name} is {version.state.value} and cannot be rejected; promote another, or roll back"
        )
    version.state = ModelState.REJECTED
    session.flush()


def rollback(session: Session, project: Project, who: str | None = None) -> ModelVersion:
    """Make the champion before this one the champion again.

    Each rollback takes back the last promotion that still holds: after 1, 2, 3 a rollback goes to 2, the next
    to 1; if 4 is then promoted, a rollback goes to 1.

    Returns:
        The version that serves now.

    Raises:
        RegistryError: there was no champion before.
    """
    lock_project(session, project.id)
    version = former(session, project)
    if version is None:
        raise RegistryError(
            f"project {project.name!r} had no champion before this one, so there is nothing to go back to; "
            "set the accept threshold to none to send everything to people"
        )
    _serve(session, project, version, rollback=True, who=who)
    return version


def former(session: Session, project: Project) -> ModelVersion | None:
    """The version that `rollback` goes back to; None: there was no champion before this one."""
    history: list[int] = []
    for move in session.scalars(
        select(Promotion).where(Promotion.project_id == project.id).order_by(Promotion.id)
    ):
        if move.rollback:
            history.pop()
        else:
            history.append(move.model_version_id)
    return session.get_one(ModelVersion, history[-2]) if len(history) > 1 else None


def _serve(
    session: Session, project: Project, version: ModelVersion, *, rollback: bool, who: str | None
) -> None:
    if project.champion is not None:
        project.champion.state = ModelState.RETIRED
        session.flush()  # before the new one: at no time are there two
    version.state = ModelState.CHAMPION
    version.promoted_at = utc_now()
    project.champion = version
    session.add(
        Promotion(
            project_id=project.id,
            model_version_id=version.id,
            rollback=rollback,
            who=who[:200] if who else None,
        )
    )
    session.flush()
    thresholds.keep(session, project)  # what was promised of the former champion says nothing of this one
