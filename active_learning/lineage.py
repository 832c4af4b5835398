"""What a model version has learned from and was judged by, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import registry
from active_learning.ledger import ModelVersion, Project, Snapshot
from active_learning.split import HOLDOUT, TRAIN


@dataclass(frozen=True, slots=True)
class Use:
    """One label of one image in the life of a version.

    Attributes:
        version: name of the version.
        use: "train" or "holdout".
        through: the version whose own training it was: itself, or one that it went on from.
        snapshot: sha256 of the snapshot that held it.
        task: id of the image's task in the labeling tool.
        scene: of the image.
        label: id of the label in the ledger.
        content: hash of its masks.
        source: "human" or "audit".
        weight: in the training loss.
    """

    version: str
    use: str
    through: str
    snapshot: str
    task: int
    scene: str
    label: int
    content: str
    source: str
    weight: float


def of_version(session: Session, project: Project, name: str) -> list[Use]:
    """Every label that a version has learned from, itself or through those it went on from; and its holdout.

    A label that was used several times is told of the latest training.

    Raises:
        RegistryError: the project has no version of this name.
    """
    return _uses(session, registry.find(session, project, name))


def of_task(session: Session, project: Project, task: int) -> list[Use]:
    """Every use of an image's labels, version by version, the oldest first.

    Args:
        session: any.
        project: the project.
        task: id in the labeling tool.
    """
    versions = select(ModelVersion).where(ModelVersion.project_id == project.id).order_by(ModelVersion.id)
    return [
        use for version in session.scalars(versions) for use in _uses(session, version) if use.task == task
    ]


def _uses(session: Session, version: ModelVersion) -> list[Use]:
    found: dict[tuple[str, int, str], Use] = {}
    for ancestor in _ancestry(session, version):
        snapshot = session.get(Snapshot, ancestor.snapshot_id) if ancestor.snapshot_id else None
        for side in (TRAIN, HOLDOUT) if ancestor is version else (TRAIN,):
            for entry in snapshot.manifest[side] if snapshot is not None else ():
                use = Use(
                    version.name,
                    side,
                    ancestor.name,
                    snapshot.sha256 if snapshot is not None else "",
                    entry["tool_task_id"],
                    entry["scene"],
                    entry["label_id"],
                    entry["content"],
                    entry["source"],
                    entry["weight"],
                )
                found.setdefault((side, use.task, use.content), use)
    return list(found.values())


def _ancestry(session: Session, version: ModelVersion) -> Iterator[ModelVersion]:
    """A version, the one that its training went on from, and so on."""
    ancestor: ModelVersion | None = version
    while ancestor is not None:
        yield ancestor
        ancestor = session.get(ModelVersion, ancestor.parent_id) if ancestor.parent_id else None
