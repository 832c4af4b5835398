"""A folder of images -> tasks of a project, in Label Studio and in the ledger."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath

from sqlalchemy import select

from active_learning.ledger import Ledger, Project, Task
from active_learning.tasks import refresh_tasks
from backend import wiring
from backend.importing import Prepared, find_images, identify, prepare
from backend.label_studio import LabelStudio
from backend.label_studio_api import Json
from backend.settings import Settings
from model.raster import RasterError

log = logging.getLogger(__name__)

_TASKS = 100  # of one import
_UPLOADS = 20  # files of one request


@dataclass(slots=True)
class ImportReport:
    """What became of a folder of images.

    Attributes:
        added: new tasks.
        known: files that were imported before.
        skipped: file -> why it was not imported.
    """

    added: int = 0
    known: int = 0
    skipped: dict[Path, str] = field(default_factory=dict)


def import_images(
    ledger: Ledger,
    settings: Settings,
    tool: LabelStudio,
    project: Project,
    images: Path,
    tile: int | None = None,
    *,
    upload: bool = False,
) -> ImportReport:
    """Import a folder of images; those that were imported before, by path or content, are known.

    Args:
        ledger: the ledger.
        settings: the media root and its limits.
        tool: the server.
        project: the project.
        images: a folder.
        tile: as for `create`.
        upload: as for `create`.

    Returns:
        What became of each file.

    Raises:
        ImportFolderError: nothing in the folder, or the media folder cannot be written.
    """
    report = ImportReport()
    media = media_folder(settings, project)
    sizes: dict[str, tuple[int, int]] = {}
    new = _prepare_all(settings, tool, project, images, media, tile, report)
    while part := list(islice(new, _TASKS)):
        uris = _send(settings, tool, project, part, upload=upload)
        sizes |= {uri: (image.width, image.height) for uri, image in zip(uris, part, strict=True)}
    report.added = len(sizes)
    _record(ledger, tool, project, sizes)
    for path, reason in report.skipped.items():
        log.warning("not imported: %s", reason if str(path) in reason else f"{path}: {reason}")
    log.info("%d images imported, %d known, %d skipped", report.added, report.known, len(report.skipped))
    return report


def media_folder(settings: Settings, project: Project) -> Path:
    """Where the images of a project lie, below the media root."""
    slug = re.sub(r"[^a-z0-9]+", "-", project.name.lower()).strip("-") or "project"
    return settings.media_root / f"{slug}-{project.tool_project_id}"


def _prepare_all(
    settings: Settings,
    tool: LabelStudio,
    project: Project,
    images: Path,
    media: Path,
    tile: int | None,
    report: ImportReport,
) -> Iterator[Prepared]:
    """What is new of a folder, ready to be sent."""
    tasks = [task["data"] for task in tool.listed(project.tool_project_id)]
    contents = {str(data.get("content")) for data in tasks}
    sources = {str(data.get("source")): str(data.get("content"))[:16] for data in tasks}
    root = images / "images" if (images / "images").is_dir() else images
    for path in find_images(images):
        try:
            image = identify(path.resolve(), root.resolve(), settings.media.max_bytes)
            if sources.get(str(image.path), image.sha256) != image.sha256:
                report.skipped[path] = "has changed since it was imported; delete its task to import it again"
                continue
            count = 0
            for prepared in prepare(image, media, tile, settings.media.max_pixels, contents):
                contents.add(prepared.content)
                count += 1
                yield prepared
            report.known += not count
        except RasterError as error:
            report.skipped[path] = str(error)


def _send(
    settings: Settings, tool: LabelStudio, project: Project, images: Sequence[Prepared], *, upload: bool
) -> list[str]:
    """Make tasks in Label Studio; returns the addresses of their images."""
    if upload:
        uris = _upload(tool, project, images)
    else:
        root = settings.media_root
        uris = [
            wiring.local_files_uri(tool, PurePosixPath(image.path.relative_to(root).as_posix()))
            for image in images
        ]
    body = [{"data": _task_data(image, uri)} for image, uri in zip(images, uris, strict=True)]
    tool.lead.post(f"/api/projects/{project.tool_project_id}/import", body)
    if upload:
        for image in images:
            image.path.unlink()
    return uris


def _task_data(image: Prepared, uri: str) -> Json:
    """What the task says; route, quality and priority are the loop's, and come later."""
    data: Json = {
        "image": uri,
        "source": str(image.source),
        "scene": image.scene,
        "content": image.content,
        "route": "waiting",
        "quality": None,
        "priority": None,
    }
    if image.affine is not None:
        data |= {"affine": list(image.affine), "crs": image.crs}
    return data


def _upload(tool: LabelStudio, project: Project, images: Sequence[Prepared]) -> list[str]:
    """Send files to Label Studio; returns the addresses under which it serves them."""
    uris: list[str] = []
    path = f"/api/projects/{project.tool_project_id}/import"
    for start in range(0, len(images), _UPLOADS):
        part = images[start : start + _UPLOADS]
        files = [(f"file{i}", (image.path.name, image.path.read_bytes())) for i, image in enumerate(part)]
        params = {"commit_to_project": "false"}
        ids = tool.lead.request("POST", path, params=params, files=files)["file_upload_ids"]
        uris += [f"/data/{tool.lead.get(f'/api/import/file-upload/{i}')['file']}" for i in ids]
    return uris


def _record(
    ledger: Ledger, tool: LabelStudio, project: Project, sizes: Mapping[str, tuple[int, int]]
) -> None:
    """Write the tasks into the ledger, also those that an interrupted import left only in Label Studio."""
    _remove_double_tasks(tool, project)
    listed = list(tool.tasks(project.tool_project_id))
    with ledger.session() as session:
        refresh_tasks(session, session.get_one(Project, project.id), listed)
        for task in session.scalars(select(Task).where(Task.project_id == project.id)):
            if task.image_uri in sizes:
                task.width, task.height = sizes[task.image_uri]


def _remove_double_tasks(tool: LabelStudio, project: Project) -> None:
    """An import that was run again, by us or by Label Studio, leaves tasks twice: the older ones stay."""
    seen: set[str] = set()
    for task in list(tool.listed(project.tool_project_id)):
        content = task["data"].get("content")
        if content in seen and not task["total_annotations"] and not task["cancelled_annotations"]:
            tool.lead.delete(f"/api/tasks/{task['id']}/")
        elif content is not None:
            seen.add(content)
