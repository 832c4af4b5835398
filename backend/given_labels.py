"""Masks that a team already has become labels in Label Studio, as if the lead had drawn them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from active_learning.ledger import Ledger, Project, Task
from active_learning.ledger.draws import seeded
from backend.label_config import parse_label_config
from backend.label_studio import LabelStudio
from backend.regions import masks_to_regions
from model.errors import ELNetError
from model.raster import read_masks
from model.tiles import parse_tile

_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")


class GivenLabelError(ELNetError):
    """A given mask does not fit its image."""


def import_labels(
    ledger: Ledger, tool: LabelStudio, project: Project, masks: Path, *, share: float = 1.0
) -> int:
    """Submit the masks of a folder for the tasks that nobody has labelled yet. Safe to repeat.

    Args:
        ledger: the ledger.
        tool: the server.
        project: the project, its images imported.
        masks: folder with STEM.png for one class, or CLASS/STEM.png for several; images that were cut into
            tiles have one mask for all of them.
        share: of the scenes; which ones is the same at every call.

    Returns:
        How many labels were submitted.

    Raises:
        GivenLabelError: a mask is not of its image's size, or there is no folder for a class.
        RasterError: a mask cannot be read or is not binary.
    """
    control = parse_label_config(tool.project(project.tool_project_id)["label_config"]).control
    listed = tool.listed(project.tool_project_id)
    open_tasks = {task["id"] for task in listed if not task["total_annotations"]}
    with ledger.session(write=False) as session:
        tasks = session.scalars(select(Task).where(Task.project_id == project.id).order_by(Task.id)).all()
    count = 0
    for task in tasks:
        if task.tool_task_id not in open_tasks or seeded("given", task.scene) >= share:
            continue
        drawn = _read(masks, task, project.classes)
        if drawn is not None:
            body = {"result": masks_to_regions(drawn, project.classes, control, 1.0), "lead_time": 0}
            tool.lead.post(f"/api/tasks/{task.tool_task_id}/annotations/", body)
            count += 1
    return count


def _read(folder: Path, task: Task, classes: Sequence[str]) -> NDArray[np.bool_] | None:
    """(N, H, W) bool of a task, or None where a class has no mask for it."""
    paths = _paths(folder, Path(str(task.data.get("source", ""))).stem, classes)
    if paths is None or task.width is None or task.height is None:
        return None
    masks = _stack(paths)
    corner = _corner(task)
    row, column = corner or (0, 0)
    part = masks[:, row : row + task.height, column : column + task.width]
    if part.shape[1:] != (task.height, task.width) or (corner is None and part.shape != masks.shape):
        place = "" if corner is None else f", as the tile at row {row}, column {column}"
        raise GivenLabelError(
            f"{paths[0]} is {masks.shape[2]} x {masks.shape[1]} px, its image {task.width} x {task.height}"
            f"{place}: make them of one size, or take the mask out of the folder."
        )
    return part


def _stack(paths: Sequence[Path]) -> NDArray[np.bool_]:
    """The masks of one image: (N, H, W) bool."""
    planes = [read_masks(path)[0] for path in paths]
    for path, plane in zip(paths, planes, strict=True):
        if plane.shape != planes[0].shape:
            raise GivenLabelError(f"{path} and {paths[0]} are masks of one image and differ in size.")
    return np.stack(planes)


def _paths(folder: Path, stem: str, classes: Sequence[str]) -> list[Path] | None:
    """One mask file for each class."""
    folders = [folder / name if (folder / name).is_dir() else folder for name in classes]
    if len(classes) > 1 and folder in folders:
        lacking = classes[folders.index(folder)]
        raise GivenLabelError(f"{folder} has no folder {lacking!r}: put the masks into CLASS/STEM.png.")
    found = []
    for parent in folders:
        files = (parent / f"{stem}{suffix}" for suffix in _SUFFIXES)
        path = next((file for file in files if file.is_file()), None)
        if path is None:
            return None
        found.append(path)
    return found


def _corner(task: Task) -> tuple[int, int] | None:
    """Row and column of a tile's first pixel in the image that it was cut from; None for a whole image."""
    # `content` is the image's hash, and behind it what `cut` added to the name. The name itself would not
    # tell: a team's own images may be called like tiles.
    content = str(task.data.get("content", ""))
    tile = parse_tile(content)
    return (tile[1], tile[2]) if tile else None
