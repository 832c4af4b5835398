"""Frozen training sets: what people said up to now, written out once and named by its content."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import LargeBinary, select, type_coerce
from sqlalchemy.orm import Session

from active_learning.ledger import (
    HoldoutScene,
    Label,
    LabelSource,
    Ledger,
    Project,
    Scene,
    Snapshot,
    Task,
    TrainScene,
)
from active_learning.ledger.locking import lock_project
from active_learning.ledger.types import decode_masks
from active_learning.living import current_ids
from active_learning.ports import ImageSource, ImageUnavailableError
from active_learning.snapshot_files import WORK, Entry, MisfitError, publish, render, stem_of, workshop
from active_learning.split import HOLDOUT, TRAIN, assign
from model.errors import ELNetError
from model.raster import RasterError

_COUNTED = ("stem", "scene", "content", "source", "weight", "image_sha256")  # what makes two snapshots differ


class SnapshotError(ELNetError):
    """No training set can be had: too few labels, or nowhere to write. The text says what to do."""


class _Labelled(NamedTuple):
    """A task and its label, as read; the masks still packed."""

    task_id: int
    tool_task_id: int
    image_uri: str
    scene: str
    label_id: int
    content: str
    source: LabelSource
    soft_edges: bool
    masks: bytes


class Export(NamedTuple):
    """What was written: how many images, and the others' URIs with the reason why not."""

    images: int
    left_out: dict[str, str]


def take(session: Session, project: Project, images: ImageSource, folder: Path) -> Snapshot:
    """Write out every task's latest living label by a person, and freeze it.

    Machine labels are never in it. What was frozen before is found again: the same labels of the same images
    give the same row and folder. An image that cannot be had, or whose label does not fit it, is left out and
    named in the manifest with the reason. The manifest:

        {"format", "project", "classes", "train": [ENTRY...], "holdout": [ENTRY...], "left_out": [...]}

    ENTRY holds stem, task_id, tool_task_id, image_uri, scene, label_id, content (hash of the masks), source,
    soft_edges, weight, height, width and image_sha256 (of the decoded pixels); one that was left out has no
    size and a reason.

    The transaction that the session is in is committed before the images are read, which may take minutes;
    a short one after it writes the sides of new scenes and the snapshot.

    Args:
        session: a writing session; the caller commits.
        project: the project.
        images: the pixels.
        folder: where snapshots are kept; made if absent.

    Returns:
        The snapshot; its files are in folder / sha256, see `snapshot_files`.

    Raises:
        SnapshotError: fewer than two scenes can be used, or the folder cannot be written.
        ToolUnavailableError: the labeling tool that keeps the images does not answer.
    """
    labelled = _read(session, project)
    known = _known_sides(session, project)
    classes = _checked(project)
    session.commit()
    try:
        with workshop(folder, str(project.id)) as place:
            entries, left_out = _render(labelled, images, classes, place)
            sides = assign(Counter(e["scene"] for e in entries), known, project.holdout_share)
            if missing := {TRAIN, HOLDOUT} - set(sides.values()):
                raise SnapshotError(_too_few(project, entries, left_out, len(missing)))
            manifest = _manifest(project, entries, left_out, sides)
            sha256 = _sha256(manifest)
            publish(place, manifest, sha256, folder / sha256)
    except (OSError, RasterError) as error:
        raise SnapshotError(f"the snapshot cannot be written below {folder}: {error}") from error
    _keep_sides(session, project, sides)
    found = select(Snapshot).where(Snapshot.project_id == project.id, Snapshot.sha256 == sha256)
    if (snapshot := session.scalar(found)) is None:
        snapshot = Snapshot(project_id=project.id, sha256=sha256, manifest=manifest)
        session.add(snapshot)
        session.flush()
    return snapshot


def restore(ledger: Ledger, snapshot: Snapshot, images: ImageSource, folder: Path) -> Path:
    """The files of a snapshot; written out again from labels and images where this machine lacks them.

    Args:
        ledger: keeps every label for good.
        snapshot: of the ledger.
        images: the pixels.
        folder: where snapshots are kept; made if absent.

    Returns:
        folder / sha256, see `snapshot_files`.

    Raises:
        SnapshotError: an image is gone or shows something else by now, or the folder cannot be written.
        ToolUnavailableError: the labeling tool that keeps the images does not answer.
    """
    final, manifest = folder / snapshot.sha256, snapshot.manifest
    if final.is_dir():
        return final
    try:
        with workshop(folder, f"{snapshot.project_id}-again") as place:
            for entry in [*manifest[TRAIN], *manifest[HOLDOUT]]:
                raster = images.open(entry["image_uri"])
                with ledger.session(write=False) as session:
                    drawn = select(type_coerce(Label.masks, LargeBinary)).where(Label.id == entry["label_id"])
                    masks = decode_masks(session.scalars(drawn).one())
                made = render(place / WORK, entry["stem"], raster, masks, manifest["classes"])
                if made["image_sha256"] != entry["image_sha256"]:
                    raise SnapshotError(f"{entry['image_uri']} shows something else by now")
            publish(place, manifest, snapshot.sha256, final)
    except (OSError, RasterError, ImageUnavailableError, SnapshotError) as error:
        raise SnapshotError(
            f"the snapshot {snapshot.sha256[:12]} is not on this machine, and cannot be written again below "
            f"{folder}: {error}; ask for a new cycle (`elnet retrain`)"
        ) from error
    return final


