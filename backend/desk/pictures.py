"""Small pictures of tasks, and masks to lay over them."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from flask import Blueprint, Response, request, send_file, url_for
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.exceptions import NotFound

from active_learning.labels import current_label
from active_learning.ledger import HoldoutMask, ModelVersion, Prediction, Project, Task
from active_learning.ports import ImageUnavailableError
from active_learning.routing import hides_mask
from backend.content_cache import ContentCache
from backend.desk.project_page import open_project
from backend.services import services

blueprint = Blueprint("desk_pictures", __name__, url_prefix="/desk")

SIDES: Final = (320, 960)  # px of the longer side
LABEL: Final = "label"  # in the place of a version's name: what a human drew
LABEL_COLOUR: Final = (25, 211, 255)
CLASS_COLOURS: Final = ((255, 122, 0), (232, 62, 200), (255, 224, 51), (80, 220, 90), (120, 140, 255))
_VEIL: Final = 70  # alpha, of 255
_COVERED: Final = 0.4  # of a small pixel that a mask must cover to be seen in it


def layers(
    project: Project,
    task: int,
    version: str | None = None,
    *,
    labelled: bool = False,
    judged: bool = False,
) -> list[tuple[str, str]]:
    """What pages lay over a picture: "model" or "label", and the address of each mask.

    Args:
        project: the project.
        task: id in Label Studio.
        version: whose mask; None: no version's.
        labelled: what a human drew, too.
        judged: the mask that the version was judged by, rather than the one that people were shown.
    """
    names = [("model", version, 1 if judged else None)] if version is not None else []
    names += [("label", LABEL, None)] if labelled else []
    return [
        (layer, url_for("desk_pictures.mask", project_id=project.id, task=task, name=name, judged=asked))
        for layer, name, asked in names
    ]


def is_hidden(project: Project, task: Task, version: str) -> bool:
    """Whether no page shows a version's mask of a task: a blind audit of it is open.

    An audit is the champion's, and any version's mask would give away where its mask lies.
    """
    champion = project.champion.name if project.champion else version
    return hides_mask(project, champion, task.id, task.status, holdout=task.holdout)


@blueprint.get("/<int:project_id>/pictures/<int:task>.jpg")
def image(project_id: int, task: int) -> Response:
    """The image of a task (its id in Label Studio), made small."""
    side = _side()
    with open_project(project_id) as (session, project):
        uri = _task(session, project, task).image_uri
    settings = services().settings
    cache = ContentCache(settings.state / "thumbnails")
    key = f"{settings.label_studio.url}\n{side}\n{uri}"  # /data/... means another image on another server
    path = cache.get(key)
    if path is None:
        try:
            raster = services().images.open(uri)
        except ImageUnavailableError as error:
            raise NotFound(str(error)) from error
        picture = Image.fromarray(raster.pixels)
        picture.thumbnail((side, side))
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=85)
        path = cache.put(key, [content.getvalue()])
    return send_file(path, mimetype="image/jpeg", max_age=86_400)


@blueprint.get("/<int:project_id>/pictures/<int:task>/<name>.png")
def mask(project_id: int, task: int, name: str) -> Response:
    """The masks of a version, or what a human drew (`label`), as outlines on nothing.

    `judged` asks for those that the version was judged by, where they are kept, for a page that shows figures
    of them; other pages are about the prediction, which people were shown.
    """
    side = _side()
    with open_project(project_id) as (session, project):
        row = _task(session, project, task)
        if name != LABEL and is_hidden(project, row, name):
            raise NotFound(f"Task {task} waits for a blind audit: nobody sees its masks before the label.")
        masks = _masks(session, row, name, judged="judged" in request.args)
    if name == LABEL:
        drawn = overlay(np.array([masks.any(axis=0)]), side, (LABEL_COLOUR,), veil=0)
    else:
        drawn = overlay(masks, side, CLASS_COLOURS, veil=_VEIL)
    content = io.BytesIO()
    Image.fromarray(drawn).save(content, "PNG")
    response = Response(content.getvalue(), content_type="image/png")
    # A version's masks hardly ever change (judged again, by other settings); a label may.
    response.headers["Cache-Control"] = "private, no-cache" if name == LABEL else "private, max-age=86400"
    return response


def overlay(
    masks: NDArray[np.bool_], side: int, colours: tuple[tuple[int, int, int], ...], veil: int
) -> NDArray[np.uint8]:
    """Masks as outlines two pixels wide, with a veil inside.

    Args:
        masks: (N, H, W), one for each class.
        side: px of the longer side of what comes out, at most.
        colours: of the classes, in turn.
        veil: alpha inside, 0 to 255.

    Returns:
        (h, w, 4) uint8, transparent where no mask is.
    """
    height, width = masks.shape[1:]
    scale = min(1.0, side / max(height, width, 1))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = np.zeros((size[1], size[0], 4), np.uint8)
    for number, plane in enumerate(masks):
        covered = Image.fromarray(plane.astype(np.uint8) * np.uint8(255)).resize(size, Image.Resampling.BOX)
        small = np.asarray(covered) >= 255 * _COVERED
        inner = ndimage.binary_erosion(small, iterations=2, border_value=1)
        colour = colours[number % len(colours)]
        canvas[small & inner] = (*colour, veil)
        canvas[small & ~inner] = (*colour, 255)
    return canvas


def _side() -> int:
    asked = request.args.get("side", SIDES[0], type=int)
    return min(SIDES, key=lambda side: abs(side - asked))


def _task(session: Session, project: Project, task: int) -> Task:
    found = session.scalar(select(Task).where(Task.project_id == project.id, Task.tool_task_id == task))
    if found is None:
        raise NotFound(f"{project.name!r} has no task {task}.")
    return found


def _masks(session: Session, task: Task, name: str, *, judged: bool) -> NDArray[np.bool_]:
    """(N, H, W) bool."""
    if name == LABEL:
        label = current_label(session, task)
        if label is not None and label.masks is not None and label.masks.size:
            return label.masks
    else:
        for kind in (HoldoutMask, Prediction) if judged else (Prediction,):
            mine = select(kind.masks).join(ModelVersion, ModelVersion.id == kind.model_version_id)
            masks = session.scalar(mine.where(kind.task_id == task.id, ModelVersion.name == name))
            if masks is not None:
                return masks
    raise NotFound(f"Task {task.tool_task_id} has no mask by {name!r}.")
