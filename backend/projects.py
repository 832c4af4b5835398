"""A project, made or mended: in Label Studio, in the ledger, and everything between."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy import select

from active_learning.ledger import Ledger, Project
from backend import told, wiring
from backend.label_config import LabelConfigError, parse_label_config
from backend.label_studio import LabelStudio
from backend.label_studio_api import BACKEND_MARK, Json
from backend.label_studio_http import LabelStudioError
from backend.labeling_interface import check_classes, labeling_interface
from backend.project_images import ImportReport, import_images, media_folder
from backend.settings import Settings
from backend.views import ensure_views
from model.errors import ELNetError

__all__ = ["ImportReport", "ProjectError", "create", "import_images", "repair"]

log = logging.getLogger(__name__)

_TITLE = (3, 50)  # characters that Label Studio takes
_INSTRUCTION = (
    "<p>Correct the mask that is shown, or draw one: brush and eraser for areas, polygon for straight edges. "
    "Submit an image without a mask if it shows nothing of the classes. Skip it if it cannot be decided.</p>"
    "<p>Where no mask is shown, draw it: that says nothing of what is there. A part of the audit is so on "
    "purpose.</p>"
)


class ProjectError(ELNetError):
    """A project that cannot be made or mended; the text says why."""


def create(
    ledger: Ledger,
    settings: Settings,
    tool: LabelStudio,
    name: str,
    classes: Sequence[str],
    images: Path | None = None,
    tile: int | None = None,
    *,
    upload: bool = False,
) -> Project:
    """Make a project, or mend what is half there. Safe to repeat: nothing is doubled.

    Images that cannot be read are logged and passed over.

    Args:
        ledger: the ledger, upgraded.
        settings: in force: the media root, the backend's address, its secrets, a new project's policy.
        tool: the server.
        name: its title in Label Studio, 3 to 50 characters, and its name in the ledger.
        classes: in the order of the mask planes; fixed for good.
        images: folder to import; None: only the project.
        tile: side of tiles in px for images that are larger; None: images above 2048 px are cut at 1024.
        upload: send the images to a server that does not see our disk, instead of linking them.

    Returns:
        The project's row.

    Raises:
        ProjectError: the name is taken by another project, or the classes differ from the project's.
        WiringError: Label Studio refuses the storage, or does not reach the backend; what could be made
            before that is made.
        ELNetError: the server does not answer, the folder cannot be read.
    """
    wanted = check_classes(classes)
    if not _TITLE[0] <= len(name) <= _TITLE[1] or name != name.strip():
        raise ProjectError(f"{name!r} cannot be a project's name: 3 to 50 characters, no space at its ends")
    project = _find(ledger, tool, name, wanted) or _make(ledger, settings, tool, name, wanted)
    _mend_interface(tool, project)
    ensure_views(tool, project.tool_project_id)
    if not upload:
        folder = media_folder(settings, project)
        folder.mkdir(parents=True, exist_ok=True)
        wiring.ensure_storage(tool, settings, project.tool_project_id, folder.name)
    if images is not None:
        import_images(ledger, settings, tool, project, images, tile, upload=upload)
    repair(ledger, settings, tool, project)
    return project


def repair(ledger: Ledger, settings: Settings, tool: LabelStudio, project: Project) -> None:
    """Connect a project with the backend again, after its address, secrets or champion changed.

    What Label Studio lost of predictions, acceptances and placements is told again by the worker.

    Raises:
        WiringError: Label Studio refuses the address, or does not reach the backend.
    """
    with ledger.session(write=False) as session:
        champion = session.get_one(Project, project.id).champion
    told.forget(ledger, told.lost(ledger, tool, project))
    wiring.ensure_webhook(tool, settings, project.tool_project_id)
    wiring.ensure_backend(tool, settings, project.tool_project_id, champion.name if champion else None)


def _find(ledger: Ledger, tool: LabelStudio, name: str, classes: list[str]) -> Project | None:
    """The ledger's project of this name, if Label Studio still has it."""
    with ledger.session() as session:
        project = session.scalar(select(Project).where(Project.name == name))
        if project is None:
            return None
        if project.classes != classes:
            raise ProjectError(
                f"project {name!r} has the classes {', '.join(project.classes)}, which are fixed; for "
                f"{', '.join(classes)} make a project of another name"
            )
        try:
            there = tool.project(project.tool_project_id)
        except LabelStudioError as error:
            if error.status != 404:
                raise
            raise ProjectError(
                f"project {name!r} was project {project.tool_project_id} of {project.tool_url}, and "
                f"{tool.url} has none of that number; make a project of another name (its labels stay in "
                "the ledger)"
            ) from error
        if project.tool_url != tool.url:
            if not _is_marked(there, name):
                raise ProjectError(
                    f"project {name!r} belongs to {project.tool_url}, not to {tool.url}; make a project of "
                    "another name there"
                )
            project.tool_url = tool.url  # the same server at another address
        return project


def _make(ledger: Ledger, settings: Settings, tool: LabelStudio, name: str, classes: list[str]) -> Project:
    """A new project; one that was half made before is taken up."""
    titled = [found for found in _projects(tool) if found["title"] == name]
    there = next((found for found in titled if _is_marked(found, name)), None)
    if there is None:
        if titled:
            raise ProjectError(
                f"Label Studio has a project {name!r} already, which was not made here; use another name, or "
                "rename that one"
            )
        there = tool.lead.post(
            "/api/projects/",
            {
                "title": name,
                "description": _mark(name),
                "label_config": labeling_interface(classes),
                "expert_instruction": _INSTRUCTION,
                "sampling": "Uncertainty sampling",
                "enable_empty_annotation": True,
                "show_skip_button": True,
                "show_collab_predictions": True,
                "maximum_annotations": 1,
            },
        )
        _remove_double(tool, name, there["id"])
    loop = settings.loop
    with ledger.session() as session:
        project = Project(
            name=name,
            tool_url=tool.url,
            tool_project_id=there["id"],
            classes=classes,
            **loop.model_dump(),
        )
        session.add(project)
    return project


def _remove_double(tool: LabelStudio, name: str, kept: int) -> None:
    """Label Studio runs a request again when its SQLite was locked halfway: then there are two."""
    for found in _projects(tool):
        if found["id"] != kept and found["title"] == name and _is_marked(found, name):
            tool.lead.delete(f"/api/projects/{found['id']}/")


def _projects(tool: LabelStudio) -> Iterator[Json]:
    page = 1
    while True:
        found = tool.lead.get("/api/projects/", page=page, page_size=100, include="id,title,description")
        yield from found["results"]
        if not found["next"]:
            return
        page += 1


def _mark(name: str) -> str:
    return f"{BACKEND_MARK}: {name}"


def _is_marked(there: Json, name: str) -> bool:
    return _mark(name) in (there.get("description") or "")


def _mend_interface(tool: LabelStudio, project: Project) -> None:
    """Give the interface its brush and classes back; while they are there, people may change the rest."""
    there = tool.project(project.tool_project_id)
    try:
        config = parse_label_config(there["label_config"])
        if config.brush is not None and set(project.classes) <= set(config.brush.labels):
            return
        log.warning("the labeling interface lacked classes of the project; it is set anew")
    except LabelConfigError as error:
        log.warning("%s; it is set anew", error)
    path = f"/api/projects/{project.tool_project_id}/"
    tool.lead.patch(path, {"label_config": labeling_interface(project.classes)})