def export(session: Session, project: Project, images: ImageSource, folder: Path) -> Export:
    """Write every task's latest living label by a person beside its image, for work outside of the loop.

    Both sides of the split together, as images/ and masks/ that `model.pairs.find_pairs` reads, with a
    manifest.json of classes and scenes.

    Args:
        session: any; its transaction is ended before the images are read.
        project: the project.
        images: the pixels.
        folder: must not exist, or be empty; it appears when everything is written.

    Raises:
        SnapshotError: nothing is labelled, the folder holds something, or it cannot be written.
        ToolUnavailableError: the labeling tool that keeps the images does not answer.
    """
    labelled, classes = _read(session, project), _checked(project)
    session.rollback()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SnapshotError(f"{folder} holds something already; name another folder")
    try:
        with workshop(folder.resolve().parent, f"export-{project.id}") as place:
            entries, left_out = _render(labelled, images, classes, place)
            if not entries:
                raise SnapshotError(f"project {project.name!r} has no label that could be exported")
            scenes = {entry["stem"]: entry["scene"] for entry in entries}
            told = json.dumps({"classes": classes, "scenes": scenes}, indent=2)
            (place / WORK / "manifest.json").write_text(told + "\n")
            if folder.exists():
                folder.rmdir()
            (place / WORK).rename(folder)
    except (OSError, RasterError) as error:
        raise SnapshotError(f"the labels cannot be written to {folder}: {error}") from error
    return Export(len(entries), {entry["image_uri"]: entry["reason"] for entry in left_out})


def _read(session: Session, project: Project) -> list[_Labelled]:
    rows = session.execute(
        select(
            Task.id,
            Task.tool_task_id,
            Task.image_uri,
            Task.scene,
            Label.id,
            Label.content,
            Label.source,
            Label.soft_edges,
            type_coerce(Label.masks, LargeBinary),
        )
        .join(Label, Label.task_id == Task.id)
        .where(Label.id.in_(current_ids(project.id)))
        .order_by(Task.id)
    )
    return [_Labelled(*row) for row in rows]


def _checked(project: Project) -> list[str]:
    """The classes, which become names of folders."""
    for name in project.classes:
        if not name or name.startswith(".") or set(name) & set("/\\\0"):
            raise SnapshotError(f"the class {name!r} cannot be the name of a folder; rename it")
    return list(project.classes)


def _render(
    labelled: Sequence[_Labelled], images: ImageSource, classes: Sequence[str], place: Path
) -> tuple[list[Entry], list[Entry]]:
    """Write what can be used; the entries of that, and of what was left out."""
    entries, left_out = [], []
    for item in labelled:
        entry = {"stem": stem_of(item.task_id), **item._asdict(), "source": item.source.value}
        masks = decode_masks(entry.pop("masks"))
        try:
            raster = images.open(item.image_uri)
        except (ImageUnavailableError, RasterError) as error:
            left_out.append({**entry, "reason": str(error)})
            continue
        try:
            entries.append(
                {**entry, "weight": 1.0, **render(place / WORK, entry["stem"], raster, masks, classes)}
            )
        except MisfitError as error:
            left_out.append({**entry, "reason": str(error)})
    return entries, left_out


def _too_few(project: Project, entries: Sequence[Entry], left_out: Sequence[Entry], missing: int) -> str:
    scenes = len({entry["scene"] for entry in entries})
    text = (
        f"project {project.name!r} needs labels of at least two scenes, one to train on and one to judge by, "
        f"but has {len(entries)} usable of {scenes}; label at least {missing} more, "
        f"of {'another scene' if scenes else 'two scenes'}"
    )
    if left_out:
        first = left_out[0]
        text += f" ({len(left_out)} cannot be used, such as {first['image_uri']}: {first['reason']})"
    return text


def _manifest(
    project: Project, entries: Sequence[Entry], left_out: Sequence[Entry], sides: dict[str, str]
) -> dict[str, Any]:
    return {
        "format": 1,
        "project": project.name,
        "classes": list(project.classes),
        **{side: [e for e in entries if sides[e["scene"]] == side] for side in (TRAIN, HOLDOUT)},
        "left_out": list(left_out),
    }


def _sha256(manifest: dict[str, Any]) -> str:
    """Of what matters to training and evaluation: not of label ids, nor of how a failure is worded."""
    counted = {
        "classes": manifest["classes"],
        TRAIN: [[entry[key] for key in _COUNTED] for entry in manifest[TRAIN]],
        HOLDOUT: [[entry[key] for key in _COUNTED] for entry in manifest[HOLDOUT]],
        "left_out": [[entry["stem"], entry["content"]] for entry in manifest["left_out"]],
    }
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def _known_sides(session: Session, project: Project) -> dict[str, str]:
    return {s.scene: s.side for s in session.scalars(select(Scene).where(Scene.project_id == project.id))}


def _keep_sides(session: Session, project: Project, sides: dict[str, str]) -> None:
    """Write down the sides of new scenes, for good."""
    lock_project(session, project.id)
    known = _known_sides(session, project)
    if any(known.get(scene, side) != side for scene, side in sides.items()):
        raise SnapshotError(
            f"another snapshot of project {project.name!r} was taken at the same time; try again"
        )
    for scene in sorted(sides.keys() - known.keys()):
        kind = HoldoutScene if sides[scene] == HOLDOUT else TrainScene
        session.add(kind(project_id=project.id, scene=scene))
    session.flush()
